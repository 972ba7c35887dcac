"""Resolve the sets of versions of sets.toml, each into its file: `make lock`, where uv is installed.

torch and the CUDA libraries that it brings stand outside requirements.lock: which build is right depends on the
machine, so its index is chosen at installation (`make quickstart TORCH_INDEX=…`). The set for vLLM on a CPU needs
torch's CPU index, or in `CPU_INDEX` another place that has that build.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SETS: dict[str, dict[str, Any]] = tomllib.loads(Path(__file__).with_name("sets.toml").read_text(encoding="utf-8"))
OF_TORCH = re.compile(r"^(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==", re.MULTILINE)
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def index_of(one: dict[str, Any]) -> list[str]:
    """Options of uv that name where else a set's packages lie."""
    if not one.get("cpu_index"):
        return []
    return ["--extra-index-url", os.environ.get("CPU_INDEX", CPU_INDEX), "--index-strategy", "unsafe-best-match"]


def compiled(one: dict[str, Any], *options: str) -> str:
    """What uv resolves pyproject.toml to."""
    extras = [word for extra in one["extras"] for word in ("--extra", extra)]
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--no-annotate", "pyproject.toml"]
    command += [*extras, *one["resolve"], *index_of(one), *options]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def resolve(one: dict[str, Any]) -> None:
    """Write the file of a set; resolve twice where torch stays out, the first time to learn what belongs to it."""
    without = set(OF_TORCH.findall(compiled(one))) if one.get("without_torch") else one.get("without", [])
    options = ["--no-header", *(word for name in sorted(without) for word in ("--no-emit-package", name))]
    text = f"# {one['about']}\n# Written by `make lock`.\n{compiled(one, *options)}"
    (Path(__file__).parent / one["file"]).write_text(text, encoding="utf-8")


def main() -> None:
    """Resolve the sets that are named, or all; constraints.txt is what the tests run with and is written by hand."""
    for name in sys.argv[1:] or [name for name, one in SETS.items() if "resolve" in one]:
        resolve(SETS[name])


if __name__ == "__main__":
    main()
