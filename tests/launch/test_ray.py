"""Two Ray nodes on this machine as two machines (where Ray is installed: `pip install ray`)."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys

import pytest
from rich.console import Console

from tercet import pipeline, preflight
from tercet.recipe import KINDS, RecipeError
from tercet.store import Store

INSTALLED = importlib.util.find_spec("ray") is not None
TWO = {"nodes": 2, "ranks": 2, "launch": "ray", "threads": 1}
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
node = {"num_cpus": 1, "object_store_memory": 80_000_000}
cluster = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
cluster.add_node(**node)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # neighbours' memory is none of its business
    ends = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([sys.executable, "-c", CLUSTER], text=True, **ends)
    monkeypatch.setenv("RAY_ADDRESS", process.stdout.readline().strip())
    yield
    process.communicate("", timeout=60)


@pytest.mark.skipif(not INSTALLED, reason="Ray is not installed")
def test_two_bundles_are_one_stage_and_a_killed_rank_is_started_again(cluster, ranked, tmp_path, monkeypatch):
    monkeypatch.setattr(KINDS["sft"], "module", "steps_stage")
    monkeypatch.setenv("ORDER", "1:SIGKILL")
    said = io.StringIO()
    recipe = ranked(**TWO, max_restarts=1)
    made = pipeline.run(recipe, Store(tmp_path / "runs"), console=Console(file=said, width=1000))["sft"]
    assert (made.payload / "total").read_text() == "[2.0] 19"
    assert "starts again from its last checkpoint (1 of 1): rank 1 on" in said.getvalue()
    assert "was killed by SIGKILL (step 10)" in said.getvalue()


@pytest.mark.skipif(INSTALLED, reason="Ray is installed")
def test_without_ray_nothing_is_started(ranked, tmp_path):
    with pytest.raises(RecipeError, match=r"it needs the package ray: pip install 'tercet\[ray\]'"):
        pipeline.run(ranked(**TWO), Store(tmp_path / "runs"), console=Console(file=io.StringIO()))


def test_outside_an_allocation_nothing_is_started_by_srun(ranked, tmp_path, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_NODELIST", raising=False)
    recipe = ranked(nodes=2, gpus=1, launch="slurm")
    with pytest.raises(RecipeError, match="inside sbatch or salloc"):
        preflight.refuse(pipeline.obstacles(recipe, pipeline.plan(recipe, Store(tmp_path / "runs")), {}))
