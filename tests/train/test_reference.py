"""References: frozen ones stay as they were at the start, moving ones follow; both survive a stop of the run."""

from __future__ import annotations

import shutil

import pytest
import torch

from tercet.device.mesh import Mesh
from tercet.device.shard import Trainable
from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.store import payload_digest
from tercet.track import read_metrics
from tercet.train.export import open_policy
from tercet.train.packing import Budget
from tercet.train.reference import ReferenceModel, Table, answer_logps, load_table, per_leaf, save_table

TREES = [Tree([1, 2, 3 + i], [Leaf([7, 8, i], [True] * 3), Leaf([9, i], [True] * 2)]) for i in range(7)]
SETTINGS = {
    "loss": "dpo",
    "beta": 0.1,
    "dtype": "float32",
    "num_epochs": 2,
    "warmup_ratio": 0.0,
    "schedule": "constant",
}


def shifted(trainable: Trainable, by: float) -> None:
    with torch.no_grad():
        for master in trainable.master_weights:
            master.add_(by)
    trainable.published()


def test_a_frozen_reference_keeps_nothing_and_never_moves(tiny_folder):
    trainable = Trainable(open_policy(tiny_folder), torch.float32, Mesh())
    reference = ReferenceModel(open_policy(tiny_folder), 0.0, 1)
    forest = pack_forest(TREES)
    before = reference.logps(forest)
    shifted(trainable, 0.1)
    reference.follow(1, trainable)
    assert reference.kept == {}
    assert not before.requires_grad
    assert torch.equal(reference.logps(forest), before)
    assert torch.equal(before, trainable.module.__class__(open_policy(tiny_folder).model)(forest)[0].detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_moving_reference_goes_its_share_of_the_way_when_that_is_due(tiny_folder, dtype):
    trainable = Trainable(open_policy(tiny_folder), dtype, Mesh())
    reference = ReferenceModel(open_policy(tiny_folder), 0.25, 2, dtype)
    assert reference.kept.keys() == set(trainable.names)
    expected = {name: value.double() for name, value in reference.kept.items()}
    for step in range(5):
        reference.follow(step, trainable)
        if step in (2, 4):
            state = dict(trainable.full_state())
            expected = {name: 0.75 * value + 0.25 * state[name].double() for name, value in expected.items()}
        for name, value in reference.kept.items():
            assert value.dtype == torch.float32
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-6, atol=1e-7)
        reference.logps(pack_forest(TREES[:1]))
        for name, value in reference.policy.named_parameters():
            assert value.dtype == dtype
            assert torch.equal(value, reference.kept[name].to(dtype))
        shifted(trainable, 0.01)


def test_small_moves_add_up_although_the_reference_computes_in_bfloat16(tiny_folder):
    trainable = Trainable(open_policy(tiny_folder), torch.bfloat16, Mesh())
    reference = ReferenceModel(open_policy(tiny_folder), 1e-4, 1, torch.bfloat16)
    start = {name: value.clone() for name, value in reference.kept.items()}
    shifted(trainable, 0.5)
    for step in range(1, 101):
        reference.follow(step, trainable)
    for name, value in reference.kept.items():
        torch.testing.assert_close(value, start[name] + 0.5 * (1 - (1 - 1e-4) ** 100), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("budget", [1, 16, 4096])
def test_numbers_of_leaves_do_not_depend_on_how_batches_are_cut(tiny_folder, budget):
    policy = open_policy(tiny_folder)
    whole = answer_logps(policy, TREES, Mesh())
    assert whole.shape == (7, 2)
    cut = per_leaf(lambda forest: leaf_ids(forest), TREES, Budget(budget), Mesh())
    assert cut.tolist() == [[i, i] for i in range(7)]
    alone = torch.cat([answer_logps(policy, [tree], Mesh()) for tree in TREES])
    torch.testing.assert_close(alone, whole, rtol=1e-5, atol=1e-5)


def leaf_ids(forest) -> torch.Tensor:
    """The last token of each leaf, which names its tree."""
    return forest.input_ids[forest.last_L]


def test_a_table_is_read_back_only_under_its_own_stamp(tmp_path):
    table = Table(torch.tensor([[-1.5, -2.5], [-3.0, -4.0]]), [torch.tensor([[-1.0], [-2.0]]), torch.tensor([[-3.0]])])
    stamp = {"weights": "a", "order": "3 steps"}
    save_table(tmp_path, table, stamp, tmp_path)
    found = load_table(tmp_path, stamp, tmp_path)
    assert torch.equal(found.answers, table.answers)
    assert all(torch.equal(a, b) for a, b in zip(found.mismatched, table.mismatched, strict=True))
    assert load_table(tmp_path, stamp | {"weights": "b"}, tmp_path) is None
    assert load_table(tmp_path / "other", stamp, tmp_path) is None


@pytest.fixture
def run_stage(workspace, tmp_path):
    """Run the dpo stage into `tmp_path/NAME` with a checkpoint after every step; returns payload and curve."""

    def run_stage(name: str, **settings):
        out = tmp_path / name
        workspace.run_stage("dpo", out, dpo={**SETTINGS, **settings})
        return out, read_metrics(out.with_name(out.name + ".draft") / "metrics.jsonl")

    return run_stage


def test_a_live_reference_that_has_not_moved_yet_gives_the_tables_losses(run_stage):
    _, known = run_stage("known", steps=4)
    _, live = run_stage("live", steps=4, polyak=0.5, polyak_every=100)
    for one, other in zip(known, live, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-6)
        assert other["margin"] == pytest.approx(one["margin"], abs=1e-6)


def test_a_reference_that_follows_fast_leaves_a_smaller_margin(run_stage):
    _, still = run_stage("still", polyak=0.9, polyak_every=100)
    _, moving = run_stage("moving", polyak=0.9, polyak_every=2)
    assert [line["loss"] for line in moving[:2]] == [line["loss"] for line in still[:2]]
    assert moving[2]["margin"] < 0.5 * still[2]["margin"], "after step 2 it is next to the policy"
    assert moving[-1]["margin"] < still[-1]["margin"]


@pytest.mark.parametrize("last", [6, 7], ids=["where a move is due", "between two moves"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_continues_has_the_reference_it_had(run_stage, tmp_path, last, dtype):
    settings = {"polyak": 0.5, "polyak_every": 3, "dtype": dtype}
    whole, _ = run_stage("whole", **settings)
    folder = tmp_path / "later" / "whole.draft" / "work"  # checkpoints belong to a draft of this name
    shutil.copytree(tmp_path / "whole.draft" / "work", folder)
    for newer in sorted((folder / "checkpoints").glob("step-*"))[last - 5 :]:
        shutil.rmtree(newer)
    later, curve = run_stage("later/whole", **settings)
    assert [line["step"] for line in curve] == list(range(last + 1, 9))
    assert payload_digest(later) == payload_digest(whole)
