"""`[placement]`: where a recipe runs, how fast, and who is told. It changes no result and is part of no key."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from tercet.recipe.specs import Spec

BatchLayout = Literal["auto", "forest", "padded"]
TrackerName = Literal["wandb", "trackio", "tensorboard", "mlflow"]


class Placement(Spec):
    """Where and how fast; never part of a key."""

    later = ("replicas", "rank_timeout", "report_to", "completions_every")
    ranks: int = Field(1, ge=1, description="Processes of a training stage; above one, torchrun with FSDP2.")
    replicas: int = Field(
        1, ge=1, description="Groups of ranks that hold a whole model each and share it within (HSDP)."
    )
    rank_timeout: float = Field(
        1800.0, gt=0, description="Seconds that ranks wait for one of them before the stage ends with an error."
    )
    threads: int = Field(0, ge=0, description="CPU threads per process; 0 means all cores divided by ranks.")
    micro_tokens: int = Field(4096, ge=16, description="Token budget of one forward and backward pass per rank.")
    share_prefixes: bool = Field(
        True,
        description="Compute once what several rows of a forward pass begin with alike; false: each row by itself.",
    )
    depth_first: bool = Field(
        True,
        description="Train a tree beyond micro_tokens branch by branch below its trunk (SFT, PPO, GRPO; one rank).",
    )
    layout: BatchLayout = Field(
        "auto",
        description="How models read batches: `forest` computes what answers share once; `padded` is one path a row, "
        "for models that cannot; `auto` tries.",
    )
    gen_rows: int = Field(64, ge=1, description="Most completions the local generator decodes at once.")
    gen_tokens: int = Field(131072, ge=256, description="Most tokens that the local generator's cache holds at once.")
    workers: int = Field(0, ge=0, description="Processes that search for copies of benchmarks; 0 means all cores.")
    requests: int = Field(16, ge=1, description="Requests to a server in flight at once.")
    requests_per_minute: float | None = Field(None, gt=0, description="Most requests a minute to a server.")
    tokens_per_minute: float | None = Field(None, gt=0, description="Most tokens a minute to a server.")
    price: tuple[float, float] | None = Field(None, description="Price of a million prompt and generated tokens.")
    checkpoint_seconds: float = Field(
        60.0, ge=0, description="Least time between checkpoints, never below 20 times that of saving; 0: every step."
    )
    recompute: bool = Field(False, description="Compute activations again in backward instead of keeping them.")
    offload: bool = Field(False, description="Keep master weights and optimiser state on the host (CUDA).")
    compile: bool = Field(False, description="Compile the layers with torch.compile; the first steps take minutes.")
    engine_url: str = Field(
        "", description='Where `engine = "vllm"` of an RL stage is served, `http://HOST:PORT`; in-process when absent.'
    )
    engine_key_file: str = Field("", description="File with that engine's key; by default that of this machine's.")
    report_to: tuple[TrackerName, ...] = Field(
        (), description='Trackers that are told every step of training, e.g. `["wandb", "tensorboard"]`.'
    )
    completions_every: int = Field(
        10, ge=0, description="RL: show them a table of completions with rewards every so many rounds; 0: never."
    )

    @field_validator("replicas")
    @classmethod
    def _equal_groups(cls, value: int, info: ValidationInfo) -> int:
        ranks = info.data.get("ranks", 1)
        if ranks % value:
            raise ValueError(f"{ranks} ranks make no {value} equal groups; choose a divisor of placement.ranks")
        return value
