"""The unseen suite: benchmarks no recipe was tuned on, all without shots and in the chat layout.

MMLU-Pro, GPQA and AGIEval share one shape: reason briefly, then close with a fixed phrase that names a letter. Layouts
are those of the public data sets; in what a protocol leaves to words, the words are ours.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import tomllib
from collections.abc import Callable, Sequence
from functools import partial
from importlib.resources import files

from tercet.evals.layout import ask
from tercet.evals.task import GoldAnswers, TaskError
from tercet.evals.tasks.declared import Functions, declared
from tercet.evals.tasks.dev import instructions
from tercet.evals.tasks.mmlu import letter_reference
from tercet.evals.tasks.shots import columns, field, turn
from tercet.hub import PART, Record
from tercet.rows import Messages, Source

LETTERS = "ABCDEFGHIJ"

# ---- letters: MMLU-Pro, GPQA, AGIEval ----

PHRASE = "Therefore, the answer is (X)"
OPENING = (
    "Choose the answer to the following multiple-choice question. Reason about it concisely first. Then end with the "
    f'sentence "{PHRASE}", with the letter of your choice in place of X.\n\n'
)
REMINDER = f'\n\nKeep the reasoning concise and end with the exact phrase "{PHRASE}", where X is the letter you choose.'


def _lettered(question: str, options: Sequence[str], heading: str = "") -> Messages:
    """The question between instruction and reminder, and below it its options: "(A) 12 lamps"."""
    listed = "".join(f"\n {option}" for option in options)
    return ask(f"{OPENING}{question}{heading}{listed}{REMINDER}")


def _labelled(options: Sequence[str]) -> list[str]:
    return [f"({letter}) {option}" for letter, option in zip(LETTERS, options, strict=False)]


def _letter_gold(letter: Callable[[Record], str]) -> GoldAnswers:
    form = "One option fits what is asked. Therefore, the answer is ({})."
    return GoldAnswers(lambda row: form.format(letter(row)), lambda row: form.format("AB"[letter(row) == "A"]))


def _shuffled(record: Record) -> tuple[list[str], str]:
    """GPQA's options in the order that the row's number draws, and the letter of the right one.

    `_row` is the row's number in its file, which the published numbers seed the shuffle with.
    """
    right = _cleaned(record["Correct Answer"])
    options = [*(_cleaned(record[f"Incorrect Answer {k}"]) for k in (1, 2, 3)), right]
    random.Random(111 + record["_row"]).shuffle(options)
    return options, LETTERS[options.index(right)]


def _cleaned(text: str | None) -> str:
    if text is None:
        return " "
    return re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def _gpqa_prompt(record: Record) -> Messages:
    return _lettered(f"Question: {record['Question']}", _labelled(_shuffled(record)[0]), heading="\nChoices:")


def _gpqa_letter(record: Record) -> str:
    return _shuffled(record)[1]


_AGIEVAL, _AGIEVAL_REVISION = "github:ruixiangcui/AGIEval", "84ab72d94318290aad2e4ec820d535a95a1f7552"
AGIEVAL = ("aqua-rat", "gaokao-english", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "sat-en", "sat-math")

_OWN_LABEL = re.compile(r"\s*\(([A-F])\)\s*")


def _agieval_prompt(record: Record) -> Messages:
    """Options have their label in the file, "(A)12", and keep it: in 18 rows the labels are not in order."""
    passage = f"Passage: {record['passage']}\n\n" if record.get("passage") else ""
    own = [_OWN_LABEL.match(text) for text in record["options"]]
    options = [
        f"({label[1]}) {text[label.end() :]}" if label else positional
        for label, text, positional in zip(own, record["options"], _labelled(record["options"]), strict=True)
    ]
    return _lettered(f"{passage}Question: {record['question']}", options)


def _passage(record: Record) -> str:
    """Questions on one passage are one cluster; a question without a passage is its own."""
    return hashlib.sha256((record.get("passage") or record["question"]).encode()).hexdigest()[:16]


# ---- DeepMind Mathematics ----

# Module -> three made-up answers of the form it asks for.
_TABLE = tomllib.loads(files("tercet.evals.tasks").joinpath("deepmind_math.toml").read_text(encoding="utf-8"))
_FORMS = {**_TABLE["plain"], **_TABLE["composed"]}
_FORMS |= {f"{name}_composed": answers for name, answers in _TABLE["composed"].items()}
MODULES = tuple(sorted(_FORMS))
FINAL = "Therefore, the final answer is [answer]. I hope it is correct."


def _math_prompt(record: Record) -> Messages:
    closing = (
        f'Close with exactly this sentence: "{FINAL}" Put nothing but the answer in place of '
        "[answer]: lists in ascending order, unless the problem orders them otherwise, and separated by commas; ** for "
        "powers, * for products and / for fractions. Answers to problems of this kind look like these: "
    )
    opening = "Solve this mathematics problem in as few steps as it needs."
    return ask(f"{opening}\n\n{_plain(record['question'])}\n\n{closing}{_FORMS[_module(record)]}")


def _module(record: Record) -> str:
    name = str(record.get("category") or record[PART])
    if name not in _FORMS:
        raise TaskError(f"deepmind_math@1 knows no module {name!r}; expected one of {', '.join(MODULES)}")
    return name


def _plain(text: str) -> str:
    """The hub's copy holds the printed form of byte strings: `b'What is 2 + 2?\\n'`."""
    return re.sub(r"^b(['\"])(.*?)(?:\\n)?\1$", r"\2", text, flags=re.DOTALL).strip()


