"""Reinforcement learning with verifiable rewards by GRPO and its kin (paper §6; Tülu 3.1)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tercet.algos.advantage import group_advantages
from tercet.algos.policy import Clip, Clipped, cispo, gspo, k1, k2, k3, ppo, truncated_weights
from tercet.device.mesh import Mesh, mesh
from tercet.device.shard import Trainable
from tercet.models.forest import Forest
from tercet.recipe import GRPOSpec
from tercet.store import Artifact, Context
from tercet.train.batch import Batch
from tercet.train.branches import read
from tercet.train.checks import check_inputs
from tercet.train.export import export, open_frozen, open_to_train
from tercet.train.loop import Loss, leaf_sums, reduce_tokens, start
from tercet.train.packing import Budget
from tercet.train.reference import ReferenceModel
from tercet.train.rl.rollout import RolloutGroup, Round, group_batches, has_signal, read_prompts, set_advantages
from tercet.train.rl.rollout_log import RolloutLog
from tercet.train.rl.trainer import PreparedRound, RLTrainer
from tercet.train.sums import Sum

KL = {"k1": k1, "k2": k2, "k3": k3}


def run(spec: GRPOSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Sample, grade and train, `spec.rounds` times; write the weights and every rollout."""
    with mesh(ctx.recipe.placement) as ranks:
        check_inputs(spec, inputs, ctx.recipe.placement)
        source = inputs[spec.model].payload
        prompts = read_prompts(spec, inputs, out, ranks, ctx)
        reference = _reference(source, spec, ranks, ctx)
        policy, ranks, cost = open_to_train(source, ranks, ctx)
        RolloutLog.mend(spec, ctx, ranks)
        state = start(policy, spec, ranks, ctx, kept=reference.kept if reference else None)
        trainer = RLTrainer(prompts, state, state.trainable.module, spec, inputs, ctx)  # type: ignore[arg-type]
        trainer.run(GRPO(state.trainable, reference, spec, Budget.of(ctx.recipe.placement, spec)))
        export(state.trainable, source, out, spec, inputs, ctx)
        trainer.finish(out, spec.advantage)
        counts = {"steps": float(state.step), "updates": float(state.updates), "prompts": float(len(prompts.rows))}
        return counts | cost


def _reference(source: Path, spec: GRPOSpec, ranks: Mesh, ctx: Context) -> ReferenceModel | None:
    """The model that the KL penalty is measured from."""
    if spec.kl_beta <= 0:
        return None
    dtype = getattr(torch, spec.precision)
    policy = open_frozen(source, dtype, ranks, ctx, moves=spec.polyak > 0)
    return ReferenceModel(policy, spec.polyak, spec.polyak_every, dtype)


class GRPO:
    """GRPO: advantages within each prompt's group, and where needed old and reference log-probs."""

    def __init__(self, trainable: Trainable, reference: ReferenceModel | None, spec: GRPOSpec, budget: Budget) -> None:
        """`budget` is that of a training pass."""
        self.trainable, self.reference, self.spec, self.budget = trainable, reference, spec, budget

    def prepare(self, made: Round) -> PreparedRound:
        """The groups whose rewards differ, `batch` at most, in `minibatches` parts; computed before any update."""
        if self.reference is not None:
            # Here and not after the last update: a checkpoint between rounds then always holds a reference that has
            # not moved yet, and a resumed run moves it once.
            self.reference.follow(made.number, self.trainable)
        # Advantages of whole groups, before any completion is left out: what never ended counts in the group's mean.
        set_advantages(made.groups, self.spec.advantage)
        useful = [group for group in made.groups if has_signal(group)][: self.spec.batch]
        learned = [group for group in map(ended, useful) if group.samples] if self.spec.truncated == "mask" else useful
        parts = self.spec.minibatches
        return PreparedRound([self._batches(learned[i::parts]) for i in range(parts)] * self.spec.passes, useful, {})

    def loss(self, module: nn.Module, batch: Batch) -> Loss:
        """See `grpo_loss`."""
        return grpo_loss(module, batch, spec=self.spec)

    @torch.no_grad()
    def _batches(self, groups: list[RolloutGroup]) -> list[Batch]:
        """Add advantages, reference and old log-probs to the batches of these groups."""
        spec, made = self.spec, group_batches(groups, self.spec, self.budget, self.trainable.mesh)
        for batch in made:
            forest, values = batch.forest, batch.values
            if (reference := self.reference) is not None:
                logps = partial(reference.logps, temperature=spec.temperature)
                values["reference_P"] = read(reference.policy, batch, logps)
            if spec.minibatches * spec.passes > 1:  # with a single update the loss's own log-probs are the old ones
                values["old_P"] = read(self.trainable.module, batch, self._logps)
            advantages_L = values["advantages_L"]
            if spec.kl_in == "reward" and self.reference is not None and len(values["sampled_P"]):
                # The KL lowers rewards here, so the advantages that `prepare` made of verdicts alone are computed anew.
                kl_P = KL[spec.kl_estimator](values["sampled_P"], values["reference_P"])
                rewards_L = values["rewards_L"] - spec.kl_beta * leaf_sums(kl_P, forest)
                advantages_L = group_advantages(rewards_L.reshape(-1, spec.num_generations), spec.advantage).reshape(-1)
            values["advantages_P"] = advantages_L[forest.leaf_P]
        return made

    def _logps(self, forest: Forest) -> Tensor:
        logps_P: Tensor = self.trainable.module(forest, temperature=self.spec.temperature)[0]
        return logps_P


def ended(group: RolloutGroup) -> RolloutGroup:
    """The group without the completions that never ended (over-long filtering, DAPO §3.4); advantages stay."""
    return replace(group, samples=[one for one in group.samples if one.completion.stop == "eos"])


def grpo_loss(policy: nn.Module, batch: Batch, *, spec: GRPOSpec) -> Loss:
    """The recipe's surrogate plus beta x KL per token, reduced as the recipe says.

    With one update per round the old log-probs are this very pass's, so the ratio is 1 and only its gradient acts.
    """
    logps_P, _ = policy(batch.forest, temperature=spec.temperature)
    values = batch.values
    old_P = values.get("old_P", logps_P.detach())
    surrogate = _surrogate(logps_P, old_P, values["advantages_P"], batch.forest, spec)
    losses_P = surrogate.losses
    if spec.importance_cap:
        losses_P = losses_P * truncated_weights(old_P, values["sampled_P"], spec.importance_cap)
    reference_P = values.get("reference_P", logps_P.detach())
    if spec.kl_in == "loss" and spec.kl_beta:
        losses_P = losses_P + spec.kl_beta * KL[spec.kl_estimator](logps_P, reference_P)
    objective = reduce_tokens(losses_P, batch.forest, spec.reduction, spec.max_new_tokens)
    count = float(len(losses_P))
    gap = (old_P - values["sampled_P"]).abs()
    monitored = {"kl": k3(logps_P, reference_P).detach(), "clip_share": surrogate.clipped.float(), "logp_gap": gap}
    return Loss(objective, {name: Sum(values.sum(), count) for name, values in monitored.items()})


def _surrogate(logps_P: Tensor, old_P: Tensor, advantages_P: Tensor, forest: Forest, spec: GRPOSpec) -> Clipped:
    clip = Clip(spec.clip_low, spec.clip_high)
    match spec.loss:
        case "grpo":
            return ppo(logps_P, old_P, advantages_P, clip)
        case "cispo":
            return cispo(logps_P, old_P, advantages_P, clip)
        case "gspo":
            return gspo(logps_P, old_P, advantages_P, forest.leaf_P, clip, forest.counts_L)
