"""Every knob of Tercet, in one place: the frozen models a recipe's TOML is checked against.

A recipe names stages and their inputs; it never names code. Class defaults are the vetted setting, so what a recipe
writes down is a decision. `[placement]` changes speed only and is part of no key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from tercet.precision import resolve

BASE = "base"
MODELS = (BASE, "model", "sft", "dpo", "rlvr", "ppo")
ROWS = ("synth", "mix", "personas")
PAIRS = ("prefs", "judged", "pairs")
# What a field that names a stage may point to.
ACCEPTS: dict[str, tuple[str, ...]] = {
    "model": MODELS,
    "rows": ROWS,
    "prompts": ROWS,
    "stage": ROWS,
    "without": (*ROWS, *PAIRS),
    "pairs": PAIRS,
    "tests": PAIRS,
    "value": ("reward", *MODELS),
    "items": ("synth",),
    "against": ("prompts",),
    "exam": ("prompts",),
    "tokenizer": MODELS,
    "judge": MODELS,
    "pool": MODELS,
    "own": MODELS,
    "embedder": ("model",),
    "evals": ("eval",),
    "require": ("eval",),
}

Loc = tuple[str | int, ...]  # where a value stands in the TOML: ("stage", "sft", "rows")
Overlong = Literal["drop", "cut", "error"]
Dtype = Literal["auto", "bfloat16", "float32"]


class RecipeError(ValueError):
    """A recipe is not what was expected; `loc` says where in the TOML, the message says what to do."""

    def __init__(self, message: str, loc: Loc = ()) -> None:
        super().__init__(message)
        self.loc = loc


class Spec(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Base(Spec):
    """The pretrained model that `model = "base"` refers to."""

    model: str = Field(
        description="Hub id, local folder, `wheel:NAME==VERSION#FILE.gguf`, `tiny:` (built on the fly), or the URL of an OpenAI-compatible server and a model's name, `http://HOST/v1#NAME` (to examine or to judge)."
    )
    revision: str = Field("", description="Pinned hub revision; required for hub ids so that the key pins the bytes.")
    sha256: str = Field("", description="Pinned SHA-256 of the downloaded wheel; required for `wheel:`.")
    template: Literal["own", "tulu3"] = Field(
        "own", description="Chat template: the model's own, or Tülu 3's plain-text markers (paper App. B.3)."
    )


class Placement(Spec):
    """Where and how fast; never part of a key."""

    ranks: int = Field(
        1, ge=1, description="Processes for training stages; more than one runs under torchrun with FSDP2."
    )
    threads: int = Field(0, ge=0, description="CPU threads per process; 0 means all cores divided by ranks.")
    micro_tokens: int = Field(4096, ge=16, description="Token budget of one forward and backward pass per rank.")
    gen_rows: int = Field(64, ge=1, description="Most completions the local generator decodes at once.")
    gen_tokens: int = Field(
        131072, ge=256, description="Most tokens (prompts and answers) the generator's cache holds at once."
    )
    workers: int = Field(0, ge=0, description="Processes that search for copies of the exam; 0 means all cores.")
    requests: int = Field(16, ge=1, description="Requests to a server in flight at once.")
    requests_per_minute: float | None = Field(None, gt=0, description="Most requests a minute to a server.")
    tokens_per_minute: float | None = Field(None, gt=0, description="Most tokens a minute to a server.")
    price: tuple[float, float] | None = Field(
        None, description="Price of a million prompt tokens and of a million written ones, for the account."
    )
    checkpoint_seconds: float = Field(
        60.0,
        ge=0,
        description="Least time between checkpoints of a training stage, and never less than 20 times what the last one "
        "took; 0 saves every step.",
    )
    recompute: bool = Field(
        False, description="Compute each layer's activations again in backward instead of keeping them."
    )
    offload: bool = Field(False, description="Keep masters and optimiser state in the host's memory (CUDA only).")
    compile: bool = Field(False, description="Compile the layers with torch.compile; the first steps take minutes.")
    engine_url: str = Field(
        "",
        description='Where `engine = "vllm"` of an RL stage is served, `http://HOST:PORT`; in this process when absent.',
    )


class StageSpec(Spec):
    """What every stage has. `REFS` lists the fields that name another stage (or `base`)."""

    REFS: ClassVar[tuple[str, ...]] = ()
    seed: int | None = Field(None, description="Seed of this stage; the recipe's seed when absent.")


class Computing(StageSpec):
    """What every stage has that runs a model."""

    dtype: Dtype = Field(
        "auto",
        description="Precision of matrix products (trained weights are fp32 masters always); `auto`: the recipe's, else the machine's.",
    )

    @property
    def precision(self) -> str:
        """`dtype`, with this machine's choice in the place of `auto`."""
        return resolve(self.dtype)


class Prompts(StageSpec):
    """Write every prompt of an exam to a folder, so that `mix` can decontaminate against it and `eval` can run it."""

    REFS = ("items",)
    kind: Literal["prompts"] = "prompts"
    tasks: tuple[str, ...] = Field(description="Task names, e.g. `words@1`; see `tercet.evals.suite`.")
    items: tuple[str, ...] = Field(
        (), description='Synth stages (split = "exam") that made the items of generated tasks.'
    )
    limit: int | None = Field(None, ge=1, description="First N items per task, after a seeded shuffle.")


