"""What the page and `tercet data` tell of a finished data stage: its summary as tables, and texts that it removed.

Hop 12 of the road, reading. Every number comes from `summary.json` of the artifact. Summaries of older
versions have fewer keys; what they lack is left out, not guessed.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tercet.recipe import MixtureSpec, kinds_of
from tercet.rows import RowError
from tercet.rows_file import read_file

Object = dict[str, Any]
MOST_COPIES, MOST_OF_CELL, MOST_OTHERS = 40, 5, 4  # copies in all, of one source and task; rows of other rules


def told(kind: str, payload: Path) -> Object:
    """Everything about one data stage in plain values; empty where its summary is gone."""
    path = payload / "summary.json"
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise RowError(f"{path}, line {error.lineno}: not valid JSON ({error.msg}); run `tercet check`") from None
    if kind not in kinds_of(MixtureSpec):
        return {"kind": kind, **_asked(summary)}
    removed = payload / "removed.parquet"
    return {"kind": kind, **_mixture(summary), **removed_texts(read_file(removed) if removed.is_file() else ())}


def removed_texts(rows: Iterable[Object]) -> Object:
    """Copies of the evaluation side by side, and the first rows of every other rule; the rows are not held.

    Every source and task gives the copies with the largest coverage, of each item one; the best of all come first
    where they are too many.
    """
    cells: dict[tuple[str, str], dict[str, Object]] = {}  # (source, task) -> item -> the row that copies most of it
    others: dict[str, list[Object]] = {}
    number = 0
    for row in rows:
        if not row["task"]:
            kept = others.setdefault(row["rule"], [])
            kept += [row] * (len(kept) < MOST_OTHERS)
            continue
        number += 1
        own = cells.setdefault((row["source"], row["task"]), {})
        if row["item"] not in own or row["coverage"] > own[row["item"]]["coverage"]:
            own[row["item"]] = row
        if len(own) > 50 * MOST_OF_CELL:
            cells[row["source"], row["task"]] = {one["item"]: one for one in _best(own)}
    ranked = [(rank, cell, row) for cell, own in cells.items() for rank, row in enumerate(_best(own))]
    ranked = sorted(ranked, key=lambda one: one[:2])[:MOST_COPIES]
    found = [row for _, _, row in sorted(ranked, key=lambda one: (one[1], one[0]))]
    return {
        "copies": found,
        "num_copies": number,
        "others": [row for _, kept in sorted(others.items()) for row in kept],
    }


def matrix(cells: Sequence[Object], benchmarks: Sequence[Object]) -> Object:
    """The layout of the paper's table 37: a line for each part, a column for each task that some part copies.

    A cell is the entry of the summary, or None. `whole` says for which tasks a part was dropped; `untouched` names
    the tasks nobody copies.
    """
    tasks = sorted({cell["task"] for cell in cells})
    at = {(cell["source"], cell["task"]): cell for cell in cells}
    lines = []
    for part in sorted({cell["source"] for cell in cells}):
        own = [at.get((part, task)) for task in tasks]
        whole = [cell["task"] for cell in own if cell and cell["verdict"] == "set dropped"]
        lines.append({"part": part, "cells": own, "whole": whole})
    shares = {benchmark["task"]: benchmark for benchmark in benchmarks}
    return {
        "tasks": tasks,
        "lines": lines,
        "any": [shares.get(task) for task in tasks],
        "untouched": [benchmark["task"] for benchmark in benchmarks if not benchmark["copied"]],
    }


def _best(own: dict[str, Object]) -> list[Object]:
    return heapq.nsmallest(MOST_OF_CELL, own.values(), key=lambda row: (-row["coverage"], row["item"], row["row"]))


def _mixture(summary: Object) -> Object:
    sources, sheet = summary.get("sources", []), summary.get("sheet", [])
    benchmarks = summary.get("benchmarks", [])
    terms = {key: summary.get(key) for key in ("ngram", "threshold", "share", "exact")} | summary.get("rule", {})
    columns = ("entered", "sampled", "kept", "repeated", "expected")
    return {
        "of": summary.get("of", "rows"),
        "rows": summary.get("rows", 0),
        "counted": summary.get("counted", "words"),
        "sheet": sheet,
        "total": {key: sum(line[key] for line in sheet) for key in ("rows", "tokens")},
        "sources": sources,
        "columns": [key for key in columns if any(row.get(key) not in (None, 0) for row in sources)],
        "rules": list(dict.fromkeys(name for row in sources for name in row.get("removed", {}))),
        "skipped": any(row.get("skipped") for row in sources),
        "benchmarks": benchmarks,
        "matrix": matrix(summary["matrix"], benchmarks) if "matrix" in summary else None,
        "rule": terms,
        "licences": summary.get("licences", []),
        "expected": summary.get("expected"),
    }


def _asked(summary: Object) -> Object:
    """The summary of a stage that asked models, with the account as lines and the largest counts first."""
    requests = summary.get("requests") or {}
    tallies = {
        key: dict(sorted((summary.get(key) or {}).items(), key=lambda one: (-one[1], one[0])))
        for key in ("rules", "no_pair", "dropped", "skipped", "ratings")
    }
    sides = {key: summary.get(key) or {} for key in ("mean_words", "mean_length")}
    plain = ("source", "write", "model", "read", "seeds", "rows", "prompts", "repeats", "pairs", "spent", "budget")
    return {
        **{key: summary.get(key) for key in plain},
        **tallies,
        "models": summary.get("models") or {},
        **{key: both if {"chosen", "rejected"} <= set(both) else {} for key, both in sides.items()},
        "agreement": summary.get("aspect_agreement") or {},
        "requests": {key: value for key, value in requests.items() if key != "models"},
        "accounts": [{"model": name, **line} for name, line in (requests.get("models") or {}).items()],
    }
