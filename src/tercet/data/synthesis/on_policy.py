"""Preference pairs from answers of the policy, graded by verifiers (paper §5.2 and §5.3).

The policy answers every prompt several times. For a constrained instruction it also answers the same instruction with
one constraint dropped, the paper's persona-IF method: such an answer is natural, and fails the full instruction for
one clear reason. Chosen is an answer to the full prompt that passes its verifier; rejected is an answer that fails
it, to the instruction without the constraint where there is one, else to the full prompt. What is graded is the answer
behind a thought; a pair has both. A text that ends inside its thought is in no pair. With `num_generations = 0`
chosen is the answer that the row has, as in the paper, where it was an SFT answer.

Prompts are sampled in chunks. A finished chunk is one line of `samples.jsonl`, on disk before the next begins, and the
random numbers of a chunk depend on the seed and its number alone: a killed run samples nothing twice and ends in the
same bytes. Engines and servers are asked all prompts at once, with the same random numbers; there each prompt's samples
are a line, as they come.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from threading import Event, Lock
from typing import Any

from tercet import journal
from tercet.data.generators.constraints import drop_one
from tercet.data.sources import check_verifiers, draw, lot
from tercet.data.synthesis.requests import title
from tercet.recipe import OnPolicyPairsSpec
from tercet.rows import (
    Completion,
    Generator,
    Message,
    Messages,
    Pair,
    Row,
    RowError,
    Sampling,
    read_rows,
    speed_of,
    write_table,
)
from tercet.rows_queue import Streamed, as_finished, calls_of, elsewhere, lent
from tercet.store import Artifact, Context
from tercet.verify import verifier
from tercet.verify.pins import check_hidden
from tercet.verify.thoughts import answer_of

CHUNK = 32  # prompts per line of samples.jsonl: what a killed run loses at most
SEED = "prefs"  # in the seeds of samples: another word would draw other samples
CONSTRAINED = "tulu_if@1"
Request = tuple[int, Messages, tuple[int, int]]  # a prompt's number, what is asked, seed and number of its draws


@dataclass(frozen=True)
class Prompt:
    """A row to sample; `weaker` is the same instruction without constraint number `dropped`."""

    row: Row
    weaker: Row | None = None
    dropped: int = -1


@dataclass(frozen=True)
class GradedAnswer:
    """One graded answer. `origin` is "full" or "dropped", the form of the instruction it answers, or "row": given."""

    text: str
    num_tokens: int
    stop: str
    origin: str
    index: int
    score: float = 0.0
    outcome: str = "graded"

    @property
    def passes(self) -> bool:
        """Whether it may be chosen: verified, written to its end, and not blank."""
        return self.origin != "dropped" and self.score >= 1 and self.stop != "length" and self.answers

    @property
    def fails(self) -> bool:
        """Whether it may be rejected: graded wrong (not: could not be graded), and not blank."""
        return self.score < 1 and self.outcome in ("graded", "unparsed") and self.answers

    @property
    def answers(self) -> bool:
        """Whether anything stands behind its thought."""
        return bool(answer_of(self.text).answer.strip())


@dataclass
class PairCounts:
    """What the summary counts."""

    passes: dict[str, list[bool]] = field(default_factory=dict)  # skill -> answers to full prompts
    truncated: Counter[str] = field(default_factory=Counter)  # skill -> answers that hit the budget
    no_pair: Counter[str] = field(default_factory=Counter)  # reason -> prompts
    rules: Counter[str] = field(default_factory=Counter)  # rule -> pairs
    lengths: dict[str, list[int]] = field(default_factory=lambda: {"chosen": [], "rejected": []})


def run(spec: OnPolicyPairsSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Write `pairs.parquet` and `summary.json`."""
    prompts = choose_prompts(spec, inputs[spec.prompts].payload / "rows.parquet", ctx.seed)
    policy = inputs[spec.model]
    model = title(policy)
    pairs: list[Pair] = []
    counts = PairCounts()
    queue = elsewhere(spec.engine, policy.payload)
    sample = sample_queued if queue else sample_all
    answers = sample(prompts, spec, ctx, lambda: ctx.open_model(policy.payload, spec.precision, spec.engine))
    for prompt, samples in zip(prompts, answers, strict=True):
        graded = grade(prompt.row, samples)
        pairs += make_pairs(prompt, graded, spec=spec, seed=ctx.seed, model=model, counts=counts)
    if not pairs:
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.no_pair.items()))
        raise RuntimeError(
            f"{ctx.name!r}: no pair from {len(prompts)} prompts ({reasons}); raise `num_generations`, "
            f"`temperature` or `max_new_tokens`, or choose prompts that the policy sometimes gets right"
        )
    write_table(out / "pairs.parquet", pairs)
    summary = summarise(counts, num_prompts=len(prompts), num_pairs=len(pairs))
    journal.write_json(out / "summary.json", summary)
    rates = {f"pass_rate_{skill or 'other'}": value["pass_rate"] for skill, value in summary["skills"].items()}
    return {"pairs": float(len(pairs)), "prompts": float(len(prompts)), **rates}


