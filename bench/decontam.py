"""Decontamination of a million rows against every benchmark at hand: speed, memory, brute force, and a peer.

The mixture is made here from real training files by a seeded recombination: a user turn is a few runs of sentences
from rows of one file, a few rows are real rows as they are, and a few hold a benchmark item. Each side runs in a
process of its own; our figure includes reading the file, parsing JSON and starting the workers. The brute force is
the definition with plain sets, from the benchmark's side, on the first rows of the same file.

    python bench/decontam.py --data ../shared/data --rows 1000000 --workers 2
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import itertools
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tercet import machine
from tercet.data.benchmark_items import BenchmarkItem
from tercet.data.decontam import Index
from tercet.data.decontaminate_files import batches, scan, search_pool
from tercet.data.decontaminator import Decontaminator
from tercet.data.ngrams import analyse
from tercet.data.user_texts import user_texts
from tercet.rows import RowError

HERE = Path(__file__).parent
VENV = HERE / ".decontam-venv"
PEER = "lm_eval==0.4.13"
WORDS_PER_ROW = (110, 380)  # words of the user turns of a row, drawn evenly; the mean is 245
Benchmark = list[tuple[str, str, list[str]]]  # task, item, fields
Job = dict[str, Any]

# File of the benchmark folder: task, fields (the paper's table of fields).
BENCHMARKS: dict[str, tuple[str, tuple[str, ...]]] = {
    "mmlu/test.jsonl.gz": ("mmlu", ("question",)),
    "mmlu/dev.jsonl.gz": ("mmlu_dev", ("question",)),
    "mmlu_pro/test.jsonl.gz": ("mmlu_pro", ("question",)),
    "truthfulqa/TruthfulQA.csv": ("truthfulqa", ("Question",)),
    "bbh/bbh/*.json": ("bbh", ("input",)),
    "math/test.jsonl.gz": ("math", ("problem",)),
    "math/math500.jsonl.gz": ("math500", ("problem",)),
    "gsm8k/test.jsonl": ("gsm8k", ("question",)),
    "ifeval/input_data.jsonl": ("ifeval", ("prompt",)),
    "alpaca_eval/baseline_gpt4_1106_preview_outputs.json.gz": ("alpacaeval", ("instruction",)),
    "deepmind_math/sample.jsonl.gz": ("deepmind_math", ("question",)),
    "agieval/*.jsonl": ("agieval", ("passage", "question")),
    "xstest/xstest_prompts.csv": ("xstest", ("prompt",)),
    "harmbench/harmbench_behaviors_text_val.csv": ("harmbench", ("Behavior",)),
    "do_anything_now/jailbreak_prompts_2023_05_07.csv.gz": ("do_anything_now", ("prompt",)),
    "do_anything_now/forbidden_question_set.csv": ("forbidden_questions", ("question",)),
    "coconot/*.jsonl": ("coconot", ("prompt",)),
    "mt_bench/question.jsonl": ("mt_bench", ("turns",)),
}


def main() -> None:
    """Make the mixture, run every side, check, write the results."""
    parser = argparse.ArgumentParser(description="decontaminate a synthetic mixture of real rows")
    parser.add_argument("--data", type=Path, default=HERE.parents[1] / "shared" / "data", help="folder of real data")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--check-rows", type=int, default=2000, help="rows of the brute-force check")
    parser.add_argument("--peer-rows", type=int, default=200_000, help="rows of the comparison; 0 leaves the peer out")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "decontam.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(ours(json.loads(args.side))))
        return
    with tempfile.TemporaryDirectory(prefix="tercet-decontam-") as name:
        found = compared(args, Path(name))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(found, indent=2))


def compared(args: argparse.Namespace, folder: Path) -> Job:
    """All measurements on one mixture."""
    benchmark = benchmarks(args.data / "eval")
    job = {"benchmark": str(folder / "benchmark.json"), "rows": str(folder / "rows.jsonl"), "workers": args.workers}
    Path(job["benchmark"]).write_text(json.dumps(benchmark), encoding="utf-8")
    made = make(args.data / "train", benchmark, Path(job["rows"]), args.rows, args.seed)
    side = [sys.executable, __file__, "--side"]
    whole = run(side, job)
    few = run(side, {**job, "rows": str(first_rows(Path(job["rows"]), folder / "tenth.jsonl", args.rows // 10))})
    found: Job = {
        "machine": {"cpu": machine.processor(), "cores": machine.cores(), "python": sys.version},
        "mixture": {"rows": args.rows, "seed": args.seed, **made},
        "benchmarks": {"tasks": len({task for task, _, _ in benchmark}), "items": len(benchmark)},
        "ours": {"workers": args.workers, **whole},
        "a_tenth_of_the_rows": {**few, "peak of all over peak of a tenth": whole["peak_bytes"] / few["peak_bytes"]},
        "brute_force": checked(benchmark, Path(job["rows"]), args.check_rows),
    }
    if args.peer_rows:
        part = {**job, "rows": str(first_rows(Path(job["rows"]), folder / "part.jsonl", args.peer_rows))}
        sides = {f"ours, {workers} workers": run(side, {**part, "workers": workers}) for workers in {1, args.workers}}
        theirs = run([peer_python(), str(HERE / "decontam_side.py")], part)
        tokens = next(iter(sides.values()))["tokens"]
        theirs["tokens_per_second"] = tokens / theirs["seconds"]
        ratios = {name: one["tokens_per_second"] / theirs["tokens_per_second"] for name, one in sides.items()}
        found["peer"] = {
            "rows": min(args.peer_rows, args.rows),
            "tokens": tokens,
            "ours": sides,
            PEER: theirs,
            "times as fast": ratios,
        }
    return found


def first_rows(path: Path, part: Path, count: int) -> Path:
    """The first rows of a file as a file of their own."""
    with open(path, encoding="utf-8") as stream, open(part, "w", encoding="utf-8") as target:
        target.writelines(itertools.islice(stream, count))
    return part


def ours(job: Job) -> Job:
    """Index, then scan the file; tokens are those of user turns."""
    start = time.perf_counter()
    benchmark = json.loads(Path(job["benchmark"]).read_text(encoding="utf-8"))
    cleaner = Decontaminator(Index(BenchmarkItem(task, item, tuple(fields)) for task, item, fields in benchmark))
    indexed = time.perf_counter()
    files = [Path(job["rows"])]
    with search_pool(files, cleaner, job["workers"]) as pool:
        found = scan(files, cleaner, pool)
    seconds = time.perf_counter() - indexed
    return {
        "index_seconds": indexed - start,
        "seconds": seconds,
        "tokens": found.tokens,
        "tokens_per_second": found.tokens / seconds,
        "rows_per_second": len(found.origin) / seconds,
        "rows_that_copy": sum(map(len, found.rows.values())),
        "items_copied": len({number for items in cleaner.copied.values() for number in items}),
    }


def checked(benchmark: Benchmark, path: Path, count: int, n: int = 8, threshold: float = 0.5) -> Job:
    """The paper's rule with sets, for each benchmark item, on the first `count` rows; AssertionError if we differ."""
    with open(path, encoding="utf-8") as stream:
        rows = [user_texts(json.loads(line), "row") for line in itertools.islice(stream, count)]
    where = grams_of(rows, n)
    expected: dict[tuple[int, int], float] = {}
    for number, (_, _, fields) in enumerate(benchmark):
        scores: Counter[tuple[int, int]] = Counter()
        split = [tokens for tokens in map(analyse, fields) if tokens]
        for tokens in split:
            covered: dict[tuple[int, int], set[int]] = {}
            for i, gram in enumerate(zip(*(tokens[k:] for k in range(n)), strict=False)):
                for place in where.get(gram, ()):
                    covered.setdefault(place, set()).update(range(i, i + n))
            scores.update({place: len(some) / len(tokens) / len(split) for place, some in covered.items()})
        for (row, _), score in scores.items():
            if score > threshold + 1e-12:
                expected[row, number] = max(score, expected.get((row, number), 0.0))
    index = Index((BenchmarkItem(task, item, tuple(fields)) for task, item, fields in benchmark), published=True)
    hits, _ = index.search(rows, threshold)
    found = {(row, hit.number): hit.coverage for row, some in enumerate(hits) for hit in some}
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())[:5]
    assert all(abs(found[key] - expected[key]) < 1e-12 for key in found)
    return {"rows": len(rows), "hits": len(found), "equal": True}


