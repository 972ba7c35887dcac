"""Attacks on a store: changed bytes, links, strangers, damaged neighbours, and kills inside a commit.

The promises: `tercet check` sees every change of what was committed; nothing damaged is read; no link is followed when
something is written, protected or removed; one damaged artifact keeps nobody from the others; and a commit that is
killed at any call ends, when it is done again, in the same bytes.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tercet import artifact_json, pipeline
from tercet.cli.main import main
from tercet.faults import faults
from tercet.folders import FolderError, payload_digest
from tercet.launch.ending import StageError
from tercet.recipe import KINDS, Recipe
from tercet.store import Artifact, Identity, Store

from .scale import times


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    yield Store(tmp_path / "runs")
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)


def commit(store: Store, name: str, inputs: dict[str, Artifact] | None = None) -> Artifact:
    """An artifact with files of several kinds."""
    identity = Identity("synth", 1, {"of": name}, {need: made.key for need, made in (inputs or {}).items()})
    draft = store.draft(name, identity.key)
    draft.open()
    (draft.payload / "deep" / "er").mkdir(parents=True, exist_ok=True)
    (draft.payload / "rows.txt").write_text("rows of it\n" * 50)
    (draft.payload / "deep" / "er" / "weights.bin").write_bytes(bytes(range(256)) * 20)
    (draft.payload / "empty").touch()
    (draft.work / "scratch").write_text("gone after")
    (draft.path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "loss": 0.25}\n')
    (draft.path / "log.txt").write_text("said something\n")
    read = {need: made.record["digest"] for need, made in (inputs or {}).items()}
    return draft.commit(identity, {"rows": 50.0, "loss": 0.25}, 2.5, read)


def open_up(made: Artifact) -> None:
    """Its owner may always make an artifact writable."""
    subprocess.run(["chmod", "-R", "u+w", str(made.path)], check=True)


# --- Every change is seen --------------------------------------------------------------------------------------------
FILES = ("payload/rows.txt", "payload/deep/er/weights.bin", "artifact.json", "metrics.jsonl", "log.txt")


def flipped(at: float) -> Callable[[Path], None]:
    def flip(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[round(at * (len(data) - 1))] ^= 1
        file.write_bytes(data)

    return flip


def replaced(by: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(file: Path) -> None:
        file.rename(file.with_name("moved-away"))
        by(file)

    return replace


CHANGES: dict[str, Callable[[Path], object]] = {
    "a bit of the first byte": flipped(0),
    "a bit in the middle": flipped(0.5),
    "a bit of the last byte": flipped(1),
    "cut in the middle": lambda file: os.truncate(file, file.stat().st_size // 2),
    "emptied": lambda file: os.truncate(file, 0),
    "a hole of zeros": lambda file: (size := file.stat().st_size, os.truncate(file, 4), os.truncate(file, size)),
    "removed": Path.unlink,
    "a folder in its place": replaced(Path.mkdir),
    "a pipe in its place": replaced(os.mkfifo),
    "a link to its own bytes": replaced(lambda file: file.symlink_to("moved-away")),
    "a link to nothing": replaced(lambda file: file.symlink_to("/nowhere/at/all")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("file", FILES)
def test_check_sees_a_changed_file(store: Store, file: str, change: str) -> None:
    made, other = commit(store, "words"), commit(store, "other")
    open_up(made)
    CHANGES[change](made.path / file)
    assert faults(made.path), "the change was not seen"
    assert faults(other.path) == []
    if not file.startswith(("log", "metrics")):  # whose damage must not cost what took days
        assert store.find("words", made.key) is None, "what is damaged was given to be read"
    assert store.find("other", other.key) == other


GROWN = ("payload/rows.txt", "payload/empty", "artifact.json", "metrics.jsonl")


@pytest.mark.parametrize("file", GROWN)
def test_check_sees_what_was_added_to_a_file(store: Store, file: str) -> None:
    made = commit(store, "words")
    open_up(made)
    with open(made.path / file, "a") as stream:
        stream.write(" ")
    assert faults(made.path)


def test_a_log_may_grow_until_its_process_ends_and_its_first_part_may_not_change(store: Store) -> None:
    made = commit(store, "words")
    open_up(made)
    with open(made.path / "log.txt", "a") as stream:
        stream.write("a last word of the process\n")
    assert faults(made.path) == []


RECORDED: dict[str, Any] = {
    "kind": "mix",
    "name": "word",
    "key": "0" * 12,
    "version": 2,
    "inputs": {"base": "0" * 12},
    "input_digests": {"base": "0" * 64},
    "spec": {"of": "others"},
    "metrics": {"rows": 50.0, "loss": 0.2},
    "digest": "0" * 64,
    "seconds": 2.4,
    "versions": {"tercet": "9"},
    "processor": "another",
    "beside": {},
    "record_digest": "0" * 64,
    "added": 1,
}


@pytest.mark.parametrize("field", RECORDED)
@pytest.mark.parametrize("without", [False, True], ids=["its digest kept", "its digest taken out"])
def test_check_sees_a_changed_field_of_the_record(store: Store, field: str, without: bool) -> None:
    made = commit(store, "words")
    open_up(made)
    record = made.record | {field: RECORDED[field]}
    if without:
        del record["record_digest"]
    (made.path / "artifact.json").write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n")
    assert faults(made.path)
    assert store.find("words", made.key) is None


WRECKS: dict[str, bytes] = {
    "no JSON": b"{",
    "a list": b"[]",
    "not UTF-8": b'{"kind": "\xff"}',
    "nested beyond any stack": b"[" * 200_000,
    "no fields": b"{}",
    "names that lead out of the store": json.dumps(
        {"kind": "mix", "name": "a", "key": "b", "digest": "", "metrics": {}, "inputs": {"../../etc": "passwd"}}
    ).encode(),
    "metrics that are text": json.dumps(
        {"kind": "mix", "name": "a", "key": "b", "digest": "", "metrics": {"loss": "low"}, "inputs": {}}
    ).encode(),
    "a number beyond limits": b'{"kind": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("wreck", WRECKS)
def test_a_wrecked_record_is_damage_and_no_traceback(store: Store, wreck: str) -> None:
    made, other = commit(store, "words"), commit(store, "other")
    open_up(made)
    (made.path / "artifact.json").write_bytes(WRECKS[wreck])
    assert any("damaged" in fault for fault in faults(made.path))
    assert store.fault("words", made.key)
    assert list(store) == [other]


def bound(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def stranger(path: Path) -> None:
    path.write_text("not of any stage")


STRANGERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a file": ("notes.txt", stranger),
    "a hidden file": (".hidden", stranger),
    "a folder": ("more", Path.mkdir),
    "a link": ("link", lambda path: path.symlink_to("/etc")),
    "a file that a kill cut short": (".artifact.json.7.part", stranger),
    "a file in the payload": ("payload/more.txt", stranger),
    "an empty file in the payload": ("payload/more.txt", Path.touch),
    "a hidden file in the payload": ("payload/deep/.hidden", stranger),
    "a link in the payload": ("payload/link", lambda path: path.symlink_to("rows.txt")),
    "a link to a folder in the payload": ("payload/link", lambda path: path.symlink_to("/etc")),
    "a pipe in the payload": ("payload/pipe", os.mkfifo),
    "a socket in the payload": ("payload/socket", bound),
}


@pytest.mark.parametrize("what", STRANGERS)
def test_check_sees_what_no_stage_wrote(store: Store, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = commit(store, "words")
    open_up(made)
    name, put = STRANGERS[what]
    monkeypatch.chdir(made.path)  # a socket's path is short
    put(Path(name))
    assert any(Path(name).name in fault or "payload has changed" in fault for fault in faults(made.path))


def test_check_sees_that_an_input_was_made_again_with_other_bytes(store: Store) -> None:
    base = commit(store, "base")
    made = commit(store, "words", {"base": base})
    assert faults(made.path) == []
    open_up(base)
    (base.payload / "rows.txt").write_text("other rows")
    record = base.record | {"digest": payload_digest(base.payload)}
    artifact_json.write(base.path, {name: value for name, value in record.items() if name != "record_digest"})
    assert [fault.split(":")[0] for fault in faults(made.path)] == [
        f"input {base.path.name} was made again and differs"
    ]


def test_a_changed_byte_under_an_old_time_is_not_read_from_what_is_remembered(store: Store) -> None:
    made = commit(store, "words")
    open_up(made)
    assert store.find("words", made.key) == made
    file = made.payload / "rows.txt"
    before = file.stat()
    flipped(0.5)(file)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert store.find("words", made.key) is None


ENTRIES: dict[str, Callable[[Path], object]] = {
    "emptied": lambda entry: os.truncate(entry, 0),
    "cut": lambda entry: os.truncate(entry, 20),
    "a bit": flipped(0.2),
    "another digest": lambda entry: entry.write_text("0" * 64),
    "a link": replaced(lambda entry: entry.symlink_to("/etc/passwd")),
    "a folder": replaced(Path.mkdir),
    "a pipe": replaced(os.mkfifo),
}


@pytest.mark.parametrize("change", ENTRIES)
def test_a_torn_entry_of_what_is_remembered_is_made_again(store: Store, change: str) -> None:
    made = commit(store, "words")
    entries = list(store.cache.iterdir())
    assert entries
    for entry in entries:
        ENTRIES[change](entry)
    assert store.find("words", made.key) == made
    assert faults(made.path) == []


# --- No link is followed ---------------------------------------------------------------------------------------------
def outside(tmp_path: Path) -> tuple[Path, Callable[[], list[tuple[str, int, bytes]]]]:
    """Somebody's own folder, and a picture of all that is in it."""
    folder = tmp_path / "own"
    (folder / "deep").mkdir(parents=True)
    for name in ("a.txt", ".b.part", "deep/c.txt"):
        (folder / name).write_text(f"{name} is mine")
    (folder / "a.txt").chmod(0o640)

    def picture() -> list[tuple[str, int, bytes]]:
        paths = sorted([folder, *folder.rglob("*")])
        return [(str(path), path.stat().st_mode, path.read_bytes() if path.is_file() else b"") for path in paths]

    return folder, picture


