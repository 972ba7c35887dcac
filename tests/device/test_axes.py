"""Ranks divide rows, tokens and weights in any way, and learn what one rank learns."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, Qwen3Config, Qwen3ForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
from families_table import EXCEPTIONS, KINDS

from tercet.device.axes import Axes
from tercet.device.context import ContextRanks
from tercet.device.mesh import Mesh
from tercet.device.plans import SplitError, check_mesh, check_split
from tercet.recipe import MeshShape

PROGRAM = Path(__file__).with_name("axes_ranks.py")
FULL = os.environ.get("TERCET_ATTACK") == "full"
ROUNDING = 1e-6  # of sums of fp32 numbers in another order, relative to the norm of a gradient
EVERY = [[1, 2, 1, 1], [1, 1, 1, 2], [1, 1, 2, 1]]
EVERY += [[2, 2, 1, 1], [2, 1, 1, 2], [1, 2, 1, 2], [2, 1, 2, 1], [1, 2, 2, 1], [1, 1, 2, 2]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model with grouped keys, norms of heads, and one weight for both ends."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "vocab_size": 96, "head_dim": 12}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    model = Qwen3ForCausalLM(Qwen3Config(**sizes, **heads, pad_token_id=1, initializer_range=0.1))
    model.save_pretrained(path := tmp_path_factory.mktemp("model"))
    return path


def cases(folder: Path, work: Path, **job: Any) -> list[dict[str, Any]]:
    """What the program says of each case."""
    file = work / "job.json"
    file.write_text(json.dumps({"folder": str(folder), "out": str(work / "found.pt"), **job}))
    environ = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, str(PROGRAM), str(file)], env=environ, capture_output=True, text=True, timeout=900, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def check(found: list[dict[str, Any]]) -> None:
    for case in found:
        assert all(said == {"loaded": True} for said in case["said"]), case
        assert max(case["metrics"], case["grads"], case["weights"]) < ROUNDING, case


@pytest.mark.slow
def test_ranks_that_share_products_or_tokens_learn_what_one_rank_learns(folder, tmp_path):
    laws = ["sft", "dpo", "reward", "grpo", "ppo"] if FULL else ["sft", "ppo"]
    meshes = EVERY if FULL else [[1, 1, 1, 2], [1, 1, 2, 1]]
    found = cases(folder, tmp_path, laws=laws, meshes=meshes)
    assert len(found) == len(laws) * len(meshes)
    check(found)


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_of_any_other_mesh(folder, tmp_path):
    kept = tmp_path / "sft.draft" / "work" / "checkpoints"
    meshes = [[1, 1, 1, 2], [2, 1, 1, 1], [1, 1, 2, 2]] if FULL else [[2, 1, 1, 2], [1, 2, 1, 1]]
    found = cases(folder, tmp_path, laws=["sft"], meshes=meshes, kept=str(kept))
    assert [case["mesh"] for case in found] == [*meshes, [1, 1, 1, 1]]
    assert [path.name for path in kept.glob("step-*")] == ["step-00000001"]
    check(found)


@pytest.mark.skipif(not FULL, reason="minutes; set TERCET_ATTACK=full")
def test_every_family_is_divided_as_transformers_computes_it_or_refused(folder, tmp_path):
    names = [kind for kind in KINDS if kind not in EXCEPTIONS]
    split, spread = cases(folder, tmp_path, families=names, meshes=[[1, 1, 1, 2], [1, 1, 2, 1]])
    for found in (split, spread):
        assert len(found) == len(names), found
        assert {name: gap for name, gap in found.items() if "e-" in gap[:6] and float(gap) > 1e-3} == {}
    assert sum("e-" in gap[:6] for gap in split.values()) > 40
    assert sum("e-" in gap[:6] for gap in spread.values()) > 90


def test_ranks_that_are_alike_count_once_among_those_that_read_rows():
    shape = MeshShape(replicate=2, shard=2, context=2, tensor=1)
    axes = Axes(shape, None, "group", "tokens", None)  # type: ignore[arg-type]
    places = [Mesh(rank, 8, axes=axes).data for rank in range(8)]
    assert [(one.rank, one.size, one.group) for one in places] == [(r // 2, 4, "group") for r in range(8)]
    assert (axes.num_shares, axes.alike, axes.tensor) == (8, 2, None)
    alone = Mesh(1, 2, axes=Axes(MeshShape(replicate=1, shard=2), None, None, None, None))  # type: ignore[arg-type]
    assert alone.data is alone


def test_rows_that_do_not_divide_are_all_somebodys():
    ranks = ContextRanks.__new__(ContextRanks)
    for number, size in ((7, 3), (2, 4), (0, 2), (8, 4)):
        parts = []
        for ranks.rank in range(size):
            ranks.size = size
            parts.append(ranks.part(torch.arange(number)))
        assert torch.equal(torch.cat(parts), torch.arange(number))
        assert max(map(len, parts)) == -(-number // size)


@pytest.mark.parametrize(
    ("config", "parts", "said"),
    [
        (LlamaConfig(hidden_size=96, num_attention_heads=6, num_key_value_heads=6), 4, "does not divide the 6 heads"),
        (LlamaConfig(num_attention_heads=8, num_key_value_heads=2), 4, r"the 2 heads of the model \(num_key_value"),
        (SimpleNamespace(model_type="odd", base_model_tp_plan=None), 2, "no tensor plan for odd"),
        (SimpleNamespace(model_type="many", base_model_tp_plan={"a": "rowwise"}, num_experts=4), 2, "experts of many"),
    ],
)
def test_what_cannot_be_split_is_refused(config, parts, said):
    if isinstance(config, SimpleNamespace):
        config.get_text_config = lambda: config
    with pytest.raises(SplitError, match=said):
        check_split(config, parts)


def test_a_mesh_that_a_model_cannot_have_is_refused_before_rows_are_read():
    config = LlamaConfig(num_attention_heads=8, num_key_value_heads=4)
    check_mesh(config, MeshShape(context=4, tensor=2))
    with pytest.raises(SplitError, match="context = 8 does not divide the 4 attention heads"):
        check_mesh(config, MeshShape(context=8, tensor=2))
    with pytest.raises(SplitError, match="adapters are not split"):
        check_mesh(config, MeshShape(tensor=2), adapters=True)