def choose_prompts(spec: OnPolicyPairsSpec, path: Path, seed: int) -> list[Prompt]:
    """The rows that carry a verifier, a seeded sample of them if the recipe says so, each with its weaker form."""
    check_hidden(path.parent)
    rows = [row for row in read_rows(path) if row.verifier]
    if not rows:
        raise RowError(f"{path}: no row carries a verifier, so no answer can be graded; use a stage with verified rows")
    check_verifiers(rows)
    if spec.rows is not None:
        rows = draw(rows, spec.rows, seed=seed, key=lambda row: row.id)
    return [_with_weaker(row, seed) if spec.dropped_samples else Prompt(row) for row in rows]


def sample_all(
    prompts: Sequence[Prompt], spec: OnPolicyPairsSpec, ctx: Context, open_model: Callable[[], Generator]
) -> Iterator[list[GradedAnswer]]:
    """The samples of each prompt, in order; finished chunks are read from disk, the others are drawn and written."""
    path = ctx.work / "samples.jsonl"
    journal.mend(path, ctx.track.note, tail=True)
    finished = read_chunks(path)
    generator: Generator | None = None
    for number, start in enumerate(range(0, len(prompts), CHUNK)):
        chunk = prompts[start : start + CHUNK]
        if number == len(finished):
            generator = generator or open_model()
            finished.append(draw_chunk(chunk, number, spec=spec, seed=ctx.seed, generator=generator))
            samples = [[asdict(sample) for sample in own] for own in finished[number]]
            journal.append(path, {"chunk": number, "samples": samples}, checked=True)
        drawn = [sample for own in finished[number] for sample in own]
        ctx.track.log(
            number,
            samples=float(len(drawn)),
            length=fmean([sample.num_tokens for sample in drawn] or [0]),
            truncated=fmean([sample.stop == "length" for sample in drawn] or [0]),
            **(speed_of(generator) if generator else {}),
        )
        ctx.track.progress(start + len(chunk), len(prompts), "prompts sampled")
        yield from finished[number]


def draw_chunk(
    chunk: Sequence[Prompt], number: int, *, spec: OnPolicyPairsSpec, seed: int, generator: Generator
) -> list[list[GradedAnswer]]:
    """Sample every prompt of a chunk, then the weaker forms; each call has a seed of its own."""
    if spec.num_generations:
        how = _sampling(spec, "full", _chunk_seed(seed, "full", number))
        full = generator.complete([prompt.row.prompt for prompt in chunk], how)
        samples = [_samples(completions, "full") for completions in full]
    else:
        samples = [_given(prompt) for prompt in chunk]
    weaker = [(i, prompt.weaker.prompt) for i, prompt in enumerate(chunk) if prompt.weaker is not None]
    if weaker:
        how = _sampling(spec, "dropped", _chunk_seed(seed, "dropped", number))
        dropped = generator.complete([turns for _, turns in weaker], how)
        for (i, _), completions in zip(weaker, dropped, strict=True):
            samples[i] += _samples(completions, "dropped")
    return samples


def sample_queued(
    prompts: Sequence[Prompt], spec: OnPolicyPairsSpec, ctx: Context, open_model: Callable[[], Generator]
) -> Iterator[list[GradedAnswer]]:
    """The same from an engine or a server: all prompts at once, and each one's samples on disk as they come."""
    path = ctx.work / "samples.jsonl"
    journal.mend(path, ctx.track.note)
    found = {
        (line["origin"], line["prompt"]): [GradedAnswer(**one) for one in line["samples"]]
        for line in journal.read(path)
        if "prompt" in line
    }
    wanted = _wanted(prompts, spec, ctx.seed)
    parts = [(origin, [one for one in asked if (origin, one[0]) not in found]) for origin, asked in wanted.items()]
    if parts := [part for part in parts if part[1]]:
        generator = open_model()
        with lent(generator), journal.Journal(path, sync_every=CHUNK, checked=True) as log:
            kept = SampleQueue(found, log, ctx, sum(map(len, wanted.values())))
            for _ in as_finished(lambda part: kept.ask(generator, spec, *part), parts, calls_of(generator), kept.ended):
                ctx.track.log(len(found), **speed_of(generator))
    for number, prompt in enumerate(prompts):
        full = found["full", number] if spec.num_generations else _given(prompt)
        yield [*full, *found.get(("dropped", number), ())]