class Synth(StageSpec):
    """Make rows with a seeded generator of `tercet.data`."""

    kind: Literal["synth"] = "synth"
    generator: Literal["words@1", "constraints@1", "talk@1", "facts@1", "planted@1"] = Field(
        description="Which generator writes the rows."
    )
    rows: int = Field(ge=1, description="How many rows.")
    split: Literal["train", "exam"] = Field(
        "train", description="Templates and topics are disjoint between the splits."
    )


class Model(StageSpec, Base):
    """Another model beside the base: a judge, a teacher, an encoder for embeddings."""

    kind: Literal["model"] = "model"
    encoder: bool = Field(False, description="An encoder such as RoBERTa, read for embeddings: no chat template.")


class Examples(Spec):
    """Worked examples that stand before every prompt of a source: a public file or a local one."""

    path: str = Field(description="Hub id, `github:OWNER/NAME/FILE`, or local jsonl, json, csv or parquet file.")
    subset: str = Field("", description="Hub subset.")
    split: str = Field("train", description="Hub split.")
    revision: str = Field("", description="Pinned revision.")


class SourceSpec(Spec):
    """One source of a mixture: a stage of this recipe, or rows by hub id or local file."""

    stage: str = Field("", description="A stage of this recipe that makes rows (or pairs, for a pairs stage).")
    path: str = Field("", description="Hub id or local jsonl, json, csv, tsv or parquet file (plain or .gz).")
    adapter: str = Field("rows", description="How raw rows become conversations; see `tercet.data.sources`.")
    subset: str = Field("", description="Hub subset.")
    split: str = Field("train", description="Hub split.")
    revision: str = Field("", description="Pinned hub revision.")
    rows: int | None = Field(
        None, ge=0, description="Take this many of the rows that no rule removes (seeded sample); all when absent."
    )
    fraction: float | None = Field(
        None, gt=0, description="Below 1: take this share of the rows; above 1: repeat rows, e.g. 2.5 times."
    )
    expect: int | None = Field(None, ge=0, description="Rows this source is known to give; a difference is reported.")
    without: str = Field("", description="A stage whose prompts are left out here, e.g. those SFT has seen.")
    examples: Examples | None = Field(None, description="Worked examples before every prompt (RLVR); else zero-shot.")
    require_answer: bool = Field(True, description="Refuse rows without a final assistant turn.")
    filters: tuple[str, ...] | None = Field(
        None,
        description="Which of the paper's two filters (`keywords`, `blank`) this source gets; the paper's exemptions when absent.",
    )
    values: dict[str, str] = Field({}, description="Fills the {{slots}} of a template source, e.g. name and maker.")

    @model_validator(mode="after")
    def _one_origin(self) -> SourceSpec:
        if bool(self.stage) == bool(self.path):
            raise ValueError("a source names either a stage or a path; give exactly one of the two")
        if self.rows is not None and self.fraction is not None:
            raise ValueError("a source takes a number of rows or a fraction of them; give one of the two")
        return self


class Mixture(StageSpec):
    """What mixtures of rows and of pairs share."""

    REFS = ("against", "tokenizer")
    sources: tuple[SourceSpec, ...] = Field(min_length=1, description="What goes in.")
    against: tuple[str, ...] = Field((), description="Prompts stages whose items must not be in the mixture.")
    ngram: int = Field(8, ge=1, description="N-gram size of decontamination (paper §3.2).")
    threshold: float = Field(
        0.5, gt=0, le=1, description="A row goes when it covers more than this share of one exam item (paper §3.2)."
    )
    share: float = Field(
        0.02,
        ge=0,
        le=1,
        description="A data set that copies more than this share of an unseen exam goes as a whole (paper §3.2).",
    )
    exact: bool = Field(False, description="Look for whole exam fields as phrases instead of n-gram coverage.")
    shots: bool = Field(
        True,
        description="Rows must not copy the exam's worked examples either; false where prompts show them on purpose (RLVR, paper §6.1).",
    )
    dedupe: bool = Field(True, description="Remove rows whose prompt was seen before (normalised text).")
    keywords: bool = Field(
        True, description="Drop rows whose assistant names another maker's model (the list of Tülu 3's SFT filters)."
    )
    filters: dict[str, dict[str, Any]] = Field(
        {},
        description="Further filters with their parameters, e.g. `{ repetition = { share = 0.3 } }`; see `tercet.data.filters`.",
    )
    near: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Jaccard similarity of prompts from which the later row goes; 0 keeps near duplicates.",
    )
    commercial: bool = Field(
        False, description="The mixture is meant for commercial use: licences that stand against it are listed."
    )
    tokenizer: str = Field(
        "", description="The model whose tokenizer counts the tokens of the data sheet; words are counted when absent."
    )
    expect: int | None = Field(
        None, ge=1, description="Rows that the sources together are known to give, before copies of exams go."
    )
    within: float = Field(
        0.0, ge=0, le=1, description="How far, as a share, the rows may differ from `expect` before the stage stops."
    )


