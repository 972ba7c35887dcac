"""What was appended survives a kill, a line that was cut short is no record, and a file is replaced whole or not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet import journal
from tercet.journal import (
    DamagedError,
    Journal,
    JournalError,
    intact,
    mend,
    open_plain,
    replace,
    replacing,
    seal,
    stamp,
    unseal,
    write_json,
)

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()
RECORDS = st.lists(st.dictionaries(st.text(), SCALARS | st.lists(SCALARS), max_size=3), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("journal") / "deep" / "log.jsonl"


def written(file: Path, records: list) -> bytes:
    file.unlink(missing_ok=True)
    with Journal(file) as log:
        for record in records:
            log.append(record)
    return file.read_bytes()


@settings(deadline=None, max_examples=30)
@given(records=RECORDS, chance=st.randoms())
def test_every_prefix_of_the_bytes_is_a_prefix_of_the_records_and_goes_on_from_there(file, records, chance):
    whole = written(file, records)
    for end in {0, len(whole) - 1, len(whole), *(chance.randrange(len(whole)) for _ in range(5))}:
        file.write_bytes(whole[:end])
        kept = records[: whole[:end].count(b"\n")]
        assert list(journal.read(file)) == kept
        assert file.read_bytes() == whole[:end], "who only reads changes nothing"
        with Journal(file) as log:
            assert [record for record, _ in log] == kept
            log.append("next")
        assert list(journal.read(file)) == [*kept, "next"]


@settings(deadline=None, max_examples=30)
@given(records=RECORDS, chance=st.randoms())
def test_damage_before_the_end_is_an_error_that_names_file_and_line(file, records, chance):
    lines = written(file, [*records, {}]).splitlines(keepends=True)
    number = chance.randrange(len(records))
    lines[number] = chance.choice([b"\n", b"\0\0\0\n", b"\xff{}\n", lines[number][:-2] + b"\n", b"{}{}\n"])
    file.write_bytes(b"".join(lines))
    with pytest.raises(JournalError, match=rf"log\.jsonl, line {number + 1}: damaged"):
        list(journal.read(file))
    with Journal(file) as log, pytest.raises(JournalError, match=rf"log\.jsonl, line {number + 1}: damaged"):
        list(log)


@settings(deadline=None, max_examples=30)
@given(records=RECORDS)
def test_a_record_is_found_again_by_its_place(file, records):
    file.unlink(missing_ok=True)
    with Journal(file, sync_every=0) as log:
        places = [log.append(record) for record in records]
        assert [log[place] for place in places] == records
        assert [place for _, place in log] == places


@pytest.mark.parametrize("size", [journal.TAIL - 3, journal.TAIL, 20 * journal.TAIL])
def test_a_long_line_that_was_cut_short_is_taken_off_whole(file, size):
    for kept in (b"", b'"kept"\n', b'"kept"\n' * 30_000):
        file.write_bytes(kept + b'"' + b"x" * size)
        Journal(file).close()
        assert file.read_bytes() == kept


def test_a_file_that_is_not_there_holds_nothing(tmp_path):
    assert list(journal.read(tmp_path / "none")) == []


def test_a_damaged_journal_does_not_cost_the_finished_work_of_a_stage():
    assert not issubclass(JournalError, ValueError), "a stage that ends with one has its draft removed"


@pytest.mark.parametrize(
    ("every", "during", "closing"), [(1, [1, 2, 3, 4, 5], 5), (2, [0, 1, 1, 2, 2], 3), (0, [0, 0, 0, 0, 0], 0)]
)
def test_records_are_put_on_the_disk_as_often_as_was_asked(tmp_path, monkeypatch, every, during, closing):
    synced: list[int] = []
    (tmp_path / "log").touch()
    monkeypatch.setattr(os, "fsync", synced.append)
    with Journal(tmp_path / "log", sync_every=every) as log:
        for number, expected in enumerate(during):
            log.append(number)
            assert len(synced) == expected
            assert list(journal.read(log.path))[-1] == number, "other processes see it at once"
    assert len(synced) == closing
    with Journal(tmp_path / "log", sync_every=every) as log:
        log.sync()
    assert len(synced) == closing + 1


def test_a_killed_writer_loses_nothing_that_it_had_appended(tmp_path):
    code = """
import itertools, sys
from pathlib import Path
from tercet.journal import Journal
with Journal(Path(sys.argv[1]), sync_every=0) as log:
    for number in itertools.count():
        log.append([number, "x" * 50_000])
        sys.stdout.write(f"{number}\\n")
        sys.stdout.flush()
