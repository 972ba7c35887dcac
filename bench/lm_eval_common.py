"""What the comparisons with lm-evaluation-harness share: its environment, and the same rows for both sides."""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import peer
from peer import HERE, Job, Side, model_folder
from tercet import hub, machine
from tercet.evals import suite
from tercet.evals.task import Generated, Item, Task, items
from tercet.rows import Source
from tercet.rows_file import read_file

PEER = HERE / ".lm-eval-venv"
REQUIREMENTS = ("lm_eval[ifeval]==0.4.13", "transformers==5.23.0", "accelerate>=1.10", "nltk==3.9.2")
DATA = HERE.parents[1] / "shared" / "data"
MMLU = ("abstract_algebra", "anatomy", "high_school_us_history", "professional_law")
BBH = ("boolean_expressions", "date_understanding", "snarks", "word_sorting")
Record = dict[str, Any]


@dataclass(frozen=True)
class Benchmark:
    """One of our tasks with its mirror, and the harness's tasks that ask the same rows in the same order."""

    name: str
    task: Task
    mirror: dict[str, str]
    theirs: list[Job]

    def items(self) -> list[Item]:
        """Our items."""
        records = hub.records(sources(self.task), self.mirror)
        return items(self.task, records, hub.records(self.task.examples, self.mirror))


def peer_python(given: Path | None) -> str:
    """The interpreter of the harness's own environment: the given one, or one that is made on first use."""
    return str(given.absolute()) if given else peer.peer_python(PEER, REQUIREMENTS)


