"""An index is made once, made again where it is damaged, and never half there."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from tests.trace.stores import PLANTED

from tercet.cli import main
from tercet.trace import Tracer, index


def folders(store):
    return sorted(path.name for path in (store.cache / "trace").glob("*") if path.is_dir())


def test_an_index_is_made_once(own_run):
    store, last = own_run
    said: list[str] = []
    Tracer.open(store, last, said.append)
    assert [text.split("/")[-1] for text in said] == ["rows.parquet", "pairs.parquet", "rollouts.parquet"]
    made, said[:] = folders(store), []
    assert Tracer.open(store, last, said.append).trace(PLANTED).spans
    assert (said, folders(store)) == ([], made)


def test_models_of_one_lineage_share_the_index_of_their_data(own_run):
    store, last = own_run
    Tracer.open(store, last)
    said: list[str] = []
    Tracer.open(store, store.open("sft"), said.append)
    assert said == []


@pytest.mark.parametrize("file", ["words.u32", "order.u32", "rows.arrow", "known.npy"])
def test_a_damaged_index_is_made_again(own_run, file):
    store, last = own_run
    before = Tracer.open(store, last).trace(PLANTED)
    path = next((store.cache / "trace").glob(f"*/{file}"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    said: list[str] = []
    assert Tracer.open(store, last, said.append).trace(PLANTED) == before
    assert len([text for text in said if "is damaged; it is made again" in text]) == 1


def test_a_link_in_the_place_of_an_index_is_not_followed(own_run, tmp_path):
    store, last = own_run
    Tracer.open(store, last)
    folder = store.cache / "trace" / folders(store)[0]
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    assert Tracer.open(store, last).trace(PLANTED).spans
    assert not folder.is_symlink()
    assert (tmp_path / "elsewhere" / "words.u32").is_file()


def test_a_build_that_fails_leaves_nothing(own_run, monkeypatch):
    store, last = own_run

    def fail(words):
        raise MemoryError("no room to sort")

    with monkeypatch.context() as patched:
        patched.setattr(index, "suffixes", fail)
        with pytest.raises(MemoryError, match="no room"):
            Tracer.open(store, last)
    assert list((store.cache / "trace").iterdir()) == []
    assert Tracer.open(store, last).trace(PLANTED).spans


KILLED = """
import sys, time
from tercet.store import Store
from tercet.trace import Tracer, index
def slow(words):
    print("sorting", flush=True)
    time.sleep(60)
index.suffixes = slow
store = Store(sys.argv[1])
Tracer.open(store, store.open("rlvr"))
"""


def test_a_killed_build_leaves_no_index_and_the_next_one_clears_its_draft(own_run):
    store, last = own_run
    command = [sys.executable, "-c", KILLED, str(store.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "sorting\n"
        child.send_signal(signal.SIGKILL)
    left = list((store.cache / "trace").iterdir())
    assert [path.name.startswith(".") for path in left] == [True]
    assert Tracer.open(store, last).trace(PLANTED).spans
    assert not left[0].exists()


def test_an_index_is_a_cache_that_gc_removes(own_run, capsys):
    store, last = own_run
    Tracer.open(store, last)
    assert main.main(["gc", "--delete", "--store", str(store.root)]) == 0
    assert not (store.cache / "trace").exists()
    assert Tracer.open(store, last).trace(PLANTED).spans
