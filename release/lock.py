"""Write requirements.lock: every package that Tercet needs, at the tests' versions, with the hashes of all its files.

torch and the CUDA libraries that it brings stand outside: which build is right depends on the machine, so its index is
chosen at installation (`make quickstart TORCH_INDEX=…`). `make lock` runs this where uv is installed.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LOCK = Path(__file__).with_name("requirements.lock")
OF_TORCH = re.compile(r"^(torch|triton|nvidia-[\w-]+|cuda-[\w-]+)==", re.MULTILINE)
HOW = (
    "--universal",
    "--python-version",
    "3.11",
    "--constraints",
    "constraints.txt",
    "--extra",
    "play",
    "--extra",
    "lora",
)
OPTIONS = ("--generate-hashes", "--no-annotate", "--custom-compile-command", "make lock")


def compiled(*options: str) -> str:
    """What uv resolves pyproject.toml to."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--quiet", "pyproject.toml", *HOW, *options]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def main() -> None:
    """Resolve twice: the first time to learn what belongs to torch."""
    left_out = [word for name in sorted(set(OF_TORCH.findall(compiled()))) for word in ("--no-emit-package", name)]
    LOCK.write_text(compiled(*OPTIONS, *left_out), encoding="utf-8")


if __name__ == "__main__":
    main()
