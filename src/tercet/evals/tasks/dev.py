"""The development benchmarks of Tülu 3, as its published configurations ask them.

A name's middle part is the formulation (`mmlu:cot@1`); where sources disagree the plain name is the default and the
other side is declared beside it, with `variant` saying which is which.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from tercet.evals.layout import ask
from tercet.evals.task import Choices, GoldAnswers
from tercet.evals.tasks import mmlu, shots
from tercet.evals.tasks.declared import Functions, declared
from tercet.hub import NUMBER, PART, Record
from tercet.records import Result
from tercet.rows import Messages, Source
from tercet.stats import Estimate
from tercet.verify import answers

# ---- PopQA and TruthfulQA ----


def _popqa_aliases(record: Record) -> list[str]:
    aliases = record["possible_answers"]
    return [str(alias) for alias in (json.loads(aliases) if isinstance(aliases, str) else aliases)]


def _popqa_fields(record: Record) -> tuple[str, ...]:
    """The triple the question was made of, as the published check has it; the question where a copy lacks these."""
    triple = ("subj", "prop", "obj")
    return shots.columns(*(triple if all(name in record for name in triple) else ("question",)))(record)


def true_and_false(record: Record) -> tuple[list[str], list[str]]:
    """The different true and false answers of a TruthfulQA row, from the hub's columns or the original table's."""
    if "mc2_targets" in record:
        pairs = list(zip(record["mc2_targets"]["choices"], record["mc2_targets"]["labels"], strict=True))
        true, false = ([text for text, label in pairs if bool(label) is side] for side in (True, False))
    else:
        cells = (record[f"{side} Answers"].split(";") for side in ("Correct", "Incorrect"))
        true, false = ([part.strip() for part in cell if part.strip()] for cell in cells)
    true = list(dict.fromkeys(true))
    return true, [text for text in dict.fromkeys(false) if text not in true]


def truthfulqa_fields(record: Record) -> tuple[str]:
    """The bare question, from the hub's column or the original table's."""
    return (str(record["question" if "question" in record else "Question"]),)


def truthfulqa_question(record: Record) -> Messages:
    """The question in the form of the primer's own questions."""
    return ask(f"Q: {truthfulqa_fields(record)[0]}\nA:")


def truthfulqa_options(record: Record) -> Choices:
    """All answers with their leading space, the true ones first, and how many are true."""
    true, false = true_and_false(record)
    return [f" {text}" for text in true + false], len(true)


# ---- BIG-Bench Hard, GSM8K, MATH ----


def _bbh_files(path: str) -> tuple[Source, ...]:
    pinned = {"split": "test", "revision": "9ee07bd481feebf959a6b59d61ea57bdcf30964d"}
    path = f"github:suzgunmirac/BIG-Bench-Hard/{path}"
    return tuple(Source(path, subset=name, **pinned) for name in sorted(answers.BBH))


def final_number(record: Record) -> str:
    """What stands after the hashes of a GSM8K solution."""
    return str(record["answer"]).split("####")[-1].strip()


_SUBJECTS = (
    "Algebra", "Counting & Probability", "Geometry", "Intermediate Algebra", "Number Theory", "Prealgebra",
    "Precalculus",
)  # fmt: skip
MATH_SUBJECTS = {name: name.lower().replace(" & ", "_and_").replace(" ", "_") for name in _SUBJECTS}
_MATH_REVISION = "21a5633873b6a120296cce3e2df9d5550074f4a3"

# ---- programs, instructions and chat ----


def _program_prompt(record: Record) -> Messages:
    return ask(
        "Finish this Python function so that it does what its docstring says.\n\n"
        f"```python\n{str(record['prompt']).rstrip()}\n```"
    )


def _program_reference(record: Record) -> str:
    kept = {"before": "", "tests": record["test"], "entry_point": record["entry_point"], "kind": "check"}
    return json.dumps({**kept, "seconds": 3.0, "prompt": record["prompt"]}, ensure_ascii=False)


def instructions(record: Record, *, ensure_ascii: bool = True) -> str:
    """What the verifiers of IFEval and IFBench read."""
    kept = {key: record[key] for key in ("key", "prompt", "instruction_id_list", "kwargs")}
    return json.dumps(kept, ensure_ascii=ensure_ascii)


def _with_difficulty(records: list[Record]) -> Iterator[Record]:
    """The instructions with the difficulty that length control needs; the second source lists it by row number."""
    known = {
        record[NUMBER]: float(record["instruction_difficulty"]) for record in records if "instruction" not in record
    }
    yield from ({**r, "instruction_difficulty": known.get(r[NUMBER])} for r in records if "instruction" in r)


