"""Model folders, GGUF files and adapters made to hurt: refused in one sentence, or read as plain data.

The promises: nothing of a folder runs or loads code, nothing outside the folder is read or copied, nothing is allocated
for sizes that the files do not bear out, and what is wrong is told by key or tensor before any stage trains.
"""

from __future__ import annotations

import json
import pickle
import random
import re
import resource
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub.constants
import numpy as np
import pytest
import torch
from gguf import GGUFWriter, TokenType
from safetensors.torch import load_file, save_file
from tests.attack.scale import times
from transformers import modeling_flash_attention_utils, modeling_utils
from transformers.integrations import hub_kernels

from tercet.models import base_model, gguf, tiny
from tercet.models.adapter import merge_adapter, read_adapter, write_adapter
from tercet.models.config_file import CODE, LIMITS, without_code
from tercet.models.headers import BaseError
from tercet.models.hf_folder import load_config, load_model, load_tokenizer, model_digest
from tercet.models.support import main as say_support
from tercet.recipe import BaseSpec, ModelSpec

WEIGHTS, INDEX, CONFIG = "model.safetensors", "model.safetensors.index.json", "config.json"
SECONDS, MEGABYTES = 20.0 * times(10), 400  # for one refusal, on a machine that does other things too
Attack = Callable[[Path], object]


def edit(folder: Path, name: str = CONFIG, **changes: Any) -> None:
    path = folder / name
    values = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps(values | changes), "utf-8")


def config(**changes: Any) -> Attack:
    return lambda folder: edit(folder, **changes)


def text(name: str, content: str) -> Attack:
    return lambda folder: (folder / name).write_text(content, "utf-8")