"""
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        for _ in range(30):
            child.stdout.readline()
        child.send_signal(signal.SIGKILL)
        announced = 30 + child.stdout.read().count(b"\n")
    found = [number for number, _ in journal.read(tmp_path / "log")]
    assert found == list(range(len(found)))
    assert announced <= len(found) <= announced + 1


def test_one_writer_at_a_time(tmp_path):
    with Journal(tmp_path / "log"), pytest.raises(JournalError, match="another run has this file open"):
        Journal(tmp_path / "log")
    Journal(tmp_path / "log").close()


def test_many_may_append_one_after_another(tmp_path):
    def work(number: int) -> None:
        for turn in range(20):
            journal.append(tmp_path / "log", [number, turn], sync=False)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(journal.read(tmp_path / "log")) == [[number, turn] for number in range(8) for turn in range(20)]


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path):
    file, texts = tmp_path / "file", ["a" * 200_000, "bb" * 5]
    replace(file, texts[0])
    seen: set[str] = set()
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.add(file.read_text())

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(200):
        replace(file, texts[number % 2], sync=False)
    stop.set()
    reader.join()
    assert seen <= set(texts)
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("sync", [True, False])
def test_a_new_file_is_on_the_disk_before_it_takes_its_place_and_its_name_after(tmp_path, monkeypatch, sync):
    file, synced = tmp_path / "file", []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append((os.fstat(handle).st_ino, file.exists())))
    replace(file, b"whole", sync=sync)
    expected = [(file.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
    assert (file.read_bytes(), synced) == (b"whole", expected if sync else [])


def test_a_journal_is_not_written_where_a_link_leads(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "log").symlink_to(tmp_path / "mine")
    with pytest.raises(JournalError, match="symbolic link"):
        journal.append(tmp_path / "log", 1)
    assert (tmp_path / "mine").read_text() == "mine"


def test_the_names_of_new_folders_and_of_a_new_journal_are_put_on_the_disk(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    Journal(tmp_path / "a" / "b" / "log").close()
    assert synced == [path.stat().st_ino for path in (tmp_path, tmp_path / "a", tmp_path / "a" / "b")]


def test_where_writing_fails_the_old_file_stays_and_nothing_else(tmp_path):
    replace(tmp_path / "file", "old")

    def fail() -> None:
        with replacing(tmp_path / "file") as partial:
            partial.write_text("half of the n")
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail()
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("file", "old")]


def test_a_hard_link_keeps_the_bytes_it_had(tmp_path):
    replace(tmp_path / "file", "old")
    os.link(tmp_path / "file", tmp_path / "link")
    replace(tmp_path / "file", "new")
    assert [(tmp_path / name).read_text() for name in ("file", "link")] == ["new", "old"]


def test_json_is_read_back_as_it_was_and_sorted_keys_make_equal_bytes(tmp_path):
    value, turned = {"b": ["ü", 1.5, None], "a": {}}, {"a": {}, "b": ["ü", 1.5, None]}
    for name, one in (("one", value), ("two", turned)):
        write_json(tmp_path / name, one, sort_keys=True)
        assert json.loads((tmp_path / name).read_text("utf-8")) == value
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "one", float("nan"), allow_nan=False)


def test_a_sealed_text_comes_back_and_no_flipped_bit_or_lost_byte_of_it_goes_unseen(tmp_path):
    file, text = tmp_path / "file", '{"step": 1}\nü'
    seal(file, text)
    assert unseal(file) == text
    whole = file.read_bytes()
    for bit in range(8 * len(whole)):
        file.write_bytes(bytes(byte ^ (1 << bit % 8) if i == bit // 8 else byte for i, byte in enumerate(whole)))
        with pytest.raises(DamagedError, match=str(file)):
            unseal(file)
    for size in range(len(whole) - 1):  # without its last line feed it is still all there
        file.write_bytes(whole[:size])
        with pytest.raises(DamagedError):
            unseal(file)


def test_no_flipped_bit_of_a_checked_journal_changes_a_record_and_the_others_stay(tmp_path):
    file, said = tmp_path / "log.jsonl", []
    records = [{"round": 0, "text": "ü"}, {"round": 1}, {"round": 2, "deep": {"check": [1]}}]
    for record in records:
        journal.append(file, record, checked=True)
    whole = file.read_bytes()
    assert list(journal.read(file)) == records
    for bit in range(8 * len(whole)):
        file.write_bytes(bytes(byte ^ (1 << bit % 8) if i == bit // 8 else byte for i, byte in enumerate(whole)))
        mend(file, said.append)
        left = list(journal.read(file))
        assert left != records
        assert left == [record for record in records if record in left]
    assert len(said) >= 8 * (len(whole) - 1)  # a lost line feed at the end is what a kill leaves


@pytest.mark.parametrize(("tail", "left"), [(False, [0, 2, 3]), (True, [0])])
def test_lines_of_an_older_version_stay_and_what_follows_damage_may_have_to_go(tmp_path, tail, left):
    file, said = tmp_path / "log.jsonl", []
    for number in range(4):
        journal.append(file, {"number": number}, checked=number > 0)
    file.write_text(file.read_text().replace('"number": 1', '"number": 7'))
    with pytest.raises(JournalError, match="line 2: damaged"):
        list(journal.read(file))
    mend(file, said.append, tail=tail)
    assert [record["number"] for record in journal.read(file)] == left
    assert said == [f"{file} was damaged: {4 - len(left)} of 4 lines are removed, and what they held is made again"]
    mend(file, said.append)
    mend(tmp_path / "none", said.append)
    assert len(said) == 1
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(JournalError, match="a link"):
        mend(tmp_path / "link", said.append)


def test_a_stamped_file_is_whole_until_a_byte_of_it_or_of_its_stamp_changes(tmp_path):
    file, place = tmp_path / "file", tmp_path / "place"
    place.mkdir()
    file.write_bytes(bytes(range(50)))
    assert not intact(file)
    for where in (None, place):
        stamp(file, where)
        assert intact(file, where)
    file.write_bytes(bytes(range(49)))
    assert not intact(file)
    assert not intact(file, place)
    stamp(file)
    (tmp_path / "file.sha256").write_text("")
    assert not intact(file)
    file.unlink()
    assert not intact(file)


def test_a_link_a_pipe_and_a_device_are_not_read_as_files(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "link", tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(DamagedError, match=str(path)):
            open_plain(path)
    with open_plain(tmp_path / "file") as stream:
        assert stream.read() == b"text"
