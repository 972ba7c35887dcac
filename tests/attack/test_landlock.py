"""Programs that attack their own folder, which no file system of its own bounds, and whoever cleans up after them."""

from __future__ import annotations

import os
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.attack.scale import times

from tercet.sandbox import program as program_module
from tercet.sandbox.run import SandboxError, isolation, run_program

SLEEP = "\nimport time; time.sleep(30)"
DEEP = "import os\nfor _ in range({}):\n    os.mkdir('d', {}); os.chdir('d')\n"
HIDDEN = "import os\nos.mkdir('h', 0o300)\nfor i in range(9):\n    open(f'h/{i}', 'wb').write(bytes(20 << 20))"

# What a program does, and what stops it.
TOO_MUCH = {
    "100,000 files": ("for i in range(100_000): open(str(i), 'w').close()" + SLEEP, "more than 4096 files"),
    "100,000 links": ("import os\nfor i in range(100_000): os.symlink('x', str(i))" + SLEEP, "more than 4096 files"),
    "files of eight threads": (
        "import threading\ndef fill(me):\n    for i in range(20_000): open(f'{me}-{i}', 'w').close()\n"
        "for me in range(8): threading.Thread(target=fill, args=(me,)).start()" + SLEEP,
        "more than 4096 files",
    ),
    "files without names in text": (
        "import os\nfor i in range(9000): open(b'\\xff\\n%d' % i, 'w').close()" + SLEEP,
        "more than 4096 files",
    ),
    "a hundred folders deep": (DEEP.format(100, 0o700) + SLEEP, "folders more than 64 deep"),
    "ten thousand folders deep": (DEEP.format(10_000, 0o700) + SLEEP, "folders more than 64 deep"),
    "deep, without rights to read": (DEEP.format(100, 0o300) + SLEEP, "folders more than 64 deep"),
    "bytes behind a path that is too long": (
        "import os\nfor _ in range(30):\n    os.mkdir('d' * 200); os.chdir('d' * 200)\n"
        "for i in range(9): open(str(i), 'wb').write(bytes(20 << 20))" + SLEEP,
        "more than 64 MB of disk",
    ),
    "bytes in a folder that cannot be read": (HIDDEN + SLEEP, "more than 64 MB of disk"),
    "bytes in many small files": (
        "for i in range(4000): open(str(i), 'wb').write(bytes(40 << 10))" + SLEEP,
        "more than 64 MB of disk",
    ),
}  # fmt: skip

# What a program leaves behind, for the one who cleans up.
LEFT = {
    "a chain as deep as the time allows": DEEP.format(3000, 0o700),
    "a chain without any rights": "import os\nfor _ in range(40):\n    os.mkdir('d', 0o300); os.chdir('d')",
    "folders without rights": "import os\nfor i in range(50): os.mkdir(str(i), 0)",
    "a folder that cannot be written to": "import os\nos.makedirs('a/b')\nopen('a/b/c', 'w')\nos.chmod('a', 0o500)",
    "links to outside": "import os\nos.symlink('/', 'root')\nos.symlink(MARKER, 'file')\nos.symlink(PLACE, 'place')",
    "a circle of links": "import os\nos.mkdir('a')\nos.symlink('..', 'a/up')\nos.symlink('a', 'b')",
    "a pipe and a dangling link": "import os\nos.mkfifo('pipe')\nos.symlink('nowhere', 'link')",
    "names that are no text": "import os\nos.mkdir(b'\\xff')\nopen(b'\\xff/\\x1b[2J\\n', 'w').close()",
    "its own folder removed": "import os\ntry: os.rmdir(os.getcwd())\nexcept OSError: pass",
    "two thousand files": "for i in range(2000): open(str(i), 'w').close()",
}  # fmt: skip


# Both have their folder on disk, watched and removed by the same code: the gate tries the first.
@pytest.fixture(scope="module", params=["landlock", "none"][: times(2)])
def level(request: pytest.FixtureRequest) -> str:
    try:
        return isolation(request.param)
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files, open to every user; pytest's own may not be."""
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        monkeypatch.setattr(tempfile, "tempdir", folder)
        yield Path(folder)


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_program_that_fills_its_folder_is_stopped_and_nothing_stays(name: str, level: str, temporary: Path) -> None:
    source, detail = TOO_MUCH[name]
    began = time.monotonic()
    ran = run_program(source, seconds=20.0, sandbox=level)
    assert (ran.outcome, ran.detail) == ("failed", detail)
    assert time.monotonic() - began < 15
    assert list(temporary.iterdir()) == []


@pytest.mark.parametrize("name", LEFT)
def test_what_a_program_leaves_is_removed_and_nothing_outside_changes(name: str, level: str, temporary: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/var/tmp") as kept:
        marker, place = Path(kept, "marker"), Path(kept, "place")
        place.mkdir(mode=0o500)
        marker.write_text("untouched")
        marker.chmod(0o600)
        facts = f"MARKER, PLACE = {str(marker)!r}, {str(place)!r}\n"
        ran = run_program(facts + LEFT[name], seconds=5.0, sandbox=level)
        assert ran.outcome in ("passed", "failed"), ran
        assert list(temporary.iterdir()) == []
        assert (marker.read_text(), marker.stat().st_mode & 0o777) == ("untouched", 0o600)
        assert place.stat().st_mode & 0o777 == 0o500


def test_files_without_end_are_stopped_in_bubblewrap_too() -> None:
    try:
        isolation("bubblewrap")
    except SandboxError as error:
        pytest.skip(str(error))
    for folder in (".", "/dev/shm"):
        source = f"for i in range(100_000): open(f'{folder}/{{i}}', 'w').close()" + SLEEP
        assert run_program(source, seconds=20.0, sandbox="bubblewrap").detail == "more than 4096 files"


def test_a_folder_that_cannot_be_removed_in_time_is_an_error_of_one_program(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_module, "CLEANING", -1.0)
    ran = run_program("open('a', 'w').close()", sandbox="none")
    assert (ran.outcome, ran.isolation) == ("error", "none")
    assert "could not be removed (it took too long); remove it by hand" in ran.detail
    assert len(list(temporary.iterdir())) == 1


def test_a_machine_without_room_is_an_error_of_one_program(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_program("pass", sandbox="none").outcome == "passed"
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    ran = run_program("pass", sandbox="none")
    assert (ran.outcome, "FileNotFoundError" in ran.detail) == ("error", True)
    monkeypatch.undo()
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 3, limits[1]))
    try:
        ran = run_program("pass", sandbox="none")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert (ran.outcome, "OSError" in ran.detail) == ("error", True)
