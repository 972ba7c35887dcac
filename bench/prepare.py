"""Preparing rows for SFT, Tercet against TRL: conversations to tokens, mask, packed batches; rows and tokens a second.

python bench/prepare.py --data ../shared/data              20,000 real conversations, each side in a process of its own
python bench/prepare.py --data ../shared/data --rows 200   a trial

Tercet's figure holds reading the parquet file, writing and mapping the token file, the length policy, and the packing
of every step of an epoch. TRL's holds its trainer's own preparation of a data set that is loaded already: tokens and
assistant mask, labels, and packing by best-fit decreasing. On both sides tensors come later; making all of an epoch is
measured beside for Tercet (`with_tensors`). Token ids and masks of all rows are compared.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import peer
from tercet import machine

FILES = {
    "gsm8k/train.jsonl.gz": "gsm8k",
    "hh_rlhf/harmless-base-test.jsonl.gz": "hh",
    "llamafactory_demo/alpaca_en_demo.json.gz": "alpaca",
}
BATCH = 128  # rows of an optimiser step (paper, table 9)


def main() -> None:
    """Measure, or do one measurement's work."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="folder of real data")
    parser.add_argument("--model", type=Path, help="folder of the tokenizer; SmolLM2-135M-Instruct when absent")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--max-tokens", type=int, default=4096, help="of a row, and of a packed batch")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each side, in alternating order")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="tokenising threads of Tercet")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        work(options.job)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """The table, and what is kept."""
    job = {"model": str(peer.model_folder(options)), "max_tokens": options.max_tokens, "threads": options.threads}
    ours, theirs = peer.ours("prepare.py"), peer.theirs("trl_prepare.py")
    sides = [peer.Side(f"Tercet, {how}", ours, job | {"how": how}) for how in ("cold", "warm", "ranks")]
    sides += [peer.Side(f"TRL, num_proc = {count}", theirs, job | {"num_proc": count}) for count in (1, 2)]
    agreement = measure(sides, options)
    print(f"\n{table(sides)}\n\n{agreement}")
    kept = [{"name": s.name, "job": peer.public(s.job), "median": medians(s), "rounds": s.rounds} for s in sides]
    peer.save("prepare", [*kept, {"name": "tokens compared", **agreement}])


def measure(sides: list[peer.Side], options: argparse.Namespace) -> dict[str, int]:
    """Every side once a round, ours or theirs first in turn; then what differs between the tokens of the two."""
    from tercet.rows import write_table

    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "rows.parquet", conversations(options))
        marks: dict[str, list[list[str]]] = {}
        for number in range(options.rounds):
            for side in sides if number % 2 == 0 else sides[3:] + sides[:3]:  # ours stay in order: warm follows cold
                figures = peer.once(side, Path(folder))
                marks[side.name] = figures.pop("marks", [])
                side.rounds.append(figures)
                print(f"round {number + 1}: {side.name}: {figures['seconds']:.2f} s", flush=True)
    return compared(marks[sides[0].name], marks[sides[3].name])


def conversations(options: argparse.Namespace) -> list[Any]:
    """GSM8K and real chats of several turns, shuffled, as often as it takes."""
    from tercet.data import sources
    from tercet.recipe import SourceSpec

    found: list[Any] = []
    for file, adapter in FILES.items():
        spec = SourceSpec(path=str(options.data / "train" / file), adapter=adapter)
        found += sources.load(spec, {}, {}, sources.Reading())  # of a preference pair the chosen side
    drawn = sources.draw(found, len(found), seed=options.seed, key=lambda row: f"{row.source} {row.id}")
    return [drawn[i % len(drawn)] for i in range(options.rows)]


def work(file: Path) -> None:
    """Tercet's side: `cold` empties the store first, `warm` finds what cold left, `ranks` are two on an empty one."""
    job = json.loads(file.read_text())
    store = Path(job["rows"]).parent / "store"
    if job["how"] in ("cold", "ranks"):
        shutil.rmtree(store, ignore_errors=True)
    figures = two_ranks(file, job) if job["how"] == "ranks" else prepared(job, store)
    Path(job["out"]).write_text(json.dumps(figures))


def two_ranks(file: Path, job: peer.Job) -> dict[str, Any]:
    """Two processes that begin together, as ranks do: the one that is not first waits and maps the file."""
    jobs = [file.with_name(f"rank{rank}.json") for rank in range(2)]
    for one in jobs:
        one.write_text(json.dumps(job | {"how": "rank", "out": str(one.with_suffix(".out"))}))
    running = [subprocess.Popen([sys.executable, __file__, "--job", str(one)]) for one in jobs]
    codes = [process.wait() for process in running]
    if any(codes):
        raise SystemExit("a rank failed")
    ranks = [json.loads(one.with_suffix(".out").read_text()) for one in jobs]
    slower = max(ranks, key=lambda figures: figures["seconds"])
    return slower | {"cpu": sum(figures["cpu"] for figures in ranks), "ranks": ranks}


