"""Item by item against lm-evaluation-harness 0.4.13: prompts, verdicts, log-likelihoods and greedy answers, in float32.

Same model folder, same local rows. (a) Prompts, options and stop strings byte for byte. (b) The harness's own stored
outputs, graded again by our verifiers; for tasks that write, also made-up answers to every row of the data, because a
small model's own are few and alike. Where the harness's filter finds no answer at all and ours looks on, the rules are
not the same: that is counted apart. (c) Log-likelihoods of options. (d) Greedy answers. The random keys 1122 and 1129
of IFEval are left out. Every disagreement goes to results/eval_parity.json with what both sides read.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lm_eval_common as common
from lm_eval_common import Benchmark, Record
from peer import RESULTS, once
from tercet import machine
from tercet.evals.results import graded
from tercet.evals.task import Item, card
from tercet.records import TaskCard
from tercet.rows import Completion, Sampling

LIMITS = {"gsm8k": 40, "ifeval": 60, "mmlu": 25, "truthfulqa": 60, "bbh": 10}  # mmlu and bbh: of each subject or task
BENCHMARKS: dict[str, Callable[[Path, Path, int | None], Benchmark]] = {
    "gsm8k": common.gsm8k,
    "ifeval": common.ifeval,
    "mmlu": common.mmlu,
    "truthfulqa": common.truthfulqa,
    "bbh": common.bbh,
}
FILTERS = {"gsm8k": "flexible-extract", "bbh": "get-answer", "ifeval": "none"}
RANDOM_KEYS = (1122, 1129)  # the reference draws another letter where the row's is none
GRADED = ("verdict", "made-up verdict", "own score")
TOLERANCE = 1e-3  # nats
LEAST = 0.995
NO_FORM = ", where the harness finds none"  # its filter knows one form of words; ours has fall-backs: not the same rule
CORRECTED = (
    " by ifeval@1"  # the verifier that reads keywords and paragraphs as the prompts mean them; differs on purpose
)
SHOWN = 300  # characters of an output kept with a disagreement


@dataclass
class Agreement:
    """What was compared for one benchmark: of how many, how many agree, and every one that does not."""

    equal: dict[str, int] = field(default_factory=dict)
    total: dict[str, int] = field(default_factory=dict)
    right: dict[str, int] = field(default_factory=dict)  # verdicts of ours above nothing
    worst: float = 0.0  # largest distance between log-likelihoods
    apart: list[Record] = field(default_factory=list)

    def note(self, what: str, same: bool, **about: Any) -> None:
        """Count one comparison."""
        self.total[what] = self.total.get(what, 0) + 1
        self.equal[what] = self.equal.get(what, 0) + same
        if "verdict" in what:
            self.right[what] = self.right.get(what, 0) + (about["ours"] > 0)
        if not same:
            self.apart.append({"compared": what, **about})


def main() -> None:
    """Compare, print the table, keep the disagreements; exit code 1 when the two do not agree."""
    options = parser().parse_args()
    common.settle(options)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        benchmarks = [
            BENCHMARKS[key](options.data, folder / "own", None if options.limit == 0 else options.limit or LIMITS[key])
            for key in options.benchmarks
        ]
        whole = [BENCHMARKS[key](options.data, folder / "whole", None) for key in options.benchmarks if key in FILTERS]
        made = {benchmark.name: made_up(benchmark, options) for benchmark in whole} if options.invented else {}
        texts = [
            job for benchmark in whole if benchmark.name in made for job in with_texts(benchmark, made[benchmark.name])
        ]
        theirs = [one for benchmark in benchmarks for one in benchmark.theirs]
        chat = [one["name"] for benchmark in benchmarks for one in benchmark.theirs if benchmark.name == "ifeval"]
        side = common.peer_side(options, benchmarks=theirs, chat=chat, texts=texts, batch_size=options.batch_size)
        figures = once(side, folder)
        print(f"lm-eval: {figures['seconds']:.0f} s for {len(theirs)} tasks, {figures['tokens']} tokens", flush=True)
        found = compared(benchmarks, figures["samples"], options)
        for benchmark in whole:
            if benchmark.name in made:
                regrade(benchmark, made[benchmark.name], figures["graded"], found[benchmark.name])
    print(table(found))
    keep(found, options)
    if failed := [name for name, agreement in found.items() if not passed(name, agreement)]:
        raise SystemExit(f"the two do not agree on {', '.join(failed)}")


def parser() -> argparse.ArgumentParser:
    """The options."""
    found = common.arguments(__doc__ or "")
    found.add_argument("--benchmarks", nargs="+", choices=list(BENCHMARKS), default=list(BENCHMARKS))
    found.add_argument("--limit", type=int, help=f"items a task, 0 for all; when absent {LIMITS}")
    found.add_argument("--invented", type=int, default=4, help="made-up answers to every row of a task that writes")
    found.add_argument("--batch-size", type=int, default=8, help="of the harness")
    return found


# ---- what is compared ----


def compared(
    benchmarks: list[Benchmark], samples: dict[str, list[Record]], options: argparse.Namespace
) -> dict[str, Agreement]:
    """Ask our model the same and compare everything, benchmark by benchmark."""
    import torch

    from tercet.models.generate import LocalGenerator

    torch.set_num_threads(options.threads)
    model = LocalGenerator.open(common.model_folder(options), "float32")
    found = {}
    for benchmark in benchmarks:
        asked, rows = benchmark.items(), [row for one in benchmark.theirs for row in samples[one["name"]]]
        if len(asked) != len(rows):
            raise SystemExit(f"{benchmark.name}: we ask {len(asked)} items, the harness {len(rows)}")
        found[benchmark.name] = agreement = Agreement()
        prompts(benchmark, asked, rows, model.chat.prompt_text, agreement)
        if benchmark.task.metric == "accuracy":
            outputs(benchmark, asked, rows, agreement)
            answers(asked, rows, model, settings(benchmark, options), agreement)
        else:
            likelihoods(benchmark, asked, rows, model, agreement)
        print(f"{benchmark.name}: compared", flush=True)
    return found


def prompts(
    benchmark: Benchmark, asked: list[Item], rows: list[Record], text: Callable[..., str], agreement: Agreement
) -> None:
    """(a) The text of the prompt and of every option, and where an answer stops."""
    for item, row in zip(asked, rows, strict=True):
        ours, theirs = text(item.messages), row["arguments"][0][0]
        agreement.note("prompt", ours == theirs, item=item.item, ours=ours, theirs=theirs)
        if item.options:
            texts = [argument[1] for argument in row["arguments"]]
            agreement.note("options", list(item.options) == texts, item=item.item, ours=item.options, theirs=texts)
        else:
            stops = row["arguments"][0][1]["until"]
            same = list(benchmark.task.sampling.stop) == stops
            agreement.note("stops", same, item=item.item, ours=benchmark.task.sampling.stop, theirs=stops)


def outputs(benchmark: Benchmark, asked: list[Item], rows: list[Record], agreement: Agreement) -> None:
    """(b) The harness's own outputs, graded by our verifier."""
    about = card(benchmark.task, asked)
    for item, row in zip(asked, rows, strict=True):
        grade(benchmark, about, item, row["resps"][0], row["verdicts"][FILTERS[benchmark.name]], ("verdict", agreement))


