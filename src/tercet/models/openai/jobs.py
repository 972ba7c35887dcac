"""What a server's worker is given to do, and how far it has come: shared by the event loop and the worker's thread."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from tercet.models.decoding import DecodingRow
from tercet.models.openai.grammar import Matcher
from tercet.models.openai.logps import TokenLogps
from tercet.rows import Completion, Sampling

Ids = Sequence[int]


@dataclass(frozen=True)
class GenerationJob:
    """A prompt's token ids, the model that is asked, how to answer, and the seed (`sampling.seed` stays 0).

    `top` asks for the log-probs of the tokens that were written, and of so many of the likeliest at each place; -1 for
    none. With `echo` the prompt's own tokens get log-probs too; an answer of no tokens is the prompt's alone.
    A `grammar` is what the answer must be: a JSON schema as text.
    """

    ids: Ids
    sampling: Sampling
    seed: int = 0
    top: int = -1
    echo: bool = False
    grammar: str = ""
    model: str = ""


@dataclass(frozen=True)
class GenerationResult:
    """The completions of a job and, where it asked for log-probs, the tokens of each, and those of its prompt."""

    completions: Sequence[Completion]
    logps: Sequence[Sequence[TokenLogps]] = ()
    prompt: Sequence[TokenLogps] = ()


@dataclass(eq=False)
class Written(DecodingRow):
    """One sample of a ticket that is being written: numbers to draw by, its log-probs, and what it must be."""

    ticket: Ticket = field(kw_only=True)
    numbers: torch.Tensor | None = None
    seen: list[TokenLogps] = field(default_factory=list)
    matcher: Matcher | None = None


@dataclass(eq=False)
class Ticket:
    """A job under way. The worker appends to what it has; another thread reads, hears of changes, and may cancel.

    `changed` is called in the worker's thread when there is more to read, and when the answer is there.
    """

    job: GenerationJob
    changed: Callable[[], None] = lambda: None
    answer: Future[GenerationResult] = field(default_factory=Future)
    rows: dict[int, Written] = field(default_factory=dict)  # by sample, as each begins
    left: list[int] = field(default_factory=list)  # samples that have not begun
    prompt: list[TokenLogps] = field(default_factory=list)
    over: dict[int, Completion] = field(default_factory=dict)
    cancelled: bool = False

    def __post_init__(self) -> None:
        self.left = list(range(self.job.sampling.n))

    def cancel(self) -> None:
        """Nobody wants the answer any more: nothing further is written of it."""
        self.cancelled = True
        self.answer.cancel()

    def again(self) -> None:
        """Begin anew: what was written comes again, as it follows from the seed."""
        self.rows, self.left, self.over = {}, list(range(self.job.sampling.n)), {}
        self.prompt.clear()

    def fail(self, error: Exception) -> None:
        """Answer with an error, unless there is an answer."""
        with suppress(InvalidStateError):  # it was cancelled meanwhile, or has its answer
            self.answer.set_exception(error)
        self.changed()

    def finish(self, sample: int, completion: Completion) -> None:
        """A sample has ended; with the last one the answer is there."""
        self.over[sample] = completion
        if len(self.over) == self.job.sampling.n:
            samples = range(self.job.sampling.n)
            logps = [self.rows[sample].seen for sample in samples] if self.job.top >= 0 and self.rows else []
            result = GenerationResult([self.over[sample] for sample in samples], logps, self.prompt)
            with suppress(InvalidStateError):  # it was cancelled meanwhile
                self.answer.set_result(result)
        self.changed()
