"""The rollout browser: one self-contained page that shows prompts with all their completions side by side.

It reads `tercet/rollouts.parquet` of RL stages. The rollouts of a long run do not fit into a page: groups are chosen by
the hash of their names, round by round, so that every round is there and nothing is hand-picked. The page gives counts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from jinja2.utils import htmlsafe_json_dumps

from tercet.report.collect import Object, Stage
from tercet.report.render import render
from tercet.report.render import write as write_page
from tercet.report.samples import cut
from tercet.rows import RowError
from tercet.rows_file import read_file
from tercet.store import Artifact

FILE = "tercet/rollouts.parquet"
MOST_GROUPS, MOST_CHARACTERS = 600, 6_000_000  # of one page, whatever the number of stages
MOST_TEXT = 20_000  # characters of one completion or prompt
CHARACTERS = 4  # of a token, to guess how long a group is before its texts are read
COLUMNS = (
    *("sample", "reward", "score", "advantage", "answer", "outcome", "stop", "length", "version", "version_last"),
    *("replica", "parts", "text"),
)


class Place(NamedTuple):
    """Where a group stands in the table: rows [start, end); `size` is a guess of its characters."""

    step: int
    prompt_id: str
    start: int
    end: int
    size: int


def write(
    stages: Sequence[Stage | Artifact], out: Path, *, title: str = "", back: str = "", most: int = MOST_GROUPS
) -> list[Object]:
    """Write the page of these RL stages; `back` is the page it links to. Returns what each stage has and what is shown.

    Example of one: `{"stage": "rlvr", "kind": "grpo", "key": "2de5…", "rounds": 12, "groups": 192, "shown": 192,
    "completions": 1536, "reward": 3.02}`; `reward` is the mean over all completions.
    """
    if missing := [stage.name for stage in stages if not (stage.path / "payload" / FILE).is_file()]:
        raise RowError(f"{', '.join(missing)}: no {FILE}; stages of kind grpo and ppo write one")
    if most < len(stages):
        raise RowError(f"at most {most} groups of {len(stages)} stages; allow at least one of each")
    shown = [_stage(stage, most // len(stages), MOST_CHARACTERS // len(stages)) for stage in stages]
    all_counts = [counts for counts, _ in shown]
    data = [{"counts": counts, **content} for counts, content in shown]
    dumps = partial(json.dumps, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    page = {
        "title": title or " · ".join(stage.name for stage in stages),
        "back": back,
        "counts": all_counts,
        "data": htmlsafe_json_dumps({"columns": COLUMNS, "stages": data}, dumps=dumps),
    }
    write_page(out, render("rollouts.html.j2", page, "page", "rollouts"))
    return all_counts


def _stage(stage: Stage | Artifact, most: int, characters: int) -> tuple[Object, Object]:
    """What a stage has in all, and what of it the page shows."""
    path = stage.path / "payload" / FILE
    places, means = _survey(path)
    chosen = _chosen(places, f"{stage.name}-{stage.key}", most, characters)
    prompts: dict[str, int] = {}
    groups = [_group(rows, prompts) for rows in _read(path, chosen)]
    total = sum(count for _, count in means.values())
    counts = {"stage": stage.name, "kind": stage.kind, "key": stage.key, "rounds": len(means), "groups": len(places)}
    counts |= {"shown": len(groups), "completions": total}
    counts["reward"] = math.fsum(mean * count for mean, count in means.values()) / max(1, total)
    rounds = [[step, _short(mean)] for step, (mean, _) in sorted(means.items())]
    return counts, {"rounds": rounds, "prompts": list(prompts), "groups": groups}


def _survey(path: Path) -> tuple[list[Place], dict[int, tuple[float, int]]]:
    """Where the groups stand, and each round's mean reward and number of completions; reads no text."""
    import pyarrow.parquet as pq

    starts: list[tuple[int, str, int, int]] = []  # step, prompt, first row, tokens
    sums: dict[int, tuple[float, int]] = {}
    row = 0
    before: tuple[Any, ...] = ()
    with pq.ParquetFile(path) as table:
        for piece in table.iter_batches(20_000, columns=["step", "prompt_id", "sample", "reward", "length"]):
            for step, prompt_id, sample, reward, length in zip(*piece.to_pydict().values(), strict=True):
                # A prompt that is drawn twice in a round makes two groups: its samples are counted from 0 again.
                if before[:2] != (step, prompt_id) or sample <= before[2]:
                    starts.append((step, prompt_id, row, 0))
                starts[-1] = (*starts[-1][:3], starts[-1][3] + length)
                total, count = sums.get(step, (0.0, 0))
                sums[step] = (total + reward, count + 1)
                before, row = (step, prompt_id, sample), row + 1
    ends = [start for _, _, start, _ in starts[1:]] + [row]
    places = [
        Place(step, prompt_id, start, end, CHARACTERS * tokens + 200 * (end - start))
        for (step, prompt_id, start, tokens), end in zip(starts, ends, strict=True)
    ]
    return places, {step: (total / count, count) for step, (total, count) in sums.items()}


def _chosen(places: Sequence[Place], salt: str, most: int, characters: int) -> list[Place]:
    """At most `most` groups and about `characters` characters: of every round one, then of every round a second, ..."""
    rounds: dict[int, list[tuple[str, Place]]] = {}
    for place in places:
        name = f"{salt}/{place.step}/{place.prompt_id}/{place.start}"
        rounds.setdefault(place.step, []).append((hashlib.sha256(name.encode()).hexdigest(), place))
    ranked = [(rank, *one) for found in rounds.values() for rank, one in enumerate(sorted(found))]
    picked: list[Place] = []
    for _, _, place in sorted(ranked):
        characters -= place.size
        if len(picked) == most or (picked and characters < 0):
            break
        picked.append(place)
    return sorted(picked, key=lambda place: place.start)


def _read(path: Path, places: Sequence[Place]) -> Iterator[list[Object]]:
    """The rows of each place; places stand in the order of the table."""
    rows, at = iter(read_file(path)), 0
    for place in places:
        yield list(islice(rows, place.start - at, place.end - at))
        at = place.end


def _group(rows: Sequence[Object], prompts: dict[str, int]) -> Object:
    """One prompt with its completions; the same prompt comes again in later rounds and is kept once."""
    first = rows[0]
    prompt = prompts.setdefault(cut(first["prompt"], MOST_TEXT), len(prompts))
    head = {"step": first["step"], "id": first["prompt_id"], "prompt": prompt, "verifier": first["verifier"]}
    head["reference"] = cut(first.get("reference") or "", MOST_TEXT)
    return head | {"samples": [[_value(row, name) for name in COLUMNS] for row in rows]}


def _value(row: Object, name: str) -> Any:
    """A cell; None where an older artifact, or PPO, has no such column."""
    value = row.get(name)
    if name == "parts":
        return {key: _short(score) for key, score in json.loads(value or "{}").items()}
    if name in ("text", "answer"):
        return cut(value or "", MOST_TEXT)
    return _short(value) if isinstance(value, float) else value


def _short(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None