def grade(
    benchmark: Benchmark, about: TaskCard, item: Item, text: str, theirs: Record, where: tuple[str, Agreement]
) -> None:
    """One text under both verifiers; IFEval has two verdicts, strict and loose, and counts of constraints."""
    what, agreement = where
    result = graded(item, [Completion(text, (), (), "eos")], about, [])
    ours, his = {"": result.score}, {"": float(theirs.get("exact_match", 0.0))}
    if benchmark.name == "ifeval":
        if json.loads(item.reference)["key"] in RANDOM_KEYS:
            return
        ours = {key: result.numbers[key] for key in ("strict", "loose", "followed_strict", "followed_loose")}
        levels = {"strict": "prompt", "loose": "prompt", "followed_strict": "inst", "followed_loose": "inst"}
        levels_of = {key: theirs[f"{level}_level_{key.removeprefix('followed_')}_acc"] for key, level in levels.items()}
        his = {key: float(sum(value) if isinstance(value, list) else value) for key, value in levels_of.items()}
        corrected = graded(replace(item, verifier="ifeval@1"), [Completion(text, (), (), "eos")], about, [])
        ours |= {f"{key}{CORRECTED}": corrected.numbers[key] for key in ("strict", "loose")}
        his |= {f"{key}{CORRECTED}": his[key] for key in ("strict", "loose")}
    elif theirs["answer"] == "[invalid]":
        what += NO_FORM
    read = {"we_read": result.answer, "harness_reads": theirs["answer"] if benchmark.name != "ifeval" else ""}
    for key in ours:
        agreement.note(
            f"{what} {key}".strip(),
            ours[key] == his[key],
            item=item.item,
            ours=ours[key],
            theirs=his[key],
            reference=item.reference[-SHOWN:],
            output=text[-SHOWN:],
            why=why(benchmark.name, read, result.detail),
            **read,
        )


