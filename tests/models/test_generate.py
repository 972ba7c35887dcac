"""The generator decodes greedily as transformers does, and samples with the model's own probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.models.generate import GenerateError, LocalGenerator
from tercet.models.hf_folder import load_model
from tercet.models.sampling import _nucleus, choose, draw
from tercet.rows import Message, Sampling, Seeded
from tercet.train.export import open_policy

ASKS = ["Hi", "What is a basin and where does its water go?", "x" * 60, "ü", "Say no.", "a b c d e f g", "Why?"]


def prompts(count: int = len(ASKS)) -> list[tuple[Message, ...]]:
    return [(Message("user", text),) for text in ASKS[:count]]


@pytest.fixture(scope="module")
def open_generator(sharp_folder):
    def open_generator(rows: int = 64) -> LocalGenerator:
        return LocalGenerator.open(sharp_folder, "float32", rows=rows)

    return open_generator


@pytest.fixture(scope="module")
def generator(open_generator) -> LocalGenerator:
    return open_generator()


@pytest.fixture(scope="module")
def plain(sharp_folder):
    return load_model(sharp_folder, torch.float32, attention="sdpa")


def transformers_greedy(plain, ids: list[int], stops: list[int], most: int) -> list[int]:
    whole = torch.tensor([ids])
    options = {"do_sample": False, "max_new_tokens": most, "eos_token_id": stops, "pad_token_id": 256}
    return plain.generate(whole, attention_mask=torch.ones_like(whole), **options)[0, len(ids) :].tolist()


@pytest.mark.parametrize("rows", [1, 2, 3, 64])
def test_greedy_is_transformers_generate_token_for_token(open_generator, plain, rows):
    """Ragged prompts, more of them than rows: rows finish at different times, are compacted away and refilled."""
    generator, most = open_generator(rows), 24
    ids = generator.encode(prompts())
    free = [transformers_greedy(plain, one, [258], most) for one in ids]
    stops = [258, free[0][9], free[2][4], free[3][0]]  # tokens that do come, early and late
    generator.chat.stops = set(stops)
    wanted = [transformers_greedy(plain, one, stops, most) for one in ids]
    assert len({len(one) for one in wanted}) > 3, "the rows should not all end together"
    found = generator.write(ids, Sampling(most))
    assert [list(group[0].token_ids) for group in found] == wanted


def test_several_samples_of_a_greedy_prompt_are_one(generator):
    (group,) = generator.complete(prompts(1), Sampling(8, n=3))
    assert len(group) == 3
    assert len(set(group)) == 1


CHANCE = Sampling(16, temperature=1.0, n=3, seed=4)


def test_what_is_sampled_does_not_depend_on_the_batch(open_generator):
    found = [open_generator(rows).complete(prompts(), CHANCE) for rows in (2, 7, 64)]
    ids = [[[one.token_ids for one in group] for group in groups] for groups in found]
    assert ids[0] == ids[1] == ids[2]
    assert len({one for group in ids[0] for one in group}) == 3 * len(ASKS)


def test_a_prompt_keeps_its_stream_of_chance_among_other_prompts(generator):
    ids = generator.encode(prompts())
    whole = generator.write(ids, CHANCE)
    part = generator.write([ids[5], ids[1]], CHANCE, streams=[5, 1])
    assert [[one.token_ids for one in group] for group in part] == [[one.token_ids for one in whole[i]] for i in (5, 1)]


def test_with_seeds_of_their_own_prompts_draw_together_what_they_draw_alone(open_generator):
    seeds = tuple(range(40, 40 + len(ASKS)))
    how = Seeded(16, temperature=1.0, n=2, seeds=seeds)
    together = [open_generator(rows).complete(prompts(), how) for rows in (2, 3, 64)]
    alone = [
        open_generator().complete([prompt], Sampling(16, temperature=1.0, n=2, seed=seed))[0]
        for prompt, seed in zip(prompts(), seeds, strict=True)
    ]
    ids = [[[one.token_ids for one in group] for group in groups] for groups in (*together, alone)]
    assert ids[0] == ids[1] == ids[2] == ids[3]
    assert len({one for group in ids[0] for one in group}) == 2 * len(ASKS)


def test_another_seed_gives_other_completions(generator):
    other = Sampling(16, temperature=1.0, n=3, seed=5)
    assert generator.complete(prompts(2), CHANCE) != generator.complete(prompts(2), other)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 0.6])
def test_its_log_probabilities_are_the_trainers(generator, sharp_folder, temperature):
    ids = generator.encode(prompts())
    written = generator.write(ids, Sampling(20, temperature=temperature, n=2, seed=1))
    trees = [
        Tree(prompt, [Leaf(one.token_ids, [True] * len(one.token_ids)) for one in group])
        for prompt, group in zip(ids, written, strict=True)
    ]
    with torch.no_grad():
        logps, _ = open_policy(sharp_folder)(pack_forest(trees), temperature=temperature or 1.0)
    sampled = torch.tensor([logp for group in written for one in group for logp in one.logps])
    torch.testing.assert_close(sampled, logps, rtol=1e-4, atol=1e-4)


def test_it_reports_why_it_stopped_and_keeps_the_end_token(generator):
    many = generator.complete(prompts(), Sampling(60, temperature=3.0, n=8, seed=0))
    ended = [one for group in many for one in group if one.stop == "eos"]
    cut = [one for group in many for one in group if one.stop == "length"]
    assert ended
    assert cut
    for one in ended:
        assert one.token_ids[-1] == generator.chat.end_id
        assert generator.chat.end_id not in one.token_ids[:-1]
    assert all(len(one.token_ids) == 60 and generator.chat.end_id not in one.token_ids for one in cut)
    assert not any("<|im_end|>" in one.text for one in ended)
    assert all(len(one.logps) == len(one.token_ids) for one in ended + cut)


def test_it_reports_each_prompt_once_as_its_last_sample_ends(open_generator):
    reported: dict[int, int] = {}

    def done(prompt: int, group: list) -> None:
        assert prompt not in reported
        reported[prompt] = len(group)

    found = open_generator(rows=4).complete(prompts(), CHANCE, done)
    assert reported == dict.fromkeys(range(len(ASKS)), 3)
    assert [len(group) for group in found] == [3] * len(ASKS)


def test_more_samples_than_rows_are_all_written(open_generator):
    few, many = (open_generator(rows).complete(prompts(2), Sampling(6, 1.0, n=9)) for rows in (4, 64))
    assert [[one.token_ids for one in group] for group in few] == [[one.token_ids for one in group] for group in many]


OPTIONS = [["Yes.", "No, never.", "ü"], ["one"], ["A", "B"]]


@pytest.mark.parametrize("close", [False, True])
def test_the_likelihood_of_an_option_is_the_sum_of_its_log_probabilities(generator, plain, close):
    found = generator.likelihood(prompts(3), OPTIONS, close=close)
    for messages, texts, scores in zip(prompts(3), OPTIONS, found, strict=True):
        for text, score in zip(texts, scores, strict=True):
            prompt, answer = generator.chat.pair(messages, text)
            answer = answer if close else answer[:-1]
            with torch.no_grad():
                logits = plain(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            target = torch.tensor(answer)
            wanted = float(logits.log_softmax(1).gather(1, target[:, None]).sum())
            assert score.logp == pytest.approx(wanted, rel=1e-4)
            assert score.num_tokens == len(answer)
            assert score.greedy == bool((logits.argmax(1) == target).all())


def test_likelihoods_do_not_depend_on_how_options_are_batched(generator, monkeypatch):
    whole = generator.likelihood(prompts(3), OPTIONS)
    monkeypatch.setattr("tercet.models.generate.SCORE_TOKENS", 1)
    for mine, theirs in zip(generator.likelihood(prompts(3), OPTIONS), whole, strict=True):
        assert [one.logp for one in mine] == pytest.approx([one.logp for one in theirs], rel=1e-5)


def test_what_greedy_decoding_writes_is_called_greedy(generator):
    ids = generator.encode(prompts(1))
    ((written,),) = generator.write(ids, Sampling(4))
    text = generator.chat.tokenizer.decode(written.token_ids)
    if generator.chat.pair(prompts(1)[0], text)[1][:-1] == list(written.token_ids):
        assert generator.likelihood(prompts(1), [[text]])[0][0].greedy


def test_a_prompt_too_long_for_the_context_is_refused_with_the_numbers(generator):
    with pytest.raises(GenerateError, match=r"max_new_tokens = 2040 exceeds the model's context of 2048; lower"):
        generator.complete(prompts(1), Sampling(2040))


def test_a_prompt_without_tokens_is_refused(generator):
    with pytest.raises(GenerateError, match="no tokens"):
        generator.write([[]], Sampling(4))


def test_no_prompts_give_no_completions(generator):
    assert generator.complete([], Sampling(4)) == []


@pytest.mark.parametrize("seed", range(6))
def test_the_stream_adds_up_to_the_text(generator, seed):
    """Bytes of a cut-off character come as a replacement character, at the end too."""
    sampling = Sampling(20, temperature=1.5, seed=seed)
    pieces = list(generator.stream(prompts(1)[0], sampling))
    ((whole,),) = generator.complete(prompts(1), sampling)
    assert "".join(pieces) == whole.text
    assert len(pieces) > 3


def logits(vocabulary: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(seed)) * 2


def drawn(row: torch.Tensor, sampling: Sampling, count: int = 20_000) -> tuple[torch.Tensor, torch.Tensor]:
    uniforms = torch.rand(count, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return choose(row.expand(count, -1), uniforms, sampling)


@pytest.mark.parametrize("vocabulary", [5, 256, 300, 1000])
def test_tokens_are_sampled_as_often_as_their_probability(vocabulary):
    row, count = logits(vocabulary), 20_000
    tokens, logps = drawn(row, Sampling(1, temperature=0.8), count)
    probs = (row / 0.8).softmax(1)[0].double()
    seen = torch.bincount(tokens, minlength=vocabulary).double()
    expected = probs * count
    common = expected > 5
    statistic = float(((seen - expected)[common] ** 2 / expected[common]).sum())
    freedom = int(common.sum()) - 1
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5
    torch.testing.assert_close(logps.double(), probs.log()[tokens], rtol=1e-5, atol=1e-5)


def test_top_k_leaves_only_the_k_likeliest():
    row = logits(300)
    tokens, logps = drawn(row, Sampling(1, temperature=1.0, top_k=5))
    assert set(tokens.tolist()) == set(row[0].topk(5).indices.tolist())
    torch.testing.assert_close(logps, row.log_softmax(1)[0][tokens])


@pytest.mark.parametrize("top_p", [0.1, 0.5, 0.9])
def test_top_p_leaves_the_smallest_set_that_reaches_p(top_p):
    row = logits(300)
    ranked, order = row.softmax(1)[0].sort(descending=True)
    size = int((ranked.cumsum(0) < top_p).sum()) + 1
    tokens, _ = drawn(row, Sampling(1, temperature=1.0, top_p=top_p))
    seen = set(tokens.tolist())
    allowed = order[:size].tolist()
    assert seen <= set(allowed)
    likely = [token for token, share in zip(allowed, ranked[:size].tolist(), strict=True) if share > 2e-3]
    assert seen >= set(likely)


@given(st.floats(0, 1, exclude_max=True), st.integers(0, 3), st.sampled_from([1, 2, 255, 256, 257, 700]))
def test_a_token_without_probability_is_never_drawn(uniform, seed, vocabulary):
    row = logits(vocabulary, seed)
    banned = torch.rand(vocabulary, generator=torch.Generator().manual_seed(seed)) < 0.9
    banned[seed % vocabulary] = False
    row = row.masked_fill(banned, -torch.inf)
    for value in (uniform, 1 - 2**-53, 0.0):
        token, _ = choose(row, torch.tensor([value], dtype=torch.float64), Sampling(1, temperature=1.0))
        assert not banned[token].any()


def test_the_highest_number_below_one_draws_the_last_token_there_is():
    row = torch.full((1, 520), -torch.inf)
    row[0, [3, 400]] = 0.0
    numbers = torch.tensor([0.0, 0.49, 0.51, 1 - 2**-53], dtype=torch.float64)
    tokens, _ = choose(row.expand(4, -1), numbers, Sampling(1, temperature=1.0))
    assert tokens.tolist() == [3, 3, 400, 400]


@pytest.mark.parametrize("likely", [1, 8, 300])
def test_top_p_leaves_the_same_tokens_whether_all_are_sorted_or_few(likely):
    probs = logits(300).softmax(1).repeat(3, 1)
    assert torch.equal(_nucleus(probs, 0.7, likely), _nucleus(probs, 0.7))
    assert float(_nucleus(probs, 0.7, likely)[0].sum()) >= 0.7


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_tokens_drawn_a_few_rows_at_a_time_are_those_drawn_at_once(monkeypatch, temperature):
    rows = torch.cat([logits(300, seed) for seed in range(9)])
    numbers = torch.rand(9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    how = Sampling(1, temperature, top_k=50, top_p=0.9)
    whole = draw(rows, numbers if temperature else numbers[:0], how)
    monkeypatch.setattr("tercet.models.sampling.CACHED", 600)
    parts = draw(rows, numbers if temperature else numbers[:0], how)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))