class Mix(Mixture):
    """Filter, dedupe, decontaminate and mix sources into one table of conversations."""

    kind: Literal["mix"] = "mix"


class Pairs(Mixture):
    """Filter, dedupe, decontaminate and mix preference pairs into one table."""

    kind: Literal["pairs"] = "pairs"


class Asked(Computing):
    """What the stages share that ask models for texts and pay for them."""

    max_new_tokens: int = Field(1024, ge=1, description="Longest text, in tokens.")
    budget: float | None = Field(
        None,
        ge=0,
        description="Most that the requests of this stage may cost, over all its runs in one store, in the currency of `placement.price`; no cap when absent.",
    )
    engine: Literal["local", "vllm"] = Field("local", description="What runs local models: ours, or vLLM (an extra).")


class Personas(Asked):
    """New prompts and answers from a model that is given a persona, checked before they are kept (paper §3.1.2)."""

    REFS = ("model",)
    kind: Literal["personas"] = "personas"
    model: str = Field(description="The model that writes questions and answers; usually a stage of kind `model`.")
    write: Literal[
        "persona_if",
        "persona_math",
        "persona_gsm",
        "persona_algebra",
        "persona_python",
        "if_augmented",
        "wildchat_if",
        "noncompliance",
    ] = Field(description="What is written; `if_augmented` and `wildchat_if` start from instructions, not personas.")
    seeds: SourceSpec = Field(description="Personas (or instructions): the first user turn of each row.")
    rows: int | None = Field(None, ge=1, description="Use this many seeds (seeded sample); all when absent.")
    answers: int = Field(4, ge=0, description="Answers per question, of which a majority must agree; 0: prompts only.")
    agree: float = Field(0.5, ge=0, le=1, description="Share of the answers that must agree (more than this).")
    temperature: float = Field(0.8, ge=0, description="Sampling temperature of answers.")
    author_temperature: float = Field(1.0, ge=0, description="Sampling temperature of questions.")


class Judged(Asked):
    """Preference pairs from answers of several models that a judge rates in four aspects (paper §5.2)."""

    REFS = ("prompts", "pool", "own", "judge")
    kind: Literal["judged"] = "judged"
    prompts: str = Field(description="A stage whose rows give the prompts; answers they have are ignored.")
    pool: tuple[str, ...] = Field(min_length=1, description="The models that answer: local ones and servers.")
    own: str = Field("", description="The policy: each prompt gets its answer and one of the pool (on-policy pairs).")
    judge: str = Field(description="The model that rates.")
    rows: int | None = Field(None, ge=1, description="Use this many prompts (seeded sample); all when absent.")
    drawn: int = Field(4, ge=2, description="Answers rated per prompt, drawn from the pool (paper: 4).")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature of answers (paper: 1.0).")
    ties: Literal["drop", "keep"] = Field("drop", description="What becomes of prompts whose answers are all as good.")
    paper: bool = Field(False, description="Read and pair the ratings with the quirks of the published run.")
    judge_tokens: int = Field(1024, ge=1, description="Longest verdict, in tokens.")


class Prefs(Computing):
    """On-policy preference pairs graded by verifiers (paper §5.2–5.3)."""

    REFS = ("model", "prompts")
    kind: Literal["prefs"] = "prefs"
    model: str = Field(description="The policy that writes both sides; usually the SFT stage.")
    prompts: str = Field(description="A stage of rows that carry verifiers: mix, synth or personas.")
    rows: int | None = Field(None, ge=1, description="Use this many prompts (seeded sample); all when absent.")
    samples: int = Field(
        4, ge=0, description="Completions drawn per prompt; 0: the answer that the row has is the chosen one."
    )
    dropped_samples: int = Field(
        1, ge=0, description="Completions per prompt with one constraint dropped (persona-IF rule)."
    )
    max_pairs: int = Field(1, ge=1, description="Pairs kept per prompt.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature (paper pipeline: 1.0).")
    max_new_tokens: int = Field(160, ge=1, description="Longest completion, in tokens.")


class Lora(Spec):
    """Low-rank adapters instead of all weights (Hu et al. 2021); the exported model has them merged in."""

    rank: int = Field(16, ge=1, description="Rank of the two factors.")
    alpha: float = Field(32.0, gt=0, description="The product of the factors is scaled by alpha / rank.")
    targets: tuple[str, ...] = Field(
        (), description='Names of the linear layers that get adapters, e.g. `["q_proj"]`; all but the head when absent.'
    )


