"""LLM judges: what they are, and the one loop that asks them, for evaluations, rewards and the rating of data.

A judge makes a conversation of a case, and a verdict of the reply. Prompts and readings are pure text and stand in
published_judges.py (published evaluations), rubrics.py (scores) and `tercet.data.synthesis.ratings` (ratings of several
answers); the model that is asked comes as an argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from tercet.records import Think
from tercet.rows import Generator, Messages, Sampling, Seeded
from tercet.verify.grade import UNFINISHED, Grade
from tercet.verify.thoughts import answer_of

C = TypeVar("C")
V = TypeVar("V")
TRIES, RETRY_TEMPERATURE = 3, 0.7  # for a verdict that is not final; the temperature holds from the second try on
WORD = Sampling(64, fit=True)  # for a verdict of a few words


class Case(NamedTuple):
    """One completion to be graded, with the conversation before it as text. `swap` is for comparisons: show it first.

    With `think = "keep"` the judge reads its thought too. Example: `Case("Which capital?", "Paris.", reference="")`.
    """

    prompt: str
    completion: str
    reference: str
    swap: bool = False
    think: Think = "strip"


@dataclass(frozen=True)
class LLMJudge(Generic[C, V]):
    """How one LLM judge asks and is read.

    `messages(case)` is the conversation to put to it; it raises VerifierError for a reference it cannot read, also when
    prompt and completion are empty. `read(reply, case)` is the verdict on the reply: a text, with `options` one
    log-probability for each. `failed(error, case)` is the verdict where no reply could be had, `settled(case)` the one
    that needs no model. A verdict that is not `final` is asked for again. With `embeds` an encoder reads the
    messages instead, and the reply is how near the first and the second are to the third.
    """

    name: str
    messages: Callable[[C], Messages]
    read: Callable[[Any, C], V]
    failed: Callable[[str, C], V]
    settled: Callable[[C], V | None] = lambda case: None
    final: Callable[[V], bool] = lambda verdict: True
    sampling: Sampling = WORD
    options: tuple[str, ...] = ()
    embeds: bool = False

    @property
    def batch_key(self) -> Hashable:
        """Judges of one key are asked in one call: all that write under one sampling, others each for itself."""
        return self.name if self.options or self.embeds else self.sampling


def graded(asked: Sequence[tuple[LLMJudge[Case, Grade], Case]], model: Generator, embedder: Any = None) -> list[Grade]:
    """The grade of each completion's answer by the judge beside it; where a thought does not end there is none."""
    found: dict[int, Grade] = {}
    waiting: dict[int, tuple[LLMJudge[Case, Grade], Case]] = {}
    for number, (judge, case) in enumerate(asked):
        _, answer, unfinished = answer_of(case.completion)
        if case.think == "strip" and unfinished:
            found[number] = UNFINISHED
        else:
            waiting[number] = judge, case._replace(completion=answer) if case.think == "strip" else case
    found |= zip(waiting, ask(list(waiting.values()), model, embedder), strict=True)
    return [found[number] for number in range(len(asked))]


def ask(asked: Sequence[tuple[LLMJudge[C, V], C]], model: Generator, embedder: Any = None) -> list[V]:
    """The verdict on each case by the judge beside it: one call for all of a batch, and again for what is not final."""
    found: dict[int, V] = {}
    batches: dict[Hashable, list[int]] = {}
    for number, (judge, case) in enumerate(asked):
        if (verdict := judge.settled(case)) is None:
            batches.setdefault(judge.batch_key, []).append(number)
        else:
            found[number] = verdict
    for waiting in batches.values():  # one call per batch: engines are fast only with many prompts at once
        for turn in range(TRIES):
            replies = _replies([asked[number] for number in waiting], turn, model, embedder)
            for number, (reply, error) in zip(waiting, replies, strict=True):
                judge, case = asked[number]
                found[number] = judge.failed(error, case) if error else judge.read(reply, case)
            waiting = [number for number in waiting if not asked[number][0].final(found[number])]
            if not waiting:
                break
    return [found[number] for number in range(len(asked))]


def _replies(
    asked: Sequence[tuple[LLMJudge[C, V], C]], turn: int, model: Generator, embedder: Any
) -> list[tuple[Any, str]]:
    """The replies to cases of one batch without their thoughts, each with an error text where there is none."""
    judge = asked[0][0]
    prompts = [one.messages(case) for one, case in asked]
    if judge.embeds:
        texts = [[message.content for message in prompt] for prompt in prompts]
        own, other, reference = map(list, zip(*texts, strict=True))
        near = zip(embedder.similarity(own, reference), embedder.similarity(other, reference), strict=True)
        return [(pair, "") for pair in near]
    if judge.options:
        weighed = model.likelihood(prompts, [judge.options] * len(prompts))
        return [([o.logp for o in ones], next((o.error for o in ones if o.error), "")) for ones in weighed]
    sampling = judge.sampling
    if turn:  # a seed for each question, so that its reply does not depend on what else is asked again
        seeds = tuple(_seed(f"{turn}/{prompt[-1].content}") for prompt in prompts)
        sampling = Seeded(sampling.max_new_tokens, RETRY_TEMPERATURE, fit=True, seeds=seeds)
    return [(answer_of(one.text).answer, one.error) for (one,) in model.complete(prompts, sampling)]


def unasked(error: str, case: Case) -> Grade:
    """The grade of a completion whose judge gave no reply."""
    return Grade(0.0, outcome="error", detail=f"the judge could not be asked: {error}")


def spoken(prompt: Messages) -> str:
    """A conversation as text: a lone user turn as it is, else each turn under its role."""
    if len(prompt) == 1:
        return prompt[0].content
    return "\n\n".join(f"[{turn.role}]\n{turn.content}" for turn in prompt)


def swapped(item: str, seed: int) -> bool:
    """Whether the completion is shown first in a comparison: a fair coin that depends on item and seed only."""
    return hashlib.sha256(f"{seed}/{item}".encode()).digest()[0] % 2 == 1


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1
