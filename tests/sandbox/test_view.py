"""Where Python and its packages lie is no matter to a program, and nothing else of such places is shown."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

import tercet
from tercet.sandbox import view
from tercet.sandbox.run import LEVELS, SandboxError, isolation, lacking, ready

NAME = "tercet gäte"  # a space, and a letter that is not ASCII
PLACES = {"temporary": "/tmp", "shared memory": "/dev/shm", "home": str(Path.home()), "optional": "/opt"}
EVERYWHERE = """
import dataclasses, json, sys
from tercet.sandbox.run import LEVELS, SandboxError, run_program
for level in LEVELS:
    try:
        print(json.dumps(dataclasses.asdict(run_program(sys.argv[1], sandbox=level, seconds=20.0))))
    except SandboxError as error:
        print(json.dumps({"outcome": "refused", "detail": str(error), "isolation": level}))
"""


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Path]:
    yield from below(PLACES[request.param])


@pytest.fixture
def temporary() -> Iterator[Path]:
    yield from below("/tmp")


def below(folder: str) -> Iterator[Path]:
    if not os.access(folder, os.W_OK):
        pytest.skip(f"{folder} cannot be written to")
    with tempfile.TemporaryDirectory(dir=folder, prefix="tercet ") as found:
        (Path(found) / NAME).mkdir()
        yield Path(found) / NAME


def environment(place: Path, python: str = sys.executable, *, with_numpy: bool = True) -> tuple[str, Path]:
    """Python and packages of a new environment; what is installed here is installed there, by a line in a .pth."""
    subprocess.run([python, "-m", "venv", "--without-pip", place / ".venv"], check=True)
    (packages,) = (place / ".venv" / "lib").glob("python*/site-packages")
    (packages / "mine.py").write_text("value = 'gefunden'\n", encoding="utf-8")
    if with_numpy:
        (packages / "over.pth").write_text(str(Path(numpy.__file__).parents[1]))
    (place / "secret").write_text("secret")
    return str(place / ".venv" / "bin" / "python"), packages


def at_every_level(python: str, text: str) -> list[dict[str, str]]:
    """What becomes of a program at each level that holds, run by another Python than this one."""
    held = {level for level in LEVELS if holds(level)}
    return [ran for ran in map(json.loads, ran_with(python, EVERYWHERE, text).splitlines()) if ran["isolation"] in held]


def ran_with(python: str, *text: str) -> str:
    environ = os.environ | {"PYTHONPATH": str(Path(tercet.__file__).parents[1])}
    return subprocess.run([python, "-c", *text], env=environ, capture_output=True, text=True, check=True).stdout


def holds(level: str) -> bool:
    try:
        return isolation(level) == level
    except SandboxError:
        return False


INTRUDER = """
import os
import mine, numpy
assert mine.value == "gefunden" and numpy.arange(3).sum() == 3
def refused(what):
    try:
        what()
    except OSError:
        return True
    return False
way = {place!r}
assert os.listdir(".") == [], os.listdir(".")
assert refused(lambda: open(way + "/secret"))
assert refused(lambda: open(mine.__file__, "a"))
assert refused(lambda: open(os.path.join(os.path.dirname(mine.__file__), "new.py"), "w"))
for folder in (way, os.path.dirname(way)):
    assert refused(lambda: os.mkdir(folder + "/new"))
    assert refused(lambda: os.rename(folder, folder + " moved"))
open(os.path.join(os.environ["TMPDIR"], "own"), "w").close()
"""


def test_an_environment_is_seen_wherever_it_lies_and_its_neighbours_are_not(place: Path) -> None:
    python, packages = environment(place)
    for ran in at_every_level(python, INTRUDER.format(place=str(place))):
        assert ran["outcome"] == "passed", ran
    assert sorted(path.name for path in packages.iterdir()) == ["mine.py", "over.pth"]
    assert sorted(path.name for path in place.iterdir()) == [".venv", "secret"]


def test_packages_that_only_their_owner_may_read_are_seen(temporary: Path) -> None:
    python, packages = environment(temporary)
    (packages / "mine.py").chmod(0o600)
    packages.chmod(0o700)
    for ran in at_every_level(python, "import mine, numpy"):
        assert ran["outcome"] == "passed", ran


def test_a_package_laid_out_as_links_is_seen_and_what_lies_beside_its_files_is_not(temporary: Path) -> None:
    python, packages = environment(temporary)
    store = temporary / "store"
    files = {"a/mirrored/__init__.py": "", "a/mirrored/deep/x.py": "", "b/single.py": "", "c/whole/__init__.py": ""}
    for name, text in {**files, "b/neighbour": "secret", "a/neighbour": "secret"}.items():
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text(text)
    (packages / "mirrored" / "deep").mkdir(parents=True)
    for name in ("__init__.py", "deep/x.py"):
        (packages / "mirrored" / name).symlink_to(store / "a" / "mirrored" / name)
    (packages / "single.py").symlink_to(store / "b" / "single.py")
    (packages / "whole").symlink_to(store / "c" / "whole")
    text = f"""
import mirrored.deep.x, single, whole
for name in ("a/neighbour", "b/neighbour"):
    try:
        open({str(store)!r} + "/" + name)
    except OSError:
        continue
    raise AssertionError(name)
"""
    for ran in at_every_level(python, text):
        assert ran["outcome"] == "passed", ran


def test_an_interpreter_is_seen_wherever_it_lies(temporary: Path) -> None:
    library, original = Path(os.__file__).parent, Path(view.interpreter())
    left_out = shutil.ignore_patterns("test", "tests", "site-packages", "dist-packages", "__pycache__", "config-*")
    shutil.copytree(library, temporary / "lib" / library.name, ignore=left_out, ignore_dangling_symlinks=True)
    (temporary / "bin").mkdir()
    shutil.copy2(original, temporary / "bin" / original.name)
    copied = str(temporary / "bin" / original.name)
    base = subprocess.run([copied, "-c", "import sys; print(sys.base_prefix)"], capture_output=True, text=True).stdout
    if base.strip() != str(temporary):
        pytest.skip("a copy of this Python does not run by itself")
    python, _ = environment(temporary / "project", copied)
    for ran in at_every_level(python, "import json, mine, numpy, sys\nassert 'gäte' in json.__file__"):
        assert ran["outcome"] == "passed", ran


def test_where_numpy_is_missing_a_program_is_an_error_that_says_so(temporary: Path) -> None:
    python, _ = environment(temporary, with_numpy=False)
    for ran in at_every_level(python, "pass"):
        assert ran["outcome"] == "error"
        assert "cannot import numpy (ModuleNotFoundError" in ran["detail"]
        assert f"{shlex.quote(python)} -m pip install" in ran["detail"]


@pytest.fixture
def some_isolation() -> None:
    try:
        ready()
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.mark.usefixtures("some_isolation")
def test_a_module_that_only_the_caller_finds_is_missed_by_name_and_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "only_here.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    message = lacking(["json", "only_here"])
    assert message.count("cannot import") == 1
    assert f"here it is found ({tmp_path / 'only_here.py'})" in message
    assert lacking(["json"]) == ""


@pytest.mark.usefixtures("some_isolation")
def test_a_module_that_ends_the_interpreter_does_not_hide_the_others(temporary: Path) -> None:
    python, packages = environment(temporary)
    (packages / "deadly.py").write_text("import os\nos._exit(3)\n")
    message = ran_with(
        python, "from tercet.sandbox.run import lacking; print(lacking(['mine', 'deadly', 'not_there']))"
    )
    assert message.count("cannot import") == 2
    assert "cannot import deadly (left with code 3" in message
