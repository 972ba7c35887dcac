"""What prompts share is computed once, and nothing else changes; stop strings, plain prompts, open turns."""

from __future__ import annotations

import pytest
import torch

from tercet.models import decoding, generate
from tercet.models.forest import pack_forest
from tercet.models.generate import GenerateError, LocalGenerator
from tercet.models.hf_folder import load_model
from tercet.models.score import Question, _batches, score
from tercet.rows import PLAIN, Message, Sampling

SHOTS = "".join(f"Question: how many is {i} and {i + 1}?\nAnswer: {2 * i + 1}.\n\n" for i in range(4))
ASKS = ["one?", "What of two, and what of three of them?", "x" * 40, "ü", "one?"]


@pytest.fixture(scope="module")
def generator(sharp_folder) -> LocalGenerator:
    return LocalGenerator.open(sharp_folder, "float32", rows=3)


@pytest.fixture(scope="module")
def plain(sharp_folder):
    return load_model(sharp_folder, torch.float32, attention="sdpa")


def tokens(groups) -> list[list[tuple[int, ...]]]:
    return [[one.token_ids for one in group] for group in groups]


def shared_prompts() -> list[tuple[Message, ...]]:
    return [(Message(PLAIN, SHOTS + ask),) for ask in ASKS]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_beginning_that_all_prompts_share_changes_no_answer(generator, monkeypatch, temperature):
    sampling = Sampling(20, temperature, n=1 if not temperature else 4, seed=5)
    found = generator.complete(shared_prompts(), sampling)
    monkeypatch.setattr(generate, "SHARED", 10_000)
    wanted = generator.complete(shared_prompts(), sampling)
    assert tokens(found) == tokens(wanted)
    for group, other in zip(found, wanted, strict=True):
        for one, two in zip(group, other, strict=True):
            assert one.logps == pytest.approx(two.logps, abs=1e-3)


def test_the_shared_beginning_is_the_longest_and_leaves_each_prompt_a_token():
    ids = [[7] * 70 + [1], [7] * 70 + [1, 2], [7] * 90]
    assert generate._shared(ids) == 70
    assert generate._shared([[7] * 80, [7] * 80]) == 79
    assert generate._shared([[7] * 63 + [1, 2], [7] * 63 + [2, 2]]) == 0
    assert generate._shared([[7] * 100]) == 0


def test_an_answer_ends_before_a_stop_string(generator):
    prompts = shared_prompts()
    free = generator.complete(prompts, Sampling(24))
    words = free[1][0].text[5:8]
    for (one,), (whole,) in zip(generator.complete(prompts, Sampling(24, stop=(words,))), free, strict=True):
        assert one.text == whole.text.split(words)[0]
        assert one.stop == ("stop" if words in whole.text else whole.stop)
        assert len(one.token_ids) <= len(whole.token_ids)


def test_stop_strings_end_the_work_not_only_the_text(generator):
    (one,) = generator.complete(shared_prompts()[1:2], Sampling(24))[0]
    (cut,) = generator.complete(shared_prompts()[1:2], Sampling(24, stop=(one.text[2:4],)))[0]
    assert len(cut.token_ids) < len(one.token_ids)


def test_an_open_turn_is_continued(generator):
    asked = (Message("user", "Say it."),)
    opened = (*asked, Message("assistant", "Well, "))
    assert generator.encode([opened])[0] == generator.encode([asked])[0] + [ord(c) for c in "Well, "]


def test_a_plain_prompt_has_no_template(generator):
    assert generator.encode([(Message(PLAIN, "abc"),)]) == [[97, 98, 99]]


def test_memory_that_runs_out_halves_the_rows_and_loses_nothing(sharp_folder, monkeypatch):
    generator = LocalGenerator.open(sharp_folder, "float32", rows=4)
    wanted = generator.complete(shared_prompts(), Sampling(12))
    step, seen = decoding.Decoding.step, []

    def hungry(state):
        if len(state.rows) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        step(state)

    monkeypatch.setattr(decoding.Decoding, "step", hungry)
    found = generator.complete(shared_prompts(), Sampling(12), lambda i, group: seen.append(i))
    assert tokens(found) == tokens(wanted)
    assert sorted(seen) == list(range(len(ASKS)))
    assert generator.rows == 2


def test_other_failures_are_not_taken_for_memory(sharp_folder, monkeypatch):
    generator = LocalGenerator.open(sharp_folder, "float32", rows=4)
    monkeypatch.setattr(decoding.Decoding, "step", lambda state: (_ for _ in ()).throw(RuntimeError("shape")))
    with pytest.raises(RuntimeError, match="shape"):
        generator.complete(shared_prompts(), Sampling(12))


def test_the_token_budget_bounds_the_rows_and_changes_no_answer(sharp_folder):
    wide = LocalGenerator.open(sharp_folder, "float32", rows=5)
    tight = LocalGenerator.open(sharp_folder, "float32", rows=5, tokens=400)
    sampling = Sampling(30, 1.0, seed=3)
    found = [tokens(one.complete(shared_prompts(), sampling)) for one in (tight, wide)]
    assert found[0] == found[1]


def logps(plain, context: list[int], option: list[int]) -> float:
    whole = torch.tensor([context + option])
    with torch.no_grad():
        table = plain(whole).logits[0].log_softmax(-1)
    return sum(float(table[len(context) + i - 1, token]) for i, token in enumerate(option))


@pytest.mark.parametrize("budget", [1, 300, 100_000])
def test_scores_are_those_of_each_text_alone(generator, plain, budget):
    contexts = (
        [list((SHOTS + ask).encode()) for ask in ASKS] + [[5, 6, 7]] + [list(("other " * 9 + a).encode()) for a in ASKS]
    )
    options = [list(text.encode()) for text in (" A", " B", " some longer one", "!")]
    questions = [Question(context, options) for context in contexts]
    found = list(score(generator.policy, questions, budget))
    for context, answers in zip(contexts, found, strict=True):
        for option, one in zip(options, answers, strict=True):
            assert one.logp == pytest.approx(logps(plain, context, option), abs=2e-3)
            assert one.num_tokens == len(option)


def test_questions_of_one_kind_share_their_beginning_and_unrelated_ones_do_not():
    same = [Question([1] * 100 + [i] * 9, [[3]]) for i in range(5, 9)]
    stranger = Question([2] * 50, [[3]])
    (batch,) = _batches([*same, stranger, *same], 10_000)
    assert pack_forest([one.tree() for one in batch], share=True).num_tokens == 100 + 8 * 9 + 50
    assert [len(batch) for batch in _batches(same, 120)] == [2, 2]


def test_a_text_longer_than_the_context_is_refused(generator):
    limit = generator.context
    with pytest.raises(GenerateError, match="more than the model's context"):
        generator.likelihood([(Message(PLAIN, "x" * limit),)], [["y", "zz"]])


def test_a_budget_is_fitted_to_the_context_where_that_is_asked(generator):
    limit = generator.context
    sizes = (limit, limit - 5, 20)
    prompts = [(Message(PLAIN, "x" * size),) for size in sizes]
    seen: dict[int, str] = {}
    found = generator.complete(prompts, Sampling(8, fit=True), lambda i, group: seen.update({i: group[0].stop}))
    assert [len(one.token_ids) for (one,) in found] == [0, 5, 8]
    assert "leaves no room" in found[0][0].error
    assert seen == {0: "error", 1: "length", 2: "length"}
    with pytest.raises(GenerateError, match="exceeds the model's context"):
        generator.complete(prompts[1:], Sampling(8))
