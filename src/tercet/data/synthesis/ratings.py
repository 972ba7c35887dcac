"""An LLM judge rates answers aspect by aspect, and its ratings become preference pairs (Tülu 3 §5.2).

All answers to a prompt are rated together, once for each of four aspects, from 1 to 5 with a rationale. The best mean
is chosen, any answer with a lower one may be rejected. A rating that does not apply stays out of the mean; one that
cannot be read makes no pair. The judge is shown answers without their thoughts; a pair has both.

With `paper=True` ratings are read and paired as in the published run: an unreadable block counts 1, N/A counts −1, only
the first four ratings of an aspect are used, missing ones are skipped in the mean, the answers are numbered from 2
under instruction following, and a rejected answer may be as good as the chosen one.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from tercet.data.disk_list import batched
from tercet.data.sources import lot
from tercet.rows import Generator, Message, Messages, Pair, Row, Sampling
from tercet.rows_queue import in_turn
from tercet.verify.llm_judges import LLMJudge, ask
from tercet.verify.thoughts import answer_of

CHUNK = 256  # prompts rated at once; an engine has several chunks ahead
PAPER_RATINGS = 4
HEAD = re.compile(r"^[#*\s]*text\s+(\d{1,6})[^\w\n]*$", re.IGNORECASE | re.MULTILINE)
KEY = re.compile(
    r"[\"']text[ _]?(\d{1,6})[\"']\s*:", re.IGNORECASE
)  # the same in JSON, read where there are no headings
RATING = re.compile(r"\brating[^\w-]*?(5(?:\.0+)?(?![\d.]*\d)|[1-4](?:\.\d+)?(?!\d)|N/?A\b)", re.IGNORECASE)
RATIONALE = re.compile(r"\brationale\W*(.+)", re.IGNORECASE | re.DOTALL)
JudgeCase = tuple[str, list[str]]  # a question and the answers to it

_TEXTS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("ratings.toml").read_text(encoding="utf-8"))
ASPECTS: dict[str, dict[str, str]] = _TEXTS["aspects"]


@dataclass(frozen=True)
class CandidateAnswer:
    """One answer to a prompt, and the model that wrote it."""

    model: str
    text: str

    @property
    def said(self) -> str:
        """The answer without the thought before it: what is rated."""
        return answer_of(self.text).answer


Candidates = tuple[Row, Sequence[CandidateAnswer]]  # a prompt and the answers to it


@dataclass(frozen=True)
class Rating:
    """One verdict: `value` from 1 to 5, or None with the outcome "not applicable" or "unread"."""

    value: float | None
    rationale: str = ""
    outcome: str = "rated"


@dataclass(frozen=True)
class RatingPlan:
    """How answers are rated. `ties`: what becomes of a prompt whose answers are all equally good, "drop" or "keep".

    `judge` is the judge's name in the provenance; `paper` reads and pairs as the published run did.
    """

    judge: str = ""
    paper: bool = False
    ties: str = "drop"
    max_new_tokens: int = 1024
    temperature: float = 0.0


@dataclass(frozen=True)
class Rated:
    """A prompt with its answers, the ratings of each aspect and the mean of each answer."""

    row: Row
    answers: Sequence[CandidateAnswer]
    ratings: dict[str, list[Rating]]
    means: list[float | None]


@dataclass
class RatingCounts:
    """What the statistics count: kept + dropped = read."""

    read: int = 0
    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    outcomes: Counter[str] = field(default_factory=Counter)  # of single ratings
    shown: Counter[str] = field(default_factory=Counter)  # model -> prompts of which a pair was made
    won: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    words: dict[str, list[int]] = field(default_factory=lambda: {"chosen": [], "rejected": []})
    agreed: dict[str, list[float]] = field(default_factory=dict)  # aspect -> does it order two answers as the mean does


def judge(
    prompts: Iterable[Candidates], generator: Generator, seed: int, *, plan: RatingPlan, counts: RatingCounts
) -> Iterator[Pair]:
    """Pairs from prompts with two or more answers each; who is rejected depends on the seed and the row's id alone.

    The provenance of a pair is JSON: judge, mode, seed, and of every answer its model, mean, ratings and outcomes.
    """
    chunks, ahead = _ready(prompts, counts), getattr(generator, "ahead", 1)
    for chunk in in_turn(lambda ready: zip(ready, _ask(ready, generator, seed, plan), strict=True), chunks, ahead):
        for (row, answers), ratings in chunk:
            counts.outcomes.update(rating.outcome for own in ratings.values() for rating in own)
            rated = Rated(row, answers, ratings, mean_ratings(ratings, len(answers), paper=plan.paper))
            pair = binarise(rated.means, seed, row.id, ties=plan.ties, paper=plan.paper)
            if isinstance(pair, str):
                counts.dropped[pair] += 1
                continue
            _count(counts, rated, pair)
            yield _pair(rated, pair, plan, seed)


def draw_models(models: Sequence[str], seed: int, row_id: str, *, number: int = 4, own: str = "") -> list[str]:
    """Who answers a prompt: `number` models drawn at random, or `own` and one other, in random order.

    A function of seed, row and models: the order of the pool does not matter.
    """
    ranked = sorted(models, key=lambda model: lot(seed, "pool", row_id, model))
    if not own:
        return ranked[:number]
    others = [model for model in ranked if model != own][:1]
    return [own, *others] if lot(seed, "coin", row_id)[0] % 2 else [*others, own]


def prompt_for(aspect: str, question: str, answers: Sequence[str], *, paper: bool = False) -> Messages:
    """What the judge is asked about one aspect of all answers."""
    first = 2 if paper and aspect == "instruction_following" else 1  # as in the published run
    what, kinds = ASPECTS[aspect].values()
    absent = " or N/A" * ("N/A" in what)
    texts = [f"### Text {number}\n{text}" for number, text in enumerate(answers, first)]
    numbers = range(first, first + len(answers))
    forms = [_TEXTS["form"].format(number=n, kinds=_TEXTS["kind"] * bool(kinds), absent=absent) for n in numbers]
    parts = [what, *([f"Kinds: {kinds}"] if kinds else []), f"## Instruction\n{question}", "## Texts", *texts]
    parts += [f"## Your reply\n{_TEXTS['reply']}", *forms]
    return Message("system", _TEXTS["system"]), Message("user", "\n\n".join(parts))


def read_ratings(aspect: str, reply: str, number: int, *, paper: bool = False) -> list[Rating]:
    """The ratings in a judge's reply, one for each text in their order; paper mode may give more or fewer."""
    heads = list(HEAD.finditer(reply)) or ([] if paper else list(KEY.finditer(reply)))
    ends = [head.start() for head in heads[1:]] + [len(reply)]
    blocks = [(int(head[1]), reply[head.end() : end]) for head, end in zip(heads, ends, strict=False)]
    if paper:
        return [_paper_rating(block) for _, block in blocks]
    found: dict[int, str] = {}
    for place, block in blocks:
        found.setdefault(place, block)  # the first rating of a text counts; some judges repeat one at the end
    return [_rating(found.get(place, "")) for place in range(1, number + 1)]


