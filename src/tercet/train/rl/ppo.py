"""Reinforcement learning with verifiable rewards by PPO and a value model, as Tülu 3 ran it (paper §6, T21)."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tercet.algos.advantage import gae, table, token_rewards, whiten
from tercet.algos.policy import Clip, k1, k3, ppo, ppo_value, truncated_weights
from tercet.device.mesh import mesh
from tercet.device.shard import Trainable
from tercet.models.forest import Forest, Owners
from tercet.models.hf_folder import load_config
from tercet.recipe import PPOSpec
from tercet.store import Artifact, Context
from tercet.train.batch import Batch
from tercet.train.branches import read
from tercet.train.checks import check_inputs
from tercet.train.export import card, open_frozen, open_to_train, write_folder
from tercet.train.loop import Loss, leaf_sums, reduce_tokens, start
from tercet.train.packing import Budget
from tercet.train.reference import ReferenceModel
from tercet.train.rl.actor_critic import CRITIC, POLICY, ActorCritic, open_critic
from tercet.train.rl.rollout import Round, group_batches, read_prompts
from tercet.train.rl.rollout_log import RolloutLog
from tercet.train.rl.trainer import PreparedRound, RLTrainer
from tercet.train.sums import Sum


def run(spec: PPOSpec, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Sample, grade, estimate advantages, train `spec.passes` times on each round; write weights and rollouts."""
    with mesh(ctx.recipe.placement) as ranks:
        check_inputs(spec, inputs, ctx.recipe.placement)
        source = inputs[spec.model].payload
        prompts = read_prompts(spec, inputs, out, ranks, ctx)
        policy, ranks, cost = open_to_train(source, ranks, ctx)
        pad_id, dtype = prompts.chat.tokenizer.pad_token_id, getattr(torch, spec.precision)
        critic = open_critic(inputs[spec.value].payload, pad_id, ctx.seed, like=policy)
        ranks = replace(ranks, walks=ranks.walks and critic.walks)
        reference = ReferenceModel(open_frozen(source, dtype, ranks, ctx), 0.0, 1)
        rates = {POLICY: spec.learning_rate, CRITIC: spec.value_learning_rate or spec.learning_rate}
        RolloutLog.mend(spec, ctx, ranks)
        state = start(ActorCritic(policy, critic), spec, ranks, ctx, rates=rates)
        trainer = RLTrainer(prompts, state, state.trainable.module.policy, spec, inputs, ctx)  # type: ignore[arg-type]
        trainer.run(PPO(state.trainable, reference, spec, Budget.of(ctx.recipe.placement, spec)))
        text = card(spec, inputs, ctx)
        write_folder(state.trainable, load_config(source), source, out, text, part=POLICY)
        trainer.finish(out)
        counts = {"steps": float(state.step), "updates": float(state.updates), "prompts": float(len(prompts.rows))}
        return counts | cost