LINKS = {
    "the draft": "",
    "its payload": "payload",
    "its scratch": "work",
    "its log": "log.txt",
    "its job": "job.json",
    "its metrics": "metrics.jsonl",
    "a file of its payload": "payload/rows.txt",
    "a folder in its payload": "payload/deep",
    "a partial file of its payload": "payload/.rows.txt.7.part",
}


@pytest.mark.parametrize("target", ["", "a.txt", "nothing"], ids=["to a folder", "to a file", "to nothing"])
@pytest.mark.parametrize("where", LINKS)
def test_a_link_in_a_draft_is_refused_and_not_followed(store: Store, tmp_path: Path, where: str, target: str) -> None:
    folder, picture = outside(tmp_path)
    before, draft = picture(), store.draft("words", "0" * 12)
    link = draft.path / LINKS[where]
    link.parent.mkdir(parents=True)
    link.symlink_to(folder / target)
    with pytest.raises(FolderError, match="symbolic link"):
        draft.open()
    assert picture() == before
    draft.remove()
    assert picture() == before
    assert not os.path.lexists(draft.path)


@pytest.mark.parametrize("where", ["payload/link", "payload/deep/link", "log.txt", "metrics.jsonl"])
def test_a_link_that_a_stage_leaves_is_not_committed(store: Store, tmp_path: Path, where: str) -> None:
    folder, picture = outside(tmp_path)
    before, draft = picture(), store.draft("words", "0" * 12)
    draft.open()
    (draft.payload / "deep").mkdir()
    (draft.path / where).symlink_to(folder if "link" in where else folder / "a.txt")
    with pytest.raises(FolderError, match="symbolic link"):
        draft.commit(Identity("synth", 1, {}, {}), {}, 1.0)
    assert picture() == before
    assert store.folders() == []


