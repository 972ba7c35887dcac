"""Rounds of rollouts: each whole in the log, written by the weights its number names, trained on exactly once."""

from __future__ import annotations

import json
import re
import shutil
import threading
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file

from tercet.device.mesh import Mesh
from tercet.rows import read_table
from tercet.store import payload_digest
from tercet.track import read_metrics
from tercet.train.loop import TrainingError
from tercet.train.rl.prefetch import RolloutPrefetcher
from tercet.train.rl.rollout import Round
from tercet.train.rl.rollout_log import RolloutLog

CALM = {"checkpoint_seconds": 1e9}
PRESETS = ("tulu3.1", "dapo", "cispo", "dr_grpo", "gspo", "rloo")


def curve(out):
    return read_metrics(out.with_name(out.name + ".draft") / "metrics.jsonl")


def lines(out):
    return RolloutLog(out.with_name(out.name + ".draft") / "work" / "rollouts.jsonl", 0, Mesh()).read()


@pytest.mark.parametrize("preset", PRESETS)
def test_every_published_setting_learns_from_rewards_and_repeats_exactly(workspace, tmp_path, preset):
    settings = {"preset": preset, "rounds": 2, "minibatches": 2}
    for name in ("one", "two"):
        workspace.run_stage("rlvr", tmp_path / name, rlvr=settings, placement=CALM)
    assert payload_digest(tmp_path / "one") == payload_digest(tmp_path / "two")
    assert all(line["grad_norm"] > 0 for line in curve(tmp_path / "one"))


def test_the_variants_of_grpo_end_in_different_weights(workspace, tmp_path):
    found = {}
    for name, settings in {
        "grpo": {},
        "cispo": {"loss": "cispo"},
        "gspo": {"loss": "gspo", "clip_low": 0.01, "clip_high": 0.01},
        "centered": {"advantage": "centered"},
        "no kl": {"kl_beta": 0.0},
        "k1 in the reward": {"kl_in": "reward", "kl_estimator": "k1", "kl_beta": 1.0},
        "k2": {"kl_estimator": "k2", "kl_beta": 1.0},
        "moving reference": {"polyak": 0.5, "polyak_every": 1, "kl_beta": 1.0},
        "ended only": {"truncated": "mask"},
    }.items():
        out = tmp_path / name.replace(" ", "-")
        workspace.run_stage(
            "rlvr", out, rlvr={"rounds": 3, "passes": 2, "dtype": "float32", **settings}, placement=CALM
        )
        found[name] = torch.cat([value.flatten() for value in load_file(out / "model.safetensors").values()])
    for one in found:
        for other in found:
            assert one == other or (found[one] - found[other]).abs().max() > 1e-4, (one, other)


def test_completions_that_never_ended_are_left_out_of_the_loss_but_not_out_of_the_group(workspace, tmp_path):
    workspace.run_stage("rlvr", tmp_path / "all", rlvr={"rounds": 1}, placement=CALM)
    workspace.run_stage("rlvr", tmp_path / "ended", rlvr={"rounds": 1, "truncated": "mask"}, placement=CALM)
    everything, ended = (read_table(tmp_path / name / "tercet" / "rollouts.parquet") for name in ("all", "ended"))
    assert everything == ended
    groups = Counter(row["prompt_id"] for row in everything if row["advantage"])
    learned = sum(row["length"] for row in everything if row["prompt_id"] in groups and row["stop"] == "eos")
    assert curve(tmp_path / "ended")[0]["useful_tokens"] == learned < curve(tmp_path / "all")[0]["useful_tokens"]


def test_active_sampling_draws_on_until_enough_groups_have_a_signal_and_takes_every_prompt_once_a_pass(
    workspace, tmp_path
):
    settings = {"active_rounds": 6, "rounds": 3, "num_generations": 4, "kl_beta": 0.0}
    workspace.run_stage("rlvr", tmp_path / "out", rlvr=settings, placement=CALM)
    drawn = [record["place"] for record in lines(tmp_path / "out") if not record.get("done")]
    assert len(drawn) > 18
    for begin in range(0, len(drawn) - 23, 24):
        assert sorted(drawn[begin : begin + 24]) == list(range(24))
    assert any(line["zero_variance"] > 0 for line in curve(tmp_path / "out"))
    closing = [record["cursor"] for record in lines(tmp_path / "out") if record.get("done")]
    assert closing[-1] == len(drawn)


def test_a_lagging_round_is_written_by_the_weights_its_number_names(workspace, tmp_path):
    workspace.run_stage("lagged", tmp_path / "out", placement=CALM)
    rows = read_table(tmp_path / "out" / "tercet" / "rollouts.parquet")
    assert {(row["step"], row["version"]) for row in rows} == {(k, max(0, k - 2)) for k in range(16)}
    assert [line["lag"] for line in curve(tmp_path / "out")] == [0.0, 1.0, *[2.0] * 14]
    order = [record["place"] for record in lines(tmp_path / "out") if not record.get("done")]
    assert Counter(order) == dict.fromkeys(range(24), 4), "every prompt once in each of four passes"


def test_a_lagging_run_replays_exactly_from_its_log(workspace, tmp_path):
    """The rounds are taken from the file: no model writes, and training ends in the same bytes."""
    workspace.run_stage("lagged", tmp_path / "out", placement=CALM)
    written = tmp_path / "out.draft" / "work" / "rollouts.jsonl"
    again = tmp_path / "again.draft" / "work"
    again.mkdir(parents=True)
    shutil.copy(written, again)
    workspace.run_stage("lagged", tmp_path / "again", placement=CALM)
    assert payload_digest(tmp_path / "again") == payload_digest(tmp_path / "out")
    assert (again / "rollouts.jsonl").read_bytes() == written.read_bytes()
    assert all(line["seconds_generate"] == 0.0 for line in curve(tmp_path / "again"))