class PPO:
    """PPO: advantages and returns by a value model, and both models' batches."""

    def __init__(self, trainable: Trainable, reference: ReferenceModel, spec: PPOSpec, budget: Budget) -> None:
        """`trainable` holds an ActorCritic; `budget` is that of a training pass."""
        self.models, self.ranks = trainable.module, trainable.mesh
        self.reference, self.spec, self.budget = reference, spec, budget

    @torch.no_grad()
    def prepare(self, made: Round) -> PreparedRound:
        """Advantages and returns of all groups, from the weights before the round's first update."""
        parts = self.spec.minibatches
        groups = [made.groups[i::parts] for i in range(parts)]
        scored = [group_batches(part, self.spec, self.budget, self.ranks) for part in groups]
        policy = [[self.for_policy(batch) for batch in part] for part in scored]
        whole = [batch for part in policy for batch in part]
        metrics = self._whiten(whole) | self._explained(whole)
        updates = [[*part, *map(for_critic, part)] for part in policy] * self.spec.passes
        # Only the first update starts from the generator's weights, so only there the two log-probs should be equal.
        updates[0] = [replace(one, values=one.values | {"written_P": one.values["sampled_P"]}) for one in updates[0]]
        return PreparedRound(updates, made.groups, metrics)

    def loss(self, module: nn.Module, batch: Batch) -> Loss:
        """See `ppo_loss`."""
        return ppo_loss(module, batch, spec=self.spec)

    def for_policy(self, batch: Batch) -> Batch:
        """The batch with all that the losses of both models need."""
        values = batch.values | self._estimates(batch)
        owners = _owners(batch.forest.leaf_P[values["learned_at"]], batch.forest)
        return replace(batch, values=values, part=POLICY, owners=owners)

    def _estimates(self, batch: Batch) -> dict[str, Tensor]:
        """Old log-probs and, by GAE, advantages (P,), old values and returns (V,) of a batch."""
        spec, forest, kept_L = self.spec, batch.forest, batch.values["kept_L"]
        old_P = batch.values["sampled_P"]
        if spec.old_logps == "trainer":
            logps = partial(self.models, part=POLICY, temperature=spec.temperature)
            old_P = read(self.models, replace(batch, part=POLICY), lambda one: logps(one)[0])
        reference_P = read(self.reference.policy, batch, partial(self.reference.logps, temperature=spec.temperature))
        valuing = replace(batch, part=CRITIC)
        valued = read(self.models, valuing, lambda one: torch.cat(self.models(one, part=CRITIC)))
        values_P, last_L = valued.split((len(forest.leaf_P), forest.num_leaves))
        # One answer a row, as GAE runs backwards through each. The window is the response limit even where all answers
        # are shorter, so that a score after the end has a position of its own unless the answer was cut by the limit.
        kl_LT, mask_LT = table(k1(old_P, reference_P), forest.leaf_P, forest.num_leaves, spec.max_new_tokens)
        after = spec.score_at == "after_end"
        rewards_L = batch.values["rewards_L"]
        if (paid_P := batch.values.get("paid_P")) is not None:  # an episode's earlier turns
            rewards_L = rewards_L - leaf_sums(paid_P, forest)
        rewards_LT, valued_LT = token_rewards(kl_LT, rewards_L, mask_LT, spec.kl_beta, after=after)
        if paid_P is not None:
            rewards_LT = rewards_LT + table(paid_P, forest.leaf_P, forest.num_leaves, spec.max_new_tokens)[0]
        values_LT = spread(values_P, last_L, forest, mask_LT, valued_LT)
        advantages_LT, returns_LT = gae(rewards_LT, values_LT, valued_LT, spec.gamma, spec.lam)
        # The policy is trained at tokens, the critic wherever a value counted, which may be one position further. What
        # is left out of the loss (no end token) still got its estimates above, so batches keep their shapes.
        kept_LT = valued_LT & kept_L[:, None]
        learned_P = kept_L[forest.leaf_P]
        # Where in the critic's flat output (tokens, then ends) each of its losses finds its value.
        places = torch.arange(len(values_P) + len(last_L), device=values_P.device)
        places_LT = spread(places[: len(values_P)], places[len(values_P) :], forest, mask_LT, valued_LT)
        return {
            "old_P": old_P,
            "reference_P": reference_P,
            "advantages_P": advantages_LT[mask_LT],
            "learned_P": learned_P,
            "learned_at": learned_P.nonzero()[:, 0],
            "old_values_V": values_LT[kept_LT],
            "returns_V": returns_LT[kept_LT],
            "valued_at": places_LT[kept_LT],
            "valued_leaf_V": kept_LT.nonzero()[:, 0],
        }

    def _whiten(self, made: list[Batch]) -> dict[str, float]:
        """Advantages of the whole round with mean 0 and variance 1, over all ranks."""
        whole = torch.cat([batch.values["advantages_P"] for batch in made]).double()
        mask = torch.cat([batch.values["learned_P"] for batch in made])
        chosen = whole[mask]
        # In two passes: a sum of squares minus the square of a sum would lose the digits of a small variance.
        count, total = self.ranks.data.sum([float(len(chosen)), float(chosen.sum())])
        mean = total / max(count, 1.0)
        (squares,) = self.ranks.data.sum([float((chosen - mean).square().sum())])
        variance = squares / max(1.0, count - 1)
        if self.spec.whiten:
            sizes = [len(batch.values["advantages_P"]) for batch in made]
            scaled = whiten(whole, mask, moments=(mean, variance)).float()
            for batch, part in zip(made, scaled.split(sizes), strict=True):
                batch.values["advantages_P"] = part
        return {"advantage": mean, "advantage_std": variance**0.5}

    def _explained(self, made: list[Batch]) -> dict[str, float]:
        """How much of the returns' variance the old values explain: 1 - var(R - V) / var(R)."""
        names = ("returns_V", "old_values_V")
        returns, values = (torch.cat([batch.values[name] for batch in made]).double() for name in names)
        missed = returns - values
        sums = [x.sum() for x in (returns, returns.square(), missed, missed.square(), values)]
        count, first, second, off, squares, valued = self.ranks.data.sum([float(len(returns)), *map(float, sums)])
        count = max(count, 1.0)
        spread_of_returns = second / count - (first / count) ** 2
        left = squares / count - (off / count) ** 2
        known = 1.0 - left / spread_of_returns if spread_of_returns > 0 else 0.0
        return {"explained_variance": known, "value": valued / count, "return": first / count}