def grams_of(rows: list[list[str]], n: int) -> dict[tuple[str, ...], set[tuple[int, int]]]:
    """Every n-gram of the rows, by a second reading of the analyser's rule, with the rows and turns that hold it."""
    where: dict[tuple[str, ...], set[tuple[int, int]]] = {}
    for row, texts in enumerate(rows):
        for turn, text in enumerate(texts):
            words = [word.lower() for word in re.split(r"[ ,.?!:;()\"\-\n\\]", text) if word]
            for i in range(len(words) - n + 1):
                where.setdefault(tuple(words[i : i + n]), set()).add((row, turn))
    return where


def benchmarks(folder: Path) -> Benchmark:
    """The fields of every benchmark of the folder."""
    found: Benchmark = []
    for pattern, (task, keys) in BENCHMARKS.items():
        for file in sorted(folder.glob(pattern)):
            for number, row in enumerate(raw_rows(file)):
                values = [row.get(key) or "" for key in keys]
                fields = [text for value in values for text in (value if isinstance(value, list) else [value])]
                found.append((task, f"{file.stem}-{number}", fields))
    return found


def raw_rows(file: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file in one of the public layouts; an object with one list gives that list."""
    data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    text, name = data.decode("utf-8-sig"), file.name.removesuffix(".gz")
    if name.endswith(".csv"):
        yield from csv.DictReader(io.StringIO(text, newline=""))
    elif name.endswith(".jsonl"):
        yield from (json.loads(line) for line in text.split("\n") if line.strip())
    else:
        value = json.loads(text)
        yield from value if isinstance(value, list) else value["examples"]


def make(train: Path, benchmark: Benchmark, path: Path, count: int, seed: int) -> Job:
    """Write the mixture; returns what it is made of."""
    pools = {}
    for file in sorted(train.rglob("*.json*")):
        texts = list(real_texts(file))
        if texts:
            pools[file.name] = [(text, re.split(r"(?<=[.?!\n])\s+", text)) for text in texts]
    names, weights = list(pools), [len(pool) ** 0.5 for pool in pools.values()]
    draw = random.Random(seed)
    planted = 0
    with open(path, "w", encoding="utf-8") as stream:
        for number in range(count):
            name = draw.choices(names, weights)[0]
            turns: list[str] = []
            words = draw.randint(*WORDS_PER_ROW)
            if draw.random() < 0.002:
                turns.append(" ".join(draw.choice(benchmark)[2]))
                planted += 1
            elif draw.random() < 0.02:
                turns.append(draw.choice(pools[name])[0])
            while words > 0:
                turn = recombined(pools[name], draw, min(words, 120))
                turns.append(turn)
                words -= turn.count(" ") + 1
            messages = [m for turn in turns for m in ({"role": "user", "content": turn}, ANSWER)]
            stream.write(json.dumps({"id": str(number), "source": name, "messages": messages}) + "\n")
    real = sum(map(len, pools.values()))
    return {"files": len(pools), "real_texts": real, "contaminated": planted, "bytes": path.stat().st_size}


ANSWER = {"role": "assistant", "content": "An answer of the assistant, which decontamination does not read."}


def real_texts(file: Path) -> Iterator[str]:
    """User turns and answers of a real file (none where its layout is not a table of rows)."""
    try:
        for batch in batches(file):
            for value, where in batch.objects():
                yield from user_texts(value, where)
                yield from (value[key] for key in ("output", "response", "answer") if isinstance(value.get(key), str))
    except RowError:
        return


def recombined(pool: list[tuple[str, list[str]]], draw: random.Random, words: int) -> str:
    """Runs of one to three sentences of random rows, until there are enough words."""
    parts: list[str] = []
    while words > 0:
        sentences = draw.choice(pool)[1]
        start = draw.randrange(len(sentences))
        run_of = " ".join(sentences[start : start + draw.randint(1, 3)])[:2000]
        parts.append(run_of)
        words -= run_of.count(" ") + 1
    return " ".join(parts)


def run(command: list[str], job: Job) -> Job:
    """One side in its own process; `peak_bytes` is the most that it and its workers held together at any time."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([*command, json.dumps(job)], stdout=subprocess.PIPE, text=True, env=environment) as side:
        peak = 0
        while side.poll() is None:
            peak = max(peak, held_by(side.pid))
            time.sleep(0.1)
        said = side.stdout.read() if side.stdout else ""
    if side.returncode:
        raise SystemExit(f"{command} ended with {side.returncode}")
    return {**json.loads(said.splitlines()[-1]), "peak_bytes": peak}


def held_by(pid: int) -> int:
    """Resident bytes of a process and its children (what they share counts for each); 0 where there is no Linux."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except (OSError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(held_by(int(child)) for child in children)


def peer_python() -> str:
    """The interpreter of the peer's environment, made on first use; the module needs nothing but itself."""
    python = VENV / "bin" / "python"
    if not (VENV / ".ready").is_file():
        shutil.rmtree(VENV, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=True)
        subprocess.run([str(python), "-m", "pip", "--quiet", "install", "--no-deps", PEER], check=True)
        (VENV / ".ready").touch()
    return str(python)


if __name__ == "__main__":
    main()
