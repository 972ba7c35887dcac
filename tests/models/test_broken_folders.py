"""Model folders that are broken or are something else: one clear error each, nothing executed, nothing left behind."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Qwen3MoeConfig, Qwen3MoeForCausalLM

from tercet import pipeline
from tercet.launch.ending import StageError
from tercet.models import base_model
from tercet.models.chat import open_chat
from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.models.hf_folder import load_config, load_model, load_tokenizer, quiet
from tercet.models.opening import open_policy
from tercet.models.support import main as say_support
from tercet.recipe import BaseSpec, Recipe
from tercet.store import Store

SMALL = {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SMALL |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def edit(path: Path, *drop: str, **changes: Any) -> None:
    values = json.loads(path.read_text("utf-8"))
    for name in drop:
        values.pop(name)
    path.write_text(json.dumps(values | changes), encoding="utf-8")


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / WEIGHTS)
    change(weights)
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def config(*drop: str, **changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "config.json", *drop, **changes)


def weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    return lambda folder: change_weights(folder, change)


def shards(folder: Path, *, lost: str = "", invented: str = "") -> None:
    """Cut the weights in two files with an index; take a file away, or name a tensor that no file holds."""
    whole = load_file(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    names = sorted(whole)
    files = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: whole[name] for name in part}, folder / file, metadata={"format": "pt"})
    named = {name: file for file, part in files.items() for name in part} | (
        {invented: lost or min(files)} if invented else {}
    )
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))
    if lost:
        (folder / lost).unlink()


class Trap:
    """Pickled, it writes a file when it is read."""

    def __init__(self, sign: Path) -> None:
        self.sign = sign

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, (f"open({str(self.sign)!r}, 'w').close()",)


def pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(folder.parent / "executed")))


def remote_code(folder: Path) -> None:
    """A folder whose configuration wants its own code run."""
    code = f"open({str(folder.parent / 'executed')!r}, 'w').close()\n"
    for name in ("modeling_own.py", "configuration_own.py"):
        (folder / name).write_text(code)
    own = {"AutoConfig": "configuration_own.OwnConfig", "AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}
    edit(folder / "config.json", model_type="own_model", auto_map=own, architectures=["OwnForCausalLM"])


def slow_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer.model").write_bytes(b"\n\x0e")


def tokenizer_code(folder: Path) -> None:
    """A tokenizer whose class is in the folder."""
    (folder / "tokenization_own.py").write_text(f"open({str(folder.parent / 'executed')!r}, 'w').close()\n")
    (folder / "tokenizer.json").write_text("{}")
    own = {"AutoTokenizer": ["tokenization_own.OwnTokenizer", None]}
    edit(folder / "tokenizer_config.json", tokenizer_class="OwnTokenizer", auto_map=own)


def adapter(folder: Path) -> None:
    for file in folder.iterdir():
        file.unlink()
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "some/model"}')
    save_file({"a": torch.ones(1)}, folder / "adapter_model.safetensors")


def empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def a_file(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("weights")


def a_loop(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / WEIGHTS).symlink_to(WEIGHTS)


def cut(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def not_a_number(held: dict[str, torch.Tensor]) -> None:
    held["model.norm.weight"][3] = torch.nan


def integers(held: dict[str, torch.Tensor]) -> None:
    held["model.layers.0.mlp.up_proj.weight"] = (held["model.layers.0.mlp.up_proj.weight"] * 100).to(torch.int8)


def renamed(held: dict[str, torch.Tensor]) -> None:
    """The names that another library gives the queries."""
    for name in [name for name in held if "q_proj" in name]:
        held[name.replace("self_attn.q_proj", "attention.wq")] = held.pop(name)


BROKEN: dict[str, tuple[Callable[[Path], None], str]] = {
    "an empty folder": (empty, "config.json, found an empty folder"),
    "a file in place of the folder": (a_file, "model folder|does not exist"),
    "configuration that is no JSON": (lambda folder: (folder / "config.json").write_text("{"), "expected JSON"),
    "configuration that is a list": (
        lambda folder: (folder / "config.json").write_text("[]"),
        "a JSON object, got list",
    ),
    "no model type": (config("model_type"), 'expected "model_type"'),
    "no architecture": (config("architectures"), r'add "architectures": \["LlamaForCausalLM"\]'),
    "an unknown model type": (
        config(model_type="llama9", transformers_version="9.1.0"),
        "does not know the model type 'llama9'; the folder was written by transformers 9.1.0",
    ),
    "code of its own": (remote_code, "auto_map.*never run"),
    "an encoder-decoder": (
        config(model_type="t5", architectures=["T5ForConditionalGeneration"]),
        "got an encoder-decoder .T5ForConditionalGeneration.; use a decoder",
    ),
    "an encoder": (config(model_type="bert", architectures=["BertForMaskedLM"]), "got an encoder .*encoder = true"),
    "a vision model": (config(model_type="vit", architectures=["ViTForImageClassification"]), "got a vision model"),
    "a vision-language model": (
        config(model_type="llava", architectures=["LlavaForConditionalGeneration"], vision_config={"image_size": 28}),
        "got a multimodal model .LlavaForConditionalGeneration.; save its language model by itself",
    ),
    "a model without an output projection": (config(architectures=["LlamaModel"]), "no output projection"),
    "a diffusion pipeline": (
        lambda folder: (empty(folder), (folder / "model_index.json").write_text("{}")),
        "a diffusion pipeline",
    ),
    "an adapter without its base": (adapter, "a LoRA adapter without its base"),
    "quantised weights": (
        config(quantization_config={"quant_method": "gptq", "bits": 4}),
        r"quantised \(gptq\), which training cannot change",
    ),
    "integer weights": (weights(integers), "up_proj.weight is stored as I8"),
    "a pickle": (pickled, r"a pickle \(pytorch_model.bin\), which can run code when it is read, so it was not opened"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "expected weights in model.safetensors"),
    "a missing shard": (
        lambda folder: shards(folder, lost="model-00002-of-00002.safetensors"),
        "expected weights in model-00002-of-00002",
    ),
    "an index that names a tensor nobody has": (
        lambda folder: shards(folder, invented="model.layers.9.mlp.up_proj.weight"),
        "names 1 tensors that no file holds, e.g. model.layers.9",
    ),
    "an index that is no JSON": (
        lambda folder: (shards(folder), (folder / INDEX).write_text("weights")),
        "expected JSON",
    ),
    "weights cut in the middle": (cut, "bytes, found .* the file was cut"),
    "weights without a header": (
        lambda folder: (folder / WEIGHTS).write_bytes(b"weights"),
        "not a readable safetensors",
    ),
    "weights that are a loop of links": (a_loop, "weights|loop|links"),
    "weights of another size": (config(intermediate_size=96), r"describes \[64, 96\]|describes \[96, 64\]"),
    "a lost tensor": (weights(lambda held: held.pop("model.layers.1.self_attn.q_proj.weight")), "lack 1 tensors"),
    "weights under another library's names": (weights(renamed), "lack 2 tensors of LlamaForCausalLM"),
    "weights that are no numbers": (weights(not_a_number), "1 of 64 numbers of model.norm.weight are not finite"),
    "heads that do not divide": (config(num_key_value_heads=3), "num_key_value_heads|k_proj.weight"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "expected a tokenizer"),
    "a slow tokenizer": (slow_tokenizer, "tokenizer.model alone is of a slow tokenizer"),
    "a tokenizer of its own code": (tokenizer_code, "the tokenizer cannot be read"),
}


@pytest.fixture
def folder(tiny_folder, tmp_path) -> Path:
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_folder_is_refused_in_one_sentence(kind, folder, tmp_path):
    breaks, message = BROKEN[kind]
    breaks(folder)
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(ValueError, match=message) as caught:
        base_model.run(BaseSpec(model=str(folder)), {}, out, context())
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()
    assert not list(out.iterdir()), "nothing is copied before the folder is known to be good"


def context() -> Any:
    from types import SimpleNamespace

    track = SimpleNamespace(progress=lambda *_: None)
    return SimpleNamespace(mirror={}, track=track, recipe=SimpleNamespace(stage={}))


@pytest.mark.parametrize(
    "kind", ["a pickle", "code of its own", "weights that are no numbers", "a file in place of the folder"]
)
def test_a_run_stops_with_the_sentence_and_leaves_nothing_in_the_store(kind, folder, tmp_path):
    breaks, message = BROKEN[kind]
    breaks(folder)
    recipe = Recipe.model_validate({"name": "broken", "base": {"model": str(folder)}, "stage": {}})
    store = Store(tmp_path / "runs")
    with pytest.raises((StageError, ValueError), match=message):
        pipeline.run(recipe, store, console=Console(quiet=True))
    assert not list(store)
    assert not [entry for entry in store.root.glob("*") if not entry.name.startswith(".cache")] or not any(
        file.is_file() and file.suffix == ".safetensors" for file in store.root.rglob("*")
    )
    assert not (tmp_path / "executed").exists()


def test_a_tokenizer_beyond_the_embedding_gets_rows(folder, tmp_path, capsys):
    """Vocabulary and padding beyond the embedding: it grows, new rows are the mean, and that is said."""

    def fewer(held):
        held["model.embed_tokens.weight"] = held["model.embed_tokens.weight"][:250].clone()

    change_weights(folder, fewer)
    edit(folder / "config.json", vocab_size=250, pad_token_id=None, bos_token_id=None, eos_token_id=None)
    out = tmp_path / "out"
    out.mkdir()
    base_model.run(BaseSpec(model=str(folder)), {}, out, context())
    assert "token 258 is beyond the embedding of 250 rows; it gets 264" in capsys.readouterr().err
    table = load_model(out, torch.float32).get_input_embeddings().weight
    assert table.shape == (264, 64)
    torch.testing.assert_close(table[258], table[:250].mean(0))
    assert load_config(out).vocab_size > max(load_tokenizer(out).get_vocab().values())


def test_a_pad_id_beyond_the_embedding_is_replaced_by_the_tokenizers(folder, tmp_path):
    edit(folder / "config.json", pad_token_id=999)
    out = tmp_path / "out"
    out.mkdir()
    base_model.run(BaseSpec(model=str(folder)), {}, out, context())
    assert load_config(out).pad_token_id == 256


def taken(folder: Path, tmp_path: Path) -> Path:
    """The folder as the base stage leaves it."""
    out = tmp_path / "out"
    out.mkdir()
    base_model.run(BaseSpec(model=str(folder)), {}, out, context())
    return out


def test_weights_without_the_prefix_of_the_whole_model_are_read_and_stored_under_todays_names(folder, tmp_path):
    wanted = load_file(folder / WEIGHTS)

    def stripped(held):
        for name in [name for name in held if name.startswith("model.")]:
            held[name.removeprefix("model.")] = held.pop(name)

    change_weights(folder, stripped)
    assert "layers.0.mlp.up_proj.weight" in load_file(folder / WEIGHTS)
    found = load_file(taken(folder, tmp_path) / WEIGHTS)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


def made(model: Any, folder: Path) -> Path:
    """A model with random weights in the place of the folder's own, beside its tokenizer."""
    (folder / WEIGHTS).unlink()
    with quiet():
        model.save_pretrained(folder)
    return folder


