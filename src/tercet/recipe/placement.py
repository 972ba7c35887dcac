"""`[placement]`: where a recipe runs, how fast, and who is told. It changes no result and is part of no key."""

from __future__ import annotations

import math
import re
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from tercet.outside import USERINFO, has_userinfo
from tercet.recipe.specs import Spec, frozen

BatchLayout = Literal["auto", "forest", "padded"]
TrackerName = Literal["wandb", "trackio", "tensorboard", "mlflow"]
Launcher = Literal["torchrun", "slurm", "ray", "env"]


class MeshShape(Spec):
    """How the ranks of a stage divide its work; the product of the four is the number of ranks."""

    replicate: int = Field(
        0,
        ge=0,
        description="Groups of ranks that hold a whole model each (HSDP); 0: one for each node, as far as fits.",
    )
    shard: int = Field(0, ge=0, description="Ranks of a group that read rows of their own (FSDP); 0: what is left.")
    context: int = Field(1, ge=1, description="Ranks that have a part each of the same rows' tokens (Ulysses).")
    tensor: int = Field(1, ge=1, description="Ranks that compute a part each of every product, within a node.")


ALONE, BESIDE = 0.9, 0.4  # shares of a card for an engine that has it for itself, or beside a trainer


class EnginePlacement(Spec):
    """Where the engine of stages with `engine = "vllm"` or `"sglang"` runs, and how large it is."""

    kind: Literal["", "vllm", "sglang"] = Field(
        "", description="The engine of every stage that could have one and names none; it is part of their keys."
    )
    placement: Literal["colocated", "apart"] = Field(
        "colocated",
        description="`colocated`: in the stage's own processes and on its cards, asleep while they train; `apart`: "
        "replicas on cards of their own, placed by Ray.",
    )
    replicas: int = Field(1, ge=1, description="Engines that share the prompts (`apart`).")
    tensor_parallel_size: int = Field(1, ge=1, description="Cards of each replica.")
    gpu_memory_utilization: float | None = Field(
        None, gt=0, le=1, description="Share of a card for an engine: 0.9 apart and 0.4 beside a trainer when absent."
    )
    max_model_len: int | None = Field(
        None, ge=16, description="Most tokens of a prompt with its completion; the model's own limit when absent."
    )
    max_num_seqs: int | None = Field(None, ge=1, description="Completions that a replica writes at once; its default.")
    urls: tuple[str, ...] = Field(
        (),
        description="Servers that run already, one per replica: `vllm serve` or SGLang's, `http://HOST:PORT`.",
    )
    key_file: str = Field("", description="File with the key of those servers, where they ask for one.")
    ray_address: str = Field("", description="Ray's cluster; the one of RAY_ADDRESS, or one of this machine's own.")
    options: dict[str, Any] = Field({}, description="Further arguments of the engine, as it calls them.")

    def share(self, *, beside: bool) -> float:
        """The part of a card that an engine takes, `beside` a trainer or alone on it."""
        return self.gpu_memory_utilization or (BESIDE if beside else ALONE)

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if any(map(has_userinfo, self.urls)):
            raise ValueError(f"engine.urls: {USERINFO}")
        if wrong := [url for url in self.urls if not re.fullmatch(r"https?://[\w.\-\[\]:]+/?", url)]:
            raise ValueError(f"engine.urls: {wrong[0][:200]!r} is no address of a server; expected http://HOST:PORT")
        if self.urls and self.placement == "colocated":
            raise ValueError('engine.urls are servers of their own; set engine.placement = "apart"')
        if self.urls and len(set(self.urls)) != len(self.urls):
            raise ValueError("engine.urls names a server twice")
        if self.placement == "colocated" and self.replicas > 1:
            raise ValueError(
                f'engine.replicas = {self.replicas} needs engine.placement = "apart"; colocated, each rank has one'
            )
        return self