class Fit(Computing):
    """What every training stage shares."""

    model: str = Field(description="Stage (or `base`) whose weights start the training.")
    learning_rate: float = Field(gt=0, description="Peak learning rate, per optimiser step.")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "linear", description="After warm-up: linear or cosine to 0, or constant (paper: linear)."
    )
    warmup: float = Field(0.03, ge=0, lt=1, description="Share of steps that warm up (paper T11: 3%).")
    batch: int = Field(128, ge=1, description="Rows (SFT), pairs (DPO, reward) per optimiser step (paper T11: 128).")
    epochs: int = Field(1, ge=1, description="Passes over the rows.")
    steps: int | None = Field(None, ge=1, description="Stop after this many optimiser steps; the schedule ends there.")
    max_tokens: int = Field(2048, ge=8, description="Longest row in tokens.")
    overlong: Overlong = Field(
        "drop", description="Rows longer than max_tokens: drop them, cut them, or stop with an error."
    )
    max_lost: float = Field(
        0.05, ge=0, le=1, description="Stop when more than this share of rows is lost to max_tokens."
    )
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay (paper: 0).")
    betas: tuple[float, float] = Field((0.9, 0.999), description="AdamW betas.")
    eps: float = Field(1e-8, gt=0, description="AdamW epsilon.")
    clip: float = Field(1.0, gt=0, description="Gradient norm clip.")
    optimizer: Literal["adamw", "adamw8bit"] = Field(
        "adamw", description="AdamW, or bitsandbytes' AdamW with moments of 8 bits (CUDA, an extra)."
    )
    lora: Lora | None = Field(None, description="Train low-rank adapters only; all weights when absent.")


class SFT(Fit):
    """Supervised finetuning on all assistant turns (paper §4)."""

    REFS = ("model", "rows")
    kind: Literal["sft"] = "sft"
    rows: str = Field(description="A stage of rows: mix, synth or personas.")
    learning_rate: float = Field(5e-6, gt=0, description="Peak learning rate (paper T11: 5e-6 for 8B).")
    epochs: int = Field(2, ge=1, description="Passes over the rows (paper T11: 2).")
    max_tokens: int = Field(4096, ge=8, description="Longest row in tokens (paper T11: 4,096).")
    reduction: Literal["token_mean", "sequence_mean", "constant"] = Field(
        "token_mean",
        description="token_mean: every trained token of the batch weighs the same (the paper's sum loss up to scale).",
    )


class DPO(Fit):
    """Preference tuning (paper §5). simpo and orpo need no reference model; ipo averages log-ratios per token."""

    REFS = ("model", "pairs")
    kind: Literal["dpo"] = "dpo"
    pairs: str = Field(description="A stage of pairs: prefs, judged or pairs.")
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
        "mean",
        description="WPO's weight: from mean log-probs, without gradient; or from sums, with it, as the published code.",
    )
    odds_weight: float = Field(0.1, gt=0, description="ORPO's lambda, the weight of its log odds ratio.")
    desirable_weight: float = Field(1.0, gt=0, description="KTO's weight of chosen answers.")
    undesirable_weight: float = Field(1.0, gt=0, description="KTO's weight of rejected answers.")
    turns: Literal["last", "all"] = Field(
        "last",
        description="Log-probs of the last assistant turn, or of all of them (the paper's run; the turns before the last are alike).",
    )
    polyak: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Every `polyak_every` steps the reference moves by this share to the policy; 0: frozen.",
    )
    polyak_every: int = Field(100, ge=1, description="Steps between two moves of the reference.")
    learning_rate: float = Field(5e-7, gt=0, description="Peak learning rate (paper T20: 5e-7 for 8B).")
    warmup: float = Field(0.1, ge=0, lt=1, description="Share of steps that warm up (paper T20: 10%).")

    @model_validator(mode="after")
    def _of_one_loss(self) -> DPO:
        orpo = self.loss == "orpo"
        smoothed = self.label_smoothing > 0 and self.loss in ("ipo", "orpo", "kto")
        weighted = self._changed("desirable_weight") or self._changed("undesirable_weight")
        refused = (
            (smoothed, "label_smoothing is not defined for it; dpo, dpo_norm, simpo and wpo have it"),
            (
                self.sft_weight > 0 and orpo,
                "sft_weight would count the chosen answers twice; orpo has that term already",
            ),
            (self._changed("beta") and orpo, "beta is not part of it; the weight of the odds ratio is odds_weight"),
            (self._changed("odds_weight") and not orpo, "odds_weight belongs to orpo"),
            (self._changed("wpo_weight") and self.loss != "wpo", "wpo_weight belongs to wpo"),
            (weighted and self.loss != "kto", "desirable_weight and undesirable_weight belong to kto"),
            (self.turns == "all" and self.loss == "kto", 'it judges one answer to a prompt; leave turns = "last"'),
            (self.polyak > 0 and self.loss in ("simpo", "orpo"), "it has no reference that polyak could move"),
        )
        if found := [why for bad, why in refused if bad]:
            raise ValueError(f'loss = "{self.loss}" does not go with this: {"; ".join(found)}')
        return self

    def _changed(self, key: str) -> bool:
        return bool(getattr(self, key) != type(self).model_fields[key].default)


class Reward(Fit):
    """Bradley-Terry reward model (paper §5.4.1, T36)."""

    REFS = ("model", "pairs", "tests")
    kind: Literal["reward"] = "reward"
    pairs: str = Field(description="A stage of pairs: prefs, judged or pairs.")
    learning_rate: float = Field(3e-6, gt=0, description="Peak learning rate (paper T36: 3e-6).")
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of steps that warm up (paper T36: none).")
    batch: int = Field(256, ge=1, description="Pairs per optimiser step (paper T36: 256).")
    eps: float = Field(1e-5, gt=0, description="AdamW epsilon (paper's run: 1e-5).")
    holdout: float = Field(0.1, ge=0, lt=1, description="Share of pairs kept for the accuracy that is reported.")
    margin: float = Field(
        0.0, ge=0, description="Chosen answers must win by this times the difference of the ratings (Llama 2, eq. 2)."
    )
    tests: tuple[str, ...] = Field(
        (), description="Stages of pairs whose accuracy is reported by subset, e.g. RewardBench."
    )


