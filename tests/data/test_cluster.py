"""A Ray cluster mixes, decontaminates and tokenises to the very bytes of one machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.data.test_mix import Bench

from tercet.data.generators import words
from tercet.data.process_pool import ProcessPool, pool_of
from tercet.device.ray_data import ClusterPool, NoClusterError
from tercet.models.chat import ChatError, open_chat
from tercet.recipe import Placement
from tercet.rows import Message, Pair, Row, write_table
from tercet.store import Store
from tercet.train.dpo import PAIRS
from tercet.train.sft import TURNS
from tercet.train.tokens import PART, Rule, prepare

RAY = Placement(launch="ray")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Ray warns of its own settings


@pytest.fixture(scope="module")
def cluster():
    ray = pytest.importorskip("ray", reason="the extra ray is not installed")
    pytest.importorskip("ray.data")
    os.environ["RAY_AUTH_MODE"] = "disabled"
    ray.init(num_cpus=2, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
    yield ray
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


@pytest.mark.slow
def test_tokens_are_those_of_one_machine(cluster, tiny_folder, tmp_path):
    rows = words.generate(5 * PART + 100, "train", 5)
    pairs = [
        Pair(row.id, (ask := Message("user", row.user_turns[-1]), answer("a")), (ask, answer("b b")), source="s")
        for row in rows
    ]
    for name, table, rule in (("rows", rows, TURNS), ("pairs", pairs, PAIRS)):
        write_table(tmp_path / f"{name}.parquet", table)
        found = [tokens(tmp_path, f"{name}.parquet", rule, tiny_folder, **where) for where in ({}, {"launch": "ray"})]
        assert found[0] == found[1]


@pytest.mark.slow
def test_a_row_that_cannot_be_read_is_named_as_on_one_machine(cluster, tiny_folder, tmp_path):
    good = [Row(f"r{i}", (Message("user", "a"), answer("b")), "s") for i in range(5 * PART)]
    write_table(tmp_path / "rows.parquet", [*good[: 2 * PART], Row("bad", (Message("user", "a"),), "s"), *good])
    with pytest.raises(ChatError, match=rf"rows.parquet, row {2 * PART} \(bad\)"):
        tokens(tmp_path, "rows.parquet", TURNS, tiny_folder, launch="ray")


@pytest.mark.slow
def test_where_ranks_hold_every_processor_tokens_are_made_here(cluster, tiny_folder, tmp_path, monkeypatch):
    write_table(tmp_path / "rows.parquet", words.generate(5 * PART, "train", 5))
    held = cluster.util.placement_group([{"CPU": 2}])
    cluster.get(held.ready())
    monkeypatch.setattr(ClusterPool, "map", lambda *_: pytest.fail("asked a cluster that never answers"))
    assert tokens(tmp_path, "rows.parquet", TURNS, tiny_folder, launch="ray")
    cluster.util.remove_placement_group(held)


def answer(text: str) -> Message:
    return Message("assistant", text)


def tokens(folder: Path, name: str, rule: Rule, model: Path, **where: str) -> bytes:
    """The bytes of the token file of a table."""
    store = folder / "-".join(["store", name, *where.values()])
    ctx = SimpleNamespace(store=Store(store), recipe=SimpleNamespace(placement=Placement(threads=1, **where)))
    prepare(folder / name, open_chat(model), rule, ctx)
    (file,) = (store / ".cache" / "tokens").glob("[!.]*.arrow")
    return file.read_bytes()
