"""Every item of the public suites at hand is found again, whatever marks and bytes it was copied with."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import pytest

from tercet import hub, pipeline
from tercet.data.benchmark_items import BenchmarkItem
from tercet.data.decontam import Index
from tercet.evals import suite
from tercet.evals.task import Generated, items, public_records
from tercet.rows import RowError


def spaced(mark: str) -> Callable[[str], str]:
    """Every space as another white space or break."""
    return lambda text: text.replace(" ", mark)


def typeset(text: str) -> str:
    """Typographic quotes and dashes, as a word processor makes them."""
    text = text.replace("'", "\u2019").replace(' "', " \u201c").replace('"', "\u201d")
    return text.replace("...", "\u2026").replace(" - ", " \u2014 ").replace("-", "\u2013")


def capitals(text: str) -> str:
    """Capitals, save for letters whose capital is that of another letter, as that of a dotless i."""
    return "".join(c.upper() if c.upper().casefold() == c.casefold() else c for c in text)


def by_word(form: str) -> Callable[[str], str]:
    """Every third word in this form."""
    return lambda text: " ".join(
        form.format(word) if i % 3 == 0 and word.isalnum() else word for i, word in enumerate(text.split(" "))
    )


DISGUISES: dict[str, Callable[[str], str]] = {
    "as it is": lambda text: text,
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "tabs": lambda text: spaced("\t")(text.replace("    ", "\t")),
    "no-break spaces": spaced("\u00a0"),
    "zero-width characters": lambda text: text.replace("e", "e\u200b").replace(" ", " \ufeff"),
    "decomposed": lambda text: unicodedata.normalize("NFD", text),
    "full width": lambda text: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in text),
    "typeset": typeset,
    "capitals": capitals,
    "HTML breaks": spaced(" <br />"),
    "breaks for line ends": lambda text: text.replace("\n", "<br>"),
    "bold": by_word("**{}**"),
    "italic": by_word("_{}_"),
    "HTML emphasis": by_word("<b>{}</b>"),
    "in a longer turn": lambda text: f"Please answer this.\r\n\r\n{text}\n\nThink first.",
}


# Each form is asked about its own share of the items, and all forms together about all; full: each about all (10 min).
EVERY = 1 if os.environ.get("TERCET_ATTACK") == "full" else len(DISGUISES)


@pytest.fixture(scope="module")
def whole(public: list[BenchmarkItem]) -> Index:
    """The index of all items."""
    return Index(public)


@pytest.fixture(scope="module")
def public(shared_data: Path, mirror: Path) -> list[BenchmarkItem]:
    """The items of all tasks whose public data are at hand."""
    found: dict[tuple[str, ...], BenchmarkItem] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(mirror.parent)
        local = pipeline.read_mirror(str(mirror))
        for task in suite.tasks(["dev", "unseen", "safety"]):
            try:
                records = [] if isinstance(task.data, Generated) else public_records(task, local)
                made = items(task, records, hub.records(task.examples, local))
            except (RowError, OSError):
                continue
            for one in made:
                found.setdefault(
                    (task.name.partition(":")[0], *one.fields), BenchmarkItem(one.task, one.item, one.fields)
                )
    assert len({one.task for one in found.values()}) >= 8
    return list(found.values())


def missed(index: Index, copied: list[BenchmarkItem], disguise: Callable[[str], str]) -> list[str]:
    """The items that are not found in a row that holds them so."""
    way = {(one.task, one.item): way for one, way in zip(index.items, index.ways, strict=True)}
    found: list[str] = []
    for start in range(0, len(copied), 1000):
        some = copied[start : start + 1000]
        hits, _ = index.search([[disguise("\n".join(filter(None, one.fields)))] for one in some], 0.99)
        for one, own in zip(some, hits, strict=True):
            if way[one.task, one.item] in ("n-grams", "phrase") and one not in [hit.item for hit in own]:
                found.append(f"{one.task} {one.item}")
    return found


@pytest.mark.parametrize("name", DISGUISES)
def test_a_part_of_all_public_items_is_found_in_every_disguise(public: list[BenchmarkItem], name: str) -> None:
    part = public[::40]
    assert missed(Index(part), part, DISGUISES[name]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", DISGUISES)
def test_public_items_are_found_among_all_in_every_disguise(whole: Index, name: str) -> None:
    number = list(DISGUISES).index(name)
    assert missed(whole, whole.items[number % EVERY :: EVERY], DISGUISES[name]) == []