def mean_ratings(ratings: dict[str, list[Rating]], number: int, *, paper: bool = False) -> list[float | None]:
    """The mean of each answer over its aspects; None where an aspect could not be read, or none applies."""
    means: list[float | None] = []
    for place in range(number):
        own = [given[place] for given in ratings.values() if place < len(given[: PAPER_RATINGS if paper else None])]
        values = [rating.value for rating in own if rating.value is not None]
        unread = any(rating.outcome == "unread" for rating in own) and not paper
        means.append(None if unread or not values else fmean(values))
    return means


def binarise(
    means: Sequence[float | None], seed: int, row_id: str, *, ties: str = "drop", paper: bool = False
) -> tuple[int, int] | str:
    """Places of the chosen and the rejected answer, or why there is no pair.

    Chosen has the best mean (of equal ones the first in paper mode, else one drawn), rejected is drawn from those
    with a lower mean; from all others in paper mode, or where all are equal and ties are kept.
    """
    rated = [(place, mean) for place, mean in enumerate(means) if mean is not None]
    if len(rated) < len(means) and not paper:
        return "a rating could not be read"
    if len(rated) < 2:
        return "fewer than two ratings"
    top = max(mean for _, mean in rated)
    best = [place for place, mean in rated if mean == top]
    chosen = best[0] if paper else _draw(best, seed, "chosen", row_id)
    others = [place for place, _ in rated if place != chosen]
    lower = others if paper else [place for place, mean in rated if mean < top]
    if not lower and ties == "drop":
        return "all answers are as good"
    return chosen, _draw(lower or others, seed, "rejected", row_id)


def statistics(counts: RatingCounts) -> dict[str, Any]:
    """Win rates by model (of the prompts its answer was rated in), words on both sides, and agreement of aspects."""
    return {
        "read": counts.read,
        "pairs": counts.kept,
        "dropped": dict(sorted(counts.dropped.items())),
        "ratings": dict(sorted(counts.outcomes.items())),
        "models": {
            model: {"rated_pairs": pairs, "chosen": counts.won[model] / pairs, "rejected": counts.lost[model] / pairs}
            for model, pairs in sorted(counts.shown.items())
        },
        "mean_words": {side: fmean(words) if words else 0.0 for side, words in counts.words.items()},
        "aspect_agreement": {aspect: fmean(seen) for aspect, seen in sorted(counts.agreed.items()) if seen},
    }


def _ready(prompts: Iterable[Candidates], counts: RatingCounts) -> Iterator[list[Candidates]]:
    """What can be rated of each chunk of prompts; the others are counted."""
    for chunk in batched(prompts, CHUNK):
        counts.read += len(chunk)
        reasons = [_not_ready(answers) for _, answers in chunk]
        counts.dropped.update(filter(None, reasons))
        yield [one for one, reason in zip(chunk, reasons, strict=True) if not reason]