@dataclass
class SampleQueue:
    """What is sampled so far, by origin and number of the prompt, and where more of it is kept, from any thread."""

    found: dict[tuple[str, int], list[GradedAnswer]]
    log: journal.Journal
    ctx: Context
    total: int
    lock: Lock = field(default_factory=Lock)
    ended: Event = field(default_factory=Event)

    def ask(self, generator: Generator, spec: OnPolicyPairsSpec, origin: str, asked: list[Request]) -> None:
        """Ask all prompts of an origin at once."""
        how = Streamed(**vars(_sampling(spec, origin, 0)), streams=tuple(stream for _, _, stream in asked))

        def keep(i: int, completions: list[Completion]) -> None:
            self.keep((origin, asked[i][0]), completions)

        # A generator may report answers early, in any order, or none of them.
        for i, completions in enumerate(generator.complete([turns for _, turns, _ in asked], how, keep)):
            keep(i, completions)

    def keep(self, name: tuple[str, int], completions: list[Completion]) -> None:
        """Put the samples of a prompt on disk; what failed is asked again by the next run."""
        samples = _samples(completions, name[0])
        with self.lock:
            if self.ended.is_set():
                raise RuntimeError("sampling was stopped; run again: what is sampled is kept")
            if name in self.found:
                return
            self.found[name] = samples
            if not any(one.error for one in completions):
                stored = [asdict(sample) for sample in samples]
                self.log.append({"prompt": name[1], "origin": name[0], "samples": stored})
            self.ctx.track.progress(len(self.found), self.total, "prompts sampled")


def grade(row: Row, samples: Sequence[GradedAnswer]) -> list[GradedAnswer]:
    """Grade every sample by the row's own verifier and reference answer, also those that answer the weaker form."""
    verify = verifier(row.verifier)
    grades = [verify(sample.text, row.reference, prompt=row.prompt, source=row.source) for sample in samples]
    found = zip(samples, grades, strict=True)
    return [replace(sample, score=grade.score, outcome=grade.outcome) for sample, grade in found]


def make_pairs(
    prompt: Prompt,
    graded: Sequence[GradedAnswer],
    *,
    spec: OnPolicyPairsSpec,
    seed: int,
    model: str,
    counts: PairCounts,
) -> list[Pair]:
    """Up to `max_pairs` pairs of one prompt; no sample and no text is used twice. Adds to `counts`."""
    row = prompt.row
    full = [sample for sample in graded if sample.origin != "dropped"]
    counts.passes.setdefault(row.skill, []).extend(sample.score >= 1 for sample in full)
    counts.truncated[row.skill] += sum(sample.stop == "length" for sample in full)
    chosen = _shuffled([sample for sample in graded if sample.passes], seed, row.id)
    rejected = _shuffled([sample for sample in graded if sample.fails], seed, row.id)
    # An answer to the weaker instruction fails for a known reason, so it goes before the other failures.
    rejected.sort(key=lambda sample: sample.origin != "dropped")
    matches = list(zip(chosen, rejected, strict=False))[: spec.max_pairs]
    if not matches:
        counts.no_pair[_why_not(full, chosen)] += 1
    pairs = []
    for number, (good, bad) in enumerate(matches):
        rule = _rule(row, bad)
        counts.rules[rule] += 1
        for side, sample in (("chosen", good), ("rejected", bad)):
            counts.lengths[side] += [sample.num_tokens] * (sample.origin != "row")
        pairs.append(
            Pair(
                id=f"{row.id}/{number}",
                chosen=(*row.prompt, Message("assistant", good.text)),
                rejected=(*row.prompt, Message("assistant", bad.text)),
                source=row.source,
                skill=row.skill,
                chosen_rating=good.score,
                rejected_rating=bad.score,
                chosen_model=row.source if good.origin == "row" else model,
                rejected_model=model,
                provenance=_provenance(rule, prompt, good, bad, seed=seed),
            )
        )
    return pairs


def summarise(counts: PairCounts, *, num_prompts: int, num_pairs: int) -> dict[str, Any]:
    """The numbers of `summary.json`; lengths are in tokens."""
    skills = {}
    for skill, passes in sorted(counts.passes.items()):
        if passes:
            rate, truncated = fmean(passes), counts.truncated[skill] / len(passes)
            skills[skill] = {"samples": len(passes), "pass_rate": rate, "truncated": truncated}
    return {
        "prompts": num_prompts,
        "pairs": num_pairs,
        "skills": skills,
        "rules": dict(sorted(counts.rules.items())),
        "mean_length": {side: fmean(lengths) for side, lengths in counts.lengths.items() if lengths},
        "no_pair": dict(sorted(counts.no_pair.items())),
    }


