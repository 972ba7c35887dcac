"""Generators that need no model: one repeats the question, one knows the answers. For tests and dry runs of a recipe.

Their tokens are words (text split at single spaces), so that the effect of a token budget is easy to see.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tercet.rows import Completion, Completions, Done, Likelihood, Likelihoods, Messages, Options, Prompts, Sampling

UNIFORM_BITS = 8.0  # a model that knows nothing pays eight bits for each byte


class EchoGenerator:
    """Answers every prompt with its last turn, and finds all bytes equally likely (8 bits per byte)."""

    def answer(self, prompt: Messages) -> str:
        """What it writes, before the token budget cuts it."""
        return prompt[-1].content

    def complete(self, prompts: Prompts, sampling: Sampling, done: Done | None = None) -> Completions:
        """The answer to each prompt, cut to the token budget."""
        answers = []
        for number, text in enumerate([self.answer(prompt) for prompt in prompts]):
            words = text.split(" ")
            kept = words[: sampling.max_new_tokens]
            stop = "eos" if len(kept) == len(words) else "length"
            one = Completion(" ".join(kept), tuple(range(len(kept))), (0.0,) * len(kept), stop)
            answers.append([one] * sampling.n)
            if done is not None:
                done(number, answers[-1])
        return answers

    def likelihood(self, prompts: Prompts, options: Options, *, close: bool = False) -> Likelihoods:
        """Eight bits per byte for every option."""
        return [[_likelihood(option, UNIFORM_BITS) for option in texts] for texts in options]

    def encode(self, prompts: Sequence[Messages]) -> list[list[int]]:
        """The bytes of each prompt's turns."""
        return [list("".join(turn.content for turn in prompt).encode()) for prompt in prompts]


@dataclass
class OracleGenerator(EchoGenerator):
    """Answers from `references` (last turn -> answer), and is sure of exactly that answer when it scores options."""

    references: Mapping[str, str]
    asked: list[str] = field(default_factory=list)  # last turns in the order they were asked

    def answer(self, prompt: Messages) -> str:
        """The known answer."""
        self.asked.append(prompt[-1].content)
        return self.references[prompt[-1].content]

    def likelihood(self, prompts: Prompts, options: Options, *, close: bool = False) -> Likelihoods:
        """One bit per byte for the known answer, eight for any other."""
        answers = [self.answer(prompt) for prompt in prompts]
        return [
            [_likelihood(option, 1.0 if option == answer else UNIFORM_BITS) for option in texts]
            for answer, texts in zip(answers, options, strict=True)
        ]


def _likelihood(text: str, bits_per_byte: float) -> Likelihood:
    return Likelihood(-bits_per_byte * math.log(2) * len(text.encode()), len(text.split(" ")))
