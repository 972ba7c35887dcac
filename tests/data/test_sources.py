"""Every layout becomes the same conversations, and what cannot is refused with its place and a remedy."""

from __future__ import annotations

import gzip
import json
import random
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.data.decontaminate_files import batches
from tercet.data.sources import ADAPTERS, Reading, check_verifiers, draw, from_hub, label, load, load_pairs, lot
from tercet.recipe import ExamplesSpec, SourceSpec
from tercet.rows import Message, Pair, Row, RowError, write_table
from tercet.store import Artifact

Write = Callable[..., Path]
TURNS = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]
CHAT = (Message("user", "Hi?"), Message("assistant", "Hello."))


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def jsonl(*values: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        text = "".join(value if isinstance(value, str) else json.dumps(value) + "\n" for value in values)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
        return path

    return jsonl


def rows(path: Path | str, mirror: dict[str, str] | None = None, **options: Any) -> list[Row]:
    return list(load(SourceSpec(path=str(path), **options), {}, mirror or {}, Reading()))


def test_messages_layout(write: Write) -> None:
    path = write(
        {"id": "a", "messages": TURNS, "source": "s", "verifier": "gsm8k@1", "reference": "3"}, {"messages": TURNS}
    )
    assert rows(path) == [
        Row("a", CHAT, source="s", verifier="gsm8k@1", reference="3"),
        Row("rows.jsonl-2", CHAT, source="rows.jsonl"),
    ]


def test_tulu_layout_keeps_its_three_columns(write: Write) -> None:
    path = write({"id": 7, "messages": TURNS, "source": "ai2/x", "verifier": "not ours", "other": None})
    assert rows(path, adapter="tulu_sft") == [Row("7", CHAT, source="ai2/x")]


def test_gsm8k_layout_gets_its_verifier_and_loses_its_calculator(write: Write) -> None:
    answer = "It is 2 * 600 = <<2*600=1200>>1,200.\n#### 1,200"
    (row,) = rows(write({"question": "How much?", "answer": answer}), adapter="gsm8k")
    assert (row.verifier, row.reference) == ("gsm8k@2", "1200")
    assert row.answer == "It is 2 * 600 = 1,200.\n#### 1,200"


def test_alpaca_layout_puts_the_input_behind_the_instruction(write: Write) -> None:
    path = write(
        {"instruction": "Translate.", "input": "Bonjour", "output": "Hello"},
        {"instruction": "Greet.", "input": "", "response": "Hello"},
    )
    made = rows(path, adapter="alpaca")
    assert [row.user_turns for row in made] == [["Translate.\n\nBonjour"], ["Greet."]]
    assert [row.answer for row in made] == ["Hello", "Hello"]


def test_sharegpt_layout(write: Write) -> None:
    turns = [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]
    (row,) = rows(write({"conversations": turns, "system": "Be kind."}), adapter="sharegpt")
    assert row.messages == (Message("system", "Be kind."), *CHAT)


def test_a_stage_is_read_from_its_payload(tmp_path: Path) -> None:
    made = [Row("a", CHAT, source="words@1"), Row("b", CHAT)]
    write_table(tmp_path / "payload" / "rows.parquet", made)
    stage = Artifact("synth", "words", "0" * 64, tmp_path, {}, {})
    read = list(load(SourceSpec(stage="words"), {"words": stage}, {}, Reading()))
    assert read == [made[0], Row("b", CHAT, source="words")]


@pytest.mark.parametrize(
    ("value", "options", "message"),
    [
        ({"messages": TURNS[:1]}, {}, r"rows\.jsonl, row 2: has no assistant turn.*require_answer = false"),
        ({"messages": TURNS[1:]}, {}, r"row 2: has no user turn"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": " \n"}]}, {}, r"row 2: has an empty completion"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": None}]}, {}, r"row 2: has an empty completion"),
        ({"messages": [TURNS[0], {"role": "assistant"}]}, {}, r"row 2: turn 1 must be an object"),
        ({"messages": [TURNS[0], {"role": "robot", "content": "x"}]}, {}, r"row 2: turn 1 has role 'robot'"),
        ({"messages": []}, {}, r"row 2: has no messages"),
        ({"messages": "hello"}, {}, r"row 2: expected a 'messages' list, got the keys messages"),
        ({"text": "hello"}, {"adapter": "rows"}, r"row 2: expected a 'messages' list, got the keys text"),
        ({"messages": [TURNS[0], {"role": "assistant", "content": "\ud800"}]}, {}, r"line 2: half of a surrogate pair"),
        ({"messages": TURNS, "skill": "\udfff"}, {}, r"line 2: half of a surrogate pair"),
        ({"messages": TURNS, "verifier": "\udfff"}, {}, r"line 2: half of a surrogate pair"),
        ('{"id": "a", "messages": [], "id": "b"}\n', {}, r"line 2: the key 'id' stands twice in one object"),
        ('{"messages": [{"role": "user", "role": "user"}]}\n', {}, r"line 2: the key 'role' stands twice"),
        ('{"messages": \n', {}, r"rows\.jsonl, line 2: not valid JSON"),
        ("[1, 2]\n", {}, r"rows\.jsonl, line 2: expected a JSON object, got list"),
        ({"question": "How?"}, {"adapter": "gsm8k"}, r"expected text under answer, got the keys question"),
        ({"question": "How?", "answer": "3"}, {"adapter": "gsm8k"}, r"must end in '#### NUMBER', got '3'"),
        ({"instruction": "Do"}, {"adapter": "alpaca"}, r"expected text under response"),
        ({"messages": TURNS}, {"adapter": "sharegpt"}, r"expected a 'conversations' list"),
        ({"conversations": [{"from": "narrator", "value": ""}]}, {"adapter": "sharegpt"}, "from 'narrator'"),
        ({"conversations": ["hello"]}, {"adapter": "sharegpt"}, "'from' and 'value', got 'hello'"),
    ],
)
def test_a_bad_row_is_refused_with_its_place(write: Write, value: Any, options: dict[str, Any], message: str) -> None:
    good = {
        "messages": TURNS,
        "question": "How?",
        "answer": "#### 3",
        "instruction": "Do",
        "output": "Done",
        "conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}],
    }
    with pytest.raises(RowError, match=message):
        rows(write(good, value), max_bad=0, **options)


