from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
import threading
import time

import pytest

from tercet import folders
from tercet.artifact_json import DamagedArtifactError
from tercet.faults import faults
from tercet.folders import file_digest, payload_digest
from tercet.store import Artifact, DiskFullError, Identity, Store, StoreError, source_digest

IDENTITY = Identity("synth", 1, {"rows": 3, "seed": 0}, {})
OF_NOW = ("record_digest", "input_digests", "beside")  # fields that early records have not


@pytest.fixture
def store(tmp_path):
    yield Store(tmp_path / "runs")
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)


def make(store: Store, name: str = "words", inputs: dict[str, str] | None = None, text: str = "x") -> Artifact:
    identity = Identity("synth", 1, {"text": text}, inputs or {})
    draft = store.draft(name, identity.key)
    draft.open()
    (draft.payload / "rows.txt").write_text(text)
    (draft.work / "scratch").write_text("gone after")
    (draft.path / "log.txt").write_text("said")
    return draft.commit(identity, {"rows": 1.0}, 2.5)


def test_a_key_depends_on_everything_that_decides_the_result():
    others = [
        Identity("mix", 1, IDENTITY.spec, {}),
        Identity("synth", 2, IDENTITY.spec, {}),
        Identity("synth", 1, {"rows": 4, "seed": 0}, {}),
        Identity("synth", 1, IDENTITY.spec, {"base": "0" * 12}),
    ]
    assert len({IDENTITY.key, *(other.key for other in others)}) == 5
    assert Identity("synth", 1, {"seed": 0, "rows": 3}, {}).key == IDENTITY.key


def test_keys_stay_as_they_are():
    assert IDENTITY.key == "32d4adab7d50"


def test_a_committed_folder_says_where_it_came_from(store):
    made = make(store)
    assert store.find("words", made.key) == made
    assert made.record["digest"] == payload_digest(made.payload)
    assert made.record["seconds"] == 2.5
    assert made.metrics == {"rows": 1.0}
    assert sorted(path.name for path in made.path.iterdir()) == ["artifact.json", "log.txt", "payload"]


def test_a_committed_folder_is_read_only(store):
    made = make(store)
    assert all(not path.stat().st_mode & 0o222 for path in [made.path, *made.path.rglob("*")])


def test_nothing_is_visible_before_the_commit(store):
    draft = store.draft("words", IDENTITY.key)
    draft.open()
    (draft.payload / "half").write_text("…")
    assert list(store) == []
    assert store.find("words", IDENTITY.key) is None


def test_a_commit_that_was_killed_after_the_record_is_finished_by_sealing(store, monkeypatch):
    monkeypatch.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        make(store)
    monkeypatch.undo()
    [path] = store.root.glob(".draft-*")
    draft = store.draft("words", path.name[-12:])
    draft.open()
    assert draft.seal().metrics == {"rows": 1.0}
    assert not path.exists()