def why(name: str, read: dict[str, str], detail: str) -> str:
    """The known causes."""
    if name == "ifeval":
        return detail
    if read["harness_reads"] == "[invalid]":
        return "the harness finds no answer in its one form of words; ours goes on looking, as the protocol says"
    if name == "gsm8k" and not any(character.isdigit() for character in read["harness_reads"]):
        return "the harness takes a run of dots, commas or dollar signs for a number"
    if name == "bbh":
        return "the harness takes the whole rest of the first such line, ours the last answer of the task's kind"
    return "the two take different numbers out of the text"


def likelihoods(benchmark: Benchmark, asked: list[Item], rows: list[Record], model: Any, agreement: Agreement) -> None:
    """(c) The log-likelihood of every option; (b) the harness's own numbers, scored as ours are."""
    from tercet.evals.lm_eval.harness import grade_responses

    about = card(benchmark.task, asked)
    scored = model.likelihood([item.messages for item in asked], [item.options for item in asked])
    for item, row, ours in zip(asked, rows, scored, strict=True):
        for option, one, (logp, greedy) in zip(item.options, ours, row["resps"], strict=True):
            distance = abs(one.logp - logp)
            agreement.worst = max(agreement.worst, distance)
            same = distance <= TOLERANCE and one.greedy == greedy
            agreement.note("likelihood", same, item=item.item, option=option, ours=one.logp, theirs=logp)
        theirs = row["verdicts"]["none"]["acc"]
        verdict = grade_responses(benchmark.task, about, item, row["resps"])["score"]
        agreement.note("verdict", abs(verdict - theirs) < 1e-6, item=item.item, ours=verdict, theirs=theirs)
        own = grade_responses(benchmark.task, about, item, [(one.logp, one.greedy) for one in ours])["score"]
        agreement.note("own score", abs(own - theirs) < TOLERANCE, item=item.item, ours=own, theirs=theirs)


def answers(asked: list[Item], rows: list[Record], model: Any, sampling: Sampling, agreement: Agreement) -> None:
    """(d) What our model writes, greedily."""
    written = model.complete([item.messages for item in asked], sampling)
    for item, row, (one,) in zip(asked, rows, written, strict=True):
        theirs = row["resps"][0]
        pairs = enumerate(zip(one.text, theirs, strict=False))
        parted = next((i for i, (a, b) in pairs if a != b), min(len(one.text), len(theirs)))
        agreement.note("answer", one.text == theirs, item=item.item, apart_at=parted, ours=one.text, theirs=theirs)


def settings(benchmark: Benchmark, options: argparse.Namespace) -> Sampling:
    """The task's stop strings, the comparison's budget."""
    return Sampling(options.max_new_tokens, stop=benchmark.task.sampling.stop)


# ---- made-up answers ----


def made_up(benchmark: Benchmark, options: argparse.Namespace) -> list[tuple[int, str]]:
    """`--invented` answers to every row: (number of the item, text)."""
    draw = random.Random(benchmark.name)
    asked = benchmark.items()
    if benchmark.name == "ifeval":
        texts = train_texts(options.data)
        return [(i, shaped(draw, item, texts)) for i, item in enumerate(asked) for _ in range(options.invented)]
    if benchmark.name == "gsm8k":
        solutions = [row["answer"] for row in common.read(options.data / "eval/gsm8k/test.jsonl")]
        return [(i, solved(draw, i, solutions, k)) for i in range(len(asked)) for k in range(options.invented)]
    references = [(item.subset, json.loads(item.reference)["answer"]) for item in asked]
    return [(i, concluded(draw, i, references, k)) for i in range(len(asked)) for k in range(options.invented)]


def solved(draw: random.Random, i: int, solutions: Sequence[str], k: int) -> str:
    """A GSM8K solution, right or of another row, with the number in one of several spellings."""
    steps, _, number = (solutions[i] if k % 2 == 0 else draw.choice(solutions)).partition("\n#### ")
    forms = (
        "{s} The answer is {n}.",
        "{s}\nSo the answer is ${n}",
        "{s} That makes {n} in all",
        "{n}",
        "It is {n}.00.",
    )
    return draw.choice(forms).format(s=steps, n=number)


def concluded(draw: random.Random, i: int, references: Sequence[tuple[str, str]], k: int) -> str:
    """A conclusion in the words of the examples, right or of another row of the same task."""
    others = [reference for subset, reference in references if subset == references[i][0]]
    reference = references[i][1] if k % 2 == 0 else draw.choice(others)
    first = draw.choice(("First one, then the other.", "It is (A) or (B).", ""))
    return f"Let us see. {first} So the answer is {reference}."


def train_texts(data: Path) -> list[str]:
    """Answers of other people's training data."""
    rows = common.read(data / "train/llamafactory_demo/alpaca_en_demo.json.gz")
    long = common.read(data / "train/gpteacher/roleplay-instruct.json.gz")
    return [text for text in (*(row["output"] for row in rows), *(row["response"] for row in long)) if text.strip()]


