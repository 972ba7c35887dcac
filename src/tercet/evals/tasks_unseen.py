"""The unseen suite: exams no recipe was tuned on, all without shots and in the chat layout.

MMLU-Pro, GPQA and AGIEval share one shape: reason briefly, then close with a fixed phrase that names a letter. Layouts
are those of the public data sets; in what a protocol leaves to words, the words are ours.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace

from tercet.evals.layout import ask
from tercet.evals.task import Gold, Task, TaskError
from tercet.evals.tasks_shots import columns
from tercet.hub import PART, Record
from tercet.rows import Messages, Sampling, Source

LETTERS = "ABCDEFGHIJ"
REASONED = Sampling(max_new_tokens=2048)

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


def _letter_truth(answer: str, letters: str) -> str:
    return json.dumps({"answer": answer, "letters": letters, "brackets": True})


def _letter_gold(letter: Callable[[Record], str]) -> Gold:
    def closing(answer: str) -> str:
        return f"One option fits what is asked. Therefore, the answer is ({answer})."

    return Gold(lambda record: closing(letter(record)), lambda record: closing("B" if letter(record) == "A" else "A"))


def _pro_prompt(record: Record) -> Messages:
    return _lettered(f"Question: {record['question']}", _labelled(record["options"]))


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


AGIEVAL = ("aqua-rat", "gaokao-english", "logiqa-en", "lsat-ar", "lsat-lr", "lsat-rc", "sat-en", "sat-math")


def _agieval_prompt(record: Record) -> Messages:
    """Options have their label in the file, "(A)12", and keep it: in 18 rows the labels are not in order."""
    passage = f"Passage: {record['passage']}\n\n" if record.get("passage") else ""
    own = [re.match(r"\s*\(([A-F])\)\s*", text) for text in record["options"]]
    options = [
        f"({label[1]}) {text[label.end() :]}" if label else positional
        for label, text, positional in zip(own, record["options"], _labelled(record["options"]), strict=True)
    ]
    return _lettered(f"{passage}Question: {record['question']}", options)


def _passage(record: Record) -> str:
    """Questions on one passage are one cluster; a question without a passage is its own."""
    return hashlib.sha256((record.get("passage") or record["question"]).encode()).hexdigest()[:16]


# ---- DeepMind Mathematics ----

# Module -> three made-up answers of the form it asks for. One with a "+" has a `_composed` form that answers alike.
_ANSWERS = {
    "algebra__linear_1d +": "7; -12; 0",
    "algebra__linear_2d +": "3; -8; 11",
    "algebra__polynomial_roots +": "-4, 2/3, 9; 0, 1/7; 5*t*(t - 6)*(t + 1)",
    "algebra__sequence_next_term": "412; -9075; 33",
    "algebra__sequence_nth_term": "6*k - 11; -k**2 + 4*k; 2*k**3 + 9",
    "arithmetic__add_or_sub": "51.073; -880; 4096.5",
    "arithmetic__add_or_sub_in_base": "10110; -2a7; 3304",
    "arithmetic__add_sub_multiple": "6; -25; 18",
    "arithmetic__div": "3/14; -62; 905",
    "arithmetic__mixed": "-5/6; 9; 2/15",
    "arithmetic__mul": "-73.2; 0.0081; 15400",
    "arithmetic__mul_div_multiple": "7/4; -20; 1/9",
    "arithmetic__nearest_integer_root": "14; 6; 230",
    "arithmetic__simplify_surd": "5*sqrt(3); 8 - 11*sqrt(2)/4; -30*sqrt(7) + 19",
    "calculus__differentiate +": "24*y**2 - 6*y; 310; -5*y*z**3",
    "comparison__closest +": "b; -0.7; 2/9",
    "comparison__kth_biggest +": "c; 4; -3/8",
    "comparison__pair +": "True; False; -6",
    "comparison__sort +": "-9, -1/2, 3; k, 0.6, 5; -7, c, 40",
    "measurement__conversion": "3.48; 0.00065; 27000",
    "measurement__time": "7:25 PM; 135; 4:02 AM",
    "numbers__base_conversion": "1001101; 5e2; -4310",
    "numbers__div_remainder +": "17; 0; 204",
    "numbers__gcd +": "12; 85; 7",
    "numbers__is_factor +": "True; False; True",
    "numbers__is_prime +": "False; True; False",
    "numbers__lcm +": "360; 4158; 90",
    "numbers__list_prime_factors +": "2, 7, 31; 5; 3, 13, 1009",
    "numbers__place_value +": "4; 0; 9",
    "numbers__round_number +": "0.082; -61000; 7.4",
    "polynomials__add": "31*x**2 - x; -8*x + 15; 2*x**3",
    "polynomials__coefficient_named": "-14; 205; 0",
    "polynomials__collect": "9*y + 4; -y**2; 3*y**3 - 17*y",
    "polynomials__compose": "-40*h**2; 6*h + 21; 75*h**4",
    "polynomials__evaluate +": "-19; 88; 2",
    "polynomials__expand": "12*m**3 - 4*m; -55*m**2 + 8; 7*m**4",
    "polynomials__simplify_power": "p**11; q**(-9/4); r**(250/3)",
    "probability__swr_p_level_set": "2/15; 0; 11/84",
    "probability__swr_p_sequence": "1/70; 4/91; 3/220",
}
_FORMS = {name.removesuffix(" +"): answers for name, answers in _ANSWERS.items()}
_FORMS |= {name.replace(" +", "_composed"): answers for name, answers in _ANSWERS.items() if name.endswith("+")}
MODULES = tuple(sorted(_FORMS))
FINAL = "Therefore, the final answer is [answer]. I hope it is correct."


def _maths_prompt(record: Record) -> Messages:
    closing = (
        f'Close with exactly this sentence: "{FINAL}" Put nothing but the answer in place of '
        "[answer]: lists in ascending order, unless the problem orders them otherwise, and separated by commas; ** for "
        "powers, * for products and / for fractions. Answers to problems of this kind look like these: "
    )
    opening = "Solve this mathematics problem in as few steps as it needs."
    return ask(f"{opening}\n\n{_plain(record['question'])}\n\n{closing}{_FORMS[_module(record)]}")


def _maths_answer(record: Record) -> str:
    return _plain(record["answer"])


def _module(record: Record) -> str:
    name = str(record.get("category") or record[PART])
    if name not in _FORMS:
        raise TaskError(f"deepmind_math@1 knows no module {name!r}; expected one of {', '.join(MODULES)}")
    return name


def _plain(text: str) -> str:
    """The hub's copy holds the printed form of byte strings: `b'What is 2 + 2?\\n'`."""
    return re.sub(r"^b(['\"])(.*?)(?:\\n)?\1$", r"\2", text, flags=re.DOTALL).strip()


