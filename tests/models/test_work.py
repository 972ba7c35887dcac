"""What a generator's account counts, against the formula by hand."""

from __future__ import annotations

import pytest

from tercet.models.flops import forward_flops
from tercet.models.generate import LocalGenerator
from tercet.models.score import Question, score
from tercet.rows import Message, Sampling, speed_of


@pytest.fixture(scope="module")
def generator(sharp_folder) -> LocalGenerator:
    found = LocalGenerator.open(sharp_folder, "float32", rows=8)
    found.chat.stops = set()  # every answer is as long as its budget
    return found


def test_a_prompt_is_counted_once_and_every_token_written(generator):
    speed_of(generator)
    prompt, samples, new = list(range(5, 25)), 3, 4
    generator.write([prompt], Sampling(new, 1.0, n=samples))
    size, length = generator.work.size, len(prompt)
    wanted = forward_flops(size, length, length * (length + 1) / 2, samples)  # each sample draws from its logits
    for step in range(1, new):
        wanted += forward_flops(size, samples, samples * (length + step), samples)
    assert generator.work.flops == wanted
    assert generator.work.tokens == length + samples * (new - 1)


def test_what_prompts_share_is_counted_once(generator):
    speed_of(generator)
    shared = [5 + i % 40 for i in range(70)]
    prompts = [[*shared, 50, 51], [*shared, 60]]
    generator.write(prompts, Sampling(1, 0.0))
    assert generator.work.tokens == len(shared) + 2 + 1


def test_options_are_counted_without_their_last_token(generator):
    speed_of(generator)
    context = list(range(5, 15))
    list(score(generator.policy, [Question(context, [[20, 21], [22]])], 1000, generator.work))
    size = generator.work.size
    assert generator.work.tokens == len(context) + 1
    pairs = len(context) * (len(context) + 1) / 2 + 1 + len(context)
    assert generator.work.flops == forward_flops(size, len(context) + 1, pairs, 2)


def test_an_account_is_empty_after_it_was_taken(generator):
    generator.complete([[Message("user", "Hello")]], Sampling(3, 0.0))
    found = speed_of(generator)
    assert found["tokens_per_second"] > 0
    assert found["efficiency"] > 0
    assert speed_of(generator) == {}


def test_what_keeps_no_account_tells_nothing():
    class Bare:
        pass

    assert speed_of(Bare()) == {}
