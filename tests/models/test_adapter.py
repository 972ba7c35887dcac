"""PEFT folders: peft itself is the oracle for what is read, written and merged."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tercet.models.adapter import merge_adapter, read_adapter, write_adapter
from tercet.models.base_model import run as make_base
from tercet.models.export.folder import export_folder
from tercet.models.headers import BaseError
from tercet.models.hf_folder import load_model, quiet
from tercet.recipe import BaseSpec, Recipe
from tercet.store import Context
from tercet.track import Tracker

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
IDS = torch.tensor([[257, 10, 20, 30, 258]])


def plain(folder, dtype=torch.float32):
    with quiet():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture
def theirs(tiny_folder, tmp_path):
    """An adapter that peft made on the tiny model, with settings of its own."""

    def theirs(**settings):
        torch.manual_seed(1)
        config = {"r": 4, "lora_alpha": 12, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
        model = peft.get_peft_model(plain(tiny_folder), peft.LoraConfig(**{**config, **settings}))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        model.save_pretrained(tmp_path / "theirs")
        return tmp_path / "theirs", logits(model.eval())

    return theirs


def copied(folder, target):
    shutil.copytree(folder, target, copy_function=shutil.copyfile)
    target.chmod(0o755)
    return target


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"1.mlp.down_proj": 40}}])
def test_what_peft_wrote_merges_into_what_peft_computes(tiny_folder, theirs, tmp_path, settings):
    folder, wanted = theirs(**settings)
    merged = copied(tiny_folder, tmp_path / "merged")
    merge_adapter(merged, read_adapter(folder))
    torch.testing.assert_close(logits(plain(merged)), wanted, rtol=0, atol=2e-5)
    assert (logits(plain(tiny_folder)) - wanted).abs().max() > 0.01


def test_what_is_written_is_what_peft_loads(tiny_folder, theirs, tmp_path):
    folder, wanted = theirs()
    tensors = load_file(folder / "adapter_model.safetensors")
    named = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    write_adapter(tmp_path / "ours", 4, 12.0, named)
    model = peft.PeftModel.from_pretrained(plain(tiny_folder), tmp_path / "ours").eval()
    assert torch.equal(logits(model), wanted)
    assert read_adapter(tmp_path / "ours").keys() == read_adapter(folder).keys()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"use_dora": True}, "use_dora = true; only plain LoRA is read"),
        ({"peft_type": "IA3"}, 'peft_type = "IA3"'),
        ({"modules_to_save": ["lm_head"]}, r"modules_to_save = \[\"lm_head\"\]"),
        ({"bias": "all"}, 'bias = "all"'),
    ],
)
def test_what_is_not_plain_lora_is_refused_by_the_key_that_says_so(theirs, change, told):
    folder, _ = theirs()
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(BaseError, match=told):
        read_adapter(folder)


def test_a_folder_without_an_adapter_is_named_with_what_it_lacks(tiny_folder):
    with pytest.raises(BaseError, match=r"expected a PEFT adapter .*has no adapter_config\.json"):
        read_adapter(tiny_folder)


def test_half_a_pair_of_factors_is_refused(theirs):
    folder, _ = theirs()
    tensors = load_file(folder / "adapter_model.safetensors")
    tensors.pop(next(name for name in tensors if name.endswith("lora_B.weight")))
    save_file(tensors, folder / "adapter_model.safetensors")
    with pytest.raises(BaseError, match="expected two factors of one rank"):
        read_adapter(folder)


def test_an_adapter_of_another_model_is_refused_before_anything_is_written(tiny_folder, theirs, tmp_path):
    folder, _ = theirs()
    tensors = load_file(folder / "adapter_model.safetensors")
    for name in [name for name in tensors if "layers.1.mlp.down_proj.lora_B" in name]:
        tensors[name] = torch.zeros(32, 4)
    save_file(tensors, folder / "adapter_model.safetensors")
    merged = copied(tiny_folder, tmp_path / "merged")
    with pytest.raises(BaseError, match=r"layers\.1\.mlp\.down_proj\.weight of shape \(32, 128\).*\(64, 128\)"):
        merge_adapter(merged, read_adapter(folder))
    assert (merged / "model.safetensors").read_bytes() == (tiny_folder / "model.safetensors").read_bytes()


def test_a_base_with_an_adapter_is_the_merged_model_and_is_exported_as_the_base_came(tiny_folder, theirs, tmp_path):
    folder, _ = theirs()
    source = copied(tiny_folder, tmp_path / "source")
    weights = {name: tensor.bfloat16() for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    recipe = Recipe.model_validate({"name": "merged", "base": {"model": str(source)}, "stage": {}})
    context = Context("base", 0, recipe, tmp_path, Tracker(None), {}, lambda *_: None)
    (tmp_path / "base").mkdir()
    make_base(BaseSpec(model=str(source), adapter=str(folder)), {}, tmp_path / "base", context)
    with torch.no_grad():
        wanted = logits(peft.PeftModel.from_pretrained(plain(source), folder).eval())
        found = load_model(tmp_path / "base", torch.float32)(IDS).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=2e-5)
    done = export_folder(tmp_path / "base", tmp_path / "base", tmp_path / "out", lambda *_: None)
    assert done.dtype == "bfloat16"
    assert {one.dtype for one in load_file(tmp_path / "out" / "model.safetensors").values()} == {torch.bfloat16}


def test_a_recipe_without_an_adapter_has_the_key_it_had():
    assert "adapter" not in BaseSpec(model="tiny:").model_dump()
    assert BaseSpec(model="tiny:", adapter="folder").model_dump()["adapter"] == "folder"
