"""Losses and gradients of Tercet against TRL's own trainers: same weights, same tokens, float32, one batch a case.

python bench/parity.py                        a tiny random Llama
python bench/parity.py --model FOLDER         a real model
python bench/parity.py --only orpo --dtype float64    tells a difference of definition from one of rounding

Each of TRL's trainers is built for real and its `compute_loss` called on its own collator's batch. Tercet's side goes
through the stages' own trees, forests, batches (at least two a case, where TRL has one) and losses. Three distances:
`loss`, |a - b| / max(1, |b|); `gradient`, the largest |a - b| of any parameter's gradient over the largest |b|; `norm`,
the norm of the whole difference over the norm of TRL's gradient. A fourth is shown only: `worst`, the largest
max|a - b| / max|b| of one parameter tensor by itself. Exit code 1 when one of the three is above the bound.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils import logging

import peer
from parity_cases import Case, World, cases, prepare
from tercet import machine

BOUND = 1e-5


def main() -> None:
    """Compare, print the table, keep it; exit code 1 when a bound is broken."""
    options = parser().parse_args()
    torch.set_num_threads(options.threads)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        world = prepare(folder, options.model, options.seed, options.dtype)
        chosen = [
            case for case in cases(world) if not options.only or any(case.name.startswith(o) for o in options.only)
        ]
        job: World = {key: str(world[key]) for key in ("policy", "reference", "scorer")} | world["padding"]
        job |= {"threads": options.threads, "dtype": options.dtype, "gradients": str(folder / "gradients.safetensors")}
        job["cases"] = {c.name: {"trainer": c.trainer, "options": c.options, "rows": c.rows, **c.more} for c in chosen}
        (folder / "job.json").write_text(json.dumps(job))
        print("| loss | TRL | Tercet | loss | gradient | norm | worst |\n|---|--:|--:|--:|--:|--:|--:|")
        with asking(folder / "job.json") as (versions, ask):
            lines = []
            for case in chosen:
                lines.append(compared(case, ask(case.name), folder / "gradients.safetensors"))
                keep(lines, versions, options)
    for line in lines:
        if line["note"]:
            print(f"{line['name']}: {line['note']}")
    if broken := [line["name"] for line in lines if not line["agrees"]]:
        raise SystemExit(f"beyond {BOUND:g}: {', '.join(broken)}")
    print(f"{len(lines)} losses and their gradients agree to {BOUND:g}")


def parser() -> argparse.ArgumentParser:
    """The options."""
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--model", default="tiny", help="tiny, or a Hugging Face folder")
    made.add_argument("--name", help="what results/parity.json calls the model; its folder's name when absent")
    made.add_argument("--dtype", choices=["float32", "float64"], default="float32", help="float64: is it rounding?")
    made.add_argument("--threads", type=int, default=1)
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--only", action="append", help="cases whose name starts like this")
    return made


@contextmanager
def asking(job: Path) -> Iterator[tuple[dict[str, str], Callable[[str], dict[str, Any]]]]:
    """TRL's process: its versions, and a function that asks it for a case by name."""
    log = job.with_name("log.txt")
    with log.open("w") as stream:
        command = [*peer.theirs("trl_parity.py"), str(job)]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stream, text=True)
        asked, answers = child.stdin, child.stdout
        assert asked is not None
        assert answers is not None

        def answer(name: str) -> dict[str, Any]:
            if not (line := answers.readline()):
                raise SystemExit(f"TRL failed on {name}:\n{log.read_text()[-4000:]}")
            return json.loads(line)

        def ask(name: str) -> dict[str, Any]:
            print(name, file=asked, flush=True)
            return answer(name)

        try:
            yield answer("nothing yet"), ask
        finally:
            child.kill()
            child.wait()


def compared(case: Case, theirs: dict[str, Any], file: Path) -> dict[str, Any]:
    """One line of the table."""
    wanted, found = load_file(file), case.ours()
    if wanted.keys() != found.slopes.keys():
        raise SystemExit(
            f"{case.name}: gradients of different parameters: {sorted(wanted.keys() ^ found.slopes.keys())}"
        )
    gaps = {name: (found.slopes[name] - wanted[name]).double() for name in wanted}
    highest = {name: float(wanted[name].abs().max()) for name in wanted}
    widest = {name: float(gap.abs().max()) for name, gap in gaps.items()}
    line = {
        "name": case.name,
        "trl": theirs["loss"],
        "tercet": found.loss,
        "loss": abs(found.loss - theirs["loss"]) / max(1.0, abs(theirs["loss"])),
        "gradient": max(widest.values()) / max(highest.values()),
        "norm": _norm(gaps) / _norm(wanted),
        "worst": max(widest[name] / highest[name] for name in wanted if highest[name]),
    }
    line["agrees"] = all(line[key] <= BOUND for key in ("loss", "gradient", "norm"))
    figures = " | ".join(f"{line[key]:.1e}" for key in ("loss", "gradient", "norm", "worst"))
    print(f"| {case.name} | {line['trl']:.7f} | {line['tercet']:.7f} | {figures} |", flush=True)
    return line | {"metrics": found.metrics, "trl_metrics": theirs["metrics"], "note": case.note}


def _norm(tensors: dict[str, Tensor]) -> float:
    return float(torch.stack([value.double().norm() for value in tensors.values()]).norm())


def keep(lines: list[dict[str, Any]], theirs: dict[str, str], options: argparse.Namespace) -> None:
    """Write results/parity.json: these lines beside the model's others (`--only`) and those of other models."""
    path = peer.RESULTS / "parity.json"
    kept = json.loads(path.read_text()) if path.is_file() else {"models": {}}
    name = options.name or ("tiny" if options.model == "tiny" else Path(options.model).resolve().name)
    name += ", float64" if options.dtype == "float64" else ""
    before = kept["models"].get(name, {"losses": []})["losses"]
    losses = {line["name"]: line for line in [*before, *lines]}
    own = {package: importlib.metadata.version(package) for package in ("tercet", "torch", "transformers")}
    about = {"seed": options.seed, "bound": BOUND, "processor": machine.processor(), "tercet": own, "trl": theirs}
    kept["models"][name] = about | {"losses": list(losses.values())}
    path.write_text(json.dumps(kept, indent=1) + "\n")


if __name__ == "__main__":
    main()
