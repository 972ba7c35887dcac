"""The folder of a program on disk: measured without following anything, removed whatever it holds."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tercet.sandbox import folder


@pytest.fixture
def place(tmp_path: Path) -> Path:
    found = tmp_path / "program"
    found.mkdir()
    return found


def chain(place: Path, deep: int) -> None:
    """Folders inside each other, far beyond the longest path that the kernel takes."""
    fd = os.open(place, os.O_RDONLY)
    for _ in range(deep):
        os.mkdir("d" * 50, dir_fd=fd)
        inner = os.open("d" * 50, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    os.close(fd)


def test_bytes_files_and_depth_have_their_limits(place: Path) -> None:
    assert folder.excess(str(place), 1 << 20) == ""
    (place / "a").write_bytes(bytes(2 << 20))
    assert folder.excess(str(place), 1 << 20) == folder.BYTES
    assert folder.excess(str(place), 4 << 20) == ""
    for name in range(folder.MOST_FILES):
        (place / str(name)).touch()
    assert folder.excess(str(place), 4 << 20) == folder.FILES


@pytest.mark.parametrize(("deep", "found"), [(folder.DEEPEST, ""), (folder.DEEPEST + 1, folder.DEPTH)])
def test_the_depth_is_counted_from_the_programs_folder(place: Path, deep: int, found: str) -> None:
    chain(place, deep)
    assert folder.excess(str(place), 4 << 20) == found


def test_what_lies_behind_a_link_does_not_count_and_stays(place: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o500)
    (tmp_path / "large").write_bytes(bytes(4 << 20))
    (place / "folder").symlink_to(outside)
    (place / "file").symlink_to(tmp_path / "large")
    assert folder.excess(str(place), 1 << 20) == ""
    assert folder.remove(str(place), 10.0) == ""
    assert (place.exists(), (tmp_path / "large").exists(), outside.stat().st_mode & 0o777) == (False, True, 0o500)


def test_a_chain_of_folders_is_removed_without_recursion(place: Path) -> None:
    chain(place, 400)
    assert folder.remove(str(place), 60.0) == ""
    assert not place.exists()


def test_a_removal_has_its_time_and_says_what_it_could_not_do(place: Path) -> None:
    (place / "a").touch()
    assert "it took too long" in folder.remove(str(place), -1.0)
    assert place.exists()
    assert folder.remove(str(place), 10.0) == ""
    assert folder.remove(str(place), 10.0) == ""  # gone already
