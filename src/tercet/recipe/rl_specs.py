"""The RL stages, which train on completions of the policy that verifiers grade: GRPO and its variants, and PPO."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from tercet.recipe.specs import ANSWER, TRAINED, ComputeSpec, Loc, Spec, frozen
from tercet.recipe.train_specs import Reduction, Schedule, TrainSpec

_PRESETS: dict[str, Any] = tomllib.loads(Path(__file__).with_name("presets.toml").read_text(encoding="utf-8"))


class ExtraSpec(Spec):
    """A further verifier of every completion: a format, a length, a rubric."""

    verifier: str = Field(
        description="Name of the verifier, e.g. `format@1`, or a function in a file, `my_reward.py:score`."
    )
    reference: str = Field(
        "",
        description="What the verifier compares with; the row's own reference answer when absent (nothing for `format@1`, `length@1`, `up_to_length@1`, `refusal@1`).",
    )
    weight: float = Field(1.0, description="Its score times this is added to the row's score.")
    gate: bool = Field(False, description="Multiply instead: without it there is no reward for the rest.")


class MonitorSpec(Spec):
    """When a monitor of the rollouts raises an alert (report page, log); `stop` lists those that end the run."""

    later = ("errors", "dropped")

    rounds: int = Field(5, ge=1, description="Rounds in a row that must be beyond a threshold.")
    reward: float = Field(0.0, ge=0, description="Alert `reward`: share of rewarded completions at or below this.")
    kl: float = Field(1.0, gt=0, description="Alert `kl`: mean KL to the reference (k3), nats per token.")
    gap: float = Field(0.1, gt=0, description="Alert `gap`: mean |trainer - generator| log-prob, nats per token.")
    truncated: float = Field(0.5, gt=0, description="Alert `truncated`: share of completions without an end token.")
    length: float = Field(3.0, gt=1, description="Alert `length`: mean length over that of the first rounds.")
    entropy: float = Field(0.02, ge=0, description="Alert `entropy`: mean entropy estimate below this, nats per token.")
    zero_variance: float = Field(0.95, gt=0, description="Alert `zero_variance`: share of groups with one reward.")
    repetition: float = Field(0.2, gt=0, description="Alert `repetition`: share of completions that repeat themselves.")
    hollow: float = Field(
        0.2, gt=0, description="Alert `hollow`: share of rewarded completions with < 4 words beyond those asked for."
    )
    errors: float = Field(
        0.1, gt=0, description="Alert `errors`: share of completions that a verifier failed to grade."
    )
    dropped: float = Field(
        0.2, gt=0, description="Alert `dropped`: share of a stream's groups that came back too late to be trained on."
    )
    stop: tuple[
        Literal[
            "reward",
            "kl",
            "gap",
            "truncated",
            "length",
            "entropy",
            "zero_variance",
            "repetition",
            "hollow",
            "errors",
            "dropped",
        ],
        ...,
    ] = Field((), description="Alerts that stop the run with an error.")


class RLSpec(TrainSpec):
    """What the RL stages share (paper §6)."""

    accepts = {"model": ("weights",), "prompts": ("rows",), "judge": ("weights",)}
    grades = True
    code = "tercet.environments.names:code_of"
    later = ("environment", "environment_args", "max_turns", "turn_tokens", "environment_seconds", "stale")
    prompts: str = Field(description="A stage of rows that carry verifiers: mix, synth or personas.")
    judge: str = Field("", description="The model behind verifiers that ask one, e.g. `rubric@1`; usually an endpoint.")
    rounds: int = Field(ge=1, description="Rollout rounds; each makes `passes` x `minibatches` optimiser steps.")
    batch: int = Field(48, ge=1, description="Prompts per round.")
    num_generations: int = Field(16, ge=1, description="Completions per prompt.")
    minibatches: int = Field(1, ge=1, description="Parts of a round, one optimiser step each.")
    passes: int = Field(1, ge=1, description="How often a round is trained on.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature (paper T21: 1.0).")
    max_new_tokens: int = Field(2048, ge=1, description="Longest completion (paper T21: 2,048).")
    reward_scale: float = Field(10.0, gt=0, description="Reward of a verified answer (paper §6: alpha = 10).")
    no_eos_reward: float | Literal["keep"] = Field(
        0.0, description='Reward that replaces the score when no end token came (Tülu 3.1: 0); "keep" keeps the score.'
    )
    overlong_tokens: int = Field(
        0, ge=0, description="Over these last tokens before the limit the reward falls by up to reward_scale (DAPO)."
    )
    truncated: Literal["train", "mask"] = Field(
        "train", description="Completions without an end token: train on them, or mask them in the loss (DAPO §3.4)."
    )
    extra: tuple[ExtraSpec, ...] = Field((), description="Further verifiers of every completion.")
    sandbox: Literal["auto", "none"] = Field("auto", description="How programs run; none means unprotected.")
    kl_beta: float = Field(0.01, ge=0, description="Weight of the KL to the reference.")
    clip_low: float = Field(0.2, ge=0, description="Lower clip of the ratio (paper T21: 0.2).")
    clip_high: float = Field(0.2, ge=0, description="Upper clip of the ratio (paper T21: 0.2).")
    importance_cap: float = Field(
        0.0, ge=0, description="Multiply the loss by min(trainer / generator probability, this); 0: off (Yao 2025: 2)."
    )
    engine: Literal["local", "vllm"] = Field(
        "local", description="What writes completions: ours, or vLLM (docs/engines.md)."
    )
    environment: str = Field(
        "",
        description="What answers the model in episodes of several turns: `calculator@1`, `guess@1`, a class in a file (`my_game.py:Game`) or of an installed package (`package.module:Game`).",
    )
    environment_args: dict[str, Any] = Field({}, description="Arguments of the environment's class.")
    max_turns: int = Field(8, ge=1, description="Most turns of the model in an episode.")
    turn_tokens: int = Field(
        0, ge=0, description="Most tokens of a turn; 0: as many as are left of max_new_tokens, which holds an episode."
    )
    environment_seconds: float = Field(60.0, gt=0, description="Seconds after which an environment's call is ended.")
    lag: int = Field(0, ge=0, description="Rounds that generation may run ahead of training; 0: in turn.")
    in_flight: bool = Field(
        False,
        description="Write rollouts as a stream, with new weights put into the engine while it writes (needs lag).",
    )
    stale: Literal["drop", "correct"] = Field(
        "drop",
        description="Groups of a stream whose weights are more than `lag` rounds old: ask again, or keep them, corrected by `importance_cap`.",
    )
    reduction: Reduction = Field("token_mean", description="How token losses become one number.")
    monitor: MonitorSpec = Field(default_factory=MonitorSpec, description="Thresholds of alerts.")

    def verifiers(self) -> Iterator[tuple[Loc, str]]:
        """Also the further ones."""
        yield from super().verifiers()
        yield from ((("extra", i, "verifier"), extra.verifier) for i, extra in enumerate(self.extra))

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        """Fill in the preset's values where the recipe gives none."""
        if not isinstance(given, dict):
            return given
        name = given.get("preset", cls.model_fields["preset"].default)
        known = _PRESETS.get(cls.model_fields["kind"].default, {})
        return frozen({**known.get(name if isinstance(name, str) else "", {}), **given})

    @model_validator(mode="after")
    def _fits(self) -> RLSpec:
        if self.overlong_tokens >= self.max_new_tokens:
            raise ValueError(
                f"overlong_tokens = {self.overlong_tokens} must be below max_new_tokens = {self.max_new_tokens}"
            )
        if self.in_flight and not (self.lag and self.engine == "vllm"):
            raise ValueError('in_flight needs engine = "vllm" and lag of at least 1')
        if self.stale == "correct" and not (self.in_flight and self.importance_cap):
            raise ValueError('stale = "correct" needs in_flight = true and importance_cap above 0, e.g. 2')
        if self.batch % self.minibatches:
            raise ValueError(
                f"batch = {self.batch} prompts cannot be cut into minibatches = {self.minibatches} equal parts"
            )
        return self

    def forecast(self, rows: Mapping[str, int]) -> dict[str, int]:
        """Optimiser steps, and the completions of all rounds."""
        completions = self.rounds * self.batch * self.num_generations
        return {"steps": self.rounds * self.minibatches * self.passes, "completions": completions}

    def flops(self, ahead: Mapping[str, int]) -> tuple[float, float]:
        """Six per token that is trained on, two of the reference; and what is generated."""
        return 8.0 * TRAINED * ahead.get("completions", 0) * ANSWER, ComputeSpec.flops(self, ahead)[1]


