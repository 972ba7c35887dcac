"""Near duplicates against datasketch (MinHash and MinHashLSH) on the same texts: what is found, and how fast.

The texts are real training rows, and edited copies of them (one word in so many is changed). Same shingles, threshold
and number of permutations on both sides; datasketch's candidates are verified by the same exact Jaccard, and its first
of a cluster stays too. The expected result is that of exact Jaccard over an inverted index of all shingles.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tercet.data.dedupe import Near, jaccard, near_duplicates, shingles

FILES = {
    "gsm8k/train.jsonl.gz": ("question", "answer"),
    "gpteacher/codegen-instruct.json.gz": ("instruction", "response"),
    "gpteacher/roleplay-instruct.json.gz": ("instruction", "response"),
    "codealpaca/code_alpaca_2k.json.gz": ("instruction", "output"),
}


def main() -> None:
    """Time both, compare both with exact Jaccard, print and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="The folder of real training files.")
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    near = Near()
    texts = made(options.data, options.rows)
    sets = [shingles(text, near.words) for text in texts]
    right = {number for number, *_ in exact(sets, near.threshold)}
    result: dict[str, Any] = {"rows": len(texts), "words": sum(len(text.split()) for text in texts), "true": len(right)}
    for name, find in {"ours": ours, "datasketch": peer}.items():
        start = time.process_time()
        gone = find(texts, near)
        seconds = time.process_time() - start
        wrong = sum(max(jaccard(sets[i], sets[j]) for j in range(i)) < near.threshold for i in sorted(gone - right))
        result[name] = {
            "seconds": round(seconds, 2),
            "rows_per_s": round(len(texts) / seconds),
            "found": len(gone & right),
            "missed": len(right - gone),
            "false": wrong,
        }
    print(json.dumps(result, indent=2))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def made(data: Path, count: int) -> list[str]:
    """Real rows, every fourth followed later by a copy with some words changed."""
    draw = random.Random(0)
    rows = [text for name, fields in FILES.items() for text in read(data / name, fields)]
    texts: list[str] = []
    while len(texts) < count:
        if len(texts) % 4 < 3 and len(texts) < len(rows):
            texts.append(rows[len(texts)])
            continue
        rate = draw.choice((0.01, 0.02, 0.03, 0.05, 0.3))
        words = draw.choice(texts).split(" ")
        texts.append(" ".join(f"w{draw.random()}" if draw.random() < rate else word for word in words))
    return texts


def read(path: Path, fields: tuple[str, str]) -> Iterator[str]:
    """The texts of one file: question and answer."""
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        values = map(json.loads, stream) if ".jsonl" in path.name else json.load(stream)
        yield from ("\n".join(str(value[name]) for name in fields) for value in values)


def exact(sets: list[frozenset[tuple[str, ...]]], threshold: float) -> Iterator[tuple[int, int]]:
    """The rows that go, each with the kept row it is like: all pairs that share a shingle are counted."""
    index: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, mine in enumerate(sets):
        common = Counter(rival for shingle in mine for rival in index[shingle])
        twins = [j for j, n in common.items() if n / (len(mine) + len(sets[j]) - n) >= threshold]
        if twins:
            yield number, min(twins)
            continue
        for shingle in mine:
            index[shingle].append(number)


def ours(texts: list[str], near: Near) -> set[int]:
    """What `tercet.data.dedupe` removes."""
    return set(near_duplicates(lambda: texts, near))


def peer(texts: list[str], near: Near) -> set[int]:
    """What datasketch finds, used as its documentation says, in order, with exact verification."""
    from datasketch import MinHash, MinHashLSH

    lsh = MinHashLSH(params=near.bands, num_perm=near.permutations)
    kept: dict[int, frozenset[tuple[str, ...]]] = {}
    gone = set()
    for number, text in enumerate(texts):
        mine = shingles(text, near.words)
        sketch = MinHash(num_perm=near.permutations, seed=1)
        sketch.update_batch([" ".join(shingle).encode() for shingle in mine])
        if any(jaccard(mine, kept[rival]) >= near.threshold for rival in lsh.query(sketch)):
            gone.add(number)
        else:
            lsh.insert(number, sketch)
            kept[number] = mine
    return gone


if __name__ == "__main__":
    main()
