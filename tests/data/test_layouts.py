"""Every layout becomes the same turns, mask and verifier; what a stage needs decides; what cannot be read is named."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from layout_cases import ANSWER, BAD, CASES, PAIRS, REFUSED, UNPAIRED, USER, Case
from tests.models.template_families import FAMILIES, tokenizer_of

from tercet.data import adapters
from tercet.data.common_adapters import marked
from tercet.data.layouts import LAYOUTS, TURN_FIELDS, Skip, columns_read, recognise
from tercet.data.raw_turns import MEDIA
from tercet.data.sources import PEEK, Reading, load, load_pairs
from tercet.data.user_texts import user_texts
from tercet.models.chat import Chat
from tercet.recipe import SourceSpec
from tercet.rows import Message, Row, RowError, messages_from, read_rows, write_table
from tercet.train.dpo import PAIRS as PAIR_TREES
from tercet.train.sft import TURNS

EVERY = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
FILES = ["rows.jsonl", "rows.json", "rows.parquet"]


@cache
def chat() -> Chat:
    """A template that carries thoughts, calls and tools."""
    return Chat(tokenizer_of([family.name for family in FAMILIES].index("qwen2_5")))


def written(folder: Path, name: str, *raws: dict[str, Any]) -> Path:
    """A file of raw rows."""
    path = folder / name
    if name.endswith("parquet"):
        columns = dict.fromkeys(key for raw in raws for key in raw)
        pq.write_table(pa.table({key: [raw.get(key) for raw in raws] for key in columns}), path)
    else:
        path.write_text(json.dumps(raws) if name.endswith("json") else "".join(json.dumps(raw) + "\n" for raw in raws))
    return path


def rows(path: Path, reading: Reading | None = None, **options: Any) -> list[Row]:
    """What a stage of rows reads."""
    source = SourceSpec(path=str(path), **{"adapter": "auto", "require_answer": False} | options)
    return list(load(source, {}, {}, Reading() if reading is None else reading))


def spoken(turns: tuple[Message, ...]) -> tuple[str, ...]:
    return tuple(f"{turn.role}: {turn.content}" for turn in turns)


def trained(folder: Path, row: Row) -> tuple[str, ...]:
    """What SFT trains of a row, without the tokens that end turns."""
    write_table(folder / "rows.parquet", [row])
    ((_, _, tree),) = TURNS.trees(chat(), folder / "rows.parquet", 1)
    runs: list[list[int]] = []
    before = False
    for leaf in tree.leaves:
        for token, on in zip(leaf.token_ids, leaf.mask, strict=True):
            runs += [] if not on or before else [[]]
            if on:
                runs[-1].append(token)
            before = on
        before = False
    texts = [chat().tokenizer.decode(run) for run in runs]
    assert all(text.endswith("<|im_end|>") for text in texts)
    return tuple(text.removesuffix("<|im_end|>") for text in texts)


@EVERY
@pytest.mark.parametrize("name", FILES)
def test_a_layout_becomes_its_turns_its_mask_and_its_verifier(tmp_path: Path, case: Case, name: str) -> None:
    path, reading = written(tmp_path, name, case.row), Reading()
    found = rows(path, reading)
    assert f"is read as {case.adapter!r}" in reading.said[0]
    if case.good is False:
        assert (found, reading.skipped) == ([], {"labelled bad": 1})
        return
    (row,) = found
    assert spoken(row.messages) == case.turns
    assert (row.verifier, row.reference) == (case.verifier, case.reference)
    assert bool(getattr(row.messages[0], "tools", "")) == case.tools
    assert {turn.removeprefix("user: ") for turn in case.turns if turn.startswith("user: ")} <= set(
        user_texts(case.row, "here")
    )
    if case.trained:
        (tmp_path / "made").mkdir()
        assert trained(tmp_path / "made", row) == case.trained


@pytest.mark.parametrize("case", PAIRS, ids=[case.name for case in PAIRS])
@pytest.mark.parametrize("name", FILES)
def test_a_layout_of_pairs_becomes_its_pair(tmp_path: Path, case: Case, name: str) -> None:
    path = written(tmp_path, name, case.row)
    assert recognise([case.row], "pairs").gives == "pairs"
    (found,) = load_pairs(SourceSpec(path=str(path), adapter="auto"), {}, {}, Reading())
    assert (spoken(found.chosen), found.rejected[:-1]) == (case.turns, found.prompt)
    assert found.rejected[-1] == Message("assistant", case.rejected)
    write_table(tmp_path / "pairs.parquet", [found])
    ((_, _, tree),) = PAIR_TREES.trees(chat(), tmp_path / "pairs.parquet", 1)
    answers = [
        chat().tokenizer.decode([t for t, on in zip(leaf.token_ids, leaf.mask, strict=True) if on])
        for leaf in tree.leaves
    ]
    assert answers == ["Hello.<|im_end|>", f"{case.rejected}<|im_end|>"]


@pytest.mark.parametrize("case", UNPAIRED, ids=[case.name for case in UNPAIRED])
def test_an_unpaired_answer_has_its_mark(case: Case) -> None:
    layout = recognise([case.row], "unpaired")
    row, good = marked({**case.row, "id": "a"}, "here")
    assert (layout.gives, layout.adapter, good, spoken(row.messages)) == ("unpaired", "kto", case.good, case.turns)


@pytest.mark.parametrize(("name", "raw", "words"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_what_cannot_be_read_is_refused_by_name(tmp_path: Path, name: str, raw: dict[str, Any], words: str) -> None:
    path = written(tmp_path, "rows.jsonl", raw)
    with pytest.raises(RowError, match=words) as caught:
        rows(path)
    assert "rows.jsonl" in str(caught.value)


def test_forty_layouts_are_read_or_refused() -> None:
    assert len(CASES) + len(REFUSED) >= 40
    assert {case.adapter for case in CASES} >= {one.adapter for one in LAYOUTS} - {
        "",
        "oasst",
        "self_instruct",
        "wildjailbreak",
    }  # those stand in test_adapters


@EVERY
def test_an_adapter_reads_no_other_columns_than_it_says(case: Case) -> None:
    class Watched(dict):  # type: ignore[type-arg]
        def get(self, key: str, default: Any = None) -> Any:
            seen.add(key)
            return super().get(key, default)

        def __getitem__(self, key: str) -> Any:
            seen.add(key)
            return super().__getitem__(key)

    seen: set[str] = set()
    raw = Watched({**case.row, "id": "a"})
    try:
        {**adapters.ADAPTERS, **adapters.PAIRS}[case.adapter](raw, "here")
    except Skip:
        assert case.good is False
    beside = {"input"} if case.adapter == "kto" else set()  # Alpaca's, which stands in the text of the row
    assert set(case.row) & seen <= columns_read(case.adapter) | beside
    assert {key for layout in LAYOUTS if layout.adapter == case.adapter for key in layout.keys} <= columns_read(
        case.adapter
    )


def test_every_adapter_says_what_it_reads() -> None:
    alone = [name for name in {**adapters.ADAPTERS, **adapters.PAIRS} if columns_read(name) == {"id"}]
    assert not alone


@pytest.mark.parametrize(
    "raw",
    [case.row for case in PAIRS]
    + [{"prompt": "Hi?", "chosen": [USER, ANSWER], "rejected": [USER, BAD], "messages": [USER, ANSWER]}],
)
def test_a_stage_of_pairs_never_picks_rows(tmp_path: Path, raw: dict[str, Any]) -> None:
    assert recognise([raw], "pairs").gives == "pairs"
    (pair,) = load_pairs(SourceSpec(path=str(written(tmp_path, "rows.jsonl", raw)), adapter="auto"), {}, {}, Reading())
    assert [turn.content for turn in (pair.chosen[-1], pair.rejected[-1])] == ["Hello.", "Go."]


@pytest.mark.parametrize("case", [case for case in CASES if not case.rejected], ids=lambda case: case.name)
def test_a_file_without_pairs_is_refused_in_a_stage_of_pairs(tmp_path: Path, case: Case) -> None:
    path = written(tmp_path, "rows.jsonl", case.row)
    with pytest.raises(
        RowError, match=rf"source 'rows.jsonl': a file that is read as '{case.adapter}'.*gives no pairs"
    ):
        next(load_pairs(SourceSpec(path=str(path), adapter="auto"), {}, {}, Reading()))


def test_bad_answers_are_no_targets_whatever_the_file_says_first(tmp_path: Path) -> None:
    """Without a mark in the first rows, with marks of several kinds, and where the recipe names the adapter."""
    plain, bad = {"messages": [USER, ANSWER]}, {"messages": [USER, BAD], "label": False}
    for raws in (
        [plain] * (PEEK + 1) + [bad],
        [bad] + [plain] * 3,
        [bad, {**bad, "label": "bad"}, {**bad, "label": 0}],
    ):
        reading = Reading()
        found = rows(written(tmp_path, "rows.jsonl", *raws), reading)
        assert all(row.answer == "Hello." for row in found)
        assert reading.skipped["labelled bad"] + len(found) == len(raws)
    for adapter, raw in (("rows", bad), ("prompt_completion", {"prompt": "a", "completion": "b", "kto_tag": "bad"})):
        assert rows(written(tmp_path, "rows.jsonl", raw), adapter=adapter) == []


def test_a_label_that_names_a_class_is_no_mark(tmp_path: Path) -> None:
    raws = [{"prompt": "Hi?", "completion": "Hello.", "label": number} for number in range(4)]
    reading = Reading()
    assert len(rows(written(tmp_path, "rows.jsonl", *raws), reading)) == 4
    assert "'prompt_completion'" in reading.said[0]


def test_an_unreadable_mark_in_a_marked_file_is_refused(tmp_path: Path) -> None:
    raws = [{"prompt": "Hi?", "completion": "Hello.", "label": mark} for mark in (True, "perhaps")]
    with pytest.raises(RowError, match=r"row 2: expected true or false \(good or bad\) under label, got 'perhaps'"):
        rows(written(tmp_path, "rows.jsonl", *raws), max_bad=0)


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_several_layouts_is_read_row_by_row(tmp_path: Path, name: str) -> None:
    raws = [{"prompt": "Hi?", "completion": "Hello."}, {"instruction": "Hi?", "output": "Hello."}] * 2
    reading = Reading()
    found = rows(written(tmp_path, name, *raws), reading)
    assert [spoken(row.messages) for row in found] == [("user: Hi?", "assistant: Hello.")] * 4
    (said,) = reading.said
    assert "is read row by row, of its first 4 rows 2 as 'prompt_completion' (prompt and completion)" in said
    assert "the first that differs is row 2 with the keys" in said


def test_a_layout_that_comes_late_is_read_and_said(tmp_path: Path) -> None:
    raws = [{"prompt": "Hi?", "completion": "Hello."}] * PEEK + [{"instruction": "Hi?", "output": "Hello."}] * 2
    reading = Reading()
    assert len(rows(written(tmp_path, "rows.jsonl", *raws), reading)) == PEEK + 2
    assert len(reading.said) == 2
    assert f"rows.jsonl, row {PEEK + 1} is the first of rows that are read as 'alpaca'" in reading.said[1]


def test_a_row_of_no_layout_is_refused_with_its_keys(tmp_path: Path) -> None:
    raws = [{"prompt": "Hi?", "completion": "Hello."}, {"instruction": "Hi?", "output": "Hello."}, {"a": 1}]
    with pytest.raises(RowError, match=r"rows\.jsonl, row 3: has none of the known layouts, with the keys a"):
        rows(written(tmp_path, "rows.jsonl", *raws), max_bad=0)
    with pytest.raises(RowError, match=r"rows\.jsonl, row 2: expected a 'messages' list"):
        rows(written(tmp_path, "rows.jsonl", {"messages": [USER, ANSWER]}, {"messages": None}), max_bad=0)


def test_trees_and_rows_do_not_mix(tmp_path: Path) -> None:
    node = {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Hi?"}
    with pytest.raises(
        RowError, match=r"must have one layout here, the first that differs is row 2 with the keys mess"
    ):
        rows(written(tmp_path, "rows.jsonl", node, {"messages": [USER, ANSWER]}))


def test_a_pair_whose_answer_is_context_is_refused(tmp_path: Path) -> None:
    raw = {"prompt": [USER], "chosen": [{**ANSWER, "weight": 0}], "rejected": [BAD]}
    with pytest.raises(RowError, match="row 1: an answer of the pair is marked as context"):
        next(load_pairs(SourceSpec(path=str(written(tmp_path, "rows.jsonl", raw)), adapter="auto"), {}, {}, Reading()))


def test_context_stays_context_through_tables(tmp_path: Path) -> None:
    turns = messages_from([USER, {**BAD, "weight": 0}, USER, ANSWER])
    write_table(tmp_path / "rows.parquet", [Row("a", turns)])
    (row,) = read_rows(tmp_path / "rows.parquet")
    assert row.messages == turns
    assert [getattr(turn, "untrained", False) for turn in turns] == [False, True, False, False]


def test_a_row_whose_answers_are_all_context_is_left_out_and_counted(tmp_path: Path) -> None:
    reading = Reading()
    raws = [{"messages": [USER, {**ANSWER, "weight": 0}]}, {"messages": [USER, ANSWER]}]
    assert len(rows(written(tmp_path, "rows.jsonl", *raws), reading)) == 1
    assert reading.skipped == {"every answer is marked as context": 1}


def test_the_page_is_what_the_code_says(docs_script: Callable[[str], ModuleType]) -> None:
    page = Path(__file__).parents[2] / "docs" / "layouts.md"
    assert page.read_text(encoding="utf-8") == docs_script("make_layouts").render(), "run `make docs`"


def test_the_verifier_of_a_row_wins_over_its_data_set() -> None:
    raw = {"id": "a", "messages": [USER], "ground_truth": "3", "dataset": "mine", "verifier": "string@1"}
    assert adapters.ADAPTERS["rlvr"](raw, "here").verifier == "string@1"
    raw = {
        "id": "a",
        "data_source": "mine",
        "prompt": [USER],
        "reward_model": {"ground_truth": 3},
        "verifier": "string@1",
    }
    row = adapters.ADAPTERS["verl"](raw, "here")
    assert (row.verifier, row.reference) == ("string@1", "3")


def test_fields_of_turns_and_columns_of_media_are_known() -> None:
    assert {"role", "content", "from", "value", "weight", "train", "reasoning_content", "tool_calls"} <= TURN_FIELDS
    assert MEDIA["images"] == "image"


SUM = ("user: Add 0 and 0", "assistant: 0")
SKY = ("user: Which sky colour 0?", "assistant: It is blue.")
GUESS = ("user: Add 0 and 0", "assistant: WRONG GUESS", "user: Try again please", "assistant: 0")
WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
ONCE_WRONG: dict[str, tuple[int, tuple[str, ...], tuple[str, ...]]] = {  # rows read of six, the first's turns and mask
    "alpaca_hist": (
        6,
        (
            "system: Answer like a pirate.",
            *("user: Hello", "assistant: Hi", "user: Count", "assistant: 1 2 3"),
            *("user: And what is 0 times two?", "assistant: 0"),
        ),
        ("Hi", "1 2 3", "0"),
    ),
    "developer": (6, ("system: Be brief", "user: Q0 about sea", "assistant: ok"), ("ok",)),
    "kto_msgs": (3, SKY, ("It is blue.",)),
    "kto_pc": (3, SKY, ("It is blue.",)),
    "kto_tag": (3, SKY, ("It is blue.",)),
    "msgs_json": (6, ("user: Say hi 0", "assistant: fine"), ("fine",)),
    "nullrow": (5, ("user: Say hi 0", "assistant: fine"), ("fine",)),
    "parts": (6, SUM, ("0",)),
    "pc_conv": (6, SUM, ("0",)),
    "pref_explicit": (6, SKY, ("It is blue.",)),
    "pref_orca": (6, ("system: Be brief", *SKY), ("It is blue.",)),
    "pref_ultra": (6, SKY, ("It is blue.",)),
    "reasoning": (
        6,
        ("user: Add 0 and 0", "assistant: The sum is 0."),
        ("<think>\nI add both numbers first.\n</think>\n\nThe sum is 0.",),
    ),
    "sharegpt_rolecontent": (6, ("user: Hi 0", "assistant: Yo"), ("Yo",)),
    "system_col": (6, ("system: Answer like a pirate.", "user: Say hello 0", "assistant: Arr"), ("Arr",)),
    "toolcalls_last": (6, ("user: Weather in Oslo 0?", "assistant: Let me look."), (f"Let me look.\n{WEATHER}",)),
    "train_flag": (6, GUESS, ("0",)),
    "weight": (6, GUESS, ("0",)),
}


@pytest.mark.parametrize("name", ONCE_WRONG)
def test_a_case_that_once_went_wrong_is_right(shared_data: Path, tmp_path: Path, name: str) -> None:
    path = shared_data / "cases" / "rows" / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"the folder of cases is absent ({path.parent})")
    count, turns, mask = ONCE_WRONG[name]
    reading = Reading()
    found = rows(path, reading)
    assert (len(found), spoken(found[0].messages), trained(tmp_path, found[0])) == (count, turns, mask)
    assert reading.skipped["labelled bad"] + reading.bad.total() == 6 - count
    assert not reading.left
    if name.startswith("pref"):
        pairs = list(load_pairs(SourceSpec(path=str(path), adapter="auto"), {}, {}, Reading()))
        assert [(spoken(one.chosen), one.rejected[:-1]) for one in pairs[:1]] == [(turns, pairs[0].prompt)]
        assert (len(pairs), {one.rejected[-1].content for one in pairs} <= {"It is green.", "Green."}) == (6, True)


def test_every_case_is_tried(shared_data: Path) -> None:
    folder = shared_data / "cases" / "rows"
    if not folder.is_dir():
        pytest.skip(f"the folder of cases is absent ({folder})")
    assert {path.stem for path in folder.glob("*.jsonl")} == set(ONCE_WRONG)
