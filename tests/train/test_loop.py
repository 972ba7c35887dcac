"""The one loop: schedule, master weights, one division, what it refuses, and where it continues."""

from __future__ import annotations

import math
import signal
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from tercet.device.mesh import Mesh
from tercet.device.speed import linear_shapes, yardstick
from tercet.models.flops import model_size
from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.models.hf_folder import load_model
from tercet.recipe import SFTSpec
from tercet.stop import Stopped
from tercet.track import read_metrics
from tercet.train.batch import Step, batches
from tercet.train.export import open_policy
from tercet.train.loop import Loop, Loss, Sum, TrainingError, fit, leaf_sums, learning_rate, reduce_tokens, start
from tercet.train.packing import Budget
from tercet.train.sft import sft_loss

PEAK = 2e-3


def spec(**changes) -> SFTSpec:
    return SFTSpec.model_validate(
        {"model": "base", "rows": "sft-data", "learning_rate": PEAK, "dtype": "float32"} | changes
    )


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"schedule": "linear", "warmup_ratio": 0.2}, [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
        ({"schedule": "linear", "warmup_ratio": 0.0}, [1, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]),
        ({"schedule": "linear", "warmup_ratio": 0.03}, [1, 1, 8 / 9, 7 / 9, 6 / 9, 5 / 9, 4 / 9, 3 / 9, 2 / 9, 1 / 9]),
        ({"schedule": "constant", "warmup_ratio": 0.4}, [1 / 4, 2 / 4, 3 / 4, 1, 1, 1, 1, 1, 1, 1]),
        (
            {"schedule": "cosine", "warmup_ratio": 0.2},
            [1 / 2, 1, *(0.5 + 0.5 * math.cos(math.pi * place / 8) for place in range(8))],
        ),
    ],
    ids=lambda value: " ".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_the_rate_warms_up_to_its_peak_and_goes_down(settings, wanted):
    rates = [learning_rate(update, 10, spec(**settings)) / PEAK for update in range(10)]
    assert rates == pytest.approx(wanted)


LOSSES = torch.tensor([1.0, 2.0, 3.0, 10.0, 20.0, 5.0])


def three_answers():
    """Leaves with three, none, two and one trained tokens."""
    masks = [[True] * 3, [False], [True] * 2, [True]]
    return pack_forest([Tree([1], [Leaf([2] * len(mask), mask) for mask in masks])])


@pytest.mark.parametrize(
    ("reduction", "total", "weight"),
    [("token_mean", 41.0, 6.0), ("sequence_mean", 2.0 + 15.0 + 5.0, 3.0), ("constant", 41.0 / 8, 3.0)],
)
def test_reductions_are_what_one_computes_by_hand(reduction, total, weight):
    found = reduce_tokens(LOSSES, three_answers(), reduction, 8)
    assert (float(found.total), found.weight) == pytest.approx((total, weight))


def test_leaf_sums_add_up_each_answer():
    assert leaf_sums(LOSSES, three_answers()).tolist() == [6.0, 0.0, 30.0, 5.0]


def trees() -> list[Tree]:
    source = torch.Generator().manual_seed(0)
    made = []
    for length in (9, 30, 17, 24, 3, 40):
        ids = torch.randint(256, (length,), generator=source).tolist()
        made.append(Tree([], [Leaf(ids, [place % 3 > 0 for place in range(length)])]))
    return made


def steps(budget: int) -> list[Step]:
    return [Step(batches(trees(), Budget(budget), Mesh()))]


def descend(folder, ctx, budget: int, reduction: str = "token_mean", **changes):
    """One step of plain gradient descent with rate 1; returns the change of every master weight."""
    flat = spec(**{"learning_rate": 1.0, "schedule": "constant", "warmup_ratio": 0.0, "max_grad_norm": 1e9} | changes)
    state = start(open_policy(folder), flat, Mesh(), ctx)
    state.optimizer = torch.optim.SGD(state.trainable.master_weights, lr=1.0)
    before = [master.detach().clone() for master in state.trainable.master_weights]
    fit(state, steps(budget), partial(sft_loss, reduction=reduction, length=50), flat, ctx, total=1)
    names = (name.removeprefix("model.") for name in state.trainable.names)
    return {n: m.detach() - b for n, m, b in zip(names, state.trainable.master_weights, before, strict=True)}


def distance(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).norm() / theirs[name].norm()) for name in mine)