@pytest.mark.parametrize("where", ["work/link", "stranger"])
def test_a_link_in_scratch_goes_with_it_and_what_it_leads_to_stays(store: Store, tmp_path: Path, where: str) -> None:
    folder, picture = outside(tmp_path)
    before, draft = picture(), store.draft("words", "0" * 12)
    draft.open()
    (draft.path / where).symlink_to(folder)
    draft.commit(Identity("synth", 1, {}, {}), {}, 1.0)
    assert picture() == before


@pytest.mark.parametrize("where", [".locks", ".locks/words-0", ".cache"])
def test_the_stores_own_folders_are_no_links(store: Store, tmp_path: Path, where: str) -> None:
    folder, picture = outside(tmp_path)
    before, link = picture(), store.root / where
    link.parent.mkdir(parents=True)
    link.symlink_to(folder / "a.txt" if "0" in where else folder)
    with pytest.raises(FolderError, match="symbolic link"), store.lock("words", "0", print):
        _ = store.cache
    assert picture() == before


def test_a_file_with_a_second_name_elsewhere_is_not_made_writable(store: Store, tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    weights.write_bytes(b"of a cache")
    weights.chmod(0o444)
    draft = store.draft("words", "0" * 12)
    draft.open()
    os.link(weights, draft.payload / "weights")
    draft.open()
    draft.remove()
    assert weights.stat().st_mode & 0o777 == 0o444


def test_a_store_behind_a_link_of_the_users_works(tmp_path: Path, store: Store) -> None:
    (tmp_path / "elsewhere").mkdir()
    store.root.symlink_to(tmp_path / "elsewhere")
    made = commit(store, "words")
    assert store.find("words", made.key) == made
    assert faults(made.path) == []


# --- One damaged artifact, and everybody else ------------------------------------------------------------------------
STAGE = """
import os
from pathlib import Path

def run(spec, inputs, out, ctx):
    text = "".join(sorted((made.payload / "rows.txt").read_text() for made in inputs.values()))
    (out / "rows.txt").write_text(f"{ctx.name}\\n{text}{os.environ.get('ANOTHER', '')}")
    if os.environ.get("HURTS") == ctx.name:  # another stage's result, between the plan and its reader
        [file] = ctx.store.root.glob("words-*/payload/rows.txt")
        os.chmod(file, 0o600)
        file.write_text("hurt")
    ctx.track.log(1, loss=0.5)
    return {"rows": 1.0}
"""
RECIPE = {
    "name": "small",
    "base": {"model": "tiny:"},
    "stage": {
        "words": {"kind": "synth", "generator": "words@1", "rows": 1},
        "other": {"kind": "synth", "generator": "facts@1", "rows": 1},
        "mixed": {"kind": "mix", "sources": [{"stage": "words"}]},
    },
}


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "plain_stage.py").write_text(STAGE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}:{os.environ.get('PYTHONPATH', '')}")
    for kind in ("synth", "mix", "base"):
        monkeypatch.setattr(KINDS[kind], "module", "plain_stage")
        monkeypatch.setattr(KINDS[kind], "version", 1)
    return Recipe.model_validate(RECIPE)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of its payload": lambda folder: flipped(0.5)(folder / "payload" / "rows.txt"),
    "a bit of its record": lambda folder: flipped(0.5)(folder / "artifact.json"),
    "half of its record": lambda folder: os.truncate(folder / "artifact.json", 100),
    "no record": lambda folder: (folder / "artifact.json").unlink(),
    "no payload": lambda folder: shutil.rmtree(folder / "payload"),
    "a link in its payload": lambda folder: (folder / "payload" / "link").symlink_to("/etc"),
    "a file in its place": lambda folder: (shutil.rmtree(folder), folder.touch()),
    "a link to nothing in its place": lambda folder: (shutil.rmtree(folder), folder.symlink_to("/nowhere")),
    "another artifact in its place": lambda folder: (
        shutil.rmtree(folder),
        shutil.copytree(next(folder.parent.glob("other-*")), folder),
    ),
}