def _alpaca_reference(record: Record) -> str:
    kept = {"baseline": record["output"], "difficulty": record.get("instruction_difficulty")}
    return json.dumps(kept, ensure_ascii=False)


def _win_rate(results: Sequence[Result]) -> tuple[Estimate | None, dict[str, float]]:
    from tercet.evals import alpaca_eval

    return alpaca_eval.headline(results)


FUNCTIONS: dict[str, Functions] = {
    **mmlu.FUNCTIONS,
    "popqa": {
        "shots": shots.popqa,
        "fields": _popqa_fields,
        "shown": shots.popqa_shown,
        "prompt": lambda record: ask(f"Q: {record['question']} A:"),
        "reference": lambda record: json.dumps(_popqa_aliases(record), ensure_ascii=False),
        "gold": GoldAnswers(lambda record: _popqa_aliases(record)[0], lambda record: "#"),
    },
    "popqa:single": {},
    "truthfulqa": {
        "shots": shots.primer,
        "fields": truthfulqa_fields,
        "shown": shots.primer_shown,
        "prompt": truthfulqa_question,
        "reference": lambda record: true_and_false(record)[0][0],
        "options": truthfulqa_options,
    },
    "bbh": {
        "data": _bbh_files("bbh/{subset}.json"),
        "examples": _bbh_files("cot-prompts/{subset}.txt"),
        "shots": shots.bbh,
        "fields": shots.columns("input"),
        "shown": shots.bbh_shown,
        "prompt": lambda record: ask(f"Q: {record['input']}\n{shots.STEPS}"),
        "reference": lambda record: json.dumps({"answer": record["target"], "task": record[PART]}),
        "subset": shots.field(PART),
        "cluster": shots.field(PART),
        "gold": GoldAnswers(lambda row: f"So the answer is {row['target']}.", lambda row: "So the answer is zzz."),
    },
    "bbh:macro": {},
    "bbh:single": {},
    "drop": {
        "shots": shots.drop,
        "fields": shots.columns("passage", "question"),
        "shown": shots.drop_shown,
        "prompt": lambda record: ask(shots.drop_block(record)),
        "reference": lambda record: json.dumps(shots.drop_answers(record), ensure_ascii=False),
        "cluster": shots.field("section_id"),
        # only an answer of a single span can be had in full
        "gold": GoldAnswers(lambda row: " ".join(sorted(shots.drop_answers(row), key=len)[0]), lambda row: "zzz"),
    },
    "gsm8k": {
        "shots": shots.gsm8k,
        "fields": shots.columns("question"),
        "shown": shots.gsm8k_shown,
        "prompt": lambda record: ask(f"Question: {record['question']}\nAnswer:"),
        "reference": final_number,
        "gold": GoldAnswers(shots.field("answer"), lambda record: f"So the answer is {final_number(record)}1."),
    },
    "math": {
        "data": tuple(
            Source("EleutherAI/hendrycks_math", subset=subject, split="test", revision=_MATH_REVISION)
            for subject in MATH_SUBJECTS.values()
        ),
        "shots": shots.minerva,
        "fields": shots.columns("problem"),
        "shown": shots.minerva_shown,
        "prompt": lambda record: ask(f"Problem:\n{record['problem']}\n\nSolution:"),
        "reference": shots.field("solution"),
        "subset": lambda record: MATH_SUBJECTS[record["type"]],
        "gold": GoldAnswers(
            shots.field("solution"),
            lambda record: "Final Answer: The final answer is $-987654321$. I hope it is correct.",
        ),
    },
    "humaneval": {
        "prompt": _program_prompt,
        "fields": shots.columns("prompt"),
        "reference": _program_reference,
        "gold": GoldAnswers(lambda row: row["prompt"] + row["canonical_solution"], lambda row: row["prompt"]),
    },
    "humanevalplus": {},
    "ifeval": {"prompt": shots.turn("prompt"), "fields": shots.columns("prompt"), "reference": instructions},
    "ifeval:reference": {},
    "alpacaeval": {
        "unpack": _with_difficulty,
        "prompt": shots.turn("instruction"),
        "fields": shots.columns("instruction"),
        "reference": _alpaca_reference,
        "subset": shots.field("dataset"),
        "headline": _win_rate,
    },
}
TASKS = declared(FUNCTIONS)
