"""`dtype = "auto"`: float32 where bf16 has no hardware; known when the recipe is planned, and part of every key."""

from __future__ import annotations

import json

import pytest

from tercet import pipeline, precision
from tercet.cli.main import main
from tercet.recipe import EvalSpec, Recipe, SFTSpec
from tercet.store import Store

ICE_LAKE = "model name\t: Intel(R) Xeon(R)\nflags\t\t: fpu avx2 avx512f avx512_vnni avx512bw\n"
SAPPHIRE_RAPIDS = "flags\t\t: fpu avx512f avx512_bf16 amx_bf16 amx_tile amx_int8\n"
ZEN_4 = "flags\t\t: fpu avx512f avx512_bf16 avx512bw\n"
GRAVITON_3 = "processor\t: 0\nFeatures\t: fp asimd sve i8mm bf16 dgh\n"
GRAVITON_2 = "processor\t: 0\nFeatures\t: fp asimd evtstrm aes crc32 atomics\n"


@pytest.fixture
def another(tmp_path, monkeypatch):
    """Give this machine another /proc/cpuinfo, no card, or one."""

    def build(cpuinfo: str, card: bool = False, system: str = "linux") -> None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
        monkeypatch.setattr(precision.machine, "PROC", tmp_path)
        monkeypatch.setattr(precision.sys, "platform", system)
        monkeypatch.setattr(precision, "has_gpu", lambda: card)
        precision.automatic.cache_clear()

    yield build
    precision.automatic.cache_clear()


@pytest.mark.parametrize(
    ("cpuinfo", "dtype", "why"),
    [
        (ICE_LAKE, "float32", "this CPU multiplies bf16 in software"),
        (SAPPHIRE_RAPIDS, "bfloat16", "this CPU has AMX"),
        (ZEN_4, "bfloat16", "this CPU has AVX512-BF16"),
        (GRAVITON_3, "bfloat16", "this CPU has Arm BF16"),
        (GRAVITON_2, "float32", "this CPU multiplies bf16 in software"),
        ("", "float32", "this CPU multiplies bf16 in software"),
    ],
    ids=["Ice Lake", "Sapphire Rapids", "Zen 4", "Graviton 3", "Graviton 2", "unknown"],
)
def test_a_cpu_computes_in_what_it_has_matrix_units_for(another, cpuinfo, dtype, why):
    another(cpuinfo)
    assert precision.automatic() == (dtype, why)


def test_a_card_computes_in_bfloat16_whatever_the_cpu(another):
    another(ICE_LAKE, card=True)
    assert precision.automatic() == ("bfloat16", "on the GPU")


def test_macos_has_no_bf16_kernels_whatever_the_chip(another):
    another(GRAVITON_3, system="darwin")
    assert precision.resolve("auto") == "float32"


def test_a_hidden_card_and_a_build_without_cuda_are_none(monkeypatch, tmp_path):
    library, device = tmp_path / "lib" / "libtorch_cuda.so", tmp_path / "nvidiactl"
    (tmp_path / "__init__.py").touch()
    monkeypatch.setattr(precision, "ACCELERATORS", {library.name: ((str(device),), "CUDA_VISIBLE_DEVICES")})
    monkeypatch.setattr(precision, "find_spec", lambda _: type("Found", (), {"origin": str(tmp_path / "__init__.py")}))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("TERCET_DEVICE", raising=False)
    device.touch()
    assert not precision.has_gpu()
    library.parent.mkdir()
    library.touch()
    assert precision.has_gpu()
    for name, value in (("CUDA_VISIBLE_DEVICES", ""), ("CUDA_VISIBLE_DEVICES", "-1"), ("TERCET_DEVICE", "cpu")):
        with monkeypatch.context() as other:
            other.setenv(name, value)
            assert not precision.has_gpu()


def recipe(**keys: object) -> Recipe:
    stages = {
        "words": {"kind": "synth", "generator": "words@1", "rows": 4},
        "sft": {"kind": "sft", "model": "base", "rows": "words"},
        "pinned": {"kind": "sft", "model": "base", "rows": "words", "dtype": "bfloat16"},
    }
    return Recipe.model_validate({"name": "two", "base": {"model": "tiny:0"}, "stage": stages, **keys})


def test_a_key_holds_the_precision_of_the_another(another, tmp_path):
    keys = {}
    for cpuinfo in (ICE_LAKE, ZEN_4):
        another(cpuinfo)
        nodes = pipeline.graph(recipe(), Store(tmp_path))
        assert nodes["sft"].spec["dtype"] == precision.automatic().dtype
        keys[cpuinfo] = nodes["sft"].key, nodes["pinned"].key
    assert keys[ICE_LAKE][0] != keys[ZEN_4][0]
    assert keys[ICE_LAKE][1] == keys[ZEN_4][1]


def test_a_pin_of_the_recipe_stands_above_the_machine_and_below_a_stage(another):
    another(ZEN_4)
    found = recipe(dtype="float32").resolved()
    assert [found.stage[name].dtype for name in ("sft", "pinned")] == ["float32", "bfloat16"]
    assert found.resolved() == found


def test_a_spec_made_by_hand_knows_its_precision(another):
    another(ICE_LAKE)
    assert SFTSpec(model="base", rows="rows").precision == "float32"
    assert EvalSpec(model="base", benchmark="benchmark", dtype="bfloat16").precision == "bfloat16"


def test_the_plan_says_the_precision_and_why(another, tmp_path, capsys):
    another(ICE_LAKE)
    file = tmp_path / "two.toml"
    file.write_text(
        'name = "two"\n[base]\nmodel = "tiny:0"\n[stage.words]\nkind = "synth"\ngenerator = "words@1"\nrows = 4\n'
        '[stage.sft]\nkind = "sft"\nmodel = "base"\nrows = "words"\nmax_length = 512\n'
        '[stage.pinned]\nkind = "sft"\nmodel = "base"\nrows = "words"\nmax_length = 512\ndtype = "bfloat16"\n'
    )
    assert main(["plan", str(file), "--store", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "float32: this CPU multiplies bf16 in software (sft)" in said
    assert "bfloat16: pinned by the recipe (pinned)" in said
    assert main(["plan", str(file), "--store", str(tmp_path / "runs"), "--json"]) == 0
    lines = {line["name"]: line["precision"] for line in json.loads(capsys.readouterr().out)}
    assert lines == {
        "base": "",
        "words": "",
        "sft": "float32: this CPU multiplies bf16 in software",
        "pinned": "bfloat16: pinned by the recipe",
    }