def test_a_step_follows_the_gradient_of_the_mean_over_all_trained_tokens(tiny_folder, context):
    moved = descend(tiny_folder, context(), budget=64)
    plain = load_model(tiny_folder, torch.float32, attention="eager")
    total, count = torch.zeros(()), 0
    for tree in trees():
        ids, mask = torch.tensor([tree.leaves[0].token_ids]), torch.tensor(tree.leaves[0].mask[1:])
        logps = plain(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None]).squeeze(1)
        total, count = total - logps[mask].sum(), count + int(mask.sum())
    (total / count).backward()
    assert distance(moved, {name: -p.grad for name, p in plain.named_parameters()}) < 1e-4


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "constant"])
def test_the_step_does_not_depend_on_how_it_is_cut_into_batches(tiny_folder, context, reduction):
    whole, cut = (descend(tiny_folder, context(str(b)), b, reduction) for b in (4096, 32))
    assert distance(cut, whole) < 1e-5


def test_gradients_computed_in_bf16_add_up_in_fp32(tiny_folder, context):
    exact = descend(tiny_folder, context("fp32"), 4096)
    for budget in (4096, 32):
        rough = descend(tiny_folder, context(f"bf16-{budget}"), budget, dtype="bfloat16")
        assert 1e-5 < distance(rough, exact) < 0.1


def test_the_gradient_is_clipped_to_its_norm_and_the_norm_before_is_logged(tiny_folder, context, tmp_path):
    ctx = context()
    norms = [
        float(torch.cat([d.flatten() for d in descend(tiny_folder, c, 4096, max_grad_norm=clip).values()]).norm())
        for c, clip in ((ctx, 0.01), (context("free"), 1e9))
    ]
    assert norms[0] == pytest.approx(0.01, rel=1e-3)
    assert read_metrics(tmp_path / "draft" / "metrics.jsonl")[0]["grad_norm"] == pytest.approx(norms[1], rel=1e-3)


def test_micro_batches_do_not_change_what_is_learnt(workspace, tmp_path):
    settings = {"dtype": "float32", "num_epochs": 2, "eps": 1e-4}
    found = []
    for budget in (100, 5000):
        out = tmp_path / str(budget)
        workspace.run_stage("sft", out, sft=settings, placement={"micro_tokens": budget, "checkpoint_seconds": 1e9})
        found.append(load_file(out / "model.safetensors"))
    assert distance(*found) < 1e-6


