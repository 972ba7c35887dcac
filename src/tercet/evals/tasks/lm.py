"""Benchmarks as lm-evaluation-harness 0.4.13 asks them without a chat template, byte for byte, to compare the two.

The harness joins description, examples and question into one plain text; its IFEval is the same as `ifeval@1`.
"""

from __future__ import annotations

from tercet.evals.layout import ask
from tercet.evals.tasks import dev, mmlu, shots
from tercet.evals.tasks.declared import Functions, declared
from tercet.hub import Record


def _mmlu_block(record: Record) -> str:
    options = [f"{letter}. {text}" for letter, text in zip(mmlu.LETTERS, record["choices"], strict=True)]
    return "\n".join([str(record["question"]).strip(), *options, "Answer:"])


FUNCTIONS: dict[str, Functions] = {
    "gsm8k:lm": {
        "prompt": lambda record: ask(f"Q: {record['question']}\nA:"),
        "shots": lambda record, examples: [
            (f"Q: {question}\nA:", answer.replace("So the answer is", "The answer is"))
            for question, answer in shots.pairs_in("question", "answer")(examples)[:8]
        ],
    },
    "mmlu:lm": {
        "prompt": lambda record: ask(_mmlu_block(record)),
        "shots": mmlu.shots_of(_mmlu_block, mmlu.right_letter),
    },
    "truthfulqa:lm": {},
    "bbh:lm": {"prompt": lambda record: ask(f"Q: {record['input']}\n{shots.STEPS}\n")},
}
TASKS = declared(FUNCTIONS, dev.FUNCTIONS)
