"""The one loop. SFT, DPO, the reward model, PPO and GRPO differ in how steps are made and which function is the loss.

A loss returns sums; only the loop divides, once per step, by the weight summed over batches and ranks. So the result
does not depend on how a step was cut into batches or shared among ranks.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from tercet.device import checkpoint
from tercet.device.host_store import HostStore
from tercet.device.mesh import Mesh, peak_flops, peak_memory, release_memory
from tercet.device.optim import optimizer as make_optimizer
from tercet.device.place import card_of
from tercet.device.shard import Trainable
from tercet.device.speed import linear_shapes, yardstick
from tercet.models.depth_first import Backward
from tercet.models.flops import ModelSize, model_size, training_flops
from tercet.models.forest import Forest, Owners
from tercet.models.layer_wrappers import compile_layers, offload, recompute
from tercet.models.lora import adapt
from tercet.recipe import TrainSpec
from tercet.stop import Stopped
from tercet.store import Context
from tercet.train.batch import Batch, Step
from tercet.train.branches import branches
from tercet.train.sums import Sum, Sums


class TrainingError(RuntimeError):
    """Training cannot go on; the message says at which step and what to try."""


class Loss(NamedTuple):
    """What is minimised, and what is logged beside it.

    Where two modules are trained side by side, `part` names the one this loss is of (`"policy."`): each part has its
    own weight, its own gradient clip, and its loss a metric of its own.
    """

    objective: Sum
    metrics: dict[str, Sum]
    part: str = ""


@runtime_checkable
class InParts(Protocol):
    """A loss that compares leaves, and knows by itself how a batch is taken part by part (`train.compared`)."""

    def in_parts(self, module: nn.Module, batch: Batch, backward: Backward) -> Iterator[Loss]:
        """The loss in parts that add up to it. Each goes backward before the next is asked for."""


LOSS = "loss:"  # before the name of the part

LossFn = Callable[[nn.Module, Batch], Loss]


@dataclass
class State:
    """Weights, optimiser, and how far training has come."""

    trainable: Trainable
    optimizer: torch.optim.Optimizer
    step: int = 0  # steps taken from the source
    updates: int = 0  # optimiser updates made
    extra: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)  # tensors that change beside the weights
    sizes: dict[str, ModelSize] = field(default_factory=dict)  # of the parts, once their cost was asked for
    rate: float = 0.0  # FLOP/s of plain products of the module's shapes on this rank's device; 0: not known
    whole: bool = True  # not in the midst of a change: a checkpoint may hold it


def start(
    module: nn.Module,
    spec: TrainSpec,
    mesh: Mesh,
    ctx: Context,
    *,
    rates: dict[str, float] | None = None,
    kept: dict[str, Tensor] | None = None,
) -> State:
    """Master weights (or adapters) and optimiser, restored from the newest checkpoint where there is one.

    `rates` are the peak learning rates of parts of the module, `{"critic.": 1e-6}`; `kept` are further tensors that
    checkpoints hold.
    """
    placement = ctx.recipe.placement
    dtype = getattr(torch, spec.precision)
    merge = adapt(module, spec.lora, dtype, ctx.seed, mesh.device) if spec.lora else None
    if placement.compile:
        compile_layers(module, mesh.device)
    if placement.recompute is True:  # "auto" is decided before a stage starts, where all its facts are known
        recompute(module)
    if placement.activation_offloading:
        offload(module, HostStore(card_of(mesh.device, "placement.activation_offloading")))
    host = torch.device("cpu") if placement.offload and card_of(mesh.device, "placement.offload") else None
    trainable = Trainable(module.eval(), dtype, mesh, host=host, merge=merge)
    optimizer = make_optimizer(spec, trainable, rates or {"": spec.learning_rate})
    state = State(trainable, optimizer, kept=kept or {}, rate=yardstick(linear_shapes(module), dtype, mesh.device))
    found = checkpoint.load(ctx.work / "checkpoints", trainable, optimizer, state.kept, ctx.track.note)
    if found is not None:
        state.step, state.updates, state.extra = found["step"], found["updates"], found["extra"]
    return state


def learning_rate(update: int, total: int, spec: TrainSpec) -> float:
    """Rate of optimiser update `update` (from 0): warm-up to the peak, then constant, linear or cosine towards 0."""
    warm = math.ceil(spec.warmup_ratio * total)
    if update < warm:
        return spec.learning_rate * (update + 1) / warm
    left = max(0.0, (total - update) / max(1, total - warm))
    shares = {"constant": 1.0, "linear": left, "cosine": 0.5 * (1.0 + math.cos(math.pi * (1.0 - left)))}
    return spec.learning_rate * shares[spec.schedule]


class Loop:
    """Optimiser updates, one after another, each of them logged; checkpoints where the caller asks for one."""

    def __init__(self, state: State, loss: LossFn, spec: TrainSpec, ctx: Context, *, total: int) -> None:
        """`total` updates shape the schedule."""
        self.state, self.loss, self.spec, self.ctx, self.total = state, loss, spec, ctx, total
        self.saver = checkpoint.Saver(ctx.work / "checkpoints", state.trainable.mesh)
        self.saved = state.step
        self.settle: Callable[[], None] = lambda: None  # what must be on the disk before a checkpoint is
        self.began = time.monotonic()
        ctx.track.progress(state.step, total)  # where a continued stage begins
        self.alone = state.trainable.mesh.size == 1
        # One rank may be cut short within a step, whose beginning is then saved; several must agree, between steps.
        ctx.stop.ready = lambda: self.alone and state.whole
        if self.alone:
            ctx.stop.keep = self.keep

    def update(self, step: Step) -> dict[str, float]:
        """Take a step and log it; returns what was measured, without the metrics that the step came with."""
        state, track, device = self.state, self.ctx.track, self.state.trainable.mesh.device
        measured = update_once(state, step, self.loss, learning_rate(state.updates, self.total, self.spec), self.spec)
        state.whole = False
        state.step += 1
        now = time.monotonic()
        if state.trainable.mesh.first:
            track.log(state.step, **measured, **step.metrics, seconds=now - self.began, memory_gb=peak_memory(device))
            track.progress(state.step, self.total, _note(measured, step))
        self.began = now
        return measured

    def due(self) -> bool:
        """Whether a checkpoint is wanted now, never after the last update. Ranks decide together: each must ask."""
        return self.saver.due(self.ctx.recipe.placement.checkpoint_seconds) and self.state.step < self.total

    def save(self) -> None:
        """Write an exact checkpoint of this moment, or begin to."""
        state = self.state
        extra = {"updates": state.updates, "extra": state.extra}
        self.saver.save(checkpoint.snapshot(state.step, state.trainable, state.optimizer, extra, state.kept))
        self.saved = state.step

    def rest(self) -> None:
        """Between two steps: save where that is due, and where the process was asked to end, which it then does."""
        stop = self.ctx.stop
        asked = self.state.trainable.mesh.max([float(stop.number)])[0]
        if self.due() or asked:
            self.settle()
            self.save()
        self.state.whole = True
        if asked or (self.alone and stop.number):
            self.saver.finish()
            raise Stopped(128 + int(asked or stop.number))

    def keep(self) -> None:
        """Save the last finished step, unless that was done."""
        self.saver.finish()
        if self.state.whole and self.saved < self.state.step:
            self.settle()
            self.save()
            self.saver.finish()

    def finish(self) -> None:
        """Wait for the checkpoint that is being written; from here on the stage may be cut short anywhere."""
        self.saver.finish()
        self.ctx.stop.ready = lambda: True


def fit(state: State, steps: Iterable[Step], loss: LossFn, spec: TrainSpec, ctx: Context, *, total: int) -> State:
    """Take every step of `steps`; `total` optimiser updates shape the schedule. Checkpoints, metrics and progress."""
    loop = Loop(state, loss, spec, ctx, total=total)
    for step in steps:
        loop.update(step)
        loop.rest()
    loop.finish()
    return state


def update_once(state: State, step: Step, loss: LossFn, rate: float, spec: TrainSpec) -> dict[str, float]:
    """One optimiser update. A step without weight (every group skipped) changes nothing.

    What was measured is read from the device once, after all of it is queued: a GPU never waits for the host.
    """
    trainable, mesh = state.trainable, state.trainable.mesh
    began = time.monotonic()
    sums = Sums(mesh, ("tokens", "useful_tokens", "repeated_tokens", "flops"))
    last = {batch.part: number for number, batch in enumerate(step.batches)}
    uneven = len(last) > 1 or any(batch.walk for batch in step.batches)
    for number, batch in enumerate(step.batches):
        trainable.reduce_now(number == last[batch.part], outside=uneven)
        for found in _losses(trainable, batch, loss):
            trainable.backward(found.objective.total)
            sums.add({LOSS + found.part: found.objective, **found.metrics})
        sums.count("tokens", batch.num_tokens)
        sums.count("useful_tokens", len(batch.forest.targets_P))
        sums.count("repeated_tokens", _repeated(batch, mesh))
        sums.count("flops", sum(training_flops(_size(state, batch.part), forest) for forest in batch.forests))
    counts, totals, norms = sums.read(LOSS, trainable.grad_norm)
    measured = {name: total / weight for name, (total, weight) in totals.items() if weight}
    measured |= {"tokens": counts["tokens"], "useful_tokens": counts["useful_tokens"], "lr": rate}
    measured |= {"repeated_tokens": counts["repeated_tokens"]} if counts["repeated_tokens"] else {}
    weights = {part: weight for part in norms if (weight := totals[LOSS + part][1])}
    measured |= _descend(state, weights, norms, measured, rate, spec.max_grad_norm)
    measured = {_metric(name): value for name, value in measured.items()}
    seconds = max(time.monotonic() - began, 1e-9)
    measured["tokens_per_second"] = measured["tokens"] / seconds
    measured["gflops"] = counts["flops"] / seconds / 1e9
    if state.rate:
        measured["efficiency"] = counts["flops"] / (seconds * state.rate * mesh.size)
    if (peak := peak_flops(mesh.device)) is not None:
        most = peak * seconds * mesh.size
        measured["mfu"] = counts["flops"] / most
        measured["useful_mfu"] = trainable.flops * counts["useful_tokens"] / most
    return measured


def _losses(trainable: Trainable, batch: Batch, loss: LossFn) -> Iterator[Loss]:
    """The loss of a batch, or of one of its parts after another."""
    if batch.walk and isinstance(loss, InParts):
        yield from loss.in_parts(trainable.module, batch, trainable.backward_from)
        return
    for part in branches(trainable.module, batch, trainable.backward_from):
        yield loss(trainable.module, part)


def _repeated(batch: Batch, mesh: Mesh) -> int:
    """Tokens that are computed again because the batch is taken in parts; read one path a row, they always are."""
    return batch.num_tokens - batch.forest.num_tokens if len(batch.forests) > 1 and not mesh.padded else 0


def _size(state: State, part: str) -> ModelSize:
    if part not in state.sizes:
        state.sizes[part] = model_size(state.trainable.module.get_submodule(part.rstrip(".")))
    return state.sizes[part]


def _metric(name: str) -> str:
    """`loss:` is shown as `loss`, `loss:policy.` too, `loss:critic.` as `critic_loss`; gradient norms alike."""
    kind, colon, part = name.partition(":")
    part = part.rstrip(".")
    return name if not colon else kind if part in ("", "policy") else f"{part}_{kind}"


def _descend(
    state: State, weights: dict[str, float], norms: dict[str, float], losses: dict[str, float], rate: float, clip: float
) -> dict[str, float]:
    """Divide, clip, step and publish, each part by itself. Division and clip are one pass over the gradients.

    `norms` are of the summed gradients; what comes back are those of the divided ones, as metrics.
    """
    if not weights:
        return {}
    trainable, found = state.trainable, {}
    for part, weight in weights.items():
        norm = found[f"grad_norm:{part}"] = norms[part] / weight
        _check_finite(losses[LOSS + part], norm, state)
        trainable.scale_grads(min(1.0, clip / (norm + 1e-6)) / weight, part)
    state.whole = False
    for group in state.optimizer.param_groups:
        group["lr"] = rate * group.get("peak", 1.0)
    begun = bool(state.optimizer.state)
    state.optimizer.step()
    state.optimizer.zero_grad(set_to_none=True)
    trainable.published()
    state.updates += 1
    if not begun:  # the moments lie now among freed pieces of the heap, too small for the next pass's activations
        release_memory(trainable.mesh.device)
    return found


def _check_finite(loss: float, norm: float, state: State) -> None:
    if not (math.isfinite(loss) and math.isfinite(norm)):
        raise TrainingError(
            f"the loss is {loss} and the gradient norm {norm} at step {state.step + 1}; nothing was saved since the "
            "last checkpoint. Lower learning_rate, or check the rows of this step"
        )


def _note(measured: dict[str, float], step: Step) -> str:
    shown = {**measured, **step.metrics}
    names = ("loss", "reward", "accuracy", "tokens_per_second", "efficiency")
    return "  ".join(f"{name} {shown[name]:.3g}" for name in names if name in shown)


def reduce_tokens(losses_P: Tensor, forest: Forest, reduction: str, length: int, owners: Owners | None = None) -> Sum:
    """Token losses as a Sum.

    `token_mean`: every trained token weighs the same (Tülu 3's sum loss up to scale); `sequence_mean`: every answer
    does; `constant`: the sum over an answer divided by the constant `length` (Dr. GRPO). `owners` are the answers
    of the losses; those of the forest's predicted tokens when absent.
    """
    if reduction == "token_mean":
        return Sum(losses_P.sum(), float(len(losses_P)))
    leaf_P, counts_L, leaves = owners or forest.owners
    if reduction == "constant":
        return Sum(losses_P.sum() / length, float(leaves))
    return Sum((losses_P / counts_L[leaf_P]).sum(), float(leaves))


def leaf_sums(values_P: Tensor, forest: Forest) -> Tensor:
    """Sum over each leaf's trained tokens, (L,)."""
    return values_P.new_zeros(forest.num_leaves).index_add(0, forest.leaf_P, values_P)