def _not_ready(answers: Sequence[CandidateAnswer]) -> str:
    if any(answer_of(answer.text).unfinished for answer in answers):
        return "an unfinished thought"
    if any(not answer.said.strip() for answer in answers):
        return "an empty answer"
    return "fewer than two different answers" if len({answer.said for answer in answers}) < 2 else ""


def _ask(
    ready: Sequence[Candidates], generator: Generator, seed: int, plan: RatingPlan
) -> list[dict[str, list[Rating]]]:
    """The ratings of each prompt by aspect; a request that failed leaves all texts unread."""
    how = Sampling(max_new_tokens=plan.max_new_tokens, temperature=plan.temperature, seed=seed, fit=True)
    judges = [_rater(aspect, how, paper=plan.paper) for aspect in ASPECTS]
    cases = [(_question(row), [answer.said for answer in answers]) for row, answers in ready]
    ratings = iter(ask([(judge, case) for case in cases for judge in judges], generator))
    return [{aspect: next(ratings) for aspect in ASPECTS} for _ in cases]


def _rater(aspect: str, how: Sampling, *, paper: bool) -> LLMJudge[JudgeCase, list[Rating]]:
    """The judge of one aspect, which sees the question and all its answers at once."""
    return LLMJudge(
        aspect,
        messages=lambda case: prompt_for(aspect, *case, paper=paper),
        read=lambda reply, case: read_ratings(aspect, reply, len(case[1]), paper=paper),
        failed=lambda error, case: [Rating(None, error, "unread")] * len(case[1]),
        sampling=how,
    )


def _question(row: Row) -> str:
    """The instruction, or the whole conversation with its speakers."""
    if len(row.prompt) == 1:
        return row.prompt[0].content
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in row.prompt)


def _rating(block: str) -> Rating:
    rationale = found[1].strip() if (found := RATIONALE.search(block)) else ""
    match = RATING.search(block)
    if match is None:
        return Rating(None, rationale, "unread")
    if match[1][0] in "nN":
        return Rating(None, rationale, "not applicable")
    return Rating(float(match[1]), rationale)


def _paper_rating(block: str) -> Rating:
    rating = _rating(block)
    value = {"rated": rating.value, "not applicable": -1.0, "unread": 1.0}[rating.outcome]
    return Rating(value, rating.rationale, rating.outcome)


def _draw(places: Sequence[int], seed: int, what: str, row_id: str) -> int:
    return min(places, key=lambda place: lot(seed, what, row_id, str(place)))


def _count(counts: RatingCounts, rated: Rated, pair: tuple[int, int]) -> None:
    answers, means = rated.answers, rated.means
    counts.kept += 1
    counts.shown.update({answer.model for answer in answers})
    for place, side, tally in zip(pair, ("chosen", "rejected"), (counts.won, counts.lost), strict=True):
        tally[answers[place].model] += 1
        counts.words[side].append(len(answers[place].said.split()))
    # Of every two answers: does the aspect order them as the mean does? A tie of the aspect counts one half.
    for aspect, given in rated.ratings.items():
        for one, other in combinations(range(min(len(answers), len(given))), 2):
            ahead = [_ahead(given[one].value, given[other].value), _ahead(means[one], means[other])]
            if None not in ahead and ahead[1]:
                counts.agreed.setdefault(aspect, []).append(0.5 if not ahead[0] else float(ahead[0] == ahead[1]))


def _ahead(one: float | None, other: float | None) -> int | None:
    """1, 0 or −1 as the first is higher, equal or lower; None where one is missing."""
    return None if one is None or other is None else (one > other) - (one < other)


def _pair(rated: Rated, pair: tuple[int, int], plan: RatingPlan, seed: int) -> Pair:
    row, (good, bad) = rated.row, pair
    answers = []
    for i, (answer, mean) in enumerate(zip(rated.answers, rated.means, strict=True)):
        values = {aspect: given[i].value if i < len(given) else None for aspect, given in rated.ratings.items()}
        outcomes = {aspect: given[i].outcome for aspect, given in rated.ratings.items() if i < len(given)}
        answers.append({"model": answer.model, "mean": mean, "ratings": values, "outcomes": outcomes})
    facts = {"rule": "rated_pairs", "judge": plan.judge, "paper": plan.paper, "seed": seed}
    facts |= {"places": list(pair), "answers": answers}
    return Pair(
        id=row.id,
        chosen=(*row.prompt, Message("assistant", rated.answers[good].text)),
        rejected=(*row.prompt, Message("assistant", rated.answers[bad].text)),
        source=row.source,
        skill=row.skill,
        chosen_rating=rated.means[good] or 0.0,
        rejected_rating=rated.means[bad] or 0.0,
        chosen_model=rated.answers[good].model,
        rejected_model=rated.answers[bad].model,
        provenance=json.dumps(facts, sort_keys=True),
    )