def shaped(draw: random.Random, item: Item, texts: Sequence[str]) -> str:
    """A text that was no answer to this prompt, in a shape that some constraint asks for; half have its own words."""
    text = draw.choice(texts)
    words = [word for word in own_words(item) if draw.random() < 0.7]
    if words and draw.random() < 0.5:
        text += f"\n\n{draw.choice(words)} " + ", ".join(words * draw.randint(1, 3))
    lines = text.split("\n")
    shapes: tuple[Callable[[], str], ...] = (
        lambda: text,
        text.upper,
        text.lower,
        lambda: text.replace(",", ""),
        lambda: f'"{text}"',
        lambda: f"<<{lines[0][:40]}>>\n\n{text}\n\nP.S. One more thing. P.P.S. And another.",
        lambda: "\n".join(f"* {line}" for line in lines),
        lambda: "\n***\n".join([*lines, *lines][: draw.randint(2, 6)]),
        lambda: f"{text}\n******\n{draw.choice(texts)}",
        lambda: "```json\n" + json.dumps({"text": text, "list": lines}) + "\n```",
        lambda: "*One* and *more* [name] [place]\n\n" + "\n\n".join(f"SECTION {i}\n{text}" for i in (1, 2, 3)),
        lambda: f"{item.question}\n\n{text}",
        lambda: draw.choice(("My answer is yes.", "My answer is no.", "My answer is maybe.")),
        lambda: " ".join([text] * draw.randint(2, 8)),
        lambda: f"{text}\n\nIs there anything else I can help with?",
    )  # fmt: skip
    return draw.choice(shapes)()


def own_words(item: Item) -> list[str]:
    """Every word or number that the row's constraints name."""
    given = [value for kwargs in json.loads(item.reference)["kwargs"] for value in kwargs.values() if value]
    return [str(word) for value in given for word in (value if isinstance(value, list) else [value])]


def with_texts(benchmark: Benchmark, made: list[tuple[int, str]]) -> Iterator[Record]:
    """The harness's share: each of its tasks with the texts for its own rows."""
    first = 0
    for one in benchmark.theirs:
        (file,) = one["files"].values()
        size = len(common.read(Path(file)))
        own = [(i - first, text) for i, text in made if first <= i < first + size]
        yield {**one, "texts": own}
        first += size


def regrade(
    benchmark: Benchmark, made: list[tuple[int, str]], theirs: dict[str, list[Record]], agreement: Agreement
) -> None:
    """(b) again, on the made-up answers."""
    asked = benchmark.items()
    about = card(benchmark.task, asked)
    verdicts = [verdict for one in benchmark.theirs for verdict in theirs[one["name"]]]
    for (i, text), verdict in zip(made, verdicts, strict=True):
        grade(benchmark, about, asked[i], text, verdict[FILTERS[benchmark.name]], ("made-up verdict", agreement))


# ---- what is reported ----


def passed(name: str, agreement: Agreement) -> bool:
    """Everything byte for byte, likelihoods within the tolerance, and at least 99.5 % of the verdicts."""
    for what, total in agreement.total.items():
        share = agreement.equal[what] / total
        free = what == "answer" or what.endswith((NO_FORM, CORRECTED))
        least = 0.0 if free else LEAST if what.startswith(GRADED) and name != "ifeval" else 1.0
        if share < least:
            return False
    return True


def table(found: dict[str, Agreement]) -> str:
    """A line for each benchmark and thing compared."""
    lines = ["", "| benchmark | compared | equal | of | share | right |", "|---|---|--:|--:|--:|--:|"]
    for name, agreement in found.items():
        for what, total in agreement.total.items():
            equal = agreement.equal[what]
            far = f" (largest distance {agreement.worst:.1e})" if what == "likelihood" else ""
            lines.append(
                f"| {name} | {what}{far} | {equal} | {total} | {equal / total:.2%} | {agreement.right.get(what, '')} |"
            )
    return "\n".join(lines)


def keep(found: dict[str, Agreement], options: argparse.Namespace) -> None:
    """Write results/eval_parity.json."""
    RESULTS.mkdir(exist_ok=True)
    found_of = {
        name: {
            "equal": agreement.equal,
            "of": agreement.total,
            "right": agreement.right,
            "largest_likelihood_distance": agreement.worst,
            "disagreements": agreement.apart,
        }
        for name, agreement in found.items()
    }
    how = {"max_new_tokens": options.max_new_tokens, "invented": options.invented, "limit": options.limit or LIMITS}
    whole = {"peer": common.REQUIREMENTS[0], "processor": machine.processor(), "options": how, "benchmarks": found_of}
    (RESULTS / "eval_parity.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"\nkept in {RESULTS / 'eval_parity.json'}")


if __name__ == "__main__":
    main()