def _final(answer: str) -> str:
    return FINAL.replace("[answer]", answer)


# ---- BigCodeBench-Hard, IFBench, HREF ----


def _code_prompt(record: Record) -> Messages:
    return ask(
        "Write a self-contained Python script, in one Markdown code block, that solves this problem:\n\n"
        + record["instruct_prompt"].strip()
    )


def _code_truth(record: Record) -> str:
    """Calibrated: imports and signature, with an empty body, come before whatever the model wrote."""
    return json.dumps(
        {
            "before": record["code_prompt"] + "\n    pass\n",
            "tests": record["test"],
            "entry_point": record["entry_point"],
            "kind": "unittest",
            "seconds": 60.0,
            "prompt": "",
        }
    )


def _code_right(record: Record) -> str:
    return str(record["code_prompt"].rstrip() + "\n" + record["canonical_solution"].strip("\n") + "\n")


def _code_wrong(record: Record) -> str:
    return str(record["code_prompt"].rstrip() + '\n    raise NotImplementedError("nothing was written")\n')


def _ifbench_truth(record: Record) -> str:
    kept = {key: record[key] for key in ("key", "prompt", "instruction_id_list", "kwargs")}
    return json.dumps(kept, ensure_ascii=False)


# Task type -> how the answer is compared to the baseline's: by a judge with the human reference, by one without it, or
# by the distance of both to the reference in embedding space.
_HREF = {
    "Brainstorm": "plain",
    "Classify": "reference",
    "Closed QA": "reference",
    "Extract": "reference",
    "Fact Checking or Attributed QA": "embedding",
    "Generation": "reference",
    "Multi-Document Synthesis": "reference",
    "Open QA": "embedding",
    "Reasoning Over Numerical Data": "reference",
    "Rewrite": "reference",
    "Summarize": "plain",
}


def _href_truth(record: Record) -> str:
    """The row's `output` is the baseline's answer."""
    category = record["category"]
    if category not in _HREF:
        raise TaskError(f"href@1 knows no category {category!r}; expected one of {', '.join(_HREF)}")
    kept = {"baseline": record["output"], "reference": record["reference"], "method": _HREF[category]}
    return json.dumps(kept, ensure_ascii=False)


_BIGCODEBENCH = Task(
    name="bigcodebench_hard",
    version=1,
    skill="code",
    data=(Source("bigcode/bigcodebench-hard", split="v0.1.2", revision="298d2cc7b96612e15e47313c3603ee124cee0c1f"),),
    prompt=_code_prompt,
    fields=columns("instruct_prompt"),
    truth=_code_truth,
    verifier="program@1",
    split="test",
    prefix="Here is a self-contained Python script that solves the problem:\n```python\n",
    sampling=Sampling(max_new_tokens=1280, stop=("\nif __name__", "\ndef main(", "\nprint(", "\n```")),
    gold=Gold(_code_right, _code_wrong),
    description="148 practical programming problems in words, calibrated; all unit tests of a problem must pass. "
    "Solutions and tests use about 70 third-party packages, which the sandbox's Python must have.",
    variant="pass@1, one greedy sample, as in the published configuration",
    licence="Apache-2.0",
)