def made_by(recipe: Recipe, store: Store, said: io.StringIO | None = None) -> dict[str, str]:
    """Run it; the digests of what it made."""
    found = pipeline.run(recipe, store, console=Console(file=said or io.StringIO(), width=500))
    return {name: str(artifact.record["digest"]) for name, artifact in found.items()}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_run_sets_a_damaged_artifact_aside_and_makes_it_again(
    recipe: Recipe, store: Store, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = made_by(recipe, store)
    lines = {line.name: line for line in pipeline.plan(recipe, store)}
    subprocess.run(["chmod", "-R", "u+w", str(store.root)], check=True)
    DAMAGES[damage](lines["words"].path)

    lines = {line.name: line for line in pipeline.plan(recipe, store)}
    assert {name for name, line in lines.items() if not line.exists} == {"words"}
    assert lines["words"].why.startswith("damaged: ")
    assert main(["check", "--store", str(store.root)]) == 3
    capsys.readouterr()
    said = io.StringIO()
    assert made_by(recipe, store, said) == before, "it ends in the bytes it had"
    assert "is set aside as .damaged-words-" in said.getvalue()
    assert len(list(store.root.glob(".damaged-words-*"))) == 1
    assert main(["check", "--store", str(store.root)]) == 0


def test_an_input_that_is_damaged_after_the_plan_is_not_read(
    recipe: Recipe, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HURTS", "other")
    with pytest.raises(StageError, match=r"stage 'mixed'.*damaged .payload has changed"):
        made_by(recipe, store)
    assert len(list(store.root.glob(".draft-mixed-*"))) == 1, "what a stage has done so far is kept"
    monkeypatch.setenv("HURTS", "nobody")
    assert made_by(recipe, store) == made_by(recipe, Store(store.root.with_name("whole")))


def test_a_stage_that_ends_in_other_bytes_than_the_damaged_ones_says_so(
    recipe: Recipe, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    made_by(recipe, store)
    subprocess.run(["chmod", "-R", "u+w", str(store.root)], check=True)
    flipped(0.5)(next(store.root.glob("words-*")) / "payload" / "rows.txt")
    monkeypatch.setenv("ANOTHER", "number")
    said = io.StringIO()
    made_by(recipe, store, said)
    assert "has another digest than the damaged one" in said.getvalue()
    assert main(["check", "--store", str(store.root)]) == 3, "what was made from it no longer fits"


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "another artifact in its place"])
def test_nobody_is_kept_from_the_others(store: Store, damage: str, capsys: pytest.CaptureFixture[str]) -> None:
    bad, base = commit(store, "bad"), commit(store, "base")
    made = commit(store, "words", {"base": base})
    open_up(bad)
    DAMAGES[damage](bad.path)
    assert [artifact.name for artifact in store if artifact.name != "bad"] == ["base", "words"]
    assert store.open("words") == store.find("words", made.key) == made
    assert store.lineage(made) == [base, made]
    assert main(["lineage", "words", "--store", str(store.root)]) == 0
    assert main(["check", "words", "--store", str(store.root)]) == 0
    capsys.readouterr()
    assert main(["check", "--store", str(store.root), "--json"]) == 3
    told = json.loads(capsys.readouterr().out)
    assert set(told["faults"]) == {bad.path.name}
    assert main(["report", str(store.root)]) == 2
    assert "holds no report" in capsys.readouterr().err
    assert main(["lineage", "bad", "--store", str(store.root)]) == 2
    assert "bad-" in capsys.readouterr().err


# --- Kills inside a commit -------------------------------------------------------------------------------------------
KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from attack.test_store import commit
from tercet.store import Store
left = {point}
def counted(call):
    def calling(*args, **kwargs):
        global left
        left -= 1
        if left == 0 and {when!r} == "before":
            os.kill(os.getpid(), 9)
        try:
            return call(*args, **kwargs)
        finally:  # some calls fail and are meant to, such as removing what is not there
            if left == 0:
                os.kill(os.getpid(), 9)
    return calling
for name in ("fsync", "rename", "replace", "chmod", "unlink", "rmdir"):
    setattr(os, name, counted(getattr(os, name)))
commit(Store({root!r}), "words")
os.write(1, b"%d" % left)
"""


def killed(store: Store, point: int, when: str) -> str:
    """Commit in another process and kill it at that call; what it said, which is nothing where it was killed."""
    tests = str(Path(__file__).parents[1])
    script = KILLED.format(tests=tests, point=point, when=when, root=str(store.root))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode in (0, -9), done.stderr
    return done.stdout


def test_a_commit_that_is_killed_at_any_call_ends_in_the_same_bytes(store: Store, tmp_path: Path) -> None:
    whole = commit(Store(tmp_path / "whole"), "words")
    calls = 10_000 - int(killed(Store(tmp_path / "counted"), 10_000, "before"))
    points = [(point, when) for point in range(1, calls + 1) for when in ("before", "after")]
    assert len(points) >= 60
    for number, (point, when) in enumerate(points[:: len(points) // times(60)]):
        own = Store(tmp_path / f"killed-{number}")
        assert killed(own, point, when) == ""
        assert own.clear("words", whole.key) == ([], ""), "a kill is no damage"
        found, draft = own.find("words", whole.key), own.draft("words", whole.key)
        if found is None:
            draft.open()
            found = draft.seal() if draft.is_sealed() else commit(own, "words")
        assert found.record["digest"] == whole.record["digest"]
        assert faults(found.path) == []
        assert not draft.path.exists()