# ---- BigCodeBench-Hard, IFBench, HREF ----


def _code_prompt(record: Record) -> Messages:
    return ask(
        "Write a self-contained Python script, in one Markdown code block, that solves this problem:\n\n"
        + record["instruct_prompt"].strip()
    )


def _code_reference(record: Record) -> str:
    """Calibrated: imports and signature, with an empty body, come before whatever the model wrote."""
    kept = {"before": record["code_prompt"] + "\n    pass\n", "tests": record["test"]}
    kept |= {"entry_point": record["entry_point"], "kind": "unittest", "seconds": 60.0, "prompt": ""}
    return json.dumps(kept)


# Task type -> how the answer is compared to the baseline's: by a judge with the human reference, by one without it, or
# by the distance of both to the reference in embedding space.
_HREF = {
    "Brainstorm": "plain",
    "Summarize": "plain",
    "Fact Checking or Attributed QA": "embedding",
    "Open QA": "embedding",
}
_HREF |= dict.fromkeys(("Classify", "Closed QA", "Extract", "Generation", "Multi-Document Synthesis"), "reference")
_HREF |= dict.fromkeys(("Reasoning Over Numerical Data", "Rewrite"), "reference")


def _href_reference(record: Record) -> str:
    """The row's `output` is the baseline's answer."""
    category = record["category"]
    if category not in _HREF:
        raise TaskError(f"href@1 knows no category {category!r}; expected one of {', '.join(_HREF)}")
    kept = {"baseline": record["output"], "reference": record["reference"], "method": _HREF[category]}
    return json.dumps(kept, ensure_ascii=False)


FUNCTIONS: dict[str, Functions] = {
    "mmlu_pro": {
        "prompt": lambda record: _lettered(f"Question: {record['question']}", _labelled(record["options"])),
        "fields": columns("question"),
        "beside": lambda record: tuple(record["options"]),
        "reference": lambda record: letter_reference(record["answer"], LETTERS, brackets=True),
        "subset": field("category"),
        "gold": _letter_gold(field("answer")),
    },
    "gpqa": {
        "prompt": _gpqa_prompt,
        "fields": columns("Question"),
        "beside": lambda record: tuple(_shuffled(record)[0]),
        "reference": _gpqa_letter,
        "gold": _letter_gold(_gpqa_letter),
    },
    "agieval": {
        "data": tuple(
            Source(f"{_AGIEVAL}/data/v1/{{subset}}.jsonl", subset=name, split="test", revision=_AGIEVAL_REVISION)
            for name in AGIEVAL
        ),
        "prompt": _agieval_prompt,
        "fields": lambda record: (record.get("passage") or "", record["question"]),
        "beside": lambda record: tuple(_OWN_LABEL.sub("", text) for text in record["options"]),
        "reference": lambda record: letter_reference(record["label"], LETTERS[:6], brackets=True),
        "subset": field(PART),
        "cluster": _passage,
        "gold": _letter_gold(field("label")),
    },
    "deepmind_math": {
        "data": tuple(Source("deepmind/math_dataset", subset=name, split="test[:100]") for name in MODULES),
        "prompt": _math_prompt,
        "fields": lambda record: (_plain(record["question"]),),
        "reference": lambda record: _plain(record["answer"]),
        "subset": _module,
        "gold": GoldAnswers(
            lambda record: FINAL.replace("[answer]", _plain(record["answer"])),
            # 12 -> 712, x + 1 -> 7x + 1, True -> 7True
            lambda record: FINAL.replace("[answer]", "7" + _plain(record["answer"])),
        ),
    },
    "bigcodebench_hard": {
        "prompt": _code_prompt,
        "fields": columns("instruct_prompt"),
        "reference": _code_reference,
        "gold": GoldAnswers(
            lambda row: row["code_prompt"].rstrip() + "\n" + row["canonical_solution"].strip("\n") + "\n",
            lambda row: row["code_prompt"].rstrip() + '\n    raise NotImplementedError("nothing was written")\n',
        ),
    },
    "bigcodebench_hard:pass10": {},
    "ifbench": {
        "prompt": turn("prompt"),
        "fields": columns("prompt"),
        "reference": partial(instructions, ensure_ascii=False),
    },
    "ifbench:nltk": {},
    "href": {
        "prompt": turn("instruction"),
        "fields": columns("instruction"),
        "reference": _href_reference,
        "subset": field("category"),
    },
}
TASKS = declared(FUNCTIONS)