def read_chunks(path: Path) -> list[list[list[GradedAnswer]]]:
    """The finished chunks, in order."""
    lines = list(journal.read(path))
    if [line["chunk"] for line in lines] != list(range(len(lines))):
        raise RuntimeError(f"{path}: the chunks are not 0, 1, 2, ...; remove this unfinished folder and run again")
    return [[[GradedAnswer(**sample) for sample in own] for own in line["samples"]] for line in lines]


def _wanted(prompts: Sequence[Prompt], spec: OnPolicyPairsSpec, seed: int) -> dict[str, list[Request]]:
    """What is asked of each origin, with the random numbers that it has in its chunk."""
    wanted: dict[str, list[Request]] = {"full": [], "dropped": []}
    for number, start in enumerate(range(0, len(prompts), CHUNK)):
        chunk = list(enumerate(prompts[start : start + CHUNK], start))
        full = [(i, prompt.row.prompt) for i, prompt in chunk if spec.num_generations]
        weaker = [(i, prompt.weaker.prompt) for i, prompt in chunk if prompt.weaker is not None]
        for origin, asked in (("full", full), ("dropped", weaker)):
            own = _chunk_seed(seed, origin, number)
            wanted[origin] += [(i, turns, (own, place)) for place, (i, turns) in enumerate(asked)]
    return wanted


def _chunk_seed(seed: int, origin: str, number: int) -> int:
    return int.from_bytes(lot(seed, SEED, origin, str(number))[:6], "big")


def _sampling(spec: OnPolicyPairsSpec, origin: str, seed: int) -> Sampling:
    n = spec.num_generations if origin == "full" else spec.dropped_samples
    return Sampling(max_new_tokens=spec.max_new_tokens, temperature=spec.temperature, n=n, seed=seed)


def _given(prompt: Prompt) -> list[GradedAnswer]:
    """The row's own answer in the place of samples."""
    return [GradedAnswer(prompt.row.answer, 0, "", "row", 0)] if prompt.row.answer else []


def _with_weaker(row: Row, seed: int) -> Prompt:
    """The row with one constraint, chosen by lot, dropped; rows without constraints stay as they are."""
    if row.verifier != CONSTRAINED:
        return Prompt(row)
    dropped = int.from_bytes(lot(seed, "drop", row.id)[:6], "big") % (len(json.loads(row.reference)) or 1)
    weaker = drop_one(row, dropped)
    return Prompt(row) if weaker is None else Prompt(row, weaker, dropped)


def _samples(completions: Sequence[Completion], origin: str) -> list[GradedAnswer]:
    return [GradedAnswer(c.text, c.num_tokens, c.stop, origin, index) for index, c in enumerate(completions)]


def _shuffled(samples: Sequence[GradedAnswer], seed: int, row_id: str) -> list[GradedAnswer]:
    """In an order drawn by lot; of equal texts the first."""
    ranked = sorted(samples, key=lambda sample: lot(seed, "pair", row_id, sample.origin, str(sample.index)))
    return list({sample.text: sample for sample in reversed(ranked)}.values())[::-1]


def _rule(row: Row, rejected: GradedAnswer) -> str:
    if rejected.origin == "dropped":
        return "persona_if"
    return "constraint_failed" if row.verifier == CONSTRAINED else "right_wrong"


def _provenance(rule: str, prompt: Prompt, good: GradedAnswer, bad: GradedAnswer, *, seed: int) -> str:
    """Where both sides come from, as JSON."""
    facts: dict[str, Any] = {
        "rule": rule,
        "verifier": prompt.row.verifier,
        "reference": prompt.row.reference,
        "seed": seed,
        "chosen": {"origin": good.origin, "sample": good.index, "stop": good.stop, "outcome": good.outcome},
        "rejected": {"origin": bad.origin, "sample": bad.index, "stop": bad.stop, "outcome": bad.outcome},
    }
    if bad.origin == "dropped":
        constraint = json.loads(prompt.row.reference)[prompt.dropped]
        facts["dropped"] = {"index": prompt.dropped, **{k: constraint.get(k, "") for k in ("func_name", "text")}}
    return json.dumps(facts, ensure_ascii=False, sort_keys=True)


def _why_not(full: Sequence[GradedAnswer], chosen: Sequence[GradedAnswer]) -> str:
    if chosen:
        return "nothing failed"
    return "passed only when cut off or blank" if any(sample.score >= 1 for sample in full) else "nothing passed"