def prepared(job: peer.Job, store: Path) -> dict[str, Any]:
    """Tokens, length policy, and the batches of one epoch, as the SFT stage makes them."""
    from tercet.device.mesh import Mesh
    from tercet.models.chat import Chat
    from tercet.models.hf_folder import load_tokenizer
    from tercet.store import Store
    from tercet.train.batch import Limit, batches, chosen_rows, schedule, within
    from tercet.train.packing import Budget, pack
    from tercet.train.sft import TURNS
    from tercet.train.tokens import prepare

    chat, most = Chat(load_tokenizer(Path(job["model"]))), job["max_tokens"]
    context: Any = SimpleNamespace(
        store=Store(store), recipe=SimpleNamespace(placement=SimpleNamespace(threads=job["threads"]))
    )
    clock = Clock()
    tokens = prepare(Path(job["rows"]).with_suffix(".parquet"), chat, TURNS, context)
    trees, _ = within(tokens, Limit(most, "cut", 1.0))
    sizes, steps = tokens.sizes_RS.sum(axis=1)[trees.rows].clip(max=most).tolist(), schedule(len(trees), BATCH, 1, None)
    chosen = [chosen_rows(step, len(trees), BATCH, 0) for step in range(steps)]
    packed = [pack([sizes[row] for row in rows], most) for rows in chosen]
    figures: dict[str, Any] = clock.read()
    made = [len(batches([trees[row] for row in rows], Budget(most), Mesh())) for rows in chosen]
    figures |= {"with_tensors": clock.read()["seconds"], "batches": sum(map(len, packed))}
    if made != [len(bins) for bins in packed]:
        raise SystemExit("the batches are not those that were packed")
    figures |= {"rows": len(trees), "tokens": sum(sizes)}
    if job["how"] == "cold":
        figures["marks"] = [mark(tree.leaves[0].token_ids, tree.leaves[0].mask) for tree in trees]
    return figures


class Clock:
    """Seconds and CPU seconds (ended workers included) since it was made, and how far the peak of memory rose."""

    def __init__(self) -> None:
        self.began, self.used, self.peak = time.perf_counter(), sum(os.times()[:4]), peak()

    def read(self) -> dict[str, float]:
        """The figures until now; `workers_mib` is the peak of the largest ended worker."""
        children = machine.peak_rss_bytes(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) / 2**20
        return {
            "seconds": time.perf_counter() - self.began,
            "cpu": sum(os.times()[:4]) - self.used,
            "peak_until_mib": peak(),
            "risen_mib": peak() - self.peak,
            "workers_mib": children,
        }


def peak() -> float:
    """This process's peak of memory so far, in MiB."""
    return machine.peak_rss_bytes() / 2**20


def mark(token_ids: Sequence[int], mask: Sequence[bool]) -> list[str]:
    """Digests of a row's ids, and of its ids with its mask, up to the last trained token."""
    end = max((place for place, trained in enumerate(mask, 1) if trained), default=0)
    ids, trained = [int(i) for i in token_ids[:end]], [bool(i) for i in mask[:end]]
    return [hashlib.sha256(repr(what).encode()).hexdigest()[:16] for what in (ids, (ids, trained))]


def compared(mine: Iterable[list[str]], theirs: Iterable[list[str]]) -> dict[str, int]:
    """How many rows both sides have, by ids and by ids with mask (packing leaves no order to compare)."""
    mine, theirs = list(mine), list(theirs)
    counts = {"rows_here": len(mine), "rows_there": len(theirs)}
    for place, name in enumerate(("same_ids", "same_ids_and_mask")):
        both = Counter(one[place] for one in mine) & Counter(one[place] for one in theirs)
        counts[name] = sum(both.values())
    return counts


def medians(side: peer.Side) -> dict[str, float]:
    """The middle of the rounds for every figure."""
    names = ("seconds", "cpu", "peak_until_mib", "risen_mib", "workers_mib", "with_tensors")
    found = {n: statistics.median(f[n] for f in side.rounds) for n in names if n in side.rounds[0]}
    rows, tokens = (side.rounds[0][name] for name in ("rows", "tokens"))
    return found | {"rows_per_second": rows / found["seconds"], "tokens_per_second": tokens / found["seconds"]}


def table(sides: list[peer.Side]) -> str:
    """Every side; `speed` is what the first one (ours, from nothing) makes of it."""
    lines = [
        "| side | rows/s | tokens/s | s | CPU s | peak MiB | risen MiB | speed |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    first = medians(sides[0])["seconds"]
    for side in sides:
        found = medians(side)
        names = ("rows_per_second", "tokens_per_second", "seconds", "cpu", "peak_until_mib", "risen_mib")
        cells = [f"{found[name]:,.{2 if name in ('seconds', 'cpu') else 0}f}" for name in names]
        lines.append(f"| {side.name} | {' | '.join(cells)} | {found['seconds'] / first:.2f}x |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