class GRPOSpec(RLSpec):
    """Reinforcement learning with verifiable rewards by GRPO and its variants: no value model (paper §6; Tülu 3.1)."""

    module = "tercet.train.rl.grpo"
    version = 4
    label = "RLVR"
    kind: Literal["grpo"] = "grpo"
    preset: Literal["", "tulu3.1", "dapo", "cispo", "dr_grpo", "gspo", "rloo"] = Field(
        "", description="A published setting that fills in what the recipe does not say."
    )
    num_generations: int = Field(16, ge=2, description="Completions per prompt (Tülu 3.1: 16).")
    loss: Literal["grpo", "cispo", "gspo"] = Field(
        "grpo", description="Clipped ratio per token, clipped weight without clipped gradient, or ratio per completion."
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="Estimate of the KL (Tülu 3.1: k3).")
    kl_in: Literal["loss", "reward"] = Field(
        "loss", description="Where the KL goes: in the loss (GRPO), or taken off the reward (k1, summed over tokens)."
    )
    advantage: Literal["standard", "centered", "leave_one_out"] = Field(
        "standard", description="Divide by the group's standard deviation (Tülu 3.1), only centre, or leave one out."
    )
    active_rounds: int = Field(
        1, ge=1, description="Draw prompts up to this often until `batch` groups have unequal rewards (DAPO)."
    )
    polyak: float = Field(0.0, ge=0, lt=1, description="Share by which the reference moves to the policy; 0: frozen.")
    polyak_every: int = Field(100, ge=1, description="Rounds between two moves of the reference.")
    learning_rate: float = Field(5e-7, gt=0, description="Peak learning rate (Tülu 3.1: 5e-7).")
    schedule: Schedule = Field("constant", description="Learning-rate schedule (Tülu 3.1: constant).")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="Share of steps that warm up (Tülu 3.1: none).")

    @model_validator(mode="after")
    def _kl_of_all(self) -> GRPOSpec:
        if self.kl_in == "reward" and self.truncated == "mask":
            raise ValueError('kl_in = "reward" needs the log-probs of every completion; set truncated = "train"')
        return self


