"""A Ray cluster mixes and decontaminates to the very bytes of one machine."""

from __future__ import annotations

import os
import sys

import pytest
from tests.data.test_mix import Bench

from tercet.data.generators import words
from tercet.data.process_pool import ProcessPool, pool_of
from tercet.device.ray_data import ClusterPool, NoClusterError
from tercet.recipe import Placement

RAY = Placement(launch="ray")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of its own settings


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    pytest.importorskip("ray.data")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_the_launcher_of_the_placement_says_where_jobs_are_done():
    assert isinstance(pool_of(len, Placement()), ProcessPool)
    assert isinstance(pool_of(len, RAY), ClusterPool)


def test_without_ray_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(NoClusterError, match=r"pip install 'tercet\[ray\]'"):
        next(ClusterPool(len).map(["a"]))


@pytest.mark.slow
def test_results_come_in_order_and_errors_as_they_are(cluster, monkeypatch):
    monkeypatch.setattr("tercet.device.ray_data.WINDOW", 3)
    assert list(ClusterPool(str.upper).map(f"a{i}" for i in range(7))) == [f"A{i}" for i in range(7)]
    with pytest.raises(ValueError, match="invalid literal"):
        list(ClusterPool(int).map(["1", "x"]))


@pytest.mark.slow
def test_a_mixture_is_that_of_one_machine(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr("tercet.data.mix.AT_ONCE", 20)
    bench = Bench(tmp_path)
    bench.add_benchmark("benchmark", *((row.user_turns[-1],) for row in words.generate(20, "test", 5)))
    bench.add("a", [*words.generate(50, "train", 5), *words.generate(20, "test", 5)])
    for name in ("here", "there"):
        found = bench.run({"stage": "a"}, against=["benchmark"], out=name, ray=name == "there")
        assert found["contaminated"] == 20
    here, there = ({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()} for name in ("here", "there"))
    assert here == there
    assert {"rows.parquet", "removed.parquet", "summary.json"} <= here.keys()