MOVING = {"polyak": 0.5, "polyak_every": 1, "kl_beta": 1.0, "dtype": "float32"}


@pytest.mark.parametrize(("stage", "settings"), [("rlvr", MOVING), ("lagged", {}), ("ppo", {})])
def test_a_run_that_goes_on_from_its_last_checkpoint_ends_in_the_same_bytes(workspace, tmp_path, stage, settings):
    changes = {stage: {"rounds": 4, **settings}}
    workspace.run_stage(stage, tmp_path / "whole", **changes)
    again = tmp_path / "again" / "whole"  # checkpoints belong to a draft of this name
    shutil.copytree(tmp_path / "whole.draft" / "work", again.with_name("whole.draft") / "work")
    workspace.run_stage(stage, again, **changes)
    updates = [line["step"] for line in curve(tmp_path / "whole")]
    assert [line["step"] for line in curve(again)] == updates[3 * len(updates) // 4 :]
    assert payload_digest(again) == payload_digest(tmp_path / "whole")


def test_lagging_by_nothing_and_in_turn_are_the_same_first_round_and_then_differ(workspace, tmp_path):
    for lag in (0, 1):
        workspace.run_stage("lagged", tmp_path / str(lag), lagged={"lag": lag, "rounds": 4}, placement=CALM)
    in_turn, behind = (read_table(tmp_path / str(lag) / "tercet" / "rollouts.parquet") for lag in (0, 1))
    texts = [[(row["step"], row["text"]) for row in rows] for rows in (in_turn, behind)]
    rounds = [[[text for step, text in part if step == number] for number in range(4)] for part in texts]
    assert rounds[0][0] == rounds[1][0]
    assert rounds[0][3] != rounds[1][3]


def test_a_log_of_other_prompts_is_refused(workspace, tmp_path):
    workspace.run_stage("lagged", tmp_path / "out", lagged={"rounds": 2}, placement=CALM)
    again = tmp_path / "again.draft" / "work"
    again.mkdir(parents=True)
    text = (tmp_path / "out.draft" / "work" / "rollouts.jsonl").read_text(encoding="utf-8")
    text = re.sub(', "check": "[0-9a-f]{16}"}', "}", text).replace('"prompt_id": "r', '"prompt_id": "x')
    (again / "rollouts.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(TrainingError, match="belongs to other prompts"):
        workspace.run_stage("lagged", tmp_path / "again", lagged={"rounds": 2}, placement=CALM)


def test_a_log_keeps_whole_rounds_only(tmp_path):
    path = tmp_path / "rollouts.jsonl"
    log = RolloutLog(path, 0, Mesh())
    for number in range(3):
        log.append(number, [{"place": number}, {"done": True, "version": number, "cursor": number + 1}])
    whole = path.read_bytes()
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        rounds = whole[:cut].count(b"\n")
        opened = RolloutLog(path, 1, Mesh())
        assert [record["round"] for record in opened.read()] == [number for number in range(rounds) for _ in range(2)]
        assert opened.cursor == min(rounds, 1)
        assert set(opened.recorded) == set(range(1, rounds))


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_rounds_are_never_made_ahead_of_their_weights(lag):
    learned, asked = 0, []

    def make(number: int, version: int) -> Round:
        assert version == max(0, number - lag)
        assert version <= learned
        asked.append(number)
        return Round(number, version, 0, [])

    prefetcher = RolloutPrefetcher(make, 0, 12, lag)
    for number in range(12):
        assert prefetcher.take(number).number == number
        prefetcher.settle(number)
        assert asked == list(range(len(asked)))
        assert max(number + 1, min(number + lag, 12)) <= len(asked) <= number + lag + 1
        learned = number + 1
        prefetcher.advance()
    prefetcher.close()


def test_what_fails_while_writing_ahead_is_raised_where_the_round_is_taken():
    def make(number: int, _version: int) -> Round:
        if number == 2:
            raise TrainingError("the engine is gone")
        return Round(number, 0, 0, [])

    prefetcher = RolloutPrefetcher(make, 0, 5, 3)
    assert [prefetcher.take(number).number for number in range(2)] == [0, 1]
    with pytest.raises(TrainingError, match="the engine is gone"):
        prefetcher.take(2)


def test_a_stage_that_fails_leaves_no_thread_behind(workspace, tmp_path):
    monitor = {"rounds": 1, "truncated": 0.01, "stop": ["truncated"]}
    with pytest.raises(TrainingError, match="truncated"):
        workspace.run_stage("lagged", tmp_path / "out", lagged={"monitor": monitor}, placement=CALM)
    assert not any(thread.name == "rollouts" and thread.is_alive() for thread in _settled())


def _settled():
    for thread in threading.enumerate():
        if thread.name == "rollouts":
            thread.join(timeout=60)
    return threading.enumerate()


def test_alerts_are_left_with_the_rollouts(workspace, tmp_path):
    monitor = {"rounds": 1, "truncated": 0.01}
    workspace.run_stage("rlvr", tmp_path / "out", rlvr={"monitor": monitor, "rounds": 2}, placement=CALM)
    alerts = json.loads((tmp_path / "out" / "tercet" / "alerts.json").read_text(encoding="utf-8"))
    assert "truncated" in {alert["alert"] for alert in alerts}