def test_a_file_that_a_kill_cut_short_does_not_stay_in_the_payload(store):
    draft = store.draft("words", IDENTITY.key)
    draft.open()
    code = """
import os, pathlib, sys
from tercet.journal import replacing
with replacing(pathlib.Path(sys.argv[1])) as partial:
    partial.write_text("half")
    os._exit(9)
"""
    assert subprocess.run([sys.executable, "-c", code, str(draft.payload / "rows.txt")], check=False).returncode == 9
    assert len(list(draft.payload.iterdir())) == 1
    draft.open()
    assert list(draft.payload.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_gives_one_clear_error_and_commits_nothing(store, monkeypatch, call):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(DiskFullError, match="is full; nothing was committed"):
        make(store)
    monkeypatch.undo()
    assert list(store) == []
    assert make(store).metrics


def test_a_removed_draft_leaves_nothing(store):
    draft = store.draft("words", IDENTITY.key)
    draft.open()
    draft.payload.chmod(0o500)
    draft.remove()
    assert list(store.root.iterdir()) == []


def test_check_finds_a_changed_payload_a_changed_record_and_a_missing_input(store):
    base = make(store, "base")
    made = make(store, "words", {"base": base.key})
    assert faults(made.path) == []
    file = made.payload / "rows.txt"
    file.chmod(0o600)
    file.write_text("y")
    assert "payload has changed" in faults(made.path)[0]
    older = {name: value for name, value in made.record.items() if name not in OF_NOW}
    record = made.path / "artifact.json"
    record.chmod(0o600)
    record.write_text(json.dumps(older | {"spec": {"text": "other"}}))
    assert any("does not fit what is recorded" in fault for fault in faults(made.path))
    subprocess.run(["chmod", "-R", "u+w", str(base.path)], check=True)
    shutil.rmtree(base.path)
    assert any("is missing" in fault for fault in faults(made.path))


def test_lineage_walks_inputs_first_and_each_once(store):
    base = make(store, "base")
    left, right = (make(store, name, {"base": base.key}, name) for name in ("left", "right"))
    top = make(store, "top", {"left": left.key, "right": right.key})
    assert [artifact.name for artifact in store.lineage(top)] == ["base", "left", "right", "top"]


def test_lineage_of_a_long_chain_does_not_recurse_and_a_circle_is_named(store):
    for number in range(1500):
        folder = store.root / f"s-{number:012}"
        folder.mkdir(parents=True)
        inputs = {"s": f"{number - 1:012}"} if number else {}
        record = {"kind": "mix", "name": "s", "key": f"{number:012}", "inputs": inputs, "metrics": {}}
        record["digest"] = "0" * 64
        (folder / "artifact.json").write_text(json.dumps(record), encoding="utf-8")
    top = Artifact.read(store.root / f"s-{1499:012}")
    assert len(store.lineage(top)) == 1500
    first = store.root / f"s-{0:012}" / "artifact.json"
    first.write_text(first.read_text().replace('"inputs": {}', f'"inputs": {{"s": "{700:012}"}}'), encoding="utf-8")
    with pytest.raises(StoreError, match="made from itself"):
        store.lineage(top)


def test_lineage_names_a_missing_input(store):
    with pytest.raises(StoreError, match="was made from gone-000000000000"):
        store.lineage(make(store, "words", {"gone": "0" * 12}))


def test_artifacts_open_by_folder_by_full_name_and_by_stage_where_only_one_exists(store):
    made = make(store)
    assert store.open(made.path) == store.open(made.path.name) == store.open("words") == made
    make(store, text="other")
    with pytest.raises(StoreError, match="several artifacts"):
        store.open("words")
    with pytest.raises(StoreError, match="no such artifact"):
        store.open("wrods")


def test_a_damaged_record_is_named(store):
    made = make(store)
    (made.path / "artifact.json").chmod(0o600)
    (made.path / "artifact.json").write_text("{")
    with pytest.raises(DamagedArtifactError, match="damaged"):
        Artifact.read(made.path)


def test_payload_digest_sees_names_and_bytes_but_not_times(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "file").write_text("same")
        time.sleep(0.01)
    assert payload_digest(tmp_path / "a") == payload_digest(tmp_path / "b")
    (tmp_path / "b" / "deep" / "file").rename(tmp_path / "b" / "deep" / "other")
    assert payload_digest(tmp_path / "a") != payload_digest(tmp_path / "b")


def test_a_local_source_is_hashed_once_while_it_stays_the_same(tmp_path, monkeypatch):
    file = tmp_path / "rows.jsonl"
    file.write_text("{}")
    time.sleep(0.05)  # what changed within the clock's last tick is not remembered
    first = source_digest(file, tmp_path / "cache")
    assert first == file_digest(file)
    monkeypatch.setattr(folders, "file_digest", lambda _: pytest.fail("hashed again"))
    assert source_digest(file, tmp_path / "cache") == first
    monkeypatch.undo()
    file.write_text("{} ")
    assert source_digest(file, tmp_path / "cache") != first


def test_an_artifact_as_source_is_known_by_its_recorded_digest(store):
    made = make(store)
    assert source_digest(made.payload) == made.record["digest"]


def test_a_second_holder_of_a_lock_waits_and_says_for_whom(store):
    said, order = [], []

    def second():
        with store.lock("words", "key", said.append):
            order.append("second")

    with store.lock("words", "key", said.append):
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]
    assert said == [str(os.getpid())]


def test_a_lock_outlives_its_process_while_a_child_holds_it(store):
    script = (
        "import os, subprocess, sys; from tercet.store import Store\n"
        f"with Store({str(store.root)!r}).lock('words', 'key', print) as lock:\n"
        "    subprocess.Popen(['sleep', '1'], pass_fds=(lock,)); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == -9
    said, began = [], time.monotonic()
    with store.lock("words", "key", said.append):
        assert len(said) == 1
        assert time.monotonic() - began > 0.3