class Extra(Spec):
    """A further judge of every completion: a format, a length, a rubric."""

    verifier: str = Field(description="Name of the judge, e.g. `format@1`.")
    truth: str = Field(
        "",
        description="What the judge compares with; the row's own truth when absent (nothing for `format@1`, `length@1`, `up_to_length@1`, `refusal@1`).",
    )
    weight: float = Field(1.0, description="Its score times this is added to the row's score.")
    gate: bool = Field(False, description="Multiply instead: without it there is no reward for the rest.")


class Watch(Spec):
    """When a watcher of the rollouts raises an alarm (report page, log); `stop` lists those that end the run."""

    rounds: int = Field(5, ge=1, description="Rounds in a row that must be beyond a threshold.")
    reward: float = Field(
        0.0, ge=0, description="Alarm `reward`: the share of rewarded completions is at or below this."
    )
    kl: float = Field(1.0, gt=0, description="Alarm `kl`: mean KL to the reference (k3), nats per token.")
    gap: float = Field(0.1, gt=0, description="Alarm `gap`: mean |trainer - generator| log-prob, nats per token.")
    truncated: float = Field(0.5, gt=0, description="Alarm `truncated`: share of completions without an end token.")
    length: float = Field(3.0, gt=1, description="Alarm `length`: mean length over that of the first rounds.")
    entropy: float = Field(0.02, ge=0, description="Alarm `entropy`: mean entropy estimate below this, nats per token.")
    zero_variance: float = Field(0.95, gt=0, description="Alarm `zero_variance`: share of groups with one reward.")
    repetition: float = Field(0.2, gt=0, description="Alarm `repetition`: share of completions that repeat themselves.")
    hollow: float = Field(
        0.2,
        gt=0,
        description="Alarm `hollow`: share of rewarded completions that carry no answer (fewer than four words beside what the judge asked for).",
    )
    stop: tuple[
        Literal["reward", "kl", "gap", "truncated", "length", "entropy", "zero_variance", "repetition", "hollow"], ...
    ] = Field((), description="Alarms that stop the run with an error.")


