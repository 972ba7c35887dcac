"""Which precision this machine computes in: bfloat16 where hardware multiplies it, else float32.

Most CPUs have no bfloat16 matrix units; there it is multiplied in software, three times slower than float32. What
`dtype = "auto"` means is decided here, without torch, so that a plan can show it and a key can hold it.
"""

from __future__ import annotations

import os
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from tercet import machine

UNITS = {"amx_bf16": "AMX", "avx512_bf16": "AVX512-BF16", "bf16": "Arm BF16", "svebf16": "Arm SVE BF16"}
"""Flags of /proc/cpuinfo for bfloat16 matrix products in hardware, fastest first."""
ACCELERATORS = {
    "libtorch_cuda.so": (("/dev/nvidiactl", "/dev/dxg"), "CUDA_VISIBLE_DEVICES"),
    "libtorch_hip.so": (("/dev/kfd",), "HIP_VISIBLE_DEVICES"),
}
"""Library of a torch build, the device files that a driver makes, and the variable that hides cards."""


class Precision(NamedTuple):
    """What `auto` is here, and why. Example: `Precision("float32", "this CPU multiplies bf16 in software")`."""

    dtype: str
    why: str


@cache
def automatic() -> Precision:
    """bfloat16 on a GPU and on CPUs with AMX, AVX512-BF16 or Arm's bf16 products; float32 anywhere else."""
    if has_gpu():
        return Precision("bfloat16", "on the GPU")
    if unit := bf16_unit():
        return Precision("bfloat16", f"this CPU has {unit}")
    return Precision("float32", "this CPU multiplies bf16 in software")


def resolve(dtype: str) -> str:
    """`auto` as this machine's precision; any other name as it is."""
    return automatic().dtype if dtype == "auto" else dtype


def reason(dtype: str) -> str:
    """`float32: this CPU multiplies bf16 in software`; no reason where the recipe pins another precision."""
    found = automatic()
    return f"{dtype}: {found.why}" if dtype == found.dtype else f"{dtype}: pinned by the recipe"


def software_bf16() -> bool:
    """Whether bfloat16 products run in software here."""
    return automatic().dtype != "bfloat16"


def bf16_unit() -> str:
    """The CPU's fastest unit for bfloat16 matrix products; empty where it has none or torch would not use it."""
    if sys.platform != "linux":  # on macOS torch has no bf16 kernels for the CPU, whatever the chip could do
        return ""
    words = machine.cpu_flags()
    return next((unit for flag, unit in UNITS.items() if flag in words), "")


def has_gpu() -> bool:
    """Whether torch, as it is installed, would find a card, as far as files and variables say."""
    if os.environ.get("TERCET_DEVICE", "").startswith("cpu"):
        return False
    found = find_spec("torch")
    libraries = Path(found.origin).parent / "lib" if found is not None and found.origin else Path()
    for library, (files, variable) in ACCELERATORS.items():
        hidden = os.environ.get(variable, "all").strip() in ("", "-1")
        if not hidden and (libraries / library).is_file() and any(Path(file).exists() for file in files):
            return True
    return False