def test_what_is_left_out_is_counted(write: Write) -> None:
    blank = [TURNS[0], {"role": "assistant", "content": " "}]
    path = write(
        {"model": "gpt-4", "conversation": TURNS},
        {"model": "gpt-3.5-turbo", "conversation": TURNS},
        {"model": "gpt-4-turbo", "conversation": blank},
    )
    reading = Reading()
    (row,) = load(SourceSpec(path=str(path), adapter="wildchat"), {}, {}, reading)
    assert row.messages == CHAT
    assert reading.skipped == {"not answered by GPT-4": 1, "empty answer": 1}
    assert (reading.read, reading.kept) == (3, 1)


def test_pairs_are_read_from_a_stage_and_checked(tmp_path: Path, write: Write) -> None:
    made = [Pair("a", CHAT, (CHAT[0], Message("assistant", "Go.")), chosen_rating=4.0)]
    write_table(tmp_path / "payload" / "pairs.parquet", made)
    stage = Artifact("on_policy_pairs", "preference-data", "0" * 64, tmp_path, {}, {})
    (pair,) = load_pairs(SourceSpec(stage="preference-data"), {"preference-data": stage}, {}, Reading())
    assert (pair.source, pair.chosen_rating, pair.rejected) == ("preference-data", 4.0, made[0].rejected)
    path = write(
        {"prompt": "Hi?", "chosen": "\ud800", "rejected": "x"}, {"prompt": "Hi?", "chosen": "x", "rejected": ""}
    )
    with pytest.raises(RowError, match="line 1: half of a surrogate pair"):
        list(load_pairs(SourceSpec(path=str(path), adapter="prompt_pair", max_bad=0), {}, {}, Reading()))
    path = write({"prompt": "Hi?", "chosen": "y", "rejected": "x", "rejected_model": "\ud800"})
    with pytest.raises(RowError, match="line 1: half of a surrogate pair"):
        list(load_pairs(SourceSpec(path=str(path), adapter="prompt_pair", max_bad=0), {}, {}, Reading()))