def _frozen(value: Any) -> Any:
    """Lists as tuples: a validator that looks first turns strict JSON into strict Python."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value


class Rollouts(Fit):
    """What the stages share that learn from completions which verifiers grade (paper §6)."""

    REFS: ClassVar[tuple[str, ...]] = ("model", "prompts", "judge")
    PRESETS: ClassVar[dict[str, dict[str, Any]]] = {}
    prompts: str = Field(description="A stage of rows that carry verifiers: mix, synth or personas.")
    judge: str = Field("", description="The model behind verifiers that ask one, e.g. `rubric@1`; usually an endpoint.")
    steps: int = Field(ge=1, description="Rollout rounds; each makes `passes` x `minibatches` optimiser steps.")
    batch: int = Field(48, ge=1, description="Prompts per round.")
    samples: int = Field(16, ge=1, description="Completions per prompt.")
    minibatches: int = Field(1, ge=1, description="Parts of a round, one optimiser step each.")
    passes: int = Field(1, ge=1, description="How often a round is learned from.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature (paper T21: 1.0).")
    max_new_tokens: int = Field(2048, ge=1, description="Longest completion (paper T21: 2,048).")
    reward_scale: float = Field(10.0, gt=0, description="Reward of a verified answer (paper §6: alpha = 10).")
    no_eos_reward: float | Literal["keep"] = Field(
        0.0, description='Reward that replaces the score when no end token came (Tülu 3.1: 0); "keep" keeps the score.'
    )
    overlong_tokens: int = Field(
        0,
        ge=0,
        description="Over these last tokens before the limit the reward falls by up to reward_scale (DAPO, eq. 13).",
    )
    truncated: Literal["train", "mask"] = Field(
        "train",
        description="Completions without an end token: train on them, or leave them out of the loss (DAPO §3.4).",
    )
    extra: tuple[Extra, ...] = Field((), description="Further judges of every completion.")
    sandbox: Literal["auto", "none"] = Field("auto", description="How programs run; none means unprotected.")
    kl_beta: float = Field(0.01, ge=0, description="Weight of the KL to the reference.")
    clip_low: float = Field(0.2, ge=0, description="Lower clip of the ratio (paper T21: 0.2).")
    clip_high: float = Field(0.2, ge=0, description="Upper clip of the ratio (paper T21: 0.2).")
    importance_cap: float = Field(
        0.0,
        ge=0,
        description="Multiply the loss by min(trainer / generator probability, this); 0: off (Yao et al. 2025: 2).",
    )
    engine: Literal["local", "vllm"] = Field("local", description="What writes completions: ours, or vLLM (an extra).")
    lag: int = Field(0, ge=0, description="Rounds that generation may run ahead of training; 0: in turn.")
    in_flight: bool = Field(False, description="Give the generator new weights while it writes (needs lag and vLLM).")
    reduction: Literal["token_mean", "sequence_mean", "constant"] = Field(
        "token_mean", description="How token losses become one number."
    )
    watch: Watch = Field(default_factory=Watch, description="Alarms.")

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        """What a preset says stands below what the recipe says."""
        if not isinstance(given, dict):
            return given
        name = given.get("preset", cls.model_fields["preset"].default)
        return _frozen({**cls.PRESETS.get(name if isinstance(name, str) else "", {}), **given})

    @model_validator(mode="after")
    def _fits(self) -> Rollouts:
        if self.overlong_tokens >= self.max_new_tokens:
            raise ValueError(
                f"overlong_tokens = {self.overlong_tokens} must be below max_new_tokens = {self.max_new_tokens}"
            )
        if self.in_flight and not (self.lag and self.engine == "vllm"):
            raise ValueError('in_flight needs engine = "vllm" and lag of at least 1')
        if self.batch % self.minibatches:
            raise ValueError(
                f"batch = {self.batch} prompts cannot be cut into minibatches = {self.minibatches} equal parts"
            )
        return self


class RLVR(Rollouts):
    """Reinforcement learning with verifiable rewards by GRPO and its kin: no value model (paper §6; Tülu 3.1)."""

    PRESETS = {
        "tulu3.1": {"minibatches": 2},
        "dapo": {
            "clip_high": 0.28,
            "kl_beta": 0.0,
            "active_rounds": 10,
            "reward_scale": 1.0,
            "learning_rate": 1e-6,
            "minibatches": 16,
        },
        "cispo": {"loss": "cispo", "kl_beta": 0.0, "clip_low": 1.0, "clip_high": 4.0},
        "dr_grpo": {"advantage": "centered", "reduction": "constant", "kl_beta": 0.0},
        "gspo": {
            "loss": "gspo",
            "clip_low": 3e-4,
            "clip_high": 4e-4,
            "kl_beta": 0.0,
            "reduction": "sequence_mean",
            "minibatches": 4,
        },
        "rloo": {"advantage": "leave_one_out", "reduction": "sequence_mean"},
    }
    kind: Literal["rlvr"] = "rlvr"
    preset: Literal["", "tulu3.1", "dapo", "cispo", "dr_grpo", "gspo", "rloo"] = Field(
        "", description="A published setting that fills in what the recipe does not say."
    )
    samples: int = Field(16, ge=2, description="Completions per prompt (Tülu 3.1: 16).")
    loss: Literal["grpo", "cispo", "gspo"] = Field(
        "grpo", description="Clipped ratio per token, clipped weight without clipped gradient, or ratio per completion."
    )
    kl_estimator: Literal["k1", "k2", "k3"] = Field("k3", description="Estimate of the KL (Tülu 3.1: k3).")
    kl_in: Literal["loss", "reward"] = Field(
        "loss",
        description="Where the KL stands: in the loss (GRPO), or taken off the reward (k1 summed over the tokens).",
    )
    advantage: Literal["standard", "centered", "leave_one_out"] = Field(
        "standard", description="Divide by the group's standard deviation (Tülu 3.1), only centre, or leave one out."
    )
    active_rounds: int = Field(
        1,
        ge=1,
        description="Draw further prompts up to this often until the round has `batch` groups that teach (DAPO: dynamic sampling).",
    )
    polyak: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Every `polyak_every` rounds the reference moves by this share to the policy; 0: frozen.",
    )
    polyak_every: int = Field(100, ge=1, description="Rounds between two moves of the reference.")
    learning_rate: float = Field(5e-7, gt=0, description="Peak learning rate (Tülu 3.1: 5e-7).")
    schedule: Literal["linear", "cosine", "constant"] = Field(
        "constant", description="Learning-rate schedule (Tülu 3.1: constant)."
    )
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of steps that warm up (Tülu 3.1: none).")

    @model_validator(mode="after")
    def _kl_of_all(self) -> RLVR:
        if self.kl_in == "reward" and self.truncated == "mask":
            raise ValueError('kl_in = "reward" needs the log-probs of every completion; set truncated = "train"')
        return self


class PPO(Rollouts):
    """Reinforcement learning with verifiable rewards by PPO with a value model, as Tülu 3 ran it (paper §6, T21)."""

    REFS = ("model", "prompts", "judge", "value")
    PRESETS = {
        "tulu3": {
            "score_at": "after_end",
            "old_logps": "trainer",
            "reduction": "sequence_mean",
            "weight_decay": 0.01,
        },
        "corrected": {"score_at": "end", "old_logps": "generator", "reduction": "token_mean", "weight_decay": 0.0},
    }
    kind: Literal["ppo"] = "ppo"
    preset: Literal["tulu3", "corrected"] = Field(
        "tulu3", description="The published run, or the same without its quirks; fills in what the recipe does not say."
    )
    value: str = Field(
        description="What the value model starts from: a reward stage (paper §6.2), or a model, with a fresh head."
    )
    samples: int = Field(1, ge=1, description="Completions per prompt (published: 1).")
    batch: int = Field(224, ge=1, description="Prompts per round (paper T21: 224 for 8B).")
    passes: int = Field(4, ge=1, description="How often a round is learned from (paper T21: 4).")
    gamma: float = Field(1.0, gt=0, le=1, description="Discount (paper T21: 1).")
    lam: float = Field(0.95, ge=0, le=1, description="Lambda of generalised advantage estimation (paper T21: 0.95).")
    value_clip: float = Field(0.2, gt=0, description="Clip of the value's step (paper T21: 0.2).")
    value_coefficient: float = Field(0.1, gt=0, description="Weight of the value loss (paper T21: 0.1).")
    value_learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate of the value model; that of the policy when absent (published)."
    )
    whiten: bool = Field(True, description="Whiten advantages over the tokens of a round (published: of a rank's).")
    score_at: Literal["after_end", "end"] = Field(
        "after_end", description="Where the score stands: one position past the end token (published) or at it."
    )
    old_logps: Literal["trainer", "generator"] = Field(
        "trainer", description="Behaviour log-probs: computed again before the updates (published), or as sampled."
    )
    no_eos_reward: float | Literal["keep"] = Field(
        -10.0, description="Reward that replaces the score when no end token came (paper T21: -10)."
    )
    kl_beta: float = Field(0.05, ge=0, description="Weight of the KL (k1), taken off each token's reward (T21: 0.05).")
    learning_rate: float = Field(3e-7, gt=0, description="Peak learning rate (paper T21: 3e-7 for 8B).")
    warmup: float = Field(0.0, ge=0, lt=1, description="Share of steps that warm up (paper T21: none for 8B).")


class Eval(Computing):
    """Examine a model on an exam (paper §7)."""

    REFS = ("model", "exam", "judge", "embedder")
    kind: Literal["eval"] = "eval"
    model: str = Field(description="Stage, or `base`.")
    exam: str = Field(description="A prompts stage.")
    judge: str = Field("", description="Model that judges the tasks which need one (a stage, usually kind `model`).")
    embedder: str = Field("", description="Encoder for the tasks that compare embeddings (a stage of kind `model`).")
    engine: Literal["local", "vllm"] = Field("local", description="What runs the model: ours, or vLLM (an extra).")
    repeats: int = Field(1, ge=1, description="Ask every item so often; the item's score is the mean.")
    sandbox: Literal["auto", "none"] = Field("auto", description="How programs run; none means unprotected.")
    temperature: float | None = Field(None, ge=0, description="Overrides every task's sampling temperature.")
    max_new_tokens: int | None = Field(None, ge=1, description="Overrides every task's budget.")
    final: bool = Field(False, description="Marks the one stage that may open the unseen suite.")
    require: tuple[str, ...] = Field(
        (), description="Gates, e.g. `words >= exam-sft - 0.01` against another eval stage."
    )


class Report(StageSpec):
    """One self-contained page that tells the run."""

    REFS = ("evals",)
    kind: Literal["report"] = "report"
    evals: tuple[str, ...] = Field(
        min_length=1, description="Eval stages in the order to tell them; the first is the baseline."
    )
    title: str = Field("", description="Title of the page; the recipe's name when absent.")


AnyStage = Annotated[
    Model | Prompts | Synth | Personas | Mix | Pairs | Prefs | Judged | SFT | DPO | Reward | RLVR | PPO | Eval | Report,
    Field(discriminator="kind"),
]


class Recipe(Spec):
    """A whole run: base model, stages by name, placement."""

    name: str = Field(description="Name of the recipe.")
    seed: int = Field(0, description="Seed of every stage that has none of its own.")
    dtype: Dtype = Field(
        "auto",
        description="Precision of stages that say `auto`: float32 on a CPU without bf16 matrix units, bfloat16 elsewhere.",
    )
    base: Base
    stage: dict[str, AnyStage] = Field(description="The stages by name; they are ordered by what they need.")
    placement: Placement = Field(
        default_factory=lambda: Placement.model_validate({}), description="Where and how fast."
    )
    _folder: Path = PrivateAttr(default=Path())

    @property
    def folder(self) -> Path:
        """Relative paths of the recipe start here: the folder of its file, or the current one when built in memory."""
        return self._folder

    def spec(self, name: str) -> Base | AnyStage:
        """The spec of a stage, `base` included."""
        return self.base if name == BASE else self.stage[name]

    def kind(self, name: str) -> str:
        """The kind of a stage, `base` included."""
        return BASE if name == BASE else self.stage[name].kind

    def seed_of(self, name: str) -> int:
        """The stage's own seed, or the recipe's."""
        own = None if name == BASE else self.stage[name].seed
        return self.seed if own is None else own

    def resolved(self) -> Recipe:
        """The same recipe with this machine's precision in the place of every `auto`."""
        precise = {
            name: spec.model_copy(update={"dtype": resolve(_first(spec.dtype, self.dtype))})
            for name, spec in self.stage.items()
            if isinstance(spec, Computing)
        }
        found = self.model_copy(update={"stage": self.stage | precise, "dtype": resolve(self.dtype)})
        found._folder = self._folder
        return found

    def needs(self, name: str) -> list[str]:
        """The stages whose artefacts this stage reads, without repeats, in the order they are named."""
        return [] if name == BASE else list(dict.fromkeys(ref.name for ref in references(self.stage[name])))

    def order(self) -> list[str]:
        """Every stage after what it needs, in the order of the TOML where that leaves a choice; checks the graph."""
        _check_references(self)
        ready: list[str] = []
        based = not self.stage or any(BASE in self.needs(name) for name in self.stage)
        waiting = [*([BASE] if based else []), *self.stage]
        while waiting:
            name = next((n for n in waiting if all(need in ready for need in self.needs(n))), None)
            if name is None:
                raise _cycle(self, waiting)
            waiting.remove(name)
            ready.append(name)
        return ready


