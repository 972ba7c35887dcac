"""10,000 rows of all layouts, mixed, some broken: what is read and left out is what was given, and no text is lost.

Every text of a row bears a word of its own. It stands in the row that is read, or its column is counted as left behind.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from layout_cases import CASES, PAIRS, USER

from tercet.data.sources import Reading, load, load_pairs
from tercet.recipe import SourceSpec
from tercet.rows import DetailedMessage, Pair, Row

FILES, ROWS = 20, 500
PHRASES = ("Hi?", "Hello.", "Go.", "Be kind.", "One?", "Two.", "They greet.", "Again?", "Greet.")
EXTRAS = {  # columns that are put beside any row
    "system": lambda word: word,
    "history": lambda word: [[f"Q {word}", "A"]],
    "tools": lambda word: [{"type": "function", "function": {"name": word, "parameters": {"type": "object"}}}],
    "reasoning": lambda word: word,
    "context": lambda word: word,
}
READERS = {Row: load, Pair: load_pairs}


def worded(raw: dict[str, Any], number: int) -> dict[str, Any]:
    """The row with a word of its own behind every phrase; what stood twice stands twice."""
    text = json.dumps(raw)
    for place, phrase in enumerate(PHRASES):
        text = text.replace(phrase, f"{phrase[:-1]} w{number}x{place}y{phrase[-1]}")
    found: dict[str, Any] = json.loads(text)
    return found


def beside(rng: random.Random, raw: dict[str, Any], number: int) -> dict[str, str]:
    """Puts columns beside a row that has none of their names; the word of each."""
    told = json.dumps(raw)
    names = [name for name in EXTRAS if name not in raw and rng.random() < 0.1]
    names = [name for name in names if not (name == "system" and ("Be kind" in told or "system" in told))]
    words = {name: f"w{number}{name}y" for name in names if not (name == "tools" and "functions" in raw)}
    raw |= {name: EXTRAS[name](word) for name, word in words.items()}
    return words


def broken(rng: random.Random, raw: dict[str, Any]) -> dict[str, Any]:
    """The row with something wrong with it."""
    key = rng.choice([key for key in raw if key not in ("id", *EXTRAS)])
    ways = [{key: None}, {key: 7}, {key: []}, {"images": ["a.png"]}]
    ways += [{key: [{"role": "robot", "content": "x"}, USER]}, {key: [{**USER, "role": "assistant", "weight": 0.5}]}]
    return raw | rng.choice(ways)


def carried(entry: Row | Pair) -> str:
    """All that was read."""
    turns = entry.messages if isinstance(entry, Row) else (*entry.chosen, *entry.rejected)
    details = [json.dumps(vars(turn)) for turn in turns if isinstance(turn, DetailedMessage)]
    return " ".join([*(turn.content for turn in turns), *details])


@pytest.mark.parametrize("seed", range(FILES))
def test_what_is_read_and_left_out_is_what_was_given_and_no_text_is_lost(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    kind = Pair if seed % 4 == 0 else Row
    cases = rng.sample(PAIRS if kind is Pair else [case for case in CASES if case not in PAIRS], rng.randint(1, 6))
    if any(case.adapter == "hh" for case in cases):  # then all texts of these columns are dialogues, or bad
        cases = [case for case in cases if case.adapter != "implicit_pair"]
    raws, extras, whole = {}, {}, set()
    for number in range(ROWS):
        raw = {"id": f"r{number}"} | worded(rng.choice(cases).row, number)
        extras[raw["id"]] = beside(rng, raw, number)
        if rng.random() < 0.1:
            raw = broken(rng, raw)
        else:
            whole.add(raw["id"])
        raws[raw["id"]] = raw
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(raw) + "\n" for raw in raws.values()))
    reading = Reading()
    source = SourceSpec(path=str(path), adapter="auto", require_answer=False, max_bad=1.0)
    found = list(READERS[kind](source, {}, {}, reading))
    assert (reading.read, reading.kept) == (ROWS, len(found))
    assert reading.kept + reading.skipped.total() + reading.bad.total() == ROWS
    assert whole - {entry.id for entry in found} == labelled_bad(raws, whole), (reading.said, reading.examples)
    lost: Counter[str] = Counter()
    for entry in found:
        text, raw = carried(entry), raws[entry.id]
        lost.update(name for name, word in extras[entry.id].items() if word in json.dumps(raw) and word not in text)
        for word in re.findall(rf"w{entry.id[1:]}x\dy", json.dumps(raw)) if entry.id in whole else ():
            assert word in text, f"{word} of {raw} is not in {entry}"
    assert {name: reading.left[name] for name in lost} == dict(lost)


def labelled_bad(raws: dict[str, Any], whole: set[str]) -> set[str]:
    """The rows that are left out because of a mark."""
    return {name for name in whole if {raws[name].get("label"), raws[name].get("kto_tag")} & {False, "false", "bad"}}
