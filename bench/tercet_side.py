"""Tercet's side of the comparisons: the stages' own steps and loop, on the job's rows in the job's order."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, cast

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from tercet import machine, verify
from tercet.device.mesh import Mesh, mesh
from tercet.models.forest import Forest, Leaf, Tree
from tercet.models.generate import LocalGenerator
from tercet.models.hf_folder import load_tokenizer
from tercet.recipe import BaseSpec, DPOSpec, GRPOSpec, OfflineSpec, Placement, Recipe, RewardModelSpec, SFTSpec
from tercet.rows import Row, Sampling, messages_from, write_table
from tercet.store import Artifact, Context
from tercet.track import Tracker
from tercet.train.batch import Step, batches, chosen_rows
from tercet.train.compared import Compared
from tercet.train.dpo import answer_sums, preference
from tercet.train.export import open_policy
from tercet.train.loop import fit, start
from tercet.train.packing import Budget
from tercet.train.reference import answer_logps
from tercet.train.reward_model import compared, open_scorer, scores_of
from tercet.train.rl.grpo import run as run_grpo
from tercet.train.sft import sft_loss

Job = dict[str, Any]
Values = Callable[[list[int], Forest], dict[str, torch.Tensor]]


class Notes(Tracker):
    """A tracker without a folder that keeps what the loop logs."""

    def __init__(self) -> None:
        super().__init__(None)
        self.steps: list[dict[str, float]] = []

    def log(self, step: int, **values: float) -> None:
        """Keep a step's figures."""
        self.steps.append(values)

    def column(self, name: str) -> list[float]:
        """One figure of every step."""
        return [step[name] for step in self.steps]


