"""PPO with a value model: what one round computes, by the formulas, and how its two models are trained side by side."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tercet.device.mesh import Mesh
from tercet.models.chat import Chat
from tercet.models.hf_folder import load_tokenizer
from tercet.rows import read_rows
from tercet.store import payload_digest
from tercet.track import read_metrics
from tercet.train.rl.actor_critic import open_critic
from tercet.train.rl.rollout_log import RolloutLog

CALM = {"checkpoint_seconds": 1e9, "micro_tokens": 4096}
ONCE = {"rounds": 1, "passes": 1, "minibatches": 1, "dtype": "float32"}


def curve(out):
    return read_metrics(out.with_name(out.name + ".draft") / "metrics.jsonl")


def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("preset", ["tulu3", "corrected"])
def test_a_round_is_what_the_formulas_give_on_its_completions_one_by_one(workspace, tmp_path, preset):
    settings = ONCE | {
        "preset": preset,
        "max_new_tokens": 40,
        "num_generations": 8,
        "no_eos_reward": -2.0,
        "kl_beta": 0.3,
    }
    workspace.run_stage("ppo", tmp_path / "out", ppo=settings, placement=CALM)
    (line,) = curve(tmp_path / "out")
    answers = _read(workspace, tmp_path / "out", preset)
    assert {ended for *_, ended in answers} == {True, False}

    estimates = [_gae(values, reward, 40 if preset == "tulu3" else 0) for _, values, reward, _ in answers]
    learned = [found[: len(logps)] for (logps, *_), (found, _) in zip(answers, estimates, strict=True)]
    whole = np.concatenate(learned)
    mean, std = whole.mean(), whole.std(ddof=1)
    policy = [-(part - mean) / np.sqrt(std**2 + 1e-8) for part in learned]
    critic = [
        0.1 * 0.5 * (values[: len(returns)] - returns) ** 2
        for (_, values, *_), (_, returns) in zip(answers, estimates, strict=True)
    ]
    if preset == "corrected":  # every token weighs the same; else every completion
        policy, critic = [np.concatenate(policy)], [np.concatenate(critic)]
    reduced = [float(np.mean([part.mean() for part in parts])) for parts in (policy, critic)]
    assert line["loss"] == pytest.approx(reduced[0], abs=2e-4)
    assert line["critic_loss"] == pytest.approx(reduced[1], rel=1e-4)
    assert line["advantage"] == pytest.approx(mean, rel=1e-4, abs=1e-5)
    assert line["advantage_std"] == pytest.approx(std, rel=1e-4)
    assert line["kl"] == pytest.approx(0.0, abs=1e-6)


def _read(workspace, out, preset):
    """(log-probs, values of every state, reward, whether it ended) of each completion, in float64."""
    folder = workspace.store.open("base").payload
    tokenizer = load_tokenizer(folder)
    chat = Chat(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="eager")
    critic = open_critic(folder, tokenizer.pad_token_id, 5)
    head = critic.model.score.weight.detach().double()
    rows = {row.id: row for row in read_rows(workspace.store.open("sft-data").payload / "rows.parquet")}
    found = []
    for record in RolloutLog(out.with_name(out.name + ".draft") / "work" / "rollouts.jsonl", 0, Mesh()).read():
        for sample in record.get("samples", []):
            prompt = chat.prompt_ids(rows[record["prompt_id"]].prompt)
            ids = torch.tensor([[*prompt, *sample["ids"]]])
            with torch.no_grad():
                output = model(ids, output_hidden_states=True)
            logps = output.logits[0].log_softmax(-1)[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])
            values = (output.hidden_states[-1][0] @ head.T)[len(prompt) - 1 :, 0]
            found.append((logps[:, 0].numpy(), values.numpy(), sample["reward"], sample["stop"] == "eos"))
    return found


def _gae(values, reward, window):
    """Advantages and returns by lambda 0.95; with a window the score is paid one place past the end, if there is one.

    The reference is the policy itself, so that the KL is 0.
    """
    length = len(values) - 1
    places = min(length + 1, window) if window else length
    rewards = np.zeros(places)
    rewards[-1] = reward
    advantages, carried, following = np.zeros(places), 0.0, 0.0
    for t in reversed(range(places)):
        carried = rewards[t] + following - values[t] + 0.95 * carried
        following, advantages[t] = values[t], carried
    return advantages, advantages + values[:places]


def test_the_value_models_rate_moves_the_value_model_only(workspace, tmp_path):
    for name, rate in (("slow", 1e-6), ("fast", 1e-2)):
        settings = ONCE | {"value_learning_rate": rate}
        workspace.run_stage("ppo", tmp_path / name, ppo=settings, placement=CALM)
    slow, fast = weights(tmp_path / "slow"), weights(tmp_path / "fast")
    assert all(torch.equal(slow[name], fast[name]) for name in slow)
    for name, rate in (("slow", 1e-6), ("fast", 1e-2)):
        settings = ONCE | {"value_learning_rate": rate, "rounds": 2}
        workspace.run_stage("ppo", tmp_path / f"{name}2", ppo=settings, placement=CALM)
    slow, fast = (curve(tmp_path / name)[1] for name in ("slow2", "fast2"))
    assert slow["value"] != fast["value"]


def test_a_value_model_from_a_reward_stage_keeps_its_head_and_one_from_a_model_gets_the_published_one(
    workspace, tmp_path
):
    workspace.run_stage("reward", tmp_path / "reward", reward={"num_epochs": 1}, placement=CALM)
    critic = open_critic(tmp_path / "reward", 0, 1)
    assert torch.equal(critic.model.score.weight, weights(tmp_path / "reward")["score.weight"])
    folder = workspace.store.open("base").payload
    one, two, other = (open_critic(folder, 0, seed).model.score.weight.detach() for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)
    assert float(one.std()) == pytest.approx((one.shape[1] + 1) ** -0.5, rel=0.3)


def test_how_a_round_is_cut_into_batches_changes_nothing_but_rounding(workspace, tmp_path):
    lines = []
    for name, budget in (("small", 128), ("large", 8192)):
        workspace.run_stage("ppo", tmp_path / name, ppo=ONCE, placement={**CALM, "micro_tokens": budget})
        lines.append(curve(tmp_path / name)[0])
    for key in ("loss", "critic_loss", "grad_norm", "critic_grad_norm", "explained_variance"):
        assert lines[0][key] == pytest.approx(lines[1][key], rel=1e-3, abs=1e-5)


def test_the_gap_to_the_generator_is_measured_as_long_as_the_weights_that_wrote_are_unchanged(workspace, tmp_path):
    settings = {"rounds": 2, "passes": 2, "minibatches": 2, "preset": "corrected"}
    workspace.run_stage("ppo", tmp_path / "out", ppo=settings, placement=CALM)
    assert ["logp_gap" in line for line in curve(tmp_path / "out")] == [True, False, False, False] * 2


def test_ppo_leaves_a_plain_model_its_rollouts_and_the_same_bytes_twice(workspace, tmp_path):
    for name in ("one", "two"):
        metrics = workspace.run_stage("ppo", tmp_path / name, ppo={"rounds": 2}, placement=CALM)
    assert metrics["updates"] == metrics["steps"] == 4
    assert payload_digest(tmp_path / "one") == payload_digest(tmp_path / "two")
    assert weights(tmp_path / "one").keys() == weights(workspace.store.open("base").payload).keys()
    assert json.loads((tmp_path / "one" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    first, *later = curve(tmp_path / "one")
    assert first["clip_share"] == first["value_clip_share"] == 0.0
    assert any(line["clip_share"] > 0 for line in later)