class Placement(Spec):
    """Where and how fast; never part of a key."""

    later = (
        *("mesh", "rank_timeout", "report_to", "completions_every"),
        *("nodes", "gpus", "launch", "rendezvous", "max_restarts", "at_once", "activation_offloading"),
        "engine",
    )
    ranks: int = Field(
        1, ge=1, description="Processes of a training stage (`nodes` times `gpus`); above one, torchrun with FSDP2."
    )
    nodes: int = Field(1, ge=1, description="Machines that share a training stage; docs/cluster.md says how.")
    gpus: int = Field(0, ge=0, description="Cards of each machine, one rank each; 0: `ranks` divided by `nodes`.")
    launch: Launcher = Field(
        "torchrun",
        description="What starts the ranks: `torchrun` (on each machine), `slurm` (srun in an allocation), `ray` (on a "
        "Ray cluster), or `env`: each is started by the surroundings, with RANK, WORLD_SIZE and MASTER_ADDR set.",
    )
    rendezvous: str = Field(
        "",
        pattern=r"^([\w.\-]+:\d+)?$",
        description="`HOST:PORT` where machines meet; the first one and a port made of the stage's key when absent.",
    )
    mesh: MeshShape = Field(MeshShape(), description="How ranks divide rows, tokens and weights.")
    rank_timeout: float = Field(
        1800.0, gt=0, description="Seconds that ranks wait for one of them before the stage ends with an error."
    )
    max_restarts: int = Field(
        0, ge=0, description="Times that a stage starts again from its last checkpoint when a process died or hung."
    )
    at_once: int = Field(
        1, ge=1, description="Stages made at the same time where none needs another; each gets cards of its own."
    )
    threads: int = Field(
        0, ge=0, description="CPU threads per process; 0: all cores divided by ranks, and by stages at once."
    )
    micro_tokens: int = Field(4096, ge=16, description="Token budget of one forward and backward pass per rank.")
    share_prefixes: bool = Field(
        True,
        description="Compute once what several rows of a forward pass begin with alike; false: each row by itself.",
    )
    depth_first: bool = Field(
        True,
        description="Train a tree beyond micro_tokens branch by branch below its trunk (pairs after one more forward "
        "pass), or, where a model needs more of a trunk than keys and values, in parts that compute it again.",
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
        60.0,
        ge=0,
        description="Least time between checkpoints, never below 20 x what one halts training; 0: every step.",
    )
    recompute: bool | Literal["auto"] = Field(
        "auto",
        description="Compute activations again in backward instead of keeping them; `auto`: where a training stage "
        "would not fit otherwise, by its forecast.",
    )
    offload: bool = Field(False, description="Keep master weights and optimiser state on the host (CUDA).")
    activation_offloading: bool = Field(
        False, description="Keep what layers save for backward on the host until backward reads it (CUDA)."
    )
    compile: bool = Field(False, description="Compile the layers with torch.compile; the first steps take minutes.")
    engine: EnginePlacement = Field(EnginePlacement(), description="Where engines beside the trainer run.")
    report_to: tuple[TrackerName, ...] = Field(
        (), description='Trackers that are told every step of training, e.g. `["wandb", "tensorboard"]`.'
    )
    completions_every: int = Field(
        10, ge=0, description="RL: show them a table of completions with rewards every so many rounds; 0: never."
    )

    @property
    def per_node(self) -> int:
        """Ranks of each machine."""
        return self.ranks // self.nodes

    @model_validator(mode="before")
    @classmethod
    def _ranks_of_nodes(cls, data: Any) -> Any:
        """`ranks` is `nodes` times `gpus`, so it need not be said beside them."""
        if not isinstance(data, dict):
            return data
        data = frozen(data)
        nodes, gpus = data.get("nodes", 1), data.get("gpus", 0)
        counted = isinstance(nodes, int) and isinstance(gpus, int) and gpus and "ranks" not in data
        return data | {"ranks": nodes * gpus} if counted else data

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        nodes, gpus, ranks = self.nodes, self.gpus, self.ranks
        if gpus and ranks != nodes * gpus:
            raise ValueError(f"ranks is {ranks}, but nodes times gpus is {nodes} x {gpus}; set it to {nodes * gpus}")
        if ranks % nodes:
            raise ValueError(f"{ranks} ranks cannot be shared by {nodes} nodes; give gpus, the cards of each node")
        return self

    @model_validator(mode="after")
    def _shaped(self) -> Self:
        found = self.shape
        if math.prod((found.replicate, found.shard, found.context, found.tensor)) != self.ranks:
            given = " x ".join(f"{name} {size}" for name, size in self.mesh if size)
            raise ValueError(
                f"mesh: {given} do not make {self.ranks} ranks; the product of replicate, shard, context and tensor is "
                "placement.ranks (a shard left out is what the others leave)"
            )
        if self.compile and found.tensor > 1:
            raise ValueError("mesh.tensor above 1 and compile exclude each other: layers in parts are not compiled")
        return self

    @property
    def shape(self) -> MeshShape:
        """The mesh with every number: what layers need travels within a node where that is possible."""
        given = self.mesh
        left = max(1, self.ranks // (given.context * given.tensor))  # ranks that read rows of their own
        replicate = given.replicate or (max(1, left // given.shard) if given.shard else math.gcd(self.nodes, left))
        shard = given.shard or max(1, left // replicate)
        return MeshShape(replicate=replicate, shard=shard, context=given.context, tensor=given.tensor)