def spread(values_P: Tensor, last_L: Tensor, forest: Forest, mask_LT: Tensor, valued_LT: Tensor) -> Tensor:
    """Values as a table (L, T); where a position past the last token is valued, it holds the value of the end."""
    values_LT = table(values_P, forest.leaf_P, forest.num_leaves, mask_LT.shape[1])[0]
    return torch.where(valued_LT & ~mask_LT, last_L[:, None], values_LT)


def for_critic(batch: Batch) -> Batch:
    """The policy's batch once more, with the owners of the critic's losses."""
    return replace(batch, part=CRITIC, owners=_owners(batch.values["valued_leaf_V"], batch.forest))


def _owners(leaf_P: Tensor, forest: Forest) -> Owners:
    """The answers of these losses; counted once a round, as it waits for the GPU."""
    counts_L = torch.bincount(leaf_P, minlength=forest.num_leaves)
    return Owners(leaf_P, counts_L, int((counts_L > 0).sum()))


def ppo_loss(models: nn.Module, batch: Batch, *, spec: PPOSpec) -> Loss:
    """The clipped surrogate of the policy, or the clipped squared error of its critic times its coefficient."""
    return _critic_loss(models, batch, spec) if batch.part == CRITIC else _policy_loss(models, batch, spec)


def _policy_loss(models: nn.Module, batch: Batch, spec: PPOSpec) -> Loss:
    values, learned_at = batch.values, batch.values["learned_at"]
    logps_P, _ = models(batch.forest, part=POLICY, temperature=spec.temperature)
    surrogate = ppo(logps_P, values["old_P"], values["advantages_P"], Clip(spec.clip_low, spec.clip_high))
    losses_P = surrogate.losses
    if spec.importance_cap:
        losses_P = losses_P * truncated_weights(values["old_P"], values["sampled_P"], spec.importance_cap)
    objective = reduce_tokens(losses_P[learned_at], batch.forest, spec.reduction, spec.max_new_tokens, batch.owners)
    count = float(len(losses_P))
    monitored = {"kl": k3(logps_P, values["reference_P"]).detach(), "clip_share": surrogate.clipped.float()}
    if spec.old_logps == "trainer":
        monitored["logp_gap"] = (values["old_P"] - values["sampled_P"]).abs()
    elif "written_P" in values:
        monitored["logp_gap"] = (logps_P.detach() - values["written_P"]).abs()
    return Loss(objective, {name: Sum(one.sum(), count) for name, one in monitored.items()}, POLICY)


def _critic_loss(models: nn.Module, batch: Batch, spec: PPOSpec) -> Loss:
    values, forest = batch.values, batch.forest
    now_V = torch.cat(models(forest, part=CRITIC))[values["valued_at"]]
    losses_V, clipped_V = ppo_value(now_V, values["old_values_V"], values["returns_V"], spec.value_clip)
    scaled_V = spec.value_coefficient * losses_V
    objective = reduce_tokens(scaled_V, forest, spec.reduction, spec.max_new_tokens, batch.owners)
    monitored = {"value_clip_share": Sum(clipped_V.float().sum(), float(len(losses_V)))}
    return Loss(objective, monitored, CRITIC)