class PPOSpec(RLSpec):
    """Reinforcement learning with verifiable rewards by PPO with a value model, as Tülu 3 ran it (paper §6, T21)."""

    module = "tercet.train.rl.ppo"
    version = 3
    accepts = {**RLSpec.accepts, "value": ("reward model", "weights")}
    label = "PPO"
    kind: Literal["ppo"] = "ppo"
    preset: Literal["tulu3", "corrected"] = Field(
        "tulu3", description="The published run, or the same without its quirks; fills in what the recipe does not say."
    )
    value: str = Field(description="Start of the value model: a reward model (§6.2), or a model, with a fresh head.")
    num_generations: int = Field(1, ge=1, description="Completions per prompt (published: 1).")
    batch: int = Field(224, ge=1, description="Prompts per round (paper T21: 224 for 8B).")
    passes: int = Field(4, ge=1, description="How often a round is trained on (paper T21: 4).")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount (paper T21: 1).")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of generalised advantage estimation (paper T21: 0.95).")
    value_clip: float = Field(0.2, gt=0, description="Clip of the value's step (paper T21: 0.2).")
    value_coefficient: float = Field(0.1, gt=0, description="Weight of the value loss (paper T21: 0.1).")
    value_learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate of the value model; that of the policy when absent (published)."
    )
    whiten: bool = Field(True, description="Whiten advantages over the tokens of a round (published: of a rank's).")
    score_at: Literal["after_end", "end"] = Field(
        "after_end", description="Where the score goes: one position past the end token (published) or at it."
    )
    old_logps: Literal["trainer", "generator"] = Field(
        "trainer", description="Behaviour log-probs: computed again before the updates (published), or as sampled."
    )
    no_eos_reward: float | Literal["keep"] = Field(-10.0, description="Score without an end token (paper T21: -10).")
    kl_beta: float = Field(0.05, ge=0, description="Weight of the KL (k1), taken off each token's reward (T21: 0.05).")
    learning_rate: float = Field(3e-7, gt=0, description="Peak learning rate (paper T21: 3e-7 for 8B).")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="Share of steps that warm up (paper T21: none for 8B).")