def test_experts_without_a_padding_token_get_one_that_ends_nothing(folder, tmp_path):
    shape = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8}
    torch.manual_seed(0)
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SMALL, **shape, pad_token_id=None))
    made(model, folder)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            edit(folder / name, "pad_token")
    assert load_tokenizer(folder).pad_token_id is None
    out = taken(folder, tmp_path)
    pad = load_config(out).pad_token_id
    assert pad == load_tokenizer(out).pad_token_id
    assert pad not in open_chat(out).stops


def test_the_language_part_of_a_vision_language_model_that_transformers_reads_is_read(folder, tmp_path):
    """Gemma 3 has no folder of its language model alone; its logits of plain text are transformers'."""
    sight = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    sight |= {"image_size": 28, "patch_size": 14}
    marks = {"mm_tokens_per_image": 4, "image_token_index": 250, "boi_token_index": 251, "eoi_token_index": 252}
    config = Gemma3Config(text_config={**SMALL, "head_dim": 8}, vision_config=sight, **marks)
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    out = taken(made(model, folder), tmp_path)
    ids = [257, 72, 105, 33, 258]
    tree = Tree(ids[:2], [Leaf(ids[2:], [True] * 3)])
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([ids])).logits[0, 1:-1].log_softmax(1)
        found = open_policy(out, torch.float32)(pack_forest([tree]))[0]
    torch.testing.assert_close(found, logps.gather(1, torch.tensor(ids[2:])[:, None])[:, 0], rtol=1e-4, atol=1e-4)


def test_planning_says_the_same_of_config_json(folder, capsys):
    config(model_type="t5", architectures=["T5ForConditionalGeneration"])(folder)
    say_support(str(folder))
    found = json.loads(capsys.readouterr().out)
    assert found["layout"] == ""
    assert "got an encoder-decoder" in found["sentence"]


def test_a_good_folder_says_how_it_is_read(folder, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    base_model.run(BaseSpec(model=str(folder)), {}, out, context())
    assert json.loads((out / "tercet" / "layout.json").read_text())["layout"] == "forest"
