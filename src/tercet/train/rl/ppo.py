"""Reinforcement learning with verifiable rewards by PPO and a value model, as Tülu 3 ran it (paper §6, T21)."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from tercet.algos.advantage import gae, table, token_rewards, whiten
from tercet.algos.policy import Clip, k1, k3, ppo, ppo_value, truncated_weights
from tercet.device.mesh import Mesh, mesh
from tercet.models.chat import Chat
from tercet.models.folder import load_config, load_tokenizer
from tercet.models.forest import Forest, Owners
from tercet.recipe import PPO
from tercet.store import Artifact, Context
from tercet.train.batch import Batch, batches
from tercet.train.checks import check_inputs
from tercet.train.export import card, open_policy, write_folder
from tercet.train.loop import Loss, reduce_tokens, start
from tercet.train.reference import Reference
from tercet.train.rl.actor_critic import CRITIC, POLICY, ActorCritic, open_critic
from tercet.train.rl.rollout import Group, Round, read_prompts
from tercet.train.rl.trainer import PreparedRound, RLTrainer
from tercet.train.sums import Sum


def run(spec: PPO, inputs: dict[str, Artifact], out: Path, ctx: Context) -> dict[str, float]:
    """Sample, grade, estimate advantages, learn `spec.passes` times from each round; leave weights and rollouts."""
    with mesh() as ranks:
        check_inputs(spec, inputs)
        source = inputs[spec.model].payload
        chat = Chat(load_tokenizer(source))
        rows = read_prompts(spec, inputs[spec.prompts].payload / "rows.parquet", chat, out, ranks, ctx)
        policy = open_policy(source)
        critic = open_critic(inputs[spec.value].payload, chat.tokenizer.pad_token_id, ctx.seed)
        reference = Reference(open_policy(source, getattr(torch, spec.precision)).to(ranks.device), 0.0, 1)
        rates = {POLICY: spec.learning_rate, CRITIC: spec.value_learning_rate or spec.learning_rate}
        state = start(ActorCritic(policy, critic), spec, ranks, ctx, rates=rates)
        duo: ActorCritic = state.trainable.module  # type: ignore[assignment]
        school = RLTrainer(rows, state, duo.policy, chat, spec, inputs, ctx)
        tutor = PPOAlgorithm(duo, reference, spec, ranks, ctx)
        school.run(tutor.lesson, partial(ppo_loss, spec=spec))
        text = card(spec, inputs, ctx)
        write_folder(state.trainable, load_config(source), source, out, text, part=POLICY)
        school.finish(out)
        return {"steps": float(state.step), "updates": float(state.updates), "prompts": float(len(rows))}


class PPOAlgorithm:
    """Turns a round into batches for the policy and for its critic."""

    def __init__(self, duo: ActorCritic, reference: Reference, spec: PPO, ranks: Mesh, ctx: Context) -> None:
        self.duo, self.reference, self.spec, self.ranks = duo, reference, spec, ranks
        self.budget = ctx.recipe.placement.micro_tokens

    @torch.no_grad()
    def lesson(self, made: Round) -> PreparedRound:
        """Advantages and returns of all groups, from the weights before the round's first update."""
        parts = self.spec.minibatches
        learned = [made.groups[part::parts] for part in range(parts)]
        policy = [self._scored(part) for part in learned]
        flat = [batch for part in policy for batch in part]
        metrics = self._whiten(flat) | self._explained(flat)
        critic = [[for_critic(batch) for batch in part] for part in policy]
        for batch in policy[0]:
            batch.values["fresh"] = batch.values["kept_L"]
        return PreparedRound([own + values for own, values in zip(policy, critic, strict=True)], made.groups, metrics)

    def _scored(self, groups: list[Group]) -> list[Batch]:
        def values(items: list[int], forest: Forest) -> dict[str, Tensor]:
            samples = [s for i in items for s in groups[i].samples]
            sampled_P = torch.tensor([logp for s in samples for logp in s.completion.logps], dtype=torch.float32)
            rewards_L = torch.tensor([s.reward for s in samples] or [0.0], dtype=torch.float32)
            kept_L = [self.spec.truncated == "train" or s.completion.stop == "eos" for s in samples] or [False]
            return {"sampled_P": sampled_P, "rewards_L": rewards_L, "kept_L": torch.tensor(kept_L)}

        made = batches([group.tree() for group in groups], self.budget, self.ranks, values)
        return [self.for_policy(batch) for batch in made]

    def for_policy(self, batch: Batch) -> Batch:
        """The batch with all that the losses of both models look at."""
        values = batch.values | self._estimates(batch)
        return Batch(batch.forest, values, POLICY, _owners(batch.forest.leaf_P[values["learned_at"]], batch.forest))

    def _estimates(self, batch: Batch) -> dict[str, Tensor]:
        """Old log-probs and, by GAE, advantages (P,), old values and returns (V,) of a batch."""
        spec, forest = self.spec, batch.forest
        old_P = batch.values["sampled_P"]
        if spec.old_logps == "trainer":
            old_P = self.duo(forest, part=POLICY, temperature=spec.temperature)[0]
        reference_P = self.reference.logps(forest, spec.temperature)
        values_P, last_L = self.duo(forest, part=CRITIC)
        kl_LT, mask_LT = table(k1(old_P, reference_P), forest.leaf_P, forest.num_leaves, spec.max_new_tokens)
        after = spec.score_at == "after_end"
        rewards_LT, valued_LT = token_rewards(kl_LT, batch.values["rewards_L"], mask_LT, spec.kl_beta, after=after)
        values_LT = spread(values_P, last_L, forest, mask_LT, valued_LT)
        advantages_LT, returns_LT = gae(rewards_LT, values_LT, valued_LT, spec.gamma, spec.lam)
        kept_LT = valued_LT & batch.values["kept_L"][:, None]
        learned_P = batch.values["kept_L"][forest.leaf_P]
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
        count, total = self.ranks.sum([float(len(chosen)), float(chosen.sum())])
        mean = total / max(count, 1.0)
        (squares,) = self.ranks.sum([float((chosen - mean).square().sum())])
        if self.spec.whiten:
            sizes = [len(batch.values["advantages_P"]) for batch in made]
            scaled = whiten(whole, mask, moments=(mean, squares / max(1.0, count - 1))).float()
            for batch, part in zip(made, scaled.split(sizes), strict=True):
                batch.values["advantages_P"] = part
        return {"advantage": mean, "advantage_std": (squares / max(1.0, count - 1)) ** 0.5}

    def _explained(self, made: list[Batch]) -> dict[str, float]:
        """How much of the returns' variance the critic knew before: 1 - var(R - V) / var(R)."""
        returns = torch.cat([batch.values["returns_V"] for batch in made]).double()
        values = torch.cat([batch.values["old_values_V"] for batch in made]).double()
        parts = [float(x) for x in (len(returns), returns.sum(), returns.square().sum())]
        parts += [float(x) for x in ((returns - values).sum(), (returns - values).square().sum(), values.sum())]
        count, first, second, off, squares, valued = self.ranks.sum(parts)
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
    """The policy's batch once more, as the critic learns from it."""
    return Batch(batch.forest, batch.values, CRITIC, _owners(batch.values["valued_leaf_V"], batch.forest))


