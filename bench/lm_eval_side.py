"""lm-evaluation-harness's side of the comparisons, run by its own interpreter: `lm_eval_side.py JOB.json`.

It gives its own benchmarks, as its package declares them, on the job's local rows to its Hugging Face back-end, and
writes what it asked, got and graded; `texts` are graded without a model.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import langdetect
import torch
from lm_eval.api.instance import Instance
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

Job = dict[str, Any]


def main(file: Path) -> None:
    """Do the job and write its figures."""
    job = json.loads(file.read_text())
    langdetect.DetectorFactory.seed = 0  # unseeded, it answers differently from call to call
    torch.set_num_threads(job["threads"])
    torch.manual_seed(0)
    folder = Path(job["out"]).parent
    figures: dict[str, Any] = {"graded": {one["name"]: graded(one, folder) for one in job.get("texts", [])}}
    if job["benchmarks"]:
        figures |= evaluated(job, folder)
    Path(job["out"]).write_text(json.dumps(figures, default=lambda number: number.item()))


def evaluated(job: Job, folder: Path) -> dict[str, Any]:
    """Every benchmark, and the seconds of the evaluation itself: building requests, asking, grading."""
    size = job["batch_size"]
    lm = HFLM(pretrained=job["model"], dtype=job["dtype"], device=device(), batch_size=size)
    tasks = {one["name"]: task_of(one, folder, job["max_new_tokens"]) for one in job["benchmarks"]}
    plain = {name: task for name, task in tasks.items() if name not in job["chat"]}
    seconds, samples = 0.0, dict[str, list[dict[str, Any]]]()
    for some, chat in ((plain, False), ({name: tasks[name] for name in job["chat"]}, True)):
        if some:
            began = time.perf_counter()
            found = evaluate(lm=lm, task_dict={"tasks": some}, bootstrap_iters=0, apply_chat_template=chat)
            seconds += time.perf_counter() - began
            samples |= {name: rows(found["samples"][name]) for name in some}
    texts = [answer for own in samples.values() for row in own for answer in row["resps"] if isinstance(answer, str)]
    tokens = sum(len(lm.tokenizer(text, add_special_tokens=False).input_ids) for text in texts)
    return {"samples": samples, "seconds": seconds, "tokens": tokens}


def device() -> str:
    """Where the other side computes too: what TERCET_DEVICE says, else a card where there is one."""
    return os.environ.get("TERCET_DEVICE") or ("cuda" if torch.accelerator.is_available() else "cpu")


def task_of(one: dict[str, Any], folder: Path, max_new_tokens: int | None = None) -> Any:
    """The harness's own task, with local files for its data set."""
    manager = TaskManager()
    config = {
        "include": str(manager.task_index[one["name"]].yaml_path),
        "task": one["name"],
        "dataset_path": "json",
        "dataset_name": None,
        "dataset_kwargs": {"data_files": one["files"]},
    }
    file = folder / f"{one['name']}.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    task = manager.load([str(file)])["tasks"][one["name"]]
    if one.get("num_fewshot") is not None:
        task.set_config("num_fewshot", one["num_fewshot"])
    if max_new_tokens and task.get_config("output_type") == "generate_until":
        task.set_config("generation_kwargs", {"max_gen_toks": max_new_tokens}, update=True)
    task.set_fewshot_seed(1234)
    return task


def rows(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What was asked and answered, a row a question, with the verdict of every filter."""
    found: dict[int, dict[str, Any]] = {}
    for sample in samples:
        arguments = [list(argument) for argument in sample["arguments"]]
        asked = {"arguments": arguments, "resps": [answers[0] for answers in sample["resps"]], "verdicts": {}}
        row = found.setdefault(sample["doc_id"], asked)
        answer = sample["filtered_resps"][0] if isinstance(sample["filtered_resps"][0], str) else ""
        row["verdicts"][sample["filter"]] = {"answer": answer} | {name: sample[name] for name in sample["metrics"]}
    return [found[number] for number in sorted(found)]


def graded(one: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """The verdicts on given texts: `texts` are pairs of a row's number and an answer to it."""
    task = task_of(one, folder)
    docs = list(task.eval_docs)
    asked = [
        Instance("generate_until", docs[number], ("", {}), 0, (one["name"], i, 1), resps=[text])
        for i, (number, text) in enumerate(one["texts"])
    ]
    verdicts: list[dict[str, Any]] = [{} for _ in asked]
    for ensemble in task._filters:
        ensemble.apply(asked)
        for instance, verdict in zip(asked, verdicts, strict=True):
            answer = instance.filtered_resps[ensemble.name]
            verdict[ensemble.name] = {"answer": answer, **task.process_results(instance.doc, [answer])}
    return verdicts


if __name__ == "__main__":
    main(Path(sys.argv[1]))
