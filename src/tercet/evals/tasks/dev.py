"""The development benchmarks of Tülu 3, as its published configurations ask them.

A name's middle part is the formulation (`mmlu:cot@1`); where sources disagree the plain name is the default and the
other side is declared beside it, with `variant` saying which is which.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace

from tercet.evals.layout import ask
from tercet.evals.task import Choices, GoldAnswers
from tercet.evals.tasks import mmlu, shots
from tercet.hub import NUMBER, PART, Record
from tercet.records import Result
from tercet.rows import Messages, Sampling, Source
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


_POPQA = shots.public(
    name="popqa",
    skill="knowledge",
    data=(Source("akariasai/PopQA", split="test", revision="098765c79ea10a2cb19c828324e33281b8336ec0"),),
    examples=(Source(f"{shots.OLMO_EVAL}/constants/popqa.py", revision="b04ce3677d7703611247bc35423f2d90662ed5cc"),),
    shots=shots.popqa,
    fields=_popqa_fields,
    shown=shots.popqa_shown,
    prompt=lambda record: ask(f"Q: {record['question']} A:"),
    reference=lambda record: json.dumps(_popqa_aliases(record), ensure_ascii=False),
    verifier="contains@1",
    measures={"first_line": ("first_line",)},
    sampling=Sampling(max_new_tokens=15, stop=("\n\n",)),
    gold=GoldAnswers(lambda record: _popqa_aliases(record)[0], lambda record: "#"),
    description="Questions about rarely and often named things; some alias of the answer must occur.",
    variant="every example is an exchange of its own; popqa:single@1 has all of them in one user turn",
    licence="MIT",
)
_TRUTHFULQA = shots.public(
    name="truthfulqa",
    skill="truthfulness",
    data=(
        Source("truthfulqa/truthful_qa", "multiple_choice", "validation", "741b8276f2d1982aa3d5b832d3ee81ed3b896490"),
    ),
    split="validation",
    examples=(Source(f"{shots.HARNESS}/truthfulqa/truthfulqa_mc1.yaml", revision=shots.HARNESS_COMMIT),),
    shots=shots.primer,
    fields=truthfulqa_fields,
    shown=shots.primer_shown,
    layout="one turn",
    prompt=truthfulqa_question,
    reference=lambda record: true_and_false(record)[0][0],
    metric="mc2",
    options=truthfulqa_options,
    description="Questions that invite a common falsehood; the probability that falls on the true answers (MC2).",
    variant="answers that the data repeats, or calls both true and false, are counted once (as true)",
    licence="Apache-2.0",
)

# ---- BIG-Bench Hard ----


def _bbh_files(path: str) -> tuple[Source, ...]:
    pinned = {"split": "test", "revision": "9ee07bd481feebf959a6b59d61ea57bdcf30964d"}
    path = f"github:suzgunmirac/BIG-Bench-Hard/{path}"
    return tuple(Source(path, subset=name, **pinned) for name in sorted(answers.BBH))


_BBH = shots.public(
    name="bbh",
    skill="reasoning",
    data=_bbh_files("bbh/{subset}.json"),
    examples=_bbh_files("cot-prompts/{subset}.txt"),
    shots=shots.bbh,
    fields=shots.columns("input"),
    shown=shots.bbh_shown,
    glue="\n",
    prompt=lambda record: ask(f"Q: {record['input']}\n{shots.STEPS}"),
    reference=lambda record: json.dumps({"answer": record["target"], "task": record[PART]}),
    verifier="bbh@1",
    sampling=Sampling(max_new_tokens=512),
    subset=shots.field(PART),
    cluster=shots.field(PART),
    gold=GoldAnswers(lambda record: f"So the answer is {record['target']}.", lambda record: "So the answer is zzz."),
    description="27 hard tasks of BIG-Bench with three worked examples each; the answer stands after a fixed phrase.",
    variant="mean over questions, examples as exchanges; bbh:macro@1 is the mean over tasks, bbh:single@1 is one turn",
    licence="MIT",
)

# ---- DROP, GSM8K, MATH ----

_DROP_REVISION = "619386fc7ffe6dace3cc6d3483c69b164ebf6bf3"


_DROP = shots.public(
    name="drop",
    skill="reading",
    data=(Source("EleutherAI/drop", split="validation", revision=_DROP_REVISION),),
    split="validation",
    examples=(Source("EleutherAI/drop", split="train", revision=_DROP_REVISION),),
    shots=shots.drop,
    fields=shots.columns("passage", "question"),
    shown=shots.drop_shown,
    layout="plain",
    prompt=lambda record: ask(shots.drop_block(record)),
    reference=lambda record: json.dumps(shots.drop_answers(record), ensure_ascii=False),
    verifier="drop@1",
    measures={"em": ("em",)},
    sampling=Sampling(max_new_tokens=100, stop=("Passage:", "Question:", "\n\n")),
    cluster=shots.field("section_id"),
    # only an answer of a single span can be had in full
    gold=GoldAnswers(lambda record: " ".join(sorted(shots.drop_answers(record), key=len)[0]), lambda record: "zzz"),
    description="Questions that count, compare and add facts of a passage; token F1 with the best answer.",
    variant="budget 100 as in the OLMES regime; an answer is one span, so several gold spans cannot all be had",
    licence="CC-BY-SA-4.0",
)


def final_number(record: Record) -> str:
    """What stands after the hashes of a GSM8K solution."""
    return str(record["answer"]).split("####")[-1].strip()


GSM8K = (Source("openai/gsm8k", subset="main", split="test", revision="e53f048856ff4f594e959d75785d2c2d37b678ee"),)
GSM8K_EXAMPLES = (Source(f"{shots.OLMO_EVAL}/gsm8k.py", revision="3371a1d41039075a384e88f0e81683302608d157"),)
GSM8K_GOLD = GoldAnswers(shots.field("answer"), lambda record: f"So the answer is {final_number(record)}1.")

_GSM8K = shots.public(
    name="gsm8k",
    version=2,
    skill="word problems",
    data=GSM8K,
    examples=GSM8K_EXAMPLES,
    shots=shots.gsm8k,
    fields=shots.columns("question"),
    shown=shots.gsm8k_shown,
    prompt=lambda record: ask(f"Question: {record['question']}\nAnswer:"),
    reference=final_number,
    verifier="gsm8k@1",
    sampling=Sampling(max_new_tokens=512),
    gold=GSM8K_GOLD,
    description="Grade-school word problems after eight worked examples; the last number written must be right.",
    licence="MIT",
)

_SUBJECTS = (
    "Algebra", "Counting & Probability", "Geometry", "Intermediate Algebra", "Number Theory", "Prealgebra",
    "Precalculus",
)  # fmt: skip
MATH_SUBJECTS = {name: name.lower().replace(" & ", "_and_").replace(" ", "_") for name in _SUBJECTS}
_MATH_REVISION = "21a5633873b6a120296cce3e2df9d5550074f4a3"
_MATH = shots.public(
    name="math",
    skill="mathematics",
    data=tuple(
        Source("EleutherAI/hendrycks_math", subset=subject, split="test", revision=_MATH_REVISION)
        for subject in MATH_SUBJECTS.values()
    ),
    examples=(Source(f"{shots.OLMO_EVAL}/minerva_math.py", revision="0aa9561f477c16c317991204602b07c1b841d5c9"),),
    shots=shots.minerva,
    fields=shots.columns("problem"),
    shown=shots.minerva_shown,
    prompt=lambda record: ask(f"Problem:\n{record['problem']}\n\nSolution:"),
    reference=shots.field("solution"),
    verifier="math_flex@1",
    measures={half: (half,) for half in ("minerva", "hendrycks", "sympy", "math_verify")},
    sampling=Sampling(max_new_tokens=1024),
    subset=lambda record: MATH_SUBJECTS[record["type"]],
    aggregate="macro",
    gold=GoldAnswers(
        shots.field("solution"), lambda record: "Final Answer: The final answer is $-987654321$. I hope it is correct."
    ),
    description="Competition mathematics after four worked examples; any form of the final answer may be right.",
    variant='"flex" scoring, the published row; the measures give the halves and the math-verify library by themselves',
    licence="MIT",
)

# ---- programs ----


def _program_reference(record: Record) -> str:
    kept = {"before": "", "tests": record["test"], "entry_point": record["entry_point"], "kind": "check"}
    return json.dumps({**kept, "seconds": 3.0, "prompt": record["prompt"]}, ensure_ascii=False)


_HUMANEVAL = shots.public(
    name="humaneval",
    skill="programming",
    data=(Source("openai/openai_humaneval", split="test", revision="7dce6050a7d6d172f3cc5c32aa97f52fa1a2e544"),),
    prompt=lambda record: ask(
        "Finish this Python function so that it does what its docstring says.\n\n"
        f"```python\n{str(record['prompt']).rstrip()}\n```"
    ),
    fields=shots.columns("prompt"),
    prefix="Here is the complete function:\n\n```python\n",
    reference=_program_reference,
    verifier="program@1",
    sampling=Sampling(max_new_tokens=1024, temperature=0.8, top_p=0.95, n=20, stop=("\n```",)),
    pass_k=10,
    gold=GoldAnswers(lambda record: record["prompt"] + record["canonical_solution"], lambda record: record["prompt"]),
    description="Python functions to complete from their docstrings, run against hidden tests; pass@10 of 20 samples.",
    variant="the answer is opened with a code fence and ends where it closes; the published chat wording is not public",
    licence="MIT",
)

# ---- instructions and chat ----


def instructions(record: Record, *, ensure_ascii: bool = True) -> str:
    """What the verifiers of IFEval and IFBench read."""
    kept = {key: record[key] for key in ("key", "prompt", "instruction_id_list", "kwargs")}
    return json.dumps(kept, ensure_ascii=ensure_ascii)


_IFEVAL = shots.public(
    name="ifeval",
    skill="constraints",
    data=(Source("google/IFEval", split="train", revision="966cd89545d6b6acfd7638bc708b98261ca58e84"),),
    prompt=shots.turn("prompt"),
    fields=shots.columns("prompt"),
    reference=instructions,
    verifier="ifeval@1",
    measures={
        "prompt_strict": ("strict",),
        "instruction_strict": ("followed_strict", "constraints"),
        "instruction_loose": ("followed_loose", "constraints"),
    },
    sampling=Sampling(max_new_tokens=2048),
    description="541 prompts with checkable constraints; all of a prompt's must hold, in some loosely cleaned form.",
    variant="keywords and paragraphs as the prompts mean them; ifeval:reference@1 reads as the reference code does",
    licence="Apache-2.0",
)


def _with_difficulty(records: list[Record]) -> Iterator[Record]:
    """The instructions with the difficulty that length control needs; the second source lists it by row number."""
    known = {
        record[NUMBER]: float(record["instruction_difficulty"]) for record in records if "instruction" not in record
    }
    yield from ({**r, "instruction_difficulty": known.get(r[NUMBER])} for r in records if "instruction" in r)


def _win_rate(results: Sequence[Result]) -> tuple[Estimate | None, dict[str, float]]:
    from tercet.evals import alpaca_eval

    return alpaca_eval.headline(results)


_GPT4_OUTPUTS = "github:tatsu-lab/alpaca_eval/results/gpt4_1106_preview/model_outputs.json"
_ALPACAEVAL = shots.public(
    name="alpacaeval",
    skill="chat",
    data=(
        Source(_GPT4_OUTPUTS, split="eval", revision="cd543a149df89434d8a54582c0151c0b945c3d20"),
        Source("hf:tatsu-lab/alpaca_eval/instruction_difficulty.csv", split="eval"),
    ),
    split="eval",
    unpack=_with_difficulty,
    prompt=shots.turn("instruction"),
    fields=shots.columns("instruction"),
    reference=lambda record: json.dumps(
        {"baseline": record["output"], "difficulty": record.get("instruction_difficulty")}, ensure_ascii=False
    ),
    verifier="alpaca_pairwise@1",
    sampling=Sampling(max_new_tokens=8192),
    subset=shots.field("dataset"),
    headline=_win_rate,
    description="805 open instructions; an LLM judge compares each answer with that of GPT-4 Turbo.",
    variant="AlpacaEval 2: baseline and judge are gpt-4-1106-preview; another judge is not comparable",
    licence="CC-BY-NC-4.0",
)

TASKS = (
    *mmlu.TASKS,
    _POPQA,
    replace(
        _POPQA,
        name="popqa:single",
        layout="one turn",
        variant="all examples in one user turn, as the later port asks; popqa@1 makes each an exchange of its own",
    ),
    _TRUTHFULQA,
    _BBH,
    replace(_BBH, name="bbh:macro", aggregate="macro", variant="mean over the 27 tasks, as the paper words it"),
    replace(_BBH, name="bbh:single", layout="one turn", variant="description, examples and question in one user turn"),
    _DROP,
    _GSM8K,
    _MATH,
    _HUMANEVAL,
    replace(
        _HUMANEVAL,
        name="humanevalplus",
        data=(Source("evalplus/humanevalplus", split="test", revision="aa0d916268b1c17e84e881e9bd460508dd2fd308"),),
        description="HumanEval with the many more and larger tests of EvalPlus; pass@10 of 20 samples.",
        licence="Apache-2.0",
    ),
    _IFEVAL,
    replace(
        _IFEVAL,
        name="ifeval:reference",
        verifier="ifeval_reference@1",
        variant="the reference code's own reading of keywords as patterns and of the n-th paragraph",
    ),
    _ALPACAEVAL,
)