class OptimizerClock:
    """Seconds that each call of any optimiser's `step` took."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._began = 0.0
        register_optimizer_step_pre_hook(self._begin)
        register_optimizer_step_post_hook(self._end)

    def _begin(self, *_: object) -> None:
        self._began = _now()

    def _end(self, *_: object) -> None:
        self.seconds.append(_now() - self._began)


def sft(file: Path) -> None:
    """Supervised finetuning."""
    job, rows, notes, ctx = prepare(file)
    trees = [Tree([], [Leaf(row["token_ids"], row["mask"])]) for row in rows]
    spec = SFTSpec(model="base", rows="rows", max_length=job["max_length"], **common(job))
    with mesh() as ranks:
        state = start(open_policy(Path(job["model"])), spec, ranks, ctx)
        loss = partial(sft_loss, reduction="token_mean")
        fit(state, in_order(trees, spec, ctx, ranks), loss, spec, ctx, total=job["steps"])
    write(job, notes)


def dpo(file: Path) -> None:
    """Preference tuning; the reference pass is counted in."""
    job, rows, notes, ctx = prepare(file)
    trees = [pair(row) for row in rows]
    spec = DPOSpec(
        model="base", pairs="pairs", loss="dpo", beta=job["beta"], max_length=job["max_length"], **common(job)
    )
    with mesh() as ranks:
        began = time.perf_counter()
        frozen = open_policy(Path(job["model"]), getattr(torch, spec.dtype)).to(ranks.device)
        reference = answer_logps(frozen, trees, ranks)
        seconds = time.perf_counter() - began
        del frozen
        state = start(open_policy(Path(job["model"])), spec, ranks, ctx)

        def values(items: list[int], forest: Forest) -> dict[str, torch.Tensor]:
            return {"reference_L": reference[items].reshape(-1)}

        steps = in_order(trees, spec, ctx, ranks, values)
        fit(state, steps, Compared(answer_sums, partial(preference, spec=spec)), spec, ctx, total=job["steps"])
    write(job, notes, reference_seconds=seconds)


def reward(file: Path) -> None:
    """The reward model."""
    job, rows, notes, ctx = prepare(file)
    trees = [pair(row) for row in rows]
    spec = RewardModelSpec(model="base", pairs="pairs", max_length=job["max_length"], **common(job))
    source = Path(job["model"])
    with mesh() as ranks:
        state = start(open_scorer(source, load_tokenizer(source).pad_token_id, ctx.seed), spec, ranks, ctx)
        fit(state, in_order(trees, spec, ctx, ranks), Compared(scores_of, compared), spec, ctx, total=job["steps"])
    write(job, notes)


def grpo(file: Path) -> None:
    """The whole GRPO stage, rows to weights; every completion is as long as the budget, half of them are rewarded."""
    job, raw, notes, ctx = prepare(file)
    names = ("num_generations", "max_length", "max_new_tokens", "kl_beta")
    settings = {name: value for name, value in common(job).items() if name != "steps"} | {n: job[n] for n in names}
    spec = GRPOSpec(model="base", prompts="rows", no_eos_reward="keep", rounds=job["steps"], **settings)
    alternate()
    endless()
    size = job["steps"] * spec.batch
    places = [i for k in range(job["steps"]) for i in chosen_rows(k, size, spec.batch, ctx.seed)]
    rows: list[Row | None] = [None] * size
    for place, row in zip(places, raw, strict=False):  # so that the stage, which shuffles, keeps the job's order
        rows[place] = Row(
            str(place), messages_from(row["prompt"]), verifier="alternating@1", reference=row["reference"]
        )
    inputs = {name: artifact(ctx.work / name) for name in ("base", "rows")}
    inputs["base"].payload.symlink_to(job["model"])
    write_table(inputs["rows"].payload / "rows.parquet", rows)
    clock = OptimizerClock()
    out = ctx.work / "out"
    out.mkdir()
    run_grpo(spec, inputs, out, ctx)
    write(job, notes, phases=phases(notes, clock))


def generate(file: Path) -> None:
    """The generator alone: one token for every prompt (prefill), or as many as the job says for so many rows."""
    job, raw, _, _ = prepare(file)
    endless()
    generator = LocalGenerator.open(Path(job["model"]), job["dtype"], rows=job.get("rows_at_once", 128))
    decode = job["kind"] == "decode"
    chosen = [messages_from(row["prompt"]) for row in raw[: job["rows_at_once"] if decode else 128]]
    sampling = Sampling(job["max_new_tokens"] if decode else 1, 1.0)
    generator.complete(chosen[:8], Sampling(2, 1.0))  # packs weights and builds kernels
    generator.work.taken()
    for _ in range(1 if decode else 4):
        generator.complete(chosen, sampling)
    flops, seconds = generator.work.flops, generator.work.seconds
    Path(job["out"]).write_text(
        json.dumps(generator.work.taken() | {"gflops": flops / seconds / 1e9, "seconds": [seconds]})
    )


def alternate() -> None:
    """A verifier that says 0, 1, 0, 1: a group of equal rewards would be skipped here and computed there."""
    scores = itertools.cycle((0.0, 1.0))
    alternating = lambda completion, reference: verify.Grade(next(scores), completion)  # noqa: E731
    verify.VERIFIERS["alternating@1"] = verify.Verifier("alternating@1", alternating)


def endless() -> None:
    """Let no token end a completion of the local generator, as in the peer, which is made to write up to the limit."""
    build = LocalGenerator.__init__

    def without_stops(self: LocalGenerator, *args: Any, **options: Any) -> None:
        build(self, *args, **options)
        self.chat.stops = set()

    LocalGenerator.__init__ = without_stops  # type: ignore[method-assign]


def artifact(path: Path) -> Artifact:
    """An input of a stage that no store holds."""
    path.mkdir()
    return Artifact("bench", path.name, "", path, {}, {})


def phases(notes: Notes, clock: OptimizerClock) -> dict[str, list[float]]:
    """Seconds of each step by phase, from what the stage logs; the optimiser's are part of the update's."""
    names = ("generate", "grade", "score")
    found = {name: [step.get(f"seconds_{name}", 0.0) for step in notes.steps] for name in names}
    updates = [step["tokens"] / step["tokens_per_second"] for step in notes.steps]
    rest = [max(0.0, whole - own) for whole, own in zip(updates, clock.seconds, strict=True)]
    return found | {"forward_backward": rest, "optimizer": clock.seconds}


def prepare(file: Path) -> tuple[Job, list[dict[str, Any]], Notes, Context]:
    """The job, its rows, and a context whose store is a fresh folder beside the job."""
    job: Job = json.loads(file.read_text())
    torch.set_num_threads(job["threads"])
    machine.keep_heap()  # as a stage's process does
    rows = [json.loads(line) for line in Path(job["rows"]).read_text().split("\n") if line]
    placement = Placement(checkpoint_seconds=1e9, micro_tokens=job["micro_tokens"], **job.get("placement", {}))
    recipe = Recipe(name="bench", base=BaseSpec(model=job["model"]), stage={}, placement=placement)
    notes = Notes()
    work = Path(tempfile.mkdtemp(dir=file.parent)) / "stage" / "work"
    work.mkdir(parents=True)
    return job, rows, notes, Context("bench", job["seed"], recipe, work, notes, {}, cast(Any, None))


def common(job: Job) -> dict[str, Any]:
    """Settings of any training stage; the peer has the same."""
    names = ("learning_rate", "batch", "steps", "dtype")
    fixed = {"schedule": "constant", "warmup_ratio": 0.0, "max_grad_norm": 1.0, "eps": 1e-8}
    return {name: job[name] for name in names} | fixed | job.get("fit", {})


def pair(row: dict[str, Any]) -> Tree:
    """A prompt with its two answers."""
    leaves = [Leaf(row[side], [True] * len(row[side])) for side in ("chosen_ids", "rejected_ids")]
    return Tree(row["prompt_ids"], leaves)


def in_order(
    trees: list[Tree], spec: OfflineSpec, ctx: Context, ranks: Mesh, values: Values | None = None
) -> Iterator[Step]:
    """Steps of the job's trees in the job's order; `values` is asked by place among all trees."""
    for first in range(0, (spec.steps or 0) * spec.batch, spec.batch):

        def of_part(items: list[int], forest: Forest, first: int = first) -> dict[str, torch.Tensor]:
            return values([first + i for i in items], forest) if values else {}

        part = trees[first : first + spec.batch]
        yield Step(batches(part, Budget.of(ctx.recipe.placement, spec), ranks, of_part))


def write(job: Job, notes: Notes, **more: Any) -> None:
    """Hand the figures back to the comparison."""
    figures = {"seconds": notes.column("seconds"), "losses": notes.column("loss"), **more}
    figures["trained"] = notes.column("useful_tokens")
    figures["tokens"] = notes.column("tokens")
    counted = notes.steps[1:]
    figures["tokens_per_second"] = fmean(step["tokens_per_second"] for step in counted)
    figures["efficiency"] = fmean(step["efficiency"] for step in counted)
    figures["gflops"] = fmean(step["gflops"] for step in counted)
    figures["memory_gb"] = max(notes.column("memory_gb"))  # of the card where there is one
    Path(job["out"]).write_text(json.dumps(figures))


def _now() -> float:
    """The time when all that was asked of the card is done."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter()
