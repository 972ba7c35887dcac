"""The stages that train on rows and pairs: SFT, DPO and the reward model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from tercet.recipe.specs import ROW, TRAINED, ComputeSpec, FileRef, Spec, StageReference

Schedule = Literal["linear", "cosine", "constant"]
Reduction = Literal["token_mean", "sequence_mean", "constant"]


class LoraSpec(Spec):
    """Low-rank adapters instead of all weights (Hu et al. 2021); the exported model has them merged in."""

    later = ("adapter", "quantize")
    r: int = Field(16, ge=1, description="Rank of the two factors.")
    alpha: float = Field(32.0, gt=0, description="The product of the factors is scaled by alpha / r.")
    target_modules: tuple[str, ...] = Field(
        (), description='Names of the linear layers that get adapters, e.g. `["q_proj"]`; all but the head when absent.'
    )
    adapter: str = Field(
        "",
        description="Folder of an adapter (PEFT) to go on with: its factors, rank, alpha and layers (sft, reward_model).",
    )
    quantize: Literal["", "nf4", "fp4"] = Field(
        "", description="Keep the frozen weights below adapters in four bits (QLoRA; one GPU; sft, reward_model)."
    )

    @model_validator(mode="after")
    def _of_the_adapter(self) -> LoraSpec:
        own = [name for name in ("r", "alpha", "target_modules") if self._changed(name)]
        if self.adapter and own:
            raise ValueError(f"{' and '.join(own)} come from the adapter's folder; leave them out beside `adapter`")
        return self

    def _changed(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)


class TrainSpec(ComputeSpec):
    """What every training stage shares."""

    produces = "weights"
    parallel = True
    check = "tercet.forecast:check_four_bits"
    compares: ClassVar[bool] = True  # the policy with the model it starts from
    paired: ClassVar[bool] = False  # whether the loss compares the two leaves of a tree
    model: str = Field(description="Stage (or `base`) whose weights start the training.")
    learning_rate: float = Field(gt=0, description="Peak learning rate, per optimiser step.")
    schedule: Schedule = Field("linear", description="After warm-up: to 0, or constant (paper: linear).")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="Share of steps that warm up (paper T11: 3%).")
    batch: int = Field(128, ge=1, description="Rows or pairs (DPO, reward model) per step (paper T11: 128).")
    max_length: int = Field(2048, ge=8, description="Longest row in tokens.")
    overlong: Literal["drop", "cut", "error"] = Field("drop", description="What becomes of rows over max_length.")
    max_lost: float = Field(0.05, ge=0, le=1, description="Stop when more than this share of rows is too long.")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay (paper: 0).")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW betas.")
    eps: float = Field(1e-8, gt=0, description="AdamW epsilon.")
    max_grad_norm: float = Field(1.0, gt=0, description="Gradient norm clip.")
    optimizer: Literal["adamw", "adamw8bit"] = Field("adamw", description="AdamW; or with bitsandbytes' 8-bit moments.")
    lora: LoraSpec | None = Field(None, description="Train low-rank adapters only; all weights when absent.")

    @model_validator(mode="after")
    def _only_where_nothing_is_compared_with_the_start(self) -> Self:
        if self.compares and self.lora and (self.lora.adapter or self.lora.quantize):
            key = "adapter" if self.lora.adapter else "quantize"
            way = 'merge it into the base: `adapter = "…"` in [base]' if self.lora.adapter else "leave it out"
            raise ValueError(
                f"lora.{key} is for sft and reward_model stages: the others compare the policy with the model that "
                f"they start from, or let it write, in its full precision; {way}"
            )
        return self

    def local_files(self) -> Iterator[FileRef]:
        """The folder of the adapter that it goes on with."""
        yield from super().local_files()
        if self.lora and self.lora.adapter:
            yield FileRef(("lora", "adapter"), self.lora.adapter)


class OfflineSpec(TrainSpec):
    """What the stages share that train on rows or pairs which exist before the training starts."""

    data_field: ClassVar[str]  # the field that names the stage of its rows or pairs
    later = (*TrainSpec.later, "thinking")
    sides: ClassVar[float] = 2.6 * TRAINED  # of a pair: two answers and what the reference reads; 1 of a row
    num_epochs: int = Field(1, ge=1, description="Passes over the rows.")
    steps: int | None = Field(None, ge=1, description="Stop after this many optimiser steps; the schedule ends there.")
    thinking: Literal["keep", "drop"] = Field(
        "keep", description="Thoughts of the rows' answers: trained as the chat template writes them, or left out."
    )

    def forecast(self, rows: Mapping[str, int]) -> dict[str, int]:
        """Optimiser steps."""
        return {"steps": self.steps or math.ceil(rows[getattr(self, self.data_field)] * self.num_epochs / self.batch)}

    def flops(self, ahead: Mapping[str, int]) -> tuple[float, float]:
        """Six per trained token."""
        return 6.0 * ahead.get("steps", 0) * self.batch * ROW * self.sides, 0.0


class SFTSpec(OfflineSpec):
    """Supervised finetuning on all assistant turns (paper §4)."""

    module = "tercet.train.sft"
    version = 3
    accepts = {"model": ("weights",), "rows": ("rows",)}
    label = "SFT"
    data_field = "rows"
    sides = 1.0
    compares = False
    kind: Literal["sft"] = "sft"
    rows: str = Field(description="A stage of rows: mix, synth or personas.")
    learning_rate: float = Field(5e-6, gt=0, description="Peak learning rate (paper T11: 5e-6 for 8B).")
    num_epochs: int = Field(2, ge=1, description="Passes over the rows (paper T11: 2).")
    max_length: int = Field(4096, ge=8, description="Longest row in tokens (paper T11: 4,096).")
    reduction: Reduction = Field("token_mean", description="token_mean is the paper's sum loss, up to scale.")


class DPOSpec(OfflineSpec):
    """Preference tuning (paper §5). simpo and orpo need no reference model; ipo averages log-ratios per token.

    kto also learns from single answers that are labelled good or bad (`unpaired_mix`).
    """

    module = "tercet.train.dpo"
    version = 3
    accepts = {"model": ("weights",), "pairs": ("pairs",)}
    label = "DPO"
    data_field = "pairs"
    paired = True
    kind: Literal["dpo"] = "dpo"
    pairs: str = Field(
        description="A stage of pairs: on_policy_pairs, rated_pairs or pair_mix; for kto also unpaired_mix."
    )
    loss: Literal["dpo", "dpo_norm", "simpo", "ipo", "wpo", "orpo", "kto"] = Field(
        "dpo_norm", description="Loss (paper: length-normalised DPO)."
    )
    beta: float = Field(
        5.0, gt=0, description="Inverse temperature (paper T20: 5 for dpo_norm; use about 0.1 for dpo, ipo, wpo, kto)."
    )
    gamma_beta_ratio: float = Field(0.3, description="SimPO's margin over beta.")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="Share of flipped preferences assumed.")
    sft_weight: float = Field(0.0, ge=0, description="Adds this times the chosen answer's mean token loss (RPO: 1).")
    wpo_weight: Literal["mean", "published"] = Field(
        "mean", description="WPO's weight: of mean log-probs, without gradient; or of sums, with it, as published."
    )
    odds_weight: float = Field(0.1, gt=0, description="ORPO's lambda, the weight of its log odds ratio.")
    desirable_weight: float = Field(1.0, gt=0, description="KTO's weight of chosen (good) answers.")
    undesirable_weight: float = Field(1.0, gt=0, description="KTO's weight of rejected (bad) answers.")
    turns: Literal["last", "all"] = Field(
        "last", description="Log-probs of the last assistant turn, or of all (as published; earlier ones are alike)."
    )
    polyak: float = Field(0.0, ge=0, lt=1, description="Share by which the reference moves to the policy; 0: frozen.")
    polyak_every: int = Field(100, ge=1, description="Steps between two moves of the reference.")
    learning_rate: float = Field(5e-7, gt=0, description="Peak learning rate (paper T20: 5e-7 for 8B).")
    warmup_ratio: float = Field(0.1, ge=0, lt=1, description="Share of steps that warm up (paper T20: 10%).")

    @model_validator(mode="after")
    def _of_one_loss(self) -> DPOSpec:
        orpo = self.loss == "orpo"
        smoothed = self.label_smoothing > 0 and self.loss in ("ipo", "orpo", "kto")
        weighted = self._changed("desirable_weight") or self._changed("undesirable_weight")
        refused = (
            (smoothed, "label_smoothing is not defined for it; dpo, dpo_norm, simpo and wpo have it"),
            (self.sft_weight > 0 and orpo, "sft_weight would count the chosen answers twice; orpo has that term"),
            (self._changed("beta") and orpo, "beta is not part of it; the weight of the odds ratio is odds_weight"),
            (self._changed("odds_weight") and not orpo, "odds_weight belongs to orpo"),
            (self._changed("wpo_weight") and self.loss != "wpo", "wpo_weight belongs to wpo"),
            (weighted and self.loss != "kto", "desirable_weight and undesirable_weight belong to kto"),
            (self.turns == "all" and self.loss == "kto", 'it scores one answer to a prompt; leave turns = "last"'),
            (self.polyak > 0 and self.loss in ("simpo", "orpo"), "it has no reference that polyak could move"),
        )
        if found := [why for bad, why in refused if bad]:
            raise ValueError(f'loss = "{self.loss}" does not go with this: {"; ".join(found)}')
        return self

    def references(self) -> Iterator[StageReference]:
        """The stage of pairs may be one of unpaired answers where the loss compares none."""
        for ref in super().references():
            single = self.loss == "kto" and ref.loc == ("pairs",)
            yield ref._replace(accepts=("pairs", "unpaired")) if single else ref

    def _changed(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)


class RewardModelSpec(OfflineSpec):
    """Bradley-Terry reward model (paper §5.4.1, T36)."""

    module = "tercet.train.reward_model"
    version = 4
    produces = "reward model"
    accepts = {"model": ("weights",), "pairs": ("pairs",), "tests": ("pairs",)}
    label = "Reward"
    compares = False
    data_field = "pairs"
    paired = True
    kind: Literal["reward_model"] = "reward_model"
    pairs: str = Field(description="A stage of pairs: on_policy_pairs, rated_pairs or pair_mix.")
    learning_rate: float = Field(3e-6, gt=0, description="Peak learning rate (paper T36: 3e-6).")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="Share of steps that warm up (paper T36: none).")
    batch: int = Field(256, ge=1, description="Pairs per optimiser step (paper T36: 256).")
    eps: float = Field(1e-5, gt=0, description="AdamW epsilon (paper's run: 1e-5).")
    holdout: float = Field(0.1, ge=0, lt=1, description="Share of pairs kept for the accuracy that is reported.")
    margin: float = Field(
        0.0, ge=0, description="Chosen answers must win by this times the difference of the ratings (Llama 2, eq. 2)."
    )
    tests: tuple[str, ...] = Field((), description="Pairs whose accuracy is reported by subset, e.g. RewardBench.")
