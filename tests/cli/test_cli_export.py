"""The verb `export` on a real store: folder, adapter and GGUF file of a stage with lora."""

from __future__ import annotations

import json
import shutil
import subprocess

import pytest
import torch
from safetensors.torch import load_file

from rerecord import rerecord
from tercet.cli import main
from tercet.models.hf_folder import load_model

RECIPE = """
name = "small"
[base]
model = "tiny:"
[stage.words]
kind = "synth"
generator = "words@1"
rows = 16
[stage.sft]
kind = "sft"
model = "base"
rows = "words"
learning_rate = 1e-2
batch = 8
num_epochs = 1
max_length = 512
lora = { r = 2, alpha = 4.0 }
[placement]
threads = 1
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    assert main.main(["run", str(folder / "recipe.toml"), "--store", str(folder / "runs")]) == 0
    yield folder / "runs"
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)


@pytest.fixture
def export(store, tmp_path, capsys):
    """Run the verb with a target `out`: exit code, standard output, standard error, the target."""

    def export(artifact: str, *options: str):
        code = main.main(["export", artifact, str(tmp_path / "out"), "--store", str(store), *options])
        return code, *capsys.readouterr(), tmp_path / "out"

    return export


def test_a_stage_is_exported_in_the_precision_that_is_asked_for_in_shards(export):
    code, out, _, folder = export("sft", "--dtype", "bfloat16", "--shard-size", "100KB", "--json")
    assert code == 0
    said = json.loads(out)
    assert said["dtype"] == "bfloat16"
    assert said["files"] == len(list(folder.glob("model-*-of-*.safetensors"))) > 1
    assert said["bytes"] == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert load_model(folder, torch.bfloat16).config.dtype == torch.bfloat16
    assert not (folder / "tercet").exists()
    assert "## Lineage" in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
def test_an_adapter_names_the_model_that_it_belongs_on(export, store):
    peft = pytest.importorskip("peft")
    code, out, _, folder = export("sft", "--adapter")
    assert code == 0
    [base], [stage] = (list(store.glob(f"{name}-*/payload")) for name in ("base", "sft"))
    assert f"it belongs on {base}" in out
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert "library_name: peft" in (folder / "README.md").read_text(encoding="utf-8")
    ids = torch.tensor([[257, 5, 9, 33, 70]])
    adapted = peft.PeftModel.from_pretrained(load_model(base, torch.float32), folder).eval()
    with torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, load_model(stage, torch.float32)(ids).logits, rtol=0, atol=1e-5)


def test_a_gguf_file_stands_in_a_folder_with_its_card(export):
    code, out, _, folder = export("sft", "--gguf", "q8_0")
    assert code == 0
    assert "(q8_0, " in out
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "sft-q8_0.gguf"]


@pytest.mark.parametrize(
    ("artifact", "options", "told"),
    [
        ("base", ("--adapter",), "no stage trained it, so it has no adapter"),
        ("sft", ("--adapter", "--gguf", "f16"), "exclude each other"),
        ("sft", ("--dtype", "float16", "--gguf", "f16"), "exclude each other"),
        ("sft", ("--shard-size", "5 apples"), "--shard-size 5 apples: expected a size such as 5GB"),
        ("words", (), "only models can be exported"),
    ],
)
def test_what_cannot_be_exported_is_said_and_nothing_is_left(export, artifact, options, told):
    code, _, err, folder = export(artifact, *options)
    assert code == 2
    assert told in err
    assert list(folder.parent.iterdir()) == []


def test_a_stage_without_lora_has_no_adapter(export, store, tmp_path_factory):
    runs = tmp_path_factory.mktemp("bare") / "runs"
    shutil.copytree(store, runs)
    subprocess.run(["chmod", "-R", "u+w", str(runs)], check=True)
    [bare] = runs.glob("sft-*")
    shutil.rmtree(bare / "payload" / "tercet" / "adapter")
    rerecord(bare)
    code, _, err, folder = export(str(bare), "--adapter")
    assert code == 2
    assert "it holds no adapter; only stages with `lora` leave one" in err
    assert list(folder.parent.iterdir()) == []


def test_an_exported_base_has_the_bytes_of_its_weights(export, store):
    code, _, _, folder = export("base")
    assert code == 0
    [base] = store.glob("base-*/payload")
    ours, theirs = load_file(folder / "model.safetensors"), load_file(base / "model.safetensors")
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())
