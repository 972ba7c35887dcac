"""Episodes: tokens stay as sampled, what the environment says is read and never trained, and runs repeat exactly."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tercet.algos.advantage import table, token_rewards
from tercet.models.chat import open_chat
from tercet.rows import Completion, Message, read_table
from tercet.store import payload_digest
from tercet.track import read_metrics
from tercet.train.loop import TrainingError
from tercet.train.rl.rollout import RolloutSample
from tercet.train.rl.rollout_log import LOG
from tercet.verify import Grade

CALM = {"checkpoint_seconds": 1e9}
PARITY = '''
class Parity:
    """Pays for texts of even length, three times, and says how long they were."""

    def __init__(self, turns=3):
        self.left = turns

    def reset(self, row):
        return row.prompt

    def step(self, action):
        self.left -= 1
        even = len(action) % 2 == 0
        return f"{len(action)} characters", float(even), self.left == 0, {}
'''
SETTINGS = {"rounds": 3, "max_turns": 5, "turn_tokens": 12, "max_new_tokens": 160, "num_generations": 4, "batch": 4}


@pytest.fixture
def parity(tmp_path):
    (tmp_path / "own.py").write_text(PARITY)
    return SETTINGS | {"environment": f"{tmp_path / 'own.py'}:Parity", "no_eos_reward": "keep"}


def rollouts(out):
    return read_table(out / "tercet" / "rollouts.parquet")


def logged(out):
    lines = (out.with_name(out.name + ".draft") / "work" / LOG).read_text("utf-8").splitlines()
    records = [record for line in lines for record in json.loads(line)["records"]]
    return [sample for record in records for sample in record.get("samples", ())]


@pytest.mark.parametrize("stage", ["rlvr", "ppo", "lagged"])
def test_a_stage_learns_from_episodes_and_repeats_exactly_also_from_a_checkpoint(workspace, tmp_path, parity, stage):
    out, again = tmp_path / "whole", tmp_path / "again" / "whole"
    workspace.run_stage(stage, out, **{stage: parity})
    shutil.copytree(tmp_path / "whole.draft" / "work", again.with_name("whole.draft") / "work")
    workspace.run_stage(stage, again, **{stage: parity})
    assert payload_digest(again) == payload_digest(out)
    metrics = read_metrics(tmp_path / "whole.draft" / "metrics.jsonl")
    assert all(line["grad_norm"] > 0 for line in metrics)
    if stage == "rlvr":  # in turn and with one update a round the weights that wrote are those that train
        assert all(line["logp_gap"] < 0.05 for line in metrics)


def test_what_is_trained_is_what_the_model_wrote_and_the_environments_tokens_lie_between(workspace, tmp_path, parity):
    workspace.run_stage("rlvr", tmp_path / "out", rlvr={**parity, "rounds": 1}, placement=CALM)
    chat = open_chat(workspace.store.open("base").payload)
    samples, rows = logged(tmp_path / "out"), rollouts(tmp_path / "out")
    assert {row["verifier"] for row in rows} == {"tulu_if@1"}  # the rows', which play no part
    several = 0
    for sample, row in zip(samples, rows, strict=True):
        ids, mask = sample["ids"], sample["mask"]
        assert len(ids) == len(mask)
        assert sum(mask) == len(sample["logps"])
        assert row["score"] == sum(reward for _, reward in sample["turns"])
        ends = [end for end, _ in sample["turns"]]
        assert all(mask[end - 1] for end in ends)
        for end in ends[:-1]:
            until = next((i for i in range(end, len(ids)) if mask[i]), len(ids))
            text = chat.tokenizer.decode(ids[end:until])
            length = text.split("user\n")[1].split(" characters")[0]
            closing = [] if ids[end - 1] in chat.stops else chat.closing_ids
            assert ids[end:until] == [*closing, *chat.reply_ids([Message("user", f"{length} characters")])]
            several += 1
    assert several
    trained = read_metrics(tmp_path / "out.draft" / "metrics.jsonl")[0]["useful_tokens"]
    signal = {row["prompt_id"] for row in rows if row["advantage"]}
    assert trained == sum(sum(s["mask"]) for s, row in zip(samples, rows, strict=True) if row["prompt_id"] in signal)


def test_an_episode_that_breaks_is_counted_as_an_error_and_the_run_goes_on(workspace, tmp_path, parity):
    (tmp_path / "own.py").write_text(PARITY.replace("self.left -= 1", "self.left -= 1; 1 / (len(action) % 3)"))
    workspace.run_stage("rlvr", tmp_path / "out", rlvr={**parity, "rounds": 1}, placement=CALM)
    rows = rollouts(tmp_path / "out")
    broken = [row for row in rows if row["outcome"] == "error"]
    assert 0 < len(broken) < len(rows)
    assert all(row["score"] == 0.0 for row in broken)
    metrics = read_metrics(tmp_path / "out.draft" / "metrics.jsonl")[0]
    assert metrics["judge_errors"] == len(broken) / len(rows)


def test_what_cannot_begin_is_refused_before_anything_is_written(workspace, tmp_path, parity):
    for text, said in (
        ("class Parity:\n    pass\n", "has no reset and no step"),
        (PARITY.replace("return row.prompt", "return 'x' * 2000"), "begins with 20.. tokens, more than max_length"),
        (PARITY.replace("return row.prompt", "import time; return str(time.time_ns())"), "two episodes of it"),
        (PARITY.replace("return row.prompt", "return None"), "no turn that waits for an answer"),
    ):
        (tmp_path / "own.py").write_text(text)
        with pytest.raises((TrainingError, RuntimeError), match=said):
            workspace.run_stage("rlvr", tmp_path / "out", rlvr={**parity, "rounds": 1}, placement=CALM)
        shutil.rmtree(tmp_path / "out.draft")


def test_earlier_turns_are_paid_where_they_ended_and_the_sum_is_the_whole_reward():
    mask = (True, True, False, True, False, False, True, True)
    completion = Completion("", tuple(range(8)), (0.0,) * 5, "eos")
    turns = ((2, 0.5), (4, 0.0), (8, 1.0))
    from tercet.train.rl.episodes import PaidTurn

    sample = RolloutSample(completion, Grade(1.5), 1.5, 15.0, mask=mask, turns=tuple(PaidTurn(*one) for one in turns))
    assert sample.paid(10.0) == [0.0, 5.0, 0.0, 0.0, 0.0]
    paid_P, leaf_P = torch.tensor(sample.paid(10.0)), torch.zeros(5, dtype=torch.long)
    paid_LT, mask_LT = table(paid_P, leaf_P, 1, 8)
    last = torch.tensor([sample.reward]) - paid_P.sum()
    rewards_LT, _ = token_rewards(torch.zeros(1, 8), last, mask_LT, 0.0)
    assert (rewards_LT + paid_LT).tolist() == [[0.0, 5.0, 0.0, 0.0, 10.0, 0.0, 0.0, 0.0]]