def arguments(description: str) -> argparse.ArgumentParser:
    """The options both comparisons have."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, default=DATA, help="folder of public data in its shared layout")
    parser.add_argument(
        "--model", type=Path, help="Hugging Face folder; SmolLM2-135M-Instruct from the cache when absent"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, help="budget of an answer, on both sides")
    parser.add_argument("--threads", type=int, default=machine.cores(), help="CPU threads of each side")
    parser.add_argument("--peer-python", type=Path, help="interpreter that has lm_eval; made on first use when absent")
    return parser


def settle(options: argparse.Namespace) -> None:
    """What both sides inherit: spinning threads, one thread count, and the sentence splitter's data."""
    os.environ |= {
        "GOMP_SPINCOUNT": "10000",
        "OMP_NUM_THREADS": str(options.threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    os.environ.setdefault("NLTK_DATA", str((options.data / "nltk_data").absolute()))


def peer_side(options: argparse.Namespace, **more: Any) -> Side:
    """The harness with its Hugging Face back-end."""
    job = {"model": str(model_folder(options)), "threads": options.threads, "max_new_tokens": options.max_new_tokens}
    command = [peer_python(options.peer_python), str(HERE / "lm_eval_side.py")]
    return Side("lm-eval", command, job | {"benchmarks": [], "chat": [], "batch_size": 8, "dtype": "float32"} | more)


# ---- the same rows for both ----


def gsm8k(data: Path, folder: Path, limit: int | None) -> Benchmark:
    """Eight worked examples, plain text."""
    task = suite.task("gsm8k:lm@1")
    file = written(folder / "gsm8k.jsonl", spread(read(data / "eval/gsm8k/test.jsonl"), limit))
    shots = str(data / "eval/fewshot/gsm8k_cot_8.json")
    mirror = {sources(task)[0].path: file, task.examples[0].path: shots}
    return Benchmark("gsm8k", task, mirror, [{"name": "gsm8k_cot", "files": {"test": file}}])


def mmlu(data: Path, folder: Path, limit: int | None, subjects: Sequence[str] = MMLU) -> Benchmark:
    """Five examples of the subject, plain text; `limit` is for each subject."""
    task = suite.task("mmlu:lm@1")
    test, dev = read(data / "eval/mmlu/test.jsonl.gz"), read(data / "eval/mmlu/dev.jsonl.gz")
    theirs, kept = [], []
    for subject in subjects:
        own = spread([row for row in test if row["subject"] == subject], limit)
        files = {
            "test": written(folder / f"mmlu_{subject}.jsonl", own),
            "dev": written(folder / f"mmlu_{subject}_dev.jsonl", [row for row in dev if row["subject"] == subject]),
        }
        theirs.append({"name": f"mmlu_{subject}", "files": files, "num_fewshot": 5})
        kept += own
    mirror = {
        "cais/mmlu:test": written(folder / "mmlu.jsonl", kept),
        "cais/mmlu:dev": written(folder / "dev.jsonl", dev),
    }
    return Benchmark("mmlu", task, mirror, theirs)


def truthfulqa(data: Path, folder: Path, limit: int | None) -> Benchmark:
    """Six primer questions, plain text; both sides are given every answer once."""
    task = suite.task("truthfulqa:lm@1")
    rows = spread(list(truthfulqa_rows(data / "eval/truthfulqa/TruthfulQA.csv")), limit)
    file = written(folder / "truthfulqa.jsonl", rows)
    mirror = {
        "truthfulqa/truthful_qa": file,
        task.examples[0].path: str(data / "eval/fewshot/truthfulqa_primer_6.json"),
    }
    return Benchmark("truthfulqa", task, mirror, [{"name": "truthfulqa_mc2", "files": {"validation": file}}])


def bbh(data: Path, folder: Path, limit: int | None) -> Benchmark:
    """Three worked examples of each task, plain text; `limit` is for each task."""
    task = suite.task("bbh:lm@1")
    kept = tuple(source for source in sources(task) if source.subset in BBH)
    theirs = []
    for name in BBH:
        rows = json.loads((data / f"eval/bbh/bbh/{name}.json").read_text(encoding="utf-8"))["examples"]
        file = written(folder / f"bbh_{name}.jsonl", spread(rows, limit))
        theirs.append({"name": f"bbh_cot_fewshot_{name}", "files": {"test": file}})
    mirror = {
        kept[0].path: str(folder / "bbh_{subset}.jsonl"),
        task.examples[0].path: str(data / "eval/bbh/cot-prompts/{subset}.txt"),
    }
    return Benchmark("bbh", replace(task, data=kept), mirror, theirs)


def ifeval(data: Path, folder: Path, limit: int | None) -> Benchmark:
    """No examples, through the chat template, graded as the reference code does."""
    task = suite.task("ifeval:reference@1")
    file = written(folder / "ifeval.jsonl", spread(read(data / "eval/ifeval/input_data.jsonl"), limit))
    return Benchmark("ifeval", task, {"google/IFEval": file}, [{"name": "ifeval", "files": {"train": file}}])


def sources(task: Task) -> tuple[Source, ...]:
    """Where a task's public rows come from."""
    return () if isinstance(task.data, Generated) else task.data


def spread(rows: list[Record], limit: int | None) -> list[Record]:
    """`limit` rows at equal distances."""
    if limit is None or limit >= len(rows):
        return rows
    return [rows[i * len(rows) // limit] for i in range(limit)]


def read(path: Path) -> list[Record]:
    """All rows of a table."""
    return list(read_file(path))


def written(file: Path, rows: Sequence[Record]) -> str:
    """Write rows as JSON lines; returns the name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def truthfulqa_rows(file: Path) -> Iterator[Record]:
    """The original table in the columns of the hub's edition, every answer once, the true ones first."""
    opener = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            true, false = ([part.strip() for part in row[f"{side} Answers"].split(";") if part.strip()]
                           for side in ("Correct", "Incorrect"))  # fmt: skip
            true = list(dict.fromkeys(true))
            false = [part for part in dict.fromkeys(false) if part not in true]
            best = row["Best Answer"].strip()
            yield {
                "question": row["Question"],
                "mc1_targets": {"choices": [best, *false], "labels": [1] + [0] * len(false)},
                "mc2_targets": {"choices": true + false, "labels": [1] * len(true) + [0] * len(false)},
            }