def _first(own: str, general: str) -> str:
    return general if own == "auto" else own


class Reference(NamedTuple):
    """A place in a stage that names another stage. Example: `Reference("sft", ("model",), ("base", "sft", ...))`."""

    name: str
    loc: Loc
    accepts: tuple[str, ...]


class Gate(NamedTuple):
    """`words >= exam-sft - 0.01` is `Gate(text, "words", True, "exam-sft", -0.01)`; a plain bound has no stage."""

    text: str
    task: str
    at_least: bool
    stage: str
    offset: float


_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_GATE = re.compile(
    rf"\s*(?P<task>\S+)\s*(?P<sign>>=|<=)\s*(?:(?P<bound>[-+]?{_NUMBER})|(?P<stage>[A-Za-z][\w-]*)"
    rf"(?:\s+(?P<by>[-+])\s*(?P<number>{_NUMBER}))?)\s*"
)
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]*")


def gate(text: str) -> Gate:
    """Read one `require` line of an eval stage."""
    match = _GATE.fullmatch(text)
    if match is None:
        raise RecipeError(f"cannot read the gate {text!r}; write 'TASK >= STAGE - 0.01' or 'TASK >= 0.3' (or with <=)")
    offset = float(match["bound"] or f"{match['by'] or '+'}{match['number'] or 0}")
    return Gate(text, match["task"], match["sign"] == ">=", match["stage"] or "", offset)


