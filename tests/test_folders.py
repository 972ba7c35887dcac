from __future__ import annotations

import os
import stat
import time

import pytest

from tercet import folders
from tercet.folders import (
    FolderError,
    file_digest,
    payload_digest,
    plain_files,
    remember,
    remembered_digest,
    set_writable,
    sync_tree,
)


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "payload"
    (made / "deep").mkdir(parents=True)
    (made / "b.txt").write_text("b")
    (made / "deep" / "a.txt").write_text("a")
    return made


def test_files_of_a_folder_are_sorted_by_their_parts(folder):
    (folder / "deep.txt").touch()
    assert [file.relative_to(folder).as_posix() for file in plain_files(folder)] == ["b.txt", "deep/a.txt", "deep.txt"]


def test_a_digest_of_results_follows_no_link(folder):
    (folder / "link").symlink_to("b.txt")
    with pytest.raises(FolderError, match=r"this is a symbolic link to b\.txt; remove it"):
        payload_digest(folder)


def test_a_payload_that_is_gone_or_a_link_itself_is_an_error(folder, tmp_path):
    with pytest.raises(FolderError, match="expected a folder of results"):
        payload_digest(tmp_path / "absent")
    (tmp_path / "link").symlink_to(folder)
    with pytest.raises(FolderError, match="symbolic link"):
        payload_digest(tmp_path / "link")


def test_what_was_just_changed_is_not_remembered_and_what_has_settled_is(folder, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    assert remembered_digest(folder, plain_files(folder), cache) == payload_digest(folder)
    assert not cache.exists(), "another change within this tick of the clock would not be seen"
    time.sleep(0.05)
    found = remembered_digest(folder, plain_files(folder), cache)
    monkeypatch.setattr(folders, "file_digest", lambda _: pytest.fail("read again"))
    assert remembered_digest(folder, plain_files(folder), cache) == found


def test_a_change_under_an_old_time_is_seen(folder, tmp_path):
    cache = tmp_path / "cache"
    remember(folder, payload_digest(folder), cache)
    before = (folder / "b.txt").stat()
    (folder / "b.txt").write_text("c")
    os.utime(folder / "b.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert remembered_digest(folder, plain_files(folder), cache) == payload_digest(folder)


def test_a_changed_entry_is_computed_again(folder, tmp_path):
    remember(folder, payload_digest(folder), tmp_path / "cache")
    [entry] = (tmp_path / "cache").iterdir()
    entry.write_text("0" * 64 + "\n" + "0" * 64 + "\n")
    assert remembered_digest(folder, plain_files(folder), tmp_path / "cache") == payload_digest(folder)


def test_a_cache_that_cannot_be_written_costs_time_and_no_result(folder, tmp_path):
    (tmp_path / "cache").touch()
    time.sleep(0.05)
    file = folder / "b.txt"
    assert remembered_digest(file, [file], tmp_path / "cache") == file_digest(file)


def test_permissions_change_in_a_whole_tree_and_behind_no_link(folder, tmp_path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    (folder / "link").symlink_to(mine)
    mode = mine.stat().st_mode
    set_writable(folder, writable=False)
    paths = [folder, *(path for path in folder.rglob("*") if not path.is_symlink())]
    assert not any(path.stat().st_mode & 0o222 for path in paths)
    set_writable(folder, writable=True)
    assert all(path.stat().st_mode & stat.S_IWUSR for path in paths)
    assert mine.stat().st_mode == mode


def test_every_file_and_every_folder_of_a_tree_is_put_on_the_disk(folder, monkeypatch):
    synced = set()
    monkeypatch.setattr(os, "fsync", lambda handle: synced.add(os.fstat(handle).st_ino))
    sync_tree(folder)
    assert synced == {path.stat().st_ino for path in (folder, *folder.rglob("*"))}
