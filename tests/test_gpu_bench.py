"""bench/gpu.sh does all that it does on a card in tiny shapes on the CPU; its laws need few packages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
ABSENT = ("pydantic", "gguf", "httpx2", "datasets", "math_verify", "rich", "pyarrow")
LAWS = f"""
import sys
import transformers, huggingface_hub.file_download, safetensors.torch
for name in {ABSENT}:
    if not any(part == name or part.startswith(name + ".") for part in list(sys.modules)):
        sys.modules[name] = None
import torch, gpu_laws
laws = dict(gpu_laws.laws(torch.device("cpu"), 8))
assert laws["heads of 64, two to a key: pairs"]()["broken"] == []
"""


def test_a_dry_run_reaches_every_cell():
    environment = os.environ | {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", ROOT / "bench" / "gpu.sh", "--dry"], capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert "every cell was reached" in done.stdout
    for cell in ("law: heads of 128, four to a key: tries", "SFT, 32 layers by addition", "DPO, padded", "no graphs"):
        assert f"{cell}: " in done.stdout
    assert "BROKEN" not in done.stdout
    assert "error" not in done.stdout


def test_laws_run_without_the_packages_of_recipes():
    environment = os.environ | {"PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT / 'bench'}"}
    done = subprocess.run([sys.executable, "-c", LAWS], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