def test_a_step_too_small_for_bf16_still_changes_the_stored_weights(workspace, tmp_path):
    workspace.run_stage(
        "sft", tmp_path / "out", sft={"learning_rate": 1e-7, "steps": 1, "warmup_ratio": 0.0, "dtype": "bfloat16"}
    )
    before = load_file(workspace.store.open("base").payload / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    for name, weight in before.items():
        change = (after[name] - weight).abs().max()
        assert 0 < float(change) < 2e-7, name
        if weight.ndim > 1:
            assert (after[name] != weight).float().mean() > 0.5, name
    assert all(weight.dtype == torch.float32 for weight in after.values())


def test_a_loss_that_is_not_a_number_stops_at_its_step(workspace, tmp_path):
    with pytest.raises(TrainingError, match=r"at step 2; .*[Ll]ower learning_rate"):
        workspace.run_stage("sft", tmp_path / "out", sft={"learning_rate": 1e30, "warmup_ratio": 0.0})
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_metrics_count_what_was_computed(tiny_folder, context, tmp_path):
    descend(tiny_folder, context(), budget=64)
    (line,) = read_metrics(tmp_path / "draft" / "metrics.jsonl")
    assert line["tokens"] == sum(tree.num_tokens for tree in trees())
    assert line["useful_tokens"] == sum(sum(tree.leaves[0].mask[1:]) for tree in trees())
    assert line["loss"] == pytest.approx(math.log(259), rel=0.05)
    assert {"grad_norm", "lr", "tokens_per_second", "seconds", "memory_gb"} <= line.keys()


def test_every_step_logs_its_efficiency_against_the_machines_own_products(tiny_folder, context, tmp_path):
    descend(tiny_folder, context(), budget=64)
    policy = open_policy(tiny_folder)
    rate = yardstick(linear_shapes(policy), getattr(torch, spec().precision), torch.device("cpu"))
    (line,) = read_metrics(tmp_path / "draft" / "metrics.jsonl")
    assert line["efficiency"] == pytest.approx(
        line["gflops"] * 1e9 / rate, rel=0.9
    )  # measured twice, on a busy machine
    flops = line["gflops"] * 1e9 * line["tokens"] / line["tokens_per_second"]
    size = model_size(policy)
    assert flops > 6.0 * size.linear * line["tokens"]  # and attention, and the head where a token is trained
    assert flops < 6.0 * (size.linear + size.head + 64 * size.attention) * line["tokens"]


def nothing(_policy, batch) -> Loss:
    return Loss(Sum(_policy(batch.forest)[0].sum() * 0.0, 0.0), {})


def test_steps_without_weight_change_nothing_and_can_be_saved(tiny_folder, context):
    """As when every group of a rollout has one reward."""
    ctx = context(checkpoint_seconds=0)
    state = start(open_policy(tiny_folder), spec(), Mesh(), ctx)
    before = [master.detach().clone() for master in state.trainable.master_weights]
    fit(state, [*steps(64), *steps(64), *steps(64)], nothing, spec(), ctx, total=9)
    assert (state.step, state.updates) == (3, 0)
    assert all(torch.equal(now, was) for now, was in zip(state.trainable.master_weights, before, strict=True))
    again = start(open_policy(tiny_folder), spec(), Mesh(), ctx)
    assert (again.step, again.updates) == (3, 0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_restored_state_goes_on_as_if_nothing_had_happened(tiny_folder, context, dtype):
    settings, loss = spec(dtype=dtype), sft_loss
    whole = start(open_policy(tiny_folder), settings, Mesh(), context("whole"))
    fit(whole, steps(64) * 5, loss, settings, context("whole"), total=5)
    ctx = context("parts")
    first = start(open_policy(tiny_folder), settings, Mesh(), ctx)
    fit(first, steps(64) * 2, loss, settings, ctx, total=5)
    first.extra["note"] = "kept"
    Loop(first, loss, settings, ctx, total=5).save()
    second = start(open_policy(tiny_folder), settings, Mesh(), ctx)
    assert (second.step, second.updates, second.extra) == (2, 2, {"note": "kept"})
    fit(second, steps(64) * 3, loss, settings, ctx, total=5)
    for mine, theirs in zip(second.trainable.master_weights, whole.trainable.master_weights, strict=True):
        assert torch.equal(mine, theirs)


def asked_at(moment: int, ctx, steps):
    """The steps; before one of them the process is asked to end."""
    for number, step in enumerate(steps):
        if number == moment:
            ctx.stop.asked(signal.SIGTERM)
        yield step


def ended(state, ctx, made) -> int:
    """The step that is saved of a run which is asked to end."""
    with pytest.raises(Stopped) as stopped:
        fit(state, made, sft_loss, spec(), ctx, total=4)
    assert stopped.value.code == 143
    ctx.stop.keep()
    return int(max((ctx.work / "checkpoints").glob("step-*")).name.removeprefix("step-"))


def test_asked_to_end_within_a_step_the_one_before_is_saved(tiny_folder, context):
    ctx = context()
    state = start(open_policy(tiny_folder), spec(), Mesh(), ctx)
    assert ended(state, ctx, asked_at(2, ctx, steps(64) * 4)) == 2
    again = start(open_policy(tiny_folder), spec(), Mesh(), ctx)
    for mine, theirs in zip(again.trainable.master_weights, state.trainable.master_weights, strict=True):
        assert torch.equal(mine, theirs)


def test_asked_to_end_while_weights_change_the_step_is_finished_and_saved(tiny_folder, context):
    ctx = context()
    state = start(open_policy(tiny_folder), spec(), Mesh(), ctx)

    def change(*_given) -> None:
        if state.step == 1:
            ctx.stop.asked(signal.SIGTERM)

    state.optimizer.register_step_pre_hook(change)
    assert ended(state, ctx, steps(64) * 4) == 2


def test_asked_to_end_after_training_its_last_step_is_saved(tiny_folder, context):
    ctx = context()
    state = start(open_policy(tiny_folder), spec(), Mesh(), ctx)
    fit(state, steps(64) * 2, sft_loss, spec(), ctx, total=2)
    with pytest.raises(Stopped):
        ctx.stop.asked(signal.SIGTERM)
    ctx.stop.keep()
    assert start(open_policy(tiny_folder), spec(), Mesh(), ctx).step == 2


def test_the_last_two_checkpoints_are_kept_and_a_half_written_one_is_cleared_away(tiny_folder, context):
    ctx = context(checkpoint_seconds=0)
    folder = ctx.work / "checkpoints"
    (folder / ".draft-7").mkdir(parents=True)
    (folder / ".draft-7" / "half").write_text("half")
    state = start(open_policy(tiny_folder), spec(), Mesh(), ctx)
    fit(state, steps(64) * 4, sft_loss, spec(), ctx, total=5)
    assert sorted(path.name for path in folder.iterdir()) == ["step-00000003", "step-00000004"]
