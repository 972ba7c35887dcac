"""What must be installed or set on this machine: packages of engines and optimisers, keys of servers, prices, cards."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit

from tercet.argv import command
from tercet.launch.commands import NO_ALLOCATION, SLURM_NODES
from tercet.precision import has_gpu
from tercet.preflight.facts import Facts, Obstacle
from tercet.recipe import URL, AskingSpec, ModelSource, RatedPairsSpec, RLSpec, TrainSpec


def packages(facts: Facts, name: str) -> Iterator[Obstacle]:
    """Engines, adapters and optimisers whose packages are extras."""
    spec = facts.recipe.spec(name)
    wanted = []
    engine, where = getattr(spec, "engine", "local"), facts.recipe.placement.engine
    if engine == "sglang" and not where.urls:
        yield Obstacle(name, "engine", "SGLang runs behind URLs: set placement.engine.urls (docs/engines.md)")
    needed = not where.urls or isinstance(spec, RLSpec)  # a trainer sends weights by vLLM's own code, also to servers
    if engine == "vllm" and needed and not facts.served(getattr(spec, "model", "")):
        wanted.append(("engine", "vllm", "vllm"))
        wanted += [("placement.engine", "ray", "ray")] if where.placement == "apart" and not where.urls else []
    if isinstance(spec, TrainSpec):
        wanted += [("lora", "peft", "lora")] if spec.lora else []
        wanted += [("optimizer", "bitsandbytes", "bits")] if spec.optimizer == "adamw8bit" else []
        wanted += [("lora", "bitsandbytes", "bits")] if spec.lora and spec.lora.quantize else []
    if spec.parallel:
        place = facts.recipe.placement
        wanted += [("placement.report_to", package, "track") for package in place.report_to]
        wanted += [("placement.launch", "ray", "ray")] if place.launch == "ray" and place.ranks > 1 else []
    for key, package, extra in wanted:
        if find_spec(package) is None:
            yield Obstacle(name, key, f"it needs the package {package}: pip install 'tercet[{extra}]'")


def keys(facts: Facts, name: str) -> Iterator[Obstacle]:
    """OpenAI's own server answers nobody without a key."""
    spec = facts.recipe.spec(name)
    if not isinstance(spec, ModelSource) or not spec.model.startswith(URL):
        return
    if urlsplit(spec.model).hostname != "api.openai.com":
        return
    if not any(os.environ.get(key, "").strip() for key in ("TERCET_API_KEY", "OPENAI_API_KEY")):
        yield Obstacle(name, "model", "api.openai.com needs a key; set OPENAI_API_KEY (or TERCET_API_KEY)")


def logins(facts: Facts, name: str) -> Iterator[Obstacle]:
    """Weights & Biases takes nothing from who has not logged in, unless it is told to keep it here."""
    if not facts.recipe.spec(name).parallel or "wandb" not in facts.recipe.placement.report_to:
        return
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "")).hostname or "api.wandb.ai"
    if os.environ.get("WANDB_MODE", "online") not in ("online", "shared") or os.environ.get(
        "WANDB_IDENTITY_TOKEN_FILE"
    ):
        return
    file = Path(os.environ.get("NETRC") or Path.home() / ".netrc")
    if not os.environ.get("WANDB_API_KEY") and not (file.is_file() and host in file.read_text("utf-8", "replace")):
        advice = "run `wandb login` first, or set WANDB_MODE=offline and `wandb sync` later"
        yield Obstacle(name, "placement.report_to", f"nobody is logged in to Weights & Biases at {host}; {advice}")


def prices(facts: Facts, name: str) -> Iterator[Obstacle]:
    """A budget is money, and only a price turns tokens into money."""
    spec = facts.recipe.spec(name)
    if not isinstance(spec, AskingSpec) or spec.budget is None or facts.recipe.placement.price is not None:
        return
    asked = [*getattr(spec, "pool", ()), *(getattr(spec, key, "") for key in ("model", "own", "judge"))]
    if served := [used for used in asked if used and facts.served(used)]:
        yield Obstacle(
            name,
            "budget",
            f"nobody knows what {served[0]!r} costs; give `placement.price = [PER_MILLION_READ, PER_MILLION_WRITTEN]`, "
            "or leave the budget out",
        )


def pools(facts: Facts, name: str) -> Iterator[Obstacle]:
    """Answers of one model alone cannot be compared."""
    spec = facts.recipe.spec(name)
    if isinstance(spec, RatedPairsSpec) and len(set(spec.pool)) < 2 and not spec.own:
        yield Obstacle(
            name, "pool", f"answers of {spec.pool[0]!r} alone cannot be compared; add a model, or name `own`"
        )


def ranks(facts: Facts, name: str) -> Iterator[Obstacle]:
    """Every rank has a card of its own, where there are cards."""
    wanted, there = facts.recipe.placement.per_node, cards()
    if isinstance(facts.recipe.spec(name), TrainSpec) and wanted > 1 and has_gpu() and 0 < there < wanted:
        ranks = (
            f"placement wants {wanted} ranks on a machine"
            if facts.recipe.placement.nodes > 1
            else f"placement.ranks is {wanted}"
        )
        what = f"{ranks}, and there are {there} cards; set it to {there}, or TERCET_DEVICE=cpu"
        yield Obstacle(name, "ranks", what)


def offloading(facts: Facts, name: str) -> Iterator[Obstacle]:
    """What is kept on the host for a card needs a card, where the ranks run on this machine."""
    place = facts.recipe.placement
    elsewhere = place.ranks > 1 and (place.launch != "torchrun" or place.nodes > 1)
    if has_gpu() or elsewhere or not isinstance(facts.recipe.spec(name), TrainSpec):
        return
    for key in ("offload", "activation_offloading"):
        if getattr(place, key):
            what = "it keeps on the host what a card has no room for, and there is no card here; leave it out"
            yield Obstacle(name, f"placement.{key}", what)


def allocation(facts: Facts, name: str) -> Iterator[Obstacle]:
    """srun starts ranks inside an allocation."""
    place = facts.recipe.placement
    wanted = place.ranks > 1 and place.launch == "slurm" and facts.recipe.spec(name).parallel
    if wanted and not (os.environ.get(SLURM_NODES) and shutil.which("srun")):
        yield Obstacle(name, "launch", NO_ALLOCATION)


@cache
def cards() -> int:
    """Cards that a process here may use; 0 where nobody says how many."""
    shown = os.environ.get("CUDA_VISIBLE_DEVICES")
    if shown is not None:
        return len([one for one in shown.split(",") if one.strip() not in ("", "-1")])
    try:
        done = subprocess.run(
            command("nvidia-smi", "--list-gpus"), capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in done.stdout.splitlines())


CHECKS = (packages, keys, logins, prices, pools, ranks, offloading, allocation)