@pytest.mark.parametrize("name", ["tree.json", "tree.json.gz"])
def test_prompts_are_found_in_nested_lists(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    text = json.dumps({"physics": {"light": ["How?", "Why?"]}, "arts": ["Who?"]}).encode()
    path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    made = rows(path, adapter="prompt_tree", require_answer=False)
    assert [(row.user_turns, row.template) for row in made] == [
        (["How?"], "physics/light"),
        (["Why?"], "physics/light"),
        (["Who?"], "arts"),
    ]
    path.write_bytes(gzip.compress(b'{"a": [3]}') if name.endswith("gz") else b'{"a": [3]}')
    with pytest.raises(RowError, match=r"expected nested lists and objects of texts, got 3 under 'a'"):
        rows(path, adapter="prompt_tree", require_answer=False)


def test_rows_that_are_only_rewarded_need_no_answer(write: Write) -> None:
    (row,) = rows(write({"messages": TURNS[:1]}), require_answer=False)
    assert row.answer is None


def test_an_unknown_adapter_lists_the_known_ones(write: Write) -> None:
    with pytest.raises(RowError, match=f"unknown adapter 'csv'.*{', '.join(sorted(ADAPTERS))}"):
        rows(write({"messages": TURNS}), adapter="csv")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(RowError, match=r"absent\.jsonl: no such file"):
        rows("absent.jsonl")


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.jsonl", "rows.parquet", "rows.tsv"])
def test_a_broken_file_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x1f\x8b\x08\x00\xff\xfe nothing of that kind")
    with pytest.raises(RowError, match=rf"{name}(: cannot be read after row 0|, line 1: (cannot be read|not UTF-8))"):
        rows(path)


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.csv", "rows.tsv.gz"])
def test_a_row_that_is_not_utf_8_is_named(tmp_path: Path, name: str) -> None:
    """Readers that decode in blocks of some kilobytes would blame an earlier row."""
    mark = "\t" if "tsv" in name else ","
    good = json.dumps({"prompt": "Hi?"}) if "jsonl" in name else f"Hi{mark}x"
    lines = [good if "jsonl" in name else f"prompt{mark}more", *[good] * 2000]
    data = "\n".join(lines).encode().splitlines()
    data[1000] = data[1000].replace(b"Hi", b"Caf\xe9")
    (tmp_path / name).write_bytes(gzip.compress(b"\n".join(data)) if name.endswith("gz") else b"\n".join(data))
    with pytest.raises(RowError, match=rf"{name}, line 1001: not UTF-8 \(.* at its byte \d+\)"):
        rows(tmp_path / name, adapter="prompt_only", require_answer=False, max_bad=0)


@pytest.mark.parametrize("packed", [False, True])
def test_tables_may_be_parted_by_tabs(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("rows.tsv.gz" if packed else "rows.tsv")
    text = b'vanilla\tadversarial\tcompletion\tdata_type\nHi, you?\t"a ""b""\tc"\tNo.\tadversarial_harmful\n'
    path.write_bytes(gzip.compress(text) if packed else text)
    (row,) = rows(path, adapter="wildjailbreak")
    assert (row.user_turns, row.answer) == (['a "b"\tc'], "No.")
    assert label(SourceSpec(path=str(path))) == path.name


def test_a_table_of_one_row_group_is_not_held_whole(tmp_path: Path) -> None:
    path, draw_text = tmp_path / "rows.parquet", random.Random(0).randbytes
    write_table(path, [{"instruction": draw_text(200).hex(), "output": "x"} for _ in range(60_000)])
    assert path.stat().st_size > 12_000_000
    before = pa.total_allocated_bytes()
    reading = load(SourceSpec(path=str(path), adapter="alpaca"), {}, {}, Reading())
    assert max(pa.total_allocated_bytes() for number, _ in enumerate(reading) if number % 500 == 0) < before + 4_000_000
    assert max(pa.total_allocated_bytes() for _ in batches(path)) < before + 6_000_000


def test_tables_parted_by_tabs_come_in_batches_too(tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("prompt\tmore\nHi, you?\t1\n")
    (batch,) = batches(path)
    assert list(batch.objects()) == [({"prompt": "Hi, you?", "more": "1"}, f"{path}, row 1")]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet", "rows.csv"])
def test_reading_holds_a_piece_of_a_file_not_the_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    values = ({"instruction": f"{i} " + "x" * 400, "output": "y" * 400} for i in range(20_000))
    if name.endswith("jsonl"):
        path.write_text("".join(json.dumps(value) + "\n" for value in values))
    elif name.endswith("csv"):
        path.write_text("instruction,output\n" + "".join(",".join(value.values()) + "\n" for value in values))
    else:
        write_table(path, list(values))
    source, reading = SourceSpec(path=str(path), adapter="alpaca"), Reading()
    tracemalloc.start()
    try:
        assert sum(1 for _ in load(source, {}, {}, reading)) == 20_000
        assert tracemalloc.get_traced_memory()[1] < 6 << 20  # the file holds 16 MB of text
    finally:
        tracemalloc.stop()


LINES = st.sampled_from(
    [b'{"messages": [', b'{"role": "user", "content": "a"}', b"]}", b"\n", b"\x00", b"[" * 3000, b"\xff", b"1"]
)


@given(
    st.lists(LINES | st.binary(max_size=8), max_size=8).map(b"".join), st.sampled_from(["jsonl", "json", "csv", "tsv"])
)
def test_whatever_a_file_holds_it_is_read_or_named(tmp_path: Path, data: bytes, kind: str) -> None:
    for packed in (False, True):
        path = tmp_path / f"rows.{kind}{'.gz' if packed else ''}"
        path.write_bytes(gzip.compress(data) if packed else data)
        reading = Reading()
        source = SourceSpec(path=str(path), require_answer=False)
        try:
            kept = len(list(load(source, {}, {}, reading)))
            assert kept + reading.skipped.total() + reading.bad.total() == reading.read
        except RowError as error:
            assert path.name in str(error)  # noqa: PT017 (either end is right)


def test_a_truncated_archive_says_how_far_it_was_read(write: Write) -> None:
    path = write(*({"id": str(i), "messages": TURNS, "noise": str(lot(i))} for i in range(2000)), name="r.jsonl.gz")
    path.write_bytes(path.read_bytes()[:-2000])
    with pytest.raises(RowError, match=r"line \d{2,4}: cannot be read"):
        rows(path)


def test_a_mirror_stands_in_for_the_hub(write: Write, tmp_path: Path) -> None:
    mirror = {"ai2/mix": str(write({"messages": TURNS}))}
    assert rows("ai2/mix", mirror) == [Row("mix-1", CHAT, source="ai2/mix")]
    folder = tmp_path / "copy" / "main"
    folder.mkdir(parents=True)
    for name in ("train-00001.jsonl", "train-00000.jsonl", "test.jsonl", "train.txt"):
        (folder / name).write_text(json.dumps({"id": name, "messages": TURNS}) + "\n")
    mirror = {"ai2/mix": str(tmp_path / "copy")}
    assert [row.id for row in rows("ai2/mix", mirror, subset="main")] == ["train-00000.jsonl", "train-00001.jsonl"]
    with pytest.raises(RowError, match=r"no file named validation\*\.jsonl"):
        rows("ai2/mix", mirror, split="validation")
    assert [row.id for row in rows("ai2/mix", mirror, subset="main", split="test")] == ["test.jsonl"]


def test_a_folder_gives_all_files_of_the_split(tmp_path: Path) -> None:
    """By the name of the file or of a folder above it; hidden folders, as caches leave them, are passed by."""
    names = ["train/b.jsonl", "train/a.jsonl.gz", "train_1.jsonl", "train_sft.jsonl", ".cache/train.jsonl", "x.jsonl"]
    for name in names:
        file = tmp_path / "set" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        text = (json.dumps({"id": name, "messages": TURNS}) + "\n").encode()
        file.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    assert [row.id for row in rows(tmp_path / "set")] == ["train/a.jsonl.gz", "train/b.jsonl", "train_1.jsonl"]
    assert [row.id for row in rows(tmp_path / "set", split="train_sft")] == ["train_sft.jsonl"]
    for name in ("train/b.jsonl", "train/a.jsonl.gz", "train_1.jsonl", "train_sft.jsonl"):
        (tmp_path / "set" / name).unlink()
    assert [row.id for row in rows(tmp_path / "set")] == ["x.jsonl"]  # no name says a split
    for name in ("y", "x"):
        (tmp_path / "set" / f"{name}.jsonl").write_text(json.dumps({"messages": TURNS}) + "\n")
    assert [row.id for row in rows(tmp_path / "set")] == ["set-1", "set-2"]  # numbered over all files
    (tmp_path / "set" / "y.jsonl").write_text(json.dumps({"messages": TURNS[1:]}) + "\n")
    with pytest.raises(RowError, match=r"y\.jsonl, row 1: has no user turn"):
        rows(tmp_path / "set", max_bad=0)


def test_the_most_exact_entry_of_the_mirror_wins(write: Write) -> None:
    names = ("all", "subset", "split", "both")
    files = {name: str(write({"id": name, "messages": TURNS}, name=f"{name}.jsonl")) for name in names}
    mirror = {"a/b": files["all"], "a/b/s": files["subset"], "a/b:t": files["split"], "a/b/s:t": files["both"]}
    for name in reversed(names):
        assert [row.id for row in rows("a/b", mirror, subset="s", split="t")] == [name]
        mirror.popitem()
    mirror = {"a/b": str(Path(files["all"]).with_name("{subset}.jsonl"))}
    assert [row.id for row in rows("a/b", mirror, subset="both")] == ["both"]


def test_a_source_is_from_the_hub_only_where_nothing_stands_for_it(write: Write, tmp_path: Path) -> None:
    path = str(write({"messages": TURNS}))
    assert from_hub(SourceSpec(path="ai2/mix", subset="s"), {"ai2/other": path, "ai2/mix/t": path})
    assert not from_hub(SourceSpec(path="ai2/mix", subset="s"), {"ai2/mix/s": path})
    assert not any(from_hub(SourceSpec(path=name), {}) for name in (path, str(tmp_path), "gone.tsv.gz"))
    assert not from_hub(SourceSpec(path="tercet:hardcoded"), {})
    assert not from_hub(SourceSpec(stage="words"), {})


def test_a_part_of_a_published_mix_is_known_by_its_column(write: Write) -> None:
    mirror = {"allenai/tulu-3-sft-mixture": str(write(*({"messages": TURNS, "source": name} for name in "aba")))}
    reading = Reading()
    source = SourceSpec(path="allenai/tulu-3-sft-mixture", subset="a", adapter="tulu_sft")
    assert [row.source for row in load(source, {}, mirror, reading)] == ["a", "a"]
    assert (reading.read, reading.skipped) == (3, {"of another part of the set": 1})
    assert len(rows(source.path, mirror, adapter="tulu_sft")) == 3


def test_an_empty_answer_of_a_public_set_is_counted_and_of_a_users_file_refused(write: Write) -> None:
    path = write({"messages": [TURNS[0], {"role": "assistant", "content": " "}]}, {"messages": TURNS})
    reading = Reading()
    assert len(list(load(SourceSpec(path="ai2/mix"), {}, {"ai2/mix": str(path)}, reading))) == 1
    assert reading.skipped == {"empty answer": 1}
    with pytest.raises(RowError, match="row 1: has an empty completion"):
        list(load(SourceSpec(path=str(path), max_bad=0), {}, {}, Reading()))


PROBLEM = {"question": "Hi?", "answer": "#### 3", "problem": "Hi?", "solution": "so $3$"}
SHOTS = [
    {"question": f"{n}?", "answer": f"It is {n}.", "problem": f"{n}?", "solution": f"It is {n}."} for n in range(9)
]


@pytest.mark.parametrize(("adapter", "count"), [("gsm8k_prompt", 8), ("math_prompt", 3)])
def test_the_worked_examples_a_source_names_stand_before_its_prompts(
    write: Write, tmp_path: Path, adapter: str, count: int
) -> None:
    table = write(*SHOTS, name="shots.jsonl")
    (tmp_path / "shots.py").write_text(f"import nothing\n\nOTHER = [1, 2]\nSHOTS = {SHOTS!r}\n")
    mirror = {"github:a/b/shots.py": str(tmp_path / "shots.py")}
    path = write(PROBLEM)
    for named in (str(table), "github:a/b/shots.py"):
        examples = ExamplesSpec(path=named, revision="abc")
        (row,) = rows(path, mirror, adapter=adapter, examples=examples, require_answer=False)
        assert row.user_turns[0].count("It is ") == count
        assert row.user_turns[0].index("0?") < row.user_turns[0].index(f"{count - 1}?") < row.user_turns[0].index("Hi?")
        assert f"{count}?" not in row.user_turns[0]


@pytest.mark.parametrize(
    ("shots", "options", "message"),
    [
        (SHOTS[:7], {}, r"source 'rows\.jsonl', worked examples of .*shots\.jsonl: expected 8 worked examples, got 7"),
        ([{"problem": "x"}] * 8, {}, r"shots\.jsonl: expected rows with the keys question, answer, got problem"),
        ([{**SHOTS[0], "answer": 3}] * 8, {}, r"shots\.jsonl: worked example 1: expected text under answer"),
        ([], {}, r"shots\.jsonl: expected rows with the keys question, answer, got no such rows"),
        (["{\n"], {}, r"shots\.jsonl: .*shots\.jsonl, line 1: not valid JSON"),
        (SHOTS, {"adapter": "rows"}, r"'rows' takes no worked examples; gsm8k_prompt and math_prompt do"),
    ],
)
def test_bad_worked_examples_are_refused_with_source_and_file(
    write: Write, shots: list[Any], options: dict[str, Any], message: str
) -> None:
    examples = ExamplesSpec(path=str(write(*shots, name="shots.jsonl")))
    with pytest.raises(RowError, match=message):
        rows(write(PROBLEM), **{"adapter": "gsm8k_prompt", "examples": examples, "require_answer": False, **options})


def test_the_hub_is_streamed_at_the_pinned_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    yields: list[int] = []

    def load_dataset(*args: Any, **options: Any) -> Iterator[dict[str, Any]]:
        asked.append((args, options["split"], options["revision"], options["streaming"]))
        return ({"messages": TURNS, "at": yields.append(number)} for number in range(5))  # type: ignore[func-returns-value]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    read = load(SourceSpec(path="ai2/mix", subset="main", revision="abc", adapter="rows"), {}, {}, Reading())
    assert next(read).id == "mix:main-1"
    assert yields == [0]  # one row was asked for and one was fetched
    assert [row.id for row in read] == [f"mix:main-{number}" for number in range(2, 6)]
    assert asked == [(("ai2/mix", "main"), "train", "abc", True)]
    with pytest.raises(RowError, match=r"has no revision; pin one .*or write `revision = \"main\"` to take, unpinned"):
        rows("ai2/mix")
    assert len(rows("ai2/mix", revision="main")) == 5


def test_the_hub_gets_the_options_that_a_set_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_dataset(*args: Any, **options: Any) -> list[dict[str, Any]]:
        asked.append((args, options))
        return [{"messages": TURNS}]

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    rows("Open-Orca/FLAN", subset="t0_fsopt_data", revision="abc")
    rows("allenai/wildjailbreak", subset="train", revision="abc")
    source, reading = SourceSpec(path="allenai/tulu-3-sft-mixture", subset="part", revision="abc"), Reading()
    assert not list(load(source, {}, {}, reading))
    assert reading.skipped == {"of another part of the set": 1}
    assert asked[2][0] == ("allenai/tulu-3-sft-mixture", None)
    assert asked[0][0] == ("Open-Orca/FLAN", None)
    assert asked[0][1]["data_files"] == "t0_fsopt_data/*"
    assert asked[1][0] == ("allenai/wildjailbreak", "train")
    assert asked[1][1]["delimiter"] == "\t"


def test_an_unreachable_hub_points_to_the_mirror(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(*args: Any, **options: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    said = (
        r"ai2/mix \(revision abc\): could not be read from the hub after row {} \(ConnectionError: no route\); .*mirror"
    )
    with pytest.raises(RowError, match=said.format(0)):
        rows("ai2/mix", revision="abc")

    def breaks(*args: Any, **options: Any) -> Iterator[dict[str, Any]]:
        yield {"messages": TURNS}
        raise ConnectionError("no route")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=breaks))
    with pytest.raises(RowError, match=said.format(1)):
        rows("ai2/mix", revision="abc")


def test_labels_never_hold_a_folder() -> None:
    assert label(SourceSpec(path="/some/where/rows.jsonl.gz")) == "rows.jsonl.gz"
    assert label(SourceSpec(path="ai2/mix", subset="main")) == "ai2/mix:main"
    assert label(SourceSpec(stage="words")) == "words"


def test_a_sample_depends_on_seed_and_keys_alone() -> None:
    names = [str(number) for number in range(1000)]
    sample = draw(names, 100, seed=3, key=str)
    assert len(sample) == 100
    assert sample == sorted(sample, key=int)
    assert set(draw(reversed(names), 100, seed=3, key=str)) == set(sample)
    assert set(draw(names, 100, seed=4, key=str)) != set(sample)
    assert draw(names, 2000, seed=3, key=str) == names
    assert draw(names, 0, seed=3, key=str) == []


def test_an_unknown_verifier_is_refused_with_its_row() -> None:
    check_verifiers([Row("a", CHAT), Row("b", CHAT, verifier="gsm8k@1")])
    with pytest.raises(RowError, match=r"row 'c' of s: unknown verifier 'magic@9'; expected one of .*gsm8k@1"):
        check_verifiers([Row("a", CHAT), Row("c", CHAT, source="s", verifier="magic@9")])


@pytest.mark.parametrize(
    ("name", "adapter", "count"),
    [
        ("gsm8k/train.jsonl.gz", "gsm8k", 7473),
        ("llamafactory_demo/alpaca_en_demo.json.gz", "alpaca", 999),
        ("gpteacher/codegen-instruct.json.gz", "alpaca", 4535),
    ],
)
def test_real_files_are_read_whole(shared_data: Path, name: str, adapter: str, count: int) -> None:
    made = rows(shared_data / "train" / name, adapter=adapter)
    assert len(made) == count
    assert len({row.id for row in made}) == count
    assert not any("<<" in (row.answer or "") for row in made if row.verifier)
