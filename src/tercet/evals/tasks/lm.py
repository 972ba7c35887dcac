"""Benchmarks as lm-evaluation-harness 0.4.13 asks them without a chat template, byte for byte, to compare the two.

The harness joins description, examples and question into one plain text; its IFEval is the same as `ifeval@1`.
"""

from __future__ import annotations

from dataclasses import replace

from tercet.evals.layout import ask
from tercet.evals.task import Task
from tercet.evals.tasks import dev, mmlu, shots
from tercet.hub import Record
from tercet.rows import Sampling

_BY_ID = {task.id: task for task in dev.TASKS}


def _mmlu_block(record: Record) -> str:
    options = [f"{letter}. {text}" for letter, text in zip(mmlu.LETTERS, record["choices"], strict=True)]
    return "\n".join([str(record["question"]).strip(), *options, "Answer:"])


TASKS: tuple[Task, ...] = (
    replace(
        _BY_ID["gsm8k@2"],
        name="gsm8k:lm",
        version=1,
        layout="plain",
        prompt=lambda record: ask(f"Q: {record['question']}\nA:"),
        shots=lambda record, examples: [
            (f"Q: {question}\nA:", answer.replace("So the answer is", "The answer is"))
            for question, answer in shots.pairs_in("question", "answer")(examples)[:8]
        ],
        sampling=Sampling(max_new_tokens=256, stop=("Q:", "</s>", "<|im_end|>")),
        variant="the harness's gsm8k_cot; its flexible filter also takes a run of dots or commas for a number",
    ),
    replace(
        _BY_ID["mmlu:mc@1"],
        name="mmlu:lm",
        layout="plain",
        prompt=lambda record: ask(_mmlu_block(record)),
        shots=mmlu.shots_of(_mmlu_block, mmlu.right_letter),
        variant="the harness's mmlu with five examples (its own default is none) and options without a leading space",
    ),
    replace(
        _BY_ID["truthfulqa@1"],
        name="truthfulqa:lm",
        layout="plain",
        variant="the harness's truthfulqa_mc2; answers that the data repeats count once here, each time there",
    ),
    replace(
        _BY_ID["bbh@1"],
        name="bbh:lm",
        layout="plain",
        prompt=lambda record: ask(f"Q: {record['input']}\n{shots.STEPS}\n"),
        sampling=Sampling(max_new_tokens=1024, stop=("</s>", "Q", "\n\n")),
        verifier="phrase@1",
        variant="the harness's bbh_cot_fewshot, read by its own rule",
    ),
)