TASKS = (
    Task(
        name="mmlu_pro",
        version=1,
        skill="knowledge",
        data=(Source("TIGER-Lab/MMLU-Pro", split="test", revision="527feea0afed1de15a8c115abf7be4c912123315"),),
        prompt=_pro_prompt,
        fields=columns("question"),
        truth=lambda record: _letter_truth(record["answer"], LETTERS),
        verifier="letter@1",
        split="test",
        sampling=REASONED,
        subset=lambda record: str(record["category"]),
        aggregate="macro",
        measures={"strict": ("strict",)},
        gold=_letter_gold(lambda record: str(record["answer"])),
        description="MMLU-Pro, 3 to 10 options, after concise reasoning; mean over 14 categories.",
        variant="0-shot, macro; the 5-shot regimes are micro averages",
        licence="MIT",
    ),
    Task(
        name="gpqa",
        version=1,
        skill="knowledge",
        data=(Source("Idavidrein/gpqa", subset="gpqa_main", split="train"),),
        prompt=_gpqa_prompt,
        fields=columns("Question"),
        truth=_gpqa_letter,
        verifier="gpqa@1",
        split="train",
        sampling=REASONED,
        measures={"strict": ("strict",)},
        gold=_letter_gold(_gpqa_letter),
        description="GPQA main (448 questions by domain experts), options in an order drawn from the row's number.",
        licence="CC-BY-4.0",
    ),
    Task(
        name="agieval",
        version=1,
        skill="reasoning",
        data=tuple(
            Source(
                "github:ruixiangcui/AGIEval/data/v1/{subset}.jsonl",
                subset=name,
                split="test",
                revision="84ab72d94318290aad2e4ec820d535a95a1f7552",
            )
            for name in AGIEVAL
        ),
        prompt=_agieval_prompt,
        fields=lambda record: (record.get("passage") or "", record["question"]),
        truth=lambda record: _letter_truth(record["label"], LETTERS[:6]),
        verifier="letter@1",
        split="test",
        sampling=REASONED,
        subset=lambda record: str(record[PART]),
        cluster=_passage,
        aggregate="macro",
        measures={"strict": ("strict",)},
        gold=_letter_gold(lambda record: str(record["label"])),
        description="AGIEval English: eight sets of admission and aptitude tests; mean over the sets.",
        variant="without sat-en-without-passage and math",
        licence="per set: MIT, Apache-2.0, LogiQA terms (see data/v1/LICENSE there)",
    ),
    Task(
        name="deepmind_math",
        version=1,
        skill="maths",
        data=tuple(Source("deepmind/math_dataset", subset=name, split="test[:100]") for name in MODULES),
        prompt=_maths_prompt,
        fields=lambda record: (_plain(record["question"]),),
        truth=_maths_answer,
        verifier="deepmind_math@1",
        split="test",
        sampling=REASONED,
        subset=_module,
        aggregate="macro",
        gold=Gold(
            lambda record: _final(_maths_answer(record)),
            lambda record: _final("7" + _maths_answer(record)),  # 12 -> 712, x + 1 -> 7x + 1, True -> 7True
        ),
        description="DeepMind Mathematics, 100 questions of each of 56 modules; mean over the modules. A local file "
        "for deepmind/math_dataset in the mirror has rows of category, question and answer.",
        variant="with three example answers of the module (configuration v1 and later); the published sample of 5,600 "
        "questions is not public, so the first 100 of each module or the mirror's own stand for it",
        licence="Apache-2.0",
    ),
    _BIGCODEBENCH,
    replace(
        _BIGCODEBENCH,
        name="bigcodebench_hard:pass10",
        sampling=replace(_BIGCODEBENCH.sampling, n=20, temperature=0.8, top_p=0.95),
        pass_k=10,
        variant="pass@10, as in the paper's table, over 20 samples drawn as for HumanEval (the paper does not say how)",
    ),
    Task(
        name="ifbench",
        version=1,
        skill="instruction following",
        data=(Source("allenai/IFBench_test", split="train"),),
        prompt=lambda record: ask(record["prompt"]),
        fields=columns("prompt"),
        truth=_ifbench_truth,
        verifier="ifbench@1",
        split="test",
        sampling=REASONED,
        measures={
            "strict": ("strict",),
            "constraints_loose": ("followed_loose", "constraints"),
            "constraints_strict": ("followed_strict", "constraints"),
        },
        description="IFBench, 300 prompts with 58 kinds of constraints on form; all of a prompt's must hold, loosely.",
        variant="the public 58-kind set; the paper's IFEval-OOD had 52 kinds and was never published in that form",
        licence="ODC-BY",
    ),
    Task(
        name="href",
        version=1,
        skill="chat",
        data=(Source("allenai/href", split="dev"),),
        prompt=lambda record: ask(record["instruction"]),
        fields=columns("instruction"),
        truth=_href_truth,
        verifier="href@1",
        split="dev",
        sampling=Sampling(max_new_tokens=4096),
        subset=lambda record: str(record["category"]),
        description="HREF: how often the answer beats the baseline's (Llama 3.1 405B Instruct in the paper), each task "
        "type compared in its own way; the average counts every instruction once.",
        variant="the public development set, 430 rows in 8 of the 11 task types",
        licence="ODC-BY",
    ),
)