def weights(**changes: Any) -> Attack:
    """Change tensors by (shortened) name: a function of the old one, a new one, or None to take it out."""

    def change(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        for short, new in changes.items():
            name = next((one for one in held if short in one.replace(".", "_")), short)
            value = new(held[name]) if callable(new) else new
            held.pop(name, None)
            if value is not None:
                held[name] = value
        save_file(held, folder / WEIGHTS, metadata={"format": "pt"})

    return change


def header(change: Callable[[dict[str, Any]], object], tail: bytes = b"") -> Attack:
    """Change what the safetensors header says; the data stay."""

    def lie(folder: Path) -> None:
        data = (folder / WEIGHTS).read_bytes()
        length = int.from_bytes(data[:8], "little")
        said = json.loads(data[8 : 8 + length])
        changed = change(said)
        written = changed if isinstance(changed, bytes) else json.dumps(said).encode()
        (folder / WEIGHTS).write_bytes(len(written).to_bytes(8, "little") + written + data[8 + length :] + tail)

    return lie


def length(value: int) -> Attack:
    return lambda folder: (folder / WEIGHTS).write_bytes(value.to_bytes(8, "little") + b"{}" * 100)


def sparse(name: str, size: int) -> Attack:
    def grow(folder: Path) -> None:
        with open(folder / name, "wb") as file:
            file.truncate(size)

    return grow


def index(**files: Any) -> Attack:
    """An index whose tensors lie in other files: `index(norm="../x.safetensors")`."""

    def name(folder: Path) -> None:
        held = load_file(folder / WEIGHTS)
        (folder / WEIGHTS).unlink()
        save_file(held, folder / "model-00001.safetensors", metadata={"format": "pt"})
        found = dict.fromkeys(held, "model-00001.safetensors")
        for short, file in files.items():
            found[next(one for one in held if short in one)] = file
        (folder / INDEX).write_text(json.dumps({"weight_map": found}))

    return name


def linked(name: str) -> Attack:
    """A file that is a link out of the folder."""

    def link(folder: Path) -> None:
        outside = folder.parent / "outside"
        outside.mkdir()
        if (folder / name).exists():
            shutil.move(folder / name, outside / name)
        else:
            (outside / name).write_text("secret")
        (folder / name).symlink_to(outside / name)

    return link


def two_files(folder: Path) -> None:
    held = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    for file in ("a.safetensors", "b.safetensors"):
        save_file(held, folder / file, metadata={"format": "pt"})
    names = sorted(held)
    found = {name: "ab"[place % 2] + ".safetensors" for place, name in enumerate(names)}
    (folder / INDEX).write_text(json.dumps({"weight_map": found}))


def first(said: dict[str, Any], **changes: Any) -> None:
    said[min(name for name in said if name != "__metadata__")].update(changes)


def twice(said: dict[str, Any]) -> bytes:
    return json.dumps(said)[:-1].encode() + b"," + json.dumps(said)[1:].encode()


def nan(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    def spoil(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.clone()
        tensor.view(-1)[1] = value
        return tensor

    return spoil


NORM = "model_norm"
HOSTILE: list[Any] = [0, -1, 1, 3, 10**9, 10**18, 1e308, float("nan"), float("inf"), "x", "", "kernels-community/evil"]
HOSTILE += [
    True,
    None,
    [],
    {},
    [0] * 50,
    ["x"],
    {"a": {"b": 1}},
    {"factor": -1},
    "../../etc/passwd",
    "\ud800",
    "\x1b[2J",
]
SIZES: dict[str, tuple[Attack, str]] = {
    "hidden of a billion": (config(hidden_size=10**9), "hidden_size = 1000000000, expected a number from 1 to"),
    "hidden that is negative": (config(hidden_size=-64), "hidden_size = -64"),
    "hidden of nothing": (config(hidden_size=0), "hidden_size = 0"),
    "hidden that is a text": (config(hidden_size="64"), "hidden_size = '64'"),
    "hidden that is true": (config(hidden_size=True), "hidden_size = True"),
    "hidden that is not a number": (config(hidden_size=float("nan")), "hidden_size = nan"),
    "a million layers": (config(num_hidden_layers=10**6), "num_hidden_layers = 1000000"),
    "more layers than tensors": (config(num_hidden_layers=1500), "1,500 layers, and the weights hold"),
    "no layer": (config(num_hidden_layers=0), "num_hidden_layers = 0"),
    "a vocabulary of 10^12": (config(vocab_size=10**12), "vocab_size = 1000000000000"),
    "a vocabulary of none": (config(vocab_size=0), "vocab_size = 0"),
    "a vocabulary beyond the weights": (config(vocab_size=2**24), "embed_tokens.weight has the shape"),
    "heads of no size": (config(head_dim=0), "head_dim = 0"),
    "heads of a negative size": (config(head_dim=-16), "head_dim = -16"),
    "heads beyond the weights": (config(head_dim=65_536), "has the shape"),
    "no heads": (config(num_attention_heads=0), "num_attention_heads = 0"),
    "a billion heads": (config(num_attention_heads=10**9), "num_attention_heads"),
    "heads that do not divide": (config(num_attention_heads=7), "num_attention_heads|heads|has the shape"),
    "key heads that do not divide": (config(num_key_value_heads=3), "key_value|k_proj"),
    "an inner width of 10^15": (config(intermediate_size=10**15), "intermediate_size"),
    "rotary base that is not a number": (config(rope_theta=float("nan")), "rope_theta = nan"),
    "rotary base without end": (config(rope_theta=float("inf")), "rope_theta = inf"),
    "rotary base that is negative": (config(rope_theta=-1.0), "rope_theta = -1.0"),
    "rotary base deep in a table": (config(rope_parameters={"rope_theta": "10000"}), "rope_parameters.rope_theta"),
    "a context of 10^15": (config(max_position_embeddings=10**15), "max_position_embeddings"),
    "a context of none": (config(max_position_embeddings=0), "max_position_embeddings = 0"),
    "a million experts": (config(num_local_experts=10**6), "num_local_experts = 1000000"),
    "layers times experts": (config(num_hidden_layers=2000, num_experts=65_536), "layers of 65,536 experts"),
    "labels without end": (config(num_labels=10**9), "num_labels"),
    "a key nobody knows of 10^30": (config(own_size=10**30), "own_size"),
    "an epsilon that is not a number": (config(rms_norm_eps=float("nan")), "rms_norm_eps = nan"),
    "a part of absurd size": (config(text_config={"hidden_size": 10**9}), "text_config.hidden_size"),
    "a list of absurd sizes": (config(num_attention_heads=[4, 10**9]), "num_attention_heads = 1000000000"),
    "a number of 5,000 digits": (text(CONFIG, '{"hidden_size": ' + "9" * 5000 + "}"), "expected JSON"),
    "architectures that are a text": (config(architectures="LlamaForCausalLM"), "architectures = 'Llama"),
    "architectures that are numbers": (config(architectures=[1]), r"architectures = \[1\]"),
    "a type that is a list": (config(model_type=["llama"]), "does not know the model type"),
    "a part that the model lacks": (config(text_config={"attn_implementation": "x/y"}), "text_config is no part"),
    "JSON of 100,000 levels": (text(CONFIG, '{"a":' * 10**5 + "1" + "}" * 10**5), "levels|deep"),
    "JSON of 500 levels": (text(CONFIG, '{"a":' * 500 + "1" + "}" * 500), "48 values deep"),
    "a configuration of a gigabyte": (sparse(CONFIG, 1 << 30), "expected at most 67,108,864 bytes"),
    "a configuration in no encoding": (lambda f: (f / CONFIG).write_bytes(b"\xff\xfe{}"), "expected JSON"),
}
TENSORS: dict[str, tuple[Attack, str]] = {
    "a NaN in fp32": (weights(**{NORM: nan(torch.nan)}), "1 of 64 numbers of model.norm.weight are not finite"),
    "an infinity in fp32": (weights(**{NORM: nan(torch.inf)}), "model.norm.weight are not finite"),
    "a NaN in bf16": (weights(up_proj=lambda t: nan(torch.nan)(t.bfloat16())), "up_proj.weight are not finite"),
    "an infinity in fp16": (weights(up_proj=lambda t: nan(-torch.inf)(t.half())), "up_proj.weight are not finite"),
    "a tensor that is too short": (weights(**{NORM: torch.ones(63)}), r"model.norm.weight has the shape \[63\]"),
    "a tensor on its side": (weights(up_proj=lambda t: t.T.contiguous()), "up_proj.weight has the shape"),
    "a tensor of integers": (weights(up_proj=lambda t: t.to(torch.int64)), "up_proj.weight is stored as I64"),
    "a tensor of booleans": (weights(**{NORM: torch.ones(64, dtype=torch.bool)}), "norm.weight is stored as BOOL"),
    "a lost tensor": (weights(q_proj=None), "lack 1 tensors of LlamaForCausalLM, e.g. model.layers"),
    "a tensor in two files": (two_files, "b.safetensors: holds .*which another file"),
    "a header of 2^63 bytes": (length(2**63), "a header of 9,223"),
    "a header of 2^64 - 1 bytes": (length(2**64 - 1), "a header of"),
    "a header beyond the file": (length(10_000), "where at most 200 can be"),
    "a header that is no JSON": (header(lambda said: b"\x00" * 64), "not a readable safetensors"),
    "a header of a list": (header(lambda said: b"[1, 2]"), "not a readable safetensors"),
    "a header of 100,000 levels": (header(lambda said: b'{"a":' * 10**5 + b"1" + b"}" * 10**5), "not a readable"),
    "a name that comes twice": (header(twice), "is there twice"),
    "tensors on top of each other": (header(lambda said: first(said, data_offsets=[4, 66_308])), "begins at byte"),
    "a tensor beyond the file": (header(lambda said: first(said, data_offsets=[0, 10**12])), "has 1,000,000,000,000"),
    "a tensor before the file": (header(lambda said: first(said, data_offsets=[-8, 66_304])), "whole numbers"),
    "a tensor that ends before it begins": (header(lambda said: first(said, data_offsets=[0, -1])), "whole numbers"),
    "offsets that are texts": (header(lambda said: first(said, data_offsets=["0", "8"])), "not a readable"),
    "a shape of 10^18": (header(lambda said: first(said, shape=[10**9, 10**9])), "bytes; copy it again|has "),
    "a shape below zero": (header(lambda said: first(said, shape=[-1, -64])), "whole numbers"),
    "a shape that is a text": (header(lambda said: first(said, shape="wide")), "not a readable|whole numbers"),
    "a type nobody knows": (header(lambda said: first(said, dtype="F1000")), "stored as F1000"),
    "a type that is a list": (header(lambda said: first(said, dtype=[1])), "not a readable"),
    "bytes after the end": (header(lambda said: None, b"more"), "the file was cut"),
    "an index that leads out": (index(norm="../../etc/passwd"), "names the file '../../etc/passwd'"),
    "an index with an absolute path": (index(norm="/etc/passwd"), "names the file '/etc/passwd'"),
    "an index of numbers": (index(norm=7), "names the file 7"),
    "an index without a map": (lambda f: (index()(f), (f / INDEX).write_text('{"weight_map": []}')), "a weight_map"),
    "an index of other pickles": (index(norm="weights.bin"), "names the file 'weights.bin'"),
    "weights that are a link out": (linked(WEIGHTS), "is a link to .*outside its folder"),
    "a tokenizer that is a link out": (linked("tokenizer.json"), "is a link to .*outside"),
    "a template that is a link out": (linked("chat_template.jinja"), "is a link to .*outside"),
    "merges that are a link to a secret": (linked("merges.txt"), "is a link to .*outside"),
}


class Trap:
    """Pickled, it writes a file when it is read."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"open({str(self.sign)!r}, 'w').close()",)


def pickle_beside(folder: Path) -> None:
    (folder / "evil.bin").write_bytes(pickle.dumps(Trap(folder.parent / "canary")))
    edit(folder, transformers_weights="evil.bin")


def module(folder: Path, name: str) -> None:
    (folder / f"{name}.py").write_text(f"open({str(folder.parent / 'canary')!r}, 'w').close()\n")


def auto_map(folder: Path) -> None:
    module(folder, "modeling_own")
    own = {"AutoConfig": "modeling_own.A", "AutoModelForCausalLM": "modeling_own.B", "AutoModel": "evil/repo--x.C"}
    edit(folder, auto_map=own)


def tokenizer_map(folder: Path) -> None:
    module(folder, "tokenization_own")
    edit(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["tokenization_own.A", "tokenization_own.B"]})


def processor(folder: Path) -> None:
    module(folder, "processing_own")
    for name in ("processor_config.json", "preprocessor_config.json"):
        edit(folder, name, auto_map={"AutoProcessor": "processing_own.A"}, processor_class="Own")


def generation(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    module(folder / "custom_generate", "generate")
    edit(folder, "generation_config.json", custom_generate="evil/repo", trust_remote_code=True)


def peft_beside(folder: Path) -> None:
    edit(folder, "adapter_config.json", peft_type="LORA", base_model_name_or_path="evil/repo")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap(folder.parent / "canary")))


def dcp_beside(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "shard-00001-model-00001-of-00001.safetensors")


def tokenizer(**changes: Any) -> Attack:
    return lambda folder: edit(folder, "tokenizer_config.json", **changes)


EVIL = "kernels-community/evil"
REFUSED_CODE: dict[str, tuple[Attack, str]] = {
    "an adapter beside the weights": (peft_beside, "adapter_config.json stands beside the weights"),
    "pieces of another format beside them": (dcp_beside, "shard-00001-model-00001-of-00001.safetensors stands beside"),
    "quantisation by a library": (config(quantization_config={"quant_method": "gptq"}), r"quantised \(gptq\)"),
    "quantisation without a method": (config(quantization_config={"load_in_4bit": True}), "are quantised"),
    "quantisation that is a text": (config(quantization_config="bitsandbytes"), "are quantised"),
    "quantisation of a part": (config(text_config={"quantization_config": {"quant_method": "fp8"}}), "quantised"),
    "a tokenizer that is a model": (tokenizer(tokenizer_class="AutoModelForCausalLM"), "tokenizer_class = 'AutoModel"),
    "a tokenizer that is a function": (tokenizer(tokenizer_class="pipeline"), "tokenizer_class = 'pipeline'"),
    "a tokenizer that is no tokenizer": (tokenizer(tokenizer_class="RagTokenizer"), "tokenizer_class = 'RagTok"),
    "a tokenizer without end": (tokenizer(tokenizer_class="AutoTokenizer"), "tokenizer_class = 'AutoTokenizer'"),
    "a tokenizer that is a list": (tokenizer(tokenizer_class=["A"]), r"tokenizer_class = \['A'\]"),
    "a tokenizer out of GGUF": (tokenizer(gguf_file="../x.gguf"), "gguf_file is no setting"),
    "a tokenizer of other files": (
        tokenizer(fast_tokenizer_files=["../evil/tokenizer.4.json"]),
        "fast_tokenizer_files",
    ),
    "a tokenizer with arguments": (tokenizer(init_inputs=["/etc/passwd"]), "init_inputs is no setting"),
    "a tokenizer object": (tokenizer(tokenizer_object="x"), "tokenizer_object is no setting"),
}
READ_AS_DATA: dict[str, Attack] = {  # the model is the same, the key is gone, and nothing ran
    "attention from the hub": config(_attn_implementation=EVIL),
    "attention from the hub, said plainly": config(attn_implementation=EVIL),
    "attention from the hub with a commit": config(attn_implementation="evil/repo@main:run"),
    "attention that would be fetched": config(_attn_implementation="flash_attention_3"),
    "attention in a table": config(attn_implementation={"": EVIL, "text_config": EVIL}),
    "attention by the inner name": config(_attn_implementation_internal=EVIL),
    "experts from the hub": config(experts_implementation="sonicmoe", _experts_implementation="deepgemm"),
    "kernels": config(use_kernels=True, kernel_config={"RMSNorm": "evil/repo"}, allow_all_kernels=True),
    "patches": config(fusion_config={"evil": True}),
    "code of the folder": auto_map,
    "pipelines": config(custom_pipelines={"x": {"impl": "modeling_own.Pipeline"}}, trust_remote_code=True),
    "a pickle by another name": pickle_beside,
    "weights elsewhere": config(transformers_weights="../other/model.safetensors"),
    "a precision that is a function": config(dtype="load", torch_dtype="save"),
    "a name on the hub": config(_name_or_path="evil/repo", name_or_path="evil/repo"),
    "a map of attributes": config(attribute_map={"hidden_size": "architectures"}),
    "a method of the class": config(to_dict="x", from_pretrained="x", get_text_config=7),
    "plans of parallel layers": config(base_model_tp_plan={"layers.*": "evil"}, tp_plan="auto", device_map="auto"),
    "files of the class": config(extra_files=["evil.bin"], extra_config_files=["evil.json"]),
    "generation of the folder": generation,
    "a processor of the folder": processor,
    "a tokenizer of the folder": tokenizer_map,
    "a tokenizer's file elsewhere": tokenizer(tokenizer_file="/etc/passwd", vocab_file="/etc/passwd"),
    "a tokenizer's name on the hub": tokenizer(name_or_path="evil/repo"),
}


def tokens(change: Callable[[dict[str, Any]], object]) -> Attack:
    def spoil(folder: Path) -> None:
        values = json.loads((folder / "tokenizer.json").read_text("utf-8"))
        change(values)
        (folder / "tokenizer.json").write_text(json.dumps(values), "utf-8")

    return spoil


def added(**changes: Any) -> Attack:
    return tokens(lambda values: values["added_tokens"][-1].update(changes))


TOKENIZERS: dict[str, tuple[Attack, str]] = {
    "garbage": (text("tokenizer.json", "garbage"), "tokenizer cannot be read"),
    "an empty object": (text("tokenizer.json", "{}"), "tokenizer cannot be read"),
    "a file of a terabyte": (sparse("tokenizer.json", 1 << 40), "expected at most"),
    "10,000 levels": (text("tokenizer.json", "[" * 10**4 + "]" * 10**4), "tokenizer cannot be read"),
    "an added token of 10^9": (added(id=10**9), "tokenizer|id"),
    "an added token below zero": (added(id=-1), "tokenizer|id"),
    "two added tokens of one id": (added(id=256), "2 added tokens have the id 256|tokenizer cannot be read"),
    "two added tokens of one text": (added(content=tiny.PAD), "2 added tokens have the content"),
    "a token of 10^7": (
        tokens(lambda v: v["model"]["vocab"].update({"zzz": 10**7})),
        "highest token id|tokenizer cannot",
    ),
    "ids far beyond the embedding": (
        tokens(lambda v: v["model"]["vocab"].update({f"t{i}": 300 + i for i in range(2000)})),
        "the embedding has 259 rows",
    ),
    "settings of 100,000 levels": (text("tokenizer_config.json", '{"a":' * 10**5 + "1" + "}" * 10**5), "deep"),
    "settings of a gigabyte": (sparse("tokenizer_config.json", 1 << 30), "expected at most"),
    "settings that are a list": (text("tokenizer_config.json", "[1]"), "expected a JSON object, got list"),
}


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture(autouse=True)
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """No network, no kernels from the hub, no canary, no memory, no long wait: whatever an attack reaches is noted."""
    reached: list[str] = []

    def note(what: str) -> Callable[..., Any]:
        def reach(*args: Any, **kwargs: Any) -> Any:
            reached.append(f"{what} {args[:2]}")
            raise OSError(f"no {what} here")

        return reach

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket.socket, "connect", note("network"))
    monkeypatch.setattr(socket, "getaddrinfo", note("network"))
    for home in (hub_kernels, modeling_flash_attention_utils):
        monkeypatch.setattr(home, "get_kernel", note("kernel"), raising=False)
    monkeypatch.setattr(hub_kernels, "load_and_register_attn_kernel", note("kernel"))
    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", note("kernel"))
    modules = set(sys.modules)
    before, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    yield reached
    assert not reached
    assert not (tmp_path / "canary").exists(), "code of the folder ran"
    assert not [name for name in set(sys.modules) - modules if "transformers_modules" in name or name.endswith("_own")]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES << 10, "memory was taken"
    assert time.monotonic() - began < SECONDS


def take(folder: Path, tmp_path: Path, *, encoder: bool = False) -> Path:
    """What the base stage makes of a folder, or a stage of kind `model` of an encoder."""
    out = tmp_path / "out"
    out.mkdir()
    track = SimpleNamespace(progress=lambda *_: None)
    context: Any = SimpleNamespace(mirror={}, track=track, recipe=SimpleNamespace(stage={}))
    spec = ModelSpec(model=str(folder), encoder=True) if encoder else BaseSpec(model=str(folder))
    base_model.run(spec, {}, out, context)
    return out


def refused(attack: Attack, message: str, folder: Path, tmp_path: Path) -> None:
    attack(folder)
    with pytest.raises(ValueError, match=message) as caught:
        take(folder, tmp_path)
    said = str(caught.value)
    assert "\n" not in said
    assert len(said) < 1000
    assert not any(".safetensors" in file.name for file in (tmp_path / "out").iterdir()) or "embedding" in said


@pytest.mark.parametrize("attack", SIZES)
def test_a_size_that_no_model_has_is_refused_by_its_key_before_anything_is_made(attack, folder, tmp_path):
    refused(*SIZES[attack], folder, tmp_path)


@pytest.mark.parametrize("attack", ["hidden of a billion", "a million layers", "JSON of 100,000 levels"])
def test_planning_says_the_same_of_a_size(attack, folder, capsys):
    SIZES[attack][0](folder)
    assert say_support(str(folder)) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layout"] == ""
    assert re.search(SIZES[attack][1], found["sentence"])


def test_planning_makes_no_model_of_a_size_that_nobody_shrinks(tmp_path, capsys):
    values = {"model_type": "mamba", "architectures": ["MambaForCausalLM"], "conv_kernel": 2**28}
    (tmp_path / CONFIG).write_text(json.dumps(values), "utf-8")
    say_support(str(tmp_path))
    assert "numbers; a size is wrong" in capsys.readouterr().out


@pytest.mark.parametrize("attack", TENSORS)
def test_weights_that_lie_are_told_by_name_at_the_base_stage(attack, folder, tmp_path):
    refused(*TENSORS[attack], folder, tmp_path)


@pytest.mark.parametrize("attack", REFUSED_CODE)
def test_what_would_load_something_else_is_refused(attack, folder, tmp_path):
    refused(*REFUSED_CODE[attack], folder, tmp_path)


@pytest.mark.parametrize("attack", TOKENIZERS)
def test_a_tokenizer_that_lies_is_refused(attack, folder, tmp_path):
    refused(*TOKENIZERS[attack], folder, tmp_path)


@pytest.mark.parametrize("attack", READ_AS_DATA)
def test_a_key_that_names_code_is_left_out_and_the_model_is_the_same(attack, folder, tiny_folder, tmp_path):
    READ_AS_DATA[attack](folder)
    for read in (load_config, load_tokenizer):  # a folder that no base stage has seen, as `chat` opens it
        read(folder)
    assert load_model(folder, torch.float32).config._attn_implementation in ("sdpa", "eager")
    out = take(folder, tmp_path)
    assert model_digest(out) == model_digest(tiny_folder)
    assert load_model(out, torch.float32).config._attn_implementation in ("sdpa", "eager")
    assert load_config(out).to_diff_dict().keys() <= load_config(tiny_folder).to_diff_dict().keys() | {"text_config"}
    edit(out, "tokenizer_config.json", name_or_path="")  # which no reader heeds
    left = "".join(
        (out / name).read_text("utf-8") for name in (CONFIG, "generation_config.json", "tokenizer_config.json")
    )
    assert not [word for word in ("evil", "_own", "/etc/passwd", "trust_remote_code") if word in left]


def test_an_encoder_is_looked_at_as_well(folder, tmp_path):
    weights(**{NORM: nan(torch.nan)})(folder)
    with pytest.raises(BaseError, match=r"model\.norm\.weight are not finite"):
        take(folder, tmp_path, encoder=True)


def told(action: Callable[[], object]) -> str:
    """What a refusal says; nothing where there is none. Any other exception ends the test."""
    try:
        action()
    except ValueError as error:
        return str(error)
    return ""


def test_whatever_a_configuration_says_the_answer_is_a_model_or_a_sentence(folder, tmp_path):
    """Keys of many families with values that belong nowhere: no traceback of another kind, no wait, no memory."""
    draw = random.Random(15)
    whole = json.loads((folder / CONFIG).read_text("utf-8"))
    keys = [*whole, *sorted(LIMITS), *sorted(CODE), "rope_scaling", "layer_types", "text_config", "id2label"]
    for _ in range(times(300)):
        changes = {draw.choice(keys): draw.choice(HOSTILE) for _ in range(draw.choice([1, 1, 2, 5]))}
        (folder / CONFIG).write_text(json.dumps(whole | changes), "utf-8")
        began = time.monotonic()
        said = told(lambda: take(folder, tmp_path))
        assert "\n" not in said, changes
        assert len(said) < 1000, changes
        assert not said or str(tmp_path) in said or "config.json" in said, changes
        assert time.monotonic() - began < SECONDS, changes
        shutil.rmtree(tmp_path / "out")


@pytest.mark.parametrize("name", [WEIGHTS, "tokenizer.json", "tokenizer_config.json", "generation_config.json"])
def test_whatever_is_flipped_in_a_file_the_answer_is_a_model_or_a_sentence(name, folder, tmp_path):
    draw = random.Random(15)
    whole = (folder / name).read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little") if name == WEIGHTS else len(whole)
    for _ in range(times(150)):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 2, 8])):
            data[draw.randrange(size)] = draw.choice([*b'0123456789{}[]",:-\\', 0, 255, draw.randrange(256)])
        (folder / name).write_bytes(data)
        said = told(lambda: take(folder, tmp_path))
        assert not said or str(tmp_path) in said, data
        shutil.rmtree(tmp_path / "out")


def test_whatever_is_flipped_in_a_gguf_file_the_answer_is_a_model_or_a_sentence(tmp_path):
    draw = random.Random(15)
    write_gguf(tmp_path / "x.gguf")
    whole = (tmp_path / "x.gguf").read_bytes()
    for _ in range(times(300)):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 2, 8])):
            data[draw.randrange(1200)] = draw.choice([0, 1, 2, 4, 8, 9, 127, 255, draw.randrange(256)])
        (tmp_path / "x.gguf").write_bytes(data)
        (tmp_path / "made").mkdir()
        told(lambda: gguf.convert(tmp_path / "x.gguf", tmp_path / "made", lambda *_: None))
        shutil.rmtree(tmp_path / "made")


def test_no_part_of_a_configuration_keeps_a_key_that_names_code():
    evil = {"attn_implementation": EVIL, "_attn_implementation": EVIL, "auto_map": {"AutoModel": "x.Y"}, "width": 1}
    whole = {"model_type": "gemma3", "text_config": {**evil, "inner_config": evil}, "vision_config": evil, **evil}
    plain, left = without_code(whole)
    assert EVIL not in json.dumps(plain)
    assert len(left) == 12
    assert plain["text_config"]["inner_config"] == plain["vision_config"] == {"width": 1}


def test_links_inside_the_hubs_cache_are_legal(folder, tiny_folder, tmp_path):
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "c0ffee", tmp_path / "models--a--b" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for place, file in enumerate(sorted(folder.iterdir())):
        shutil.move(file, blobs / f"{place:064x}")
        (snapshot / file.name).symlink_to(Path("../../blobs") / f"{place:064x}")
    assert model_digest(take(snapshot, tmp_path)) == model_digest(tiny_folder)


# --- adapters -------------------------------------------------------------------------------------------------------

LAYER = "model.layers.0.self_attn.q_proj"
A, B = f"{LAYER}.lora_A.weight", f"{LAYER}.lora_B.weight"
LORA = "adapter_model.safetensors"


def lora(**changes: Any) -> Attack:
    return lambda folder: edit(folder, "adapter_config.json", **changes)


def factors(a: torch.Tensor, b: torch.Tensor) -> Attack:
    return lambda folder: write_adapter(folder, 2, 4.0, {A: a, B: b})


def lora_header(folder: Path) -> None:
    (folder / LORA).write_bytes((2**62).to_bytes(8, "little") + b"{}")


ADAPTERS: dict[str, tuple[Attack, str]] = {
    "a layer of another shape": (factors(torch.ones(2, 65), torch.ones(64, 2)), "trained on another model"),
    "a rank of a million": (factors(torch.ones(2, 64), torch.ones(64, 10**4)), "two factors of one rank"),
    "a rank of nothing": (factors(torch.ones(0, 64), torch.ones(64, 0)), "two factors of one rank"),
    "a factor that is not a number": (factors(torch.full((2, 64), torch.nan), torch.ones(64, 2)), "expected finite"),
    "alpha that is not a number": (lora(lora_alpha=float("nan")), "lora_alpha nan"),
    "alpha without end": (lora(lora_alpha=1e300), r"lora_alpha 1e\+300"),
    "alpha that is a text": (lora(lora_alpha="8"), "lora_alpha '8'"),
    "an expression that never ends": (lora(alpha_pattern={"(a+)+$": 4}), "alpha_pattern"),
    "a pattern that is a list": (lora(alpha_pattern=["q"]), "alpha_pattern"),
    "code for the mapping": (
        lora(auto_mapping={"parent_library": "evil"}, modules_to_save=["evil"]),
        "modules_to_save",
    ),
    "another method": (lora(peft_type="EVIL"), "peft_type"),
    "a header of 2^62 bytes": (lora_header, "a header of"),
    "a configuration of 100,000 levels": (text("adapter_config.json", '{"a":' * 10**5 + "}" * 10**5), "deep|JSON"),
    "a configuration that is a list": (text("adapter_config.json", "[]"), "expected a JSON object"),
    "weights that are a link out": (linked(LORA), "is a link to .*outside"),
}


@pytest.mark.parametrize("attack", ADAPTERS)
def test_an_adapter_that_lies_is_refused_and_the_model_stays(attack, folder, tiny_folder, tmp_path):
    made = tmp_path / "adapter"
    write_adapter(made, 2, 4.0, {A: torch.ones(2, 64), B: torch.ones(64, 2)})
    change, message = ADAPTERS[attack]
    change(made)
    with pytest.raises(BaseError, match=message):
        merge_adapter(folder, read_adapter(made))
    assert model_digest(folder) == model_digest(tiny_folder)


# --- GGUF -----------------------------------------------------------------------------------------------------------

TEXT, ARRAY, BYTE, INTEGER = 8, 9, 0, 4


def field(name: str, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I", kind) + value


def head(*fields: bytes, tensors: int = 0, count: int | None = None, version: int = 3) -> bytes:
    return struct.pack("<4sIQQ", b"GGUF", version, tensors, len(fields) if count is None else count) + b"".join(fields)


def array(of: int, count: int, content: bytes = b"") -> bytes:
    return field("x", ARRAY, struct.pack("<IQ", of, count) + content)


def tensor(*sizes: int, offset: int = 0, dimensions: int | None = None) -> bytes:
    count = len(sizes) if dimensions is None else dimensions
    return struct.pack("<Q", 1) + b"t" + struct.pack(f"<I{len(sizes)}QIQ", count, *sizes, 0, offset)


BYTES: dict[str, bytes] = {
    "nothing": b"",
    "another format": b"GGML" + b"\0" * 60,
    "another version": head(version=9),
    "2^63 fields": head(count=2**63),
    "2^63 tensors": head(tensors=2**63),
    "more fields than bytes": head(count=60_000),
    "a text of 2^62 bytes": head(field("x", TEXT, struct.pack("<Q", 2**62))),
    "an array of 2^60 bytes": head(array(BYTE, 2**60)),
    "an array of 2^24 bytes that are not there": head(array(BYTE, 2**24)),
    "an array of 2^60 texts": head(array(TEXT, 2**60)),
    "arrays in arrays": head(array(ARRAY, 1, struct.pack("<IQ", ARRAY, 1) * 50)),
    "a value of no type": head(field("x", 99, b"\0" * 8)),
    "a key of 2^40 bytes": head(struct.pack("<Q", 2**40)),
    "a tensor of 10^9 dimensions": head(tensors=1) + tensor(4, dimensions=10**9),
    "a tensor of 2^120 numbers": head(tensors=1) + tensor(2**60, 2**60),
    "a tensor of no numbers": head(tensors=1) + tensor(0, 4),
    "a tensor beyond the file": head(tensors=1) + tensor(4, offset=2**60) + b"\0" * 64,
    "a good header of nothing": head(),
}


@pytest.mark.parametrize("attack", BYTES)
def test_a_gguf_header_that_promises_too_much_is_refused(attack, tmp_path):
    (tmp_path / "x.gguf").write_bytes(BYTES[attack])
    (tmp_path / "made").mkdir()
    with pytest.raises(BaseError, match=r"x\.gguf"):
        gguf.convert(tmp_path / "x.gguf", tmp_path / "made", lambda *_: None)
    assert not list((tmp_path / "made").iterdir())


def write_gguf(path: Path, *, broken: float = 0.0, pieces: Any = None, **changes: int) -> None:
    """A llama of no use: its metadata, and one tensor."""
    sizes = {"block_count": 1, "context_length": 64, "embedding_length": 8, "feed_forward_length": 16, "head_count": 2}
    writer = GGUFWriter(path, "llama")
    for name, value in (sizes | changes).items():
        getattr(writer, f"add_{name}")(value)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces or ["a", "b"])
    writer.add_token_types([TokenType.NORMAL] * 2)
    writer.add_token_merges([])
    writer.add_eos_token_id(changes.get("eos", 1))
    weight = np.full((2, 8), broken, np.float32)
    writer.add_tensor("token_embd.weight", weight)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(8, np.float32))
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones((8, 8), np.float32))
    for name, shape in (("ffn_gate", (16, 8)), ("ffn_up", (16, 8)), ("ffn_down", (8, 16))):
        writer.add_tensor(f"blk.0.{name}.weight", np.ones(shape, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


METADATA: dict[str, tuple[dict[str, Any], str]] = {
    "a billion layers": ({"block_count": 10**9}, "num_hidden_layers = 1000000000"),
    "more layers than tensors": ({"block_count": 900}, "900 layers, and"),
    "an absurd width": ({"embedding_length": 2**31}, "hidden_size|not a readable"),
    "a width beyond the tensors": ({"embedding_length": 2**17}, "numbers, and the tensors hold"),
    "no heads": ({"head_count": 0}, "not a readable|num_attention_heads"),
    "an inner width of 2^30": ({"feed_forward_length": 2**30}, "intermediate_size"),
    "a context of none": ({"context_length": 0}, "max_position_embeddings"),
    "weights that are no numbers": ({"broken": float("nan")}, "token_embd.weight' holds numbers that are not finite"),
}


@pytest.mark.parametrize("attack", METADATA)
def test_gguf_metadata_that_lie_are_refused(attack, tmp_path):
    changes, message = METADATA[attack]
    write_gguf(tmp_path / "x.gguf", **changes)
    (tmp_path / "made").mkdir()
    with pytest.raises(BaseError, match=message):
        gguf.convert(tmp_path / "x.gguf", tmp_path / "made", lambda *_: None)
    assert not (tmp_path / "made" / WEIGHTS).exists()
