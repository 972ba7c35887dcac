"""The element-wise kernels of `kernels.c` and `attention.c`, compiled once per machine and kept in the cache.

A C compiler is optional: without one, or where the cache cannot be written, the model's own operations run, slower and
with the same results up to rounding. Nothing is compiled at import; the first caller waits about a second, once per
machine. OpenMP is torch's own runtime, so that both share one set of threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tercet.argv import Outside, command
from tercet.hub.downloads import cache_folder
from tercet.journal import intact, replacing, stamp
from tercet.machine import processor

SOURCE = Path(__file__).with_name("kernels.c")
# No -ffast-math: NaN must stay visible. Reductions are marked in the source where their order is free.
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared")
# Sums must not depend on where in memory a tensor happens to lie; only gcc knows the option.
UNPEELED = "--param=vect-max-peeling-for-alignment=0"
KINDS = {torch.float32: "f32", torch.bfloat16: "bf16"}
SECONDS = 120  # a compiler that takes longer is stuck


class Native(NamedTuple):
    """The compiled library, or none and why."""

    library: ctypes.CDLL | None
    why: str


@cache
def native() -> Native:
    """Load the kernels, compiling them where this machine has not yet. `TERCET_KERNELS=off` does without."""
    if os.environ.get("TERCET_KERNELS", "") == "off":
        return Native(None, "TERCET_KERNELS is off")
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CC", ""), "cc", "gcc", "clang"))), None)
    if compiler is None:
        return Native(None, "no C compiler was found (cc, gcc, clang or $CC)")
    why = ""
    for extra in _threads():
        try:
            return Native(ctypes.CDLL(str(_built(compiler, extra))), "")
        except (OSError, subprocess.SubprocessError) as error:
            detail = getattr(error, "stderr", "") or str(error)
            why = f"{compiler} could not build the kernels: {' '.join(str(detail).split())[-300:]}"
    return Native(None, why)


def available(tensor: Tensor) -> bool:
    """Whether the kernels can work on this tensor."""
    return tensor.device.type == "cpu" and tensor.dtype in KINDS and native().library is not None


def call(name: str, dtype: torch.dtype | None, *arguments: Tensor | int | float) -> None:
    """Run one kernel: tensors as pointers, whole numbers as int64, others as float. Shapes are not checked."""
    library = native().library
    assert library is not None
    function = getattr(library, f"{name}_{KINDS[dtype]}" if dtype is not None else name)
    function(*map(_plain, arguments))


def _plain(value: Tensor | int | float) -> ctypes.c_void_p | ctypes.c_int64 | ctypes.c_float:
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_float(value)


def _threads() -> Iterator[tuple[str, ...]]:
    """Compiler options, best first: OpenMP with the runtime that torch has loaded, or a single thread."""
    folder = Path(torch.__file__).parent
    runtimes = [*folder.glob("lib/libgomp*.so*"), *folder.with_name("torch.libs").glob("libgomp*.so*")]
    for runtime in runtimes[:1]:
        linked = ("-fopenmp", "-nodefaultlibs", str(runtime), "-lm", "-lc", "-lgcc")
        yield (UNPEELED, *linked)
        yield linked
    yield ("-fopenmp-simd",)


def _built(compiler: str, extra: tuple[str, ...]) -> Path:
    """The library in the cache; several processes may build it at once, each replaces it whole."""
    version = _run(command(Outside(compiler), "--version"))
    texts = [file.read_text(encoding="utf-8") for file in sorted(SOURCE.parent.glob("*.c"))]
    about = (*texts, version, processor(), torch.__version__, *FLAGS, *extra)
    file = cache_folder() / "kernels" / f"{hashlib.sha256(repr(about).encode()).hexdigest()[:24]}.so"
    if not intact(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as made:
            _run(command(Outside(compiler), *FLAGS, "-o", Outside(made), Outside(SOURCE), *extra))
        stamp(file)
    return file


def _run(asked: list[str]) -> str:
    done = subprocess.run(
        asked, capture_output=True, text=True, check=True, timeout=SECONDS, env={**os.environ, "LC_ALL": "C"}
    )
    return done.stdout
