"""A dry run prints the commands that a run starts, for recipes whose models are nowhere near."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tercet.cli.main import main

ROOT = Path(__file__).parents[2]


def dry(tmp_path, capsys, *sets: str, recipe: str = "tulu3-8b.toml") -> list[dict]:
    words = ["run", str(ROOT / "recipes" / recipe), "--store", str(tmp_path), "--dry-run", "--json"]
    assert main([*words, *(word for one in sets for word in ("--set", one))]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def nothing_starts(monkeypatch):
    """Any start of a process is an error."""

    def refuse(*_args, **_kwargs):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def test_every_missing_stage_has_a_command_its_inputs_and_its_variables(tmp_path, capsys, nothing_starts):
    found = {one["stage"]: one for one in dry(tmp_path, capsys, "placement.nodes=4", "placement.ranks=32")}
    sft = found["sft"]
    assert (sft["nodes"], sft["ranks"]) == (4, 32)
    assert sft["argv"][1:5] == ["-m", "torch.distributed.run", "--nnodes", "4"]
    assert sft["argv"][-3:] == ["--draft", sft["draft"], "--rank"]
    assert Path(sft["inputs"]["base"]).name == f"base-{found['base']['key']}"
    assert sft["environment"]["TORCH_FR_DUMP_TEMP_FILE"] == f"{sft['draft']}/ranks/nccl-"
    assert found["benchmark-dev"]["argv"][-2:] == ["--draft", found["benchmark-dev"]["draft"]]
    assert not list(tmp_path.iterdir()), "nothing was written"


@pytest.mark.parametrize(
    ("recipe", "nodes", "machine"), [("tulu3-70b.toml", 4, "h100x32"), ("tulu3-405b.toml", 32, "h100x256")]
)
def test_the_large_recipes_print_their_commands_for_machines_that_the_forecast_accepts(
    tmp_path, capsys, monkeypatch, nothing_starts, recipe, nodes, machine
):
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    found = {one["stage"]: one for one in dry(tmp_path, capsys, recipe=recipe)}
    for stage in ("sft", "dpo", "rm", "rlvr"):
        assert found[stage]["argv"][:5] == ["srun", "--nodes", str(nodes), "--ntasks-per-node", "1"]
        assert found[stage]["ranks"] == nodes * 8
    main(["plan", str(ROOT / "recipes" / recipe), "--store", str(tmp_path), "--machine", machine, "--json"])
    planned = json.loads(capsys.readouterr().out)["stages"]
    fits = {
        one["name"]: not one["refused"] for one in planned if one["name"] in found and found[one["name"]]["ranks"] > 1
    }
    assert fits == {"sft": True, "dpo": True, "rm": True, "rlvr": True}


def test_outside_an_allocation_the_first_machine_is_left_to_the_shell(tmp_path, capsys, monkeypatch, nothing_starts):
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    words = ["run", str(ROOT / "recipes" / "tulu3-8b.toml"), "--store", str(tmp_path), "--dry-run", "--only", "sft"]
    sets = ("placement.nodes=2", "placement.ranks=16", 'placement.launch="slurm"')
    assert main([*words, *(word for one in sets for word in ("--set", one))]) == 0
    out = capsys.readouterr().out
    assert "HEAD_NODE=$(scontrol show hostnames | head -n 1)\n" in out
    [line] = [line for line in out.splitlines() if line.startswith("srun")]
    assert ' --rdzv-endpoint "$HEAD_NODE:' in line


def test_json_without_a_dry_run_is_refused(tmp_path, capsys):
    assert main(["run", "tiny", "--store", str(tmp_path), "--json"]) == 2
    assert "--json goes with --dry-run" in capsys.readouterr().err


def test_no_torch_is_imported(tmp_path):
    recipe = ROOT / "recipes" / "tulu3-405b.toml"
    script = (
        "import sys\nfrom tercet.cli.main import main\n"
        f"code = main(['run', {str(recipe)!r}, '--store', {str(tmp_path)!r}, '--dry-run'])\n"
        "sys.exit(code or 9 * ('torch' in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, check=False).returncode == 0