def references(spec: StageSpec) -> Iterator[Reference]:
    """Every place where a stage names another stage: `REFS`, sources, the gates of an eval."""
    for name in spec.REFS:
        value = getattr(spec, name)
        if not value:
            continue
        if isinstance(value, str):
            yield Reference(value, (name,), ACCEPTS[name])
        else:
            yield from (Reference(item, (name, i), ACCEPTS[name]) for i, item in enumerate(value))
    for loc, source in sources(spec):
        if source.stage:
            yield Reference(source.stage, (*loc, "stage"), ACCEPTS["pairs" if isinstance(spec, Pairs) else "stage"])
        if source.without:
            yield Reference(source.without, (*loc, "without"), ACCEPTS["without"])
    if isinstance(spec, Eval):
        for i, text in enumerate(spec.require):
            if stage := gate(text).stage:
                yield Reference(stage, ("require", i), ACCEPTS["require"])


def sources(spec: Base | StageSpec) -> Iterator[tuple[Loc, SourceSpec]]:
    """Every source of a stage, with its place."""
    if isinstance(spec, Mixture):
        yield from ((("sources", i), source) for i, source in enumerate(spec.sources))
    elif isinstance(spec, Personas):
        yield ("seeds",), spec.seeds


def _check_references(recipe: Recipe) -> None:
    known = [BASE, *recipe.stage]
    for name, spec in recipe.stage.items():
        if name == BASE or not _NAME.fullmatch(name):
            hint = "is the base model's name" if name == BASE else "must be letters, digits, '-' and '_'"
            raise RecipeError(f"the stage name {name!r} {hint}; rename the stage", ("stage", name))
        try:
            found = list(references(spec))
        except RecipeError as error:
            raise RecipeError(f"stage {name!r}: {error}", ("stage", name, "require")) from None
        for ref in found:
            loc = ("stage", name, *ref.loc)
            if ref.name not in known:
                message = f"stage {name!r} names an unknown stage {ref.name!r}; known: {', '.join(known)}"
                raise RecipeError(message, loc)
            if recipe.kind(ref.name) not in ref.accepts:
                fits = [other for other in known if recipe.kind(other) in ref.accepts]
                raise RecipeError(
                    f"stage {name!r} needs a stage of kind {' or '.join(ref.accepts)} here, but {ref.name!r} is of "
                    f"kind {recipe.kind(ref.name)}; of that kind: {', '.join(fits) or 'none, add one'}",
                    loc,
                )


def _cycle(recipe: Recipe, waiting: list[str]) -> RecipeError:
    path = [waiting[0]]
    while path[-1] not in path[:-1]:
        path.append(next(need for need in recipe.needs(path[-1]) if need in waiting))
    loop = path[path.index(path[-1]) :]
    message = f"stages need each other: {' -> '.join(loop)} (each needs the next); break the circle"
    return RecipeError(message, ("stage", loop[0]))
