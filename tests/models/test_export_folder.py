"""Folders for other tools: names and precision of the base, shards, and nothing that transformers would miss."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.models.random_models import model_of
from transformers import AutoModelForCausalLM

from tercet.models.base_layout import save_model
from tercet.models.export.folder import export_folder
from tercet.models.headers import BaseError
from tercet.models.hf_folder import load_model, quiet, weight_files


def silent(done: int, total: int, note: str) -> None:
    """No progress is shown."""


def stored(folder) -> dict[str, torch.Tensor]:
    return {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}


@pytest.fixture
def family(tiny_folder, tmp_path):
    """A base in bfloat16 as transformers saves it, and a model of its kind with other weights, as a stage leaves it."""

    def family(name: str):
        base, other = model_of(name), model_of(name)
        with quiet(), torch.no_grad():
            base.to(torch.bfloat16).save_pretrained(tmp_path / "base")
            for parameter in other.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.01)
        save_model(tmp_path / "stage", other.config, other.state_dict(), source=tiny_folder)
        return tmp_path / "base", tmp_path / "stage", other

    return family


@pytest.mark.parametrize("name", ["Llama", "Qwen3Moe", "Mixtral", "GPTNeoX", "DeepseekV3"])
def test_an_export_has_names_and_precision_of_the_base_and_transformers_reads_all_of_it(name, family, tmp_path):
    base, stage, model = family(name)
    done = export_folder(stage, base, tmp_path / "out", silent)
    assert (done.dtype, done.files) == ("bfloat16", 1)
    theirs, ours = stored(base), stored(tmp_path / "out")
    assert {name: tensor.dtype for name, tensor in ours.items()} == {name: one.dtype for name, one in theirs.items()}
    with quiet():
        read, report = AutoModelForCausalLM.from_pretrained(
            tmp_path / "out", dtype=torch.float32, output_loading_info=True
        )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    own = {name: tensor.bfloat16().float() for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, own[name]) for name, tensor in read.state_dict().items() if tensor.numel() > 8)


def test_weights_in_fp32_give_the_very_logits(family, tmp_path):
    base, stage, model = family("Qwen3Moe")
    done = export_folder(stage, base, tmp_path / "out", silent, dtype="float32", shard=4000)
    assert done.files == len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 3
    ids = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.no_grad():
        assert torch.equal(load_model(tmp_path / "out", torch.float32)(ids).logits, model.eval()(ids).logits)


def test_an_artifact_with_the_names_of_memory_is_exported_with_those_of_folders(family, tmp_path):
    _, stage, model = family("Qwen3Moe")
    (stage / "model.safetensors").unlink()
    save_file({name: tensor.detach() for name, tensor in model.named_parameters()}, stage / "model.safetensors")
    export_folder(stage, None, tmp_path / "out", silent)
    assert "model.layers.0.mlp.experts.0.up_proj.weight" in stored(tmp_path / "out")
    assert {tensor.dtype for tensor in stored(tmp_path / "out").values()} == {torch.float32}


def test_a_tensor_that_the_base_keeps_in_fp32_stays_so(family, tmp_path):
    base, stage, _ = family("Llama")
    weights = stored(base)
    weights["model.norm.weight"] = weights["model.norm.weight"].float()
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})
    export_folder(stage, base, tmp_path / "out", silent)
    kinds = {name: tensor.dtype for name, tensor in stored(tmp_path / "out").items()}
    assert kinds.pop("model.norm.weight") == torch.float32
    assert set(kinds.values()) == {torch.bfloat16}


def test_what_a_model_computes_in_fp32_is_not_rounded_when_a_precision_is_asked_for(family, tmp_path):
    _, stage, _ = family("DeepseekV3")
    export_folder(stage, None, tmp_path / "out", silent, dtype="bfloat16")
    kinds = {name: tensor.dtype for name, tensor in stored(tmp_path / "out").items()}
    assert {name for name, kind in kinds.items() if kind == torch.float32} == {
        "model.layers.1.mlp.gate.e_score_correction_bias"
    }


def test_float16_is_refused_where_a_value_does_not_fit(family, tmp_path):
    _, stage, _ = family("Llama")
    weights = stored(stage)
    weights["lm_head.weight"][0, 0] = 1e5
    save_file(weights, stage / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BaseError, match=r"lm_head\.weight has values up to 1e\+05, and float16 ends at 65504"):
        export_folder(stage, None, tmp_path / "out", silent, dtype="float16")


def test_the_configuration_speaks_to_older_readers_and_means_the_same(family, tmp_path):
    base, stage, model = family("Llama")
    values = json.loads((stage / "config.json").read_text())
    values["rope_parameters"] = {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
    (stage / "config.json").write_text(json.dumps(values))
    old = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(old | {"pretraining_tp": 1, "auto_map": {"AutoModel": "evil.py"}}))
    export_folder(stage, base, tmp_path / "out", silent)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (found["dtype"], found["torch_dtype"]) == ("bfloat16", "bfloat16")
    assert found["rope_theta"] == 5e5
    assert found["rope_scaling"]["rope_type"] == "llama3"
    assert found["architectures"] == ["LlamaForCausalLM"]
    assert found["pretraining_tp"] == 1
    assert "auto_map" not in found
    read, own = (transformers.AutoConfig.from_pretrained(folder) for folder in (tmp_path / "out", stage))
    assert read.rope_parameters == own.rope_parameters
    assert model.config.vocab_size == read.vocab_size


def test_what_has_two_names_is_told_under_both(family, tmp_path):
    _, stage, _ = family("Qwen3Moe")
    export_folder(stage, None, tmp_path / "out", silent)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (found["num_experts"], found["num_local_experts"]) == (3, 3)


def test_positions_that_differ_by_layer_are_read_as_they_were(tiny_folder, tmp_path):
    torch.manual_seed(0)
    config = transformers.Gemma3TextConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
        },
    )
    with quiet():
        model = transformers.Gemma3ForCausalLM(config)
    model.config.architectures = ["Gemma3ForCausalLM"]
    save_model(tmp_path / "stage", model.config, model.state_dict(), source=tiny_folder)
    export_folder(tmp_path / "stage", None, tmp_path / "out", silent)
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (found["rope_theta"], found["rope_local_base_freq"]) == (1e6, 1e4)
    assert found["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}
    with torch.no_grad():
        ids = torch.tensor([[2, 7, 1, 8]])
        assert torch.equal(load_model(tmp_path / "out", torch.float32)(ids).logits, model.eval()(ids).logits)


def test_a_tokenizer_that_transformers_5_wrote_is_named_as_transformers_4_knows_it(family, tmp_path):
    _, stage, _ = family("Llama")
    path = stage / "tokenizer_config.json"
    values = json.loads(path.read_text())
    changed = {"tokenizer_class": "TokenizersBackend", "extra_special_tokens": ["<|im_start|>"]}
    path.write_text(json.dumps(values | changed))
    export_folder(stage, None, tmp_path / "out", silent)
    found = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert found["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert found["additional_special_tokens"] == ["<|im_start|>"]
    assert "extra_special_tokens" not in found
    read = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert read("<|im_start|>").input_ids == [257]