def _owners(leaf_P: Tensor, forest: Forest) -> Owners:
    """Whose these losses are, counted once a round: a card is waited for."""
    counts_L = torch.bincount(leaf_P, minlength=forest.num_leaves)
    return Owners(leaf_P, counts_L, int((counts_L > 0).sum()))


def ppo_loss(duo: nn.Module, batch: Batch, *, spec: PPO) -> Loss:
    """The clipped surrogate of the policy, or the clipped squared error of its critic times its coefficient."""
    return _critic_loss(duo, batch, spec) if batch.part == CRITIC else _policy_loss(duo, batch, spec)


def _policy_loss(duo: nn.Module, batch: Batch, spec: PPO) -> Loss:
    values, learned_at = batch.values, batch.values["learned_at"]
    logps_P, _ = duo(batch.forest, part=POLICY, temperature=spec.temperature)
    surrogate = ppo(logps_P, values["old_P"], values["advantages_P"], Clip(spec.clip_low, spec.clip_high))
    losses_P = surrogate.losses
    if spec.importance_cap:
        losses_P = losses_P * truncated_weights(values["old_P"], values["sampled_P"], spec.importance_cap)
    objective = reduce_tokens(losses_P[learned_at], batch.forest, spec.reduction, spec.max_new_tokens, batch.owners)
    count = float(len(losses_P))
    watched = {"kl": k3(logps_P, values["reference_P"]).detach(), "clip_share": surrogate.clipped.float()}
    if spec.old_logps == "trainer":
        watched["logp_gap"] = (values["old_P"] - values["sampled_P"]).abs()
    elif values.pop("fresh", None) is not None:  # the weights that sampled have not moved yet
        watched["logp_gap"] = (logps_P.detach() - values["sampled_P"]).abs()
    return Loss(objective, {name: Sum(one.sum(), count) for name, one in watched.items()}, POLICY)


def _critic_loss(duo: nn.Module, batch: Batch, spec: PPO) -> Loss:
    values, forest = batch.values, batch.forest
    now_V = torch.cat(duo(forest, part=CRITIC))[values["valued_at"]]
    losses_V, clipped_V = ppo_value(now_V, values["old_values_V"], values["returns_V"], spec.value_clip)
    scaled_V = spec.value_coefficient * losses_V
    objective = reduce_tokens(scaled_V, forest, spec.reduction, spec.max_new_tokens, batch.owners)
    watched = {"value_clip_share": Sum(clipped_V.float().sum(), float(len(losses_V)))}
    return Loss(objective, watched, CRITIC)
