"""A machine that sees another store, or none, ends the stage before it begins."""

from __future__ import annotations

import shutil
import socket

import pytest

from tercet.launch import shared_store
from tercet.recipe import Placement
from tercet.store import StoreError

TWO = Placement(nodes=2, gpus=1)


@pytest.fixture
def draft(tmp_path, monkeypatch):
    folder = tmp_path / ".draft-sft-0123456789ab"
    folder.mkdir()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv(shared_store.ATTEMPT, shared_store.begin(folder))
    return folder


def test_the_same_folder_is_the_same_store(draft):
    shared_store.check(draft, TWO)


@pytest.mark.parametrize("there", [True, False])
def test_another_folder_of_that_name_or_none_is_refused_with_host_and_path(draft, there):
    shutil.rmtree(draft)
    if there:  # left by an earlier run on this machine's own disk
        draft.mkdir()
        shared_store.begin(draft)
    says = rf"rank 1 on {socket.gethostname()} does not see {draft}.* 2 machines needs a store that all of them share"
    with pytest.raises(StoreError, match=says):
        shared_store.check(draft, TWO)


def test_what_an_earlier_start_left_is_gone(draft):
    (draft / shared_store.FOLDER / "0.json").write_text("{}")
    shared_store.begin(draft)
    assert [file.name for file in (draft / shared_store.FOLDER).iterdir()] == ["attempt"]
