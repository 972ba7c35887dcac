"""Our results in lm-evaluation-harness's layout (that of version 0.4.13), for tools that read its files."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tercet.evals.task import Task
from tercet.records import Result, Score, TaskCard, read_results, read_scores
from tercet.rows import PLAIN, Sampling, Source

HEADLINE = {"accuracy": "acc", "choice": "acc", "mc2": "acc", "bpb": "bits_per_byte"}
BESIDE = {"acc_norm": "per_char", "acc_bytes": "per_byte"}  # the harness's names for other ways to choose an option
TABLES = ("results", "groups", "group_subtasks", "configs", "versions", "n-shot", "higher_is_better", "n-samples")
NOT_KNOWN = "N/A"


def export_results(payload: Path) -> dict[str, Any]:
    """An eval payload as the dictionary that `lm_eval.simple_evaluate` returns; samples as in its JSONL files.

    A task with subsets becomes a group with a task for each. Where a prompt is a conversation, `arg_0` is its JSON, as
    the harness keeps it for chat endpoints. Items that could not be asked or graded are left out on both sides.
    """
    scores = read_scores(payload)
    found = [result for result in read_results(payload / "results.jsonl") if not result.lost]
    tables: dict[str, Any] = {name: {} for name in (*TABLES, "samples")}
    for name, score in scores.items():
        own = [result for result in found if result.task == name]
        parts = score.subsets or {}
        _enter(tables, name, name, score)
        tables["group_subtasks"][name] = [f"{name}_{part}" for part in parts]
        if not parts:
            tables["samples"][name] = [_sample(i, result, score.card) for i, result in enumerate(own)]
            continue
        tables["groups"][name] = tables["results"][name]
        for part, figures in parts.items():
            _enter(tables, f"{name}_{part}", f" - {part}", Score(score.metric, card=score.card, **figures))
            inside = [result for result in own if result.subset == part]
            lines = [_sample(i, result, score.card) for i, result in enumerate(inside)]
            tables["samples"][f"{name}_{part}"] = lines
    config = {"model": "tercet", "model_args": None, "limit": None, "bootstrap_iters": 0, "gen_kwargs": None}
    return {**tables, "config": config, "date": (payload / "scores.json").stat().st_mtime}


def _enter(tables: dict[str, Any], name: str, alias: str, score: Score) -> None:
    """Put one task, or one subset of it, into every table."""
    about = score.card
    measured = {headline(about): (score.score, score.stderr)}
    if about.metric == "choice":
        beside = {ours: getattr(score, key) for ours, key in BESIDE.items()}
        measured |= {ours: (value, None) for ours, value in beside.items() if value is not None}
    measured |= {key: (own["value"], own["stderr"]) for key, own in (score.measures or {}).items()}
    figures: dict[str, Any] = {"name": name, "alias": alias, "sample_len": score.n}
    for metric, (value, error) in measured.items():
        figures |= {f"{metric},none": value, f"{metric}_stderr,none": NOT_KNOWN if error is None else error}
    version = int(about.name.rpartition("@")[2])
    higher = dict.fromkeys(measured, about.metric != "bpb")
    tables["results"][name] = figures
    tables["versions"][name] = version
    tables["higher_is_better"][name] = higher
    tables["n-samples"][name] = {"original": score.n, "effective": score.n}
    if about.shots is not None:
        tables["n-shot"][name] = about.shots
    source = Source("") if isinstance(about.data, dict) else about.data[0]
    tables["configs"][name] = {
        "task": name,
        "task_alias": alias,
        "dataset_path": source.path or None,
        "dataset_name": source.subset or None,
        "test_split": source.split if source.path else None,
        "output_type": "generate_until" if about.metric == "accuracy" else "loglikelihood",
        "generation_kwargs": gen_kwargs(about.sampling),
        "num_fewshot": about.shots,
        "repeats": about.sampling.n,
        "metric_list": [
            {"metric": metric, "aggregation": "mean", "higher_is_better": up} for metric, up in higher.items()
        ],
        "metadata": {"version": version, "card": about.to_json()},
    }


def _sample(number: int, result: Result, about: TaskCard) -> dict[str, Any]:
    """One line of a samples file. Whether an option was the greedy continuation is not kept, so it says None."""
    turns = [asdict(turn) for turn in result.messages]
    prompt = turns[0]["content"] if turns[0]["role"] == PLAIN else json.dumps(turns, ensure_ascii=False)
    metrics = {headline(about): result.score}
    if about.metric == "accuracy":
        arguments: list[tuple[str, Any]] = [(prompt, gen_kwargs(about.sampling))]
        answers: list[Any] = [[one.output for one in result.tries]]
        filtered: list[Any] = [result.answer]
        metrics |= result.numbers
    else:
        arguments = [(prompt, option) for option in result.options]
        filtered = [[str(logp), str(None)] for logp in result.logps]
        answers = [[one] for one in filtered]
        beside = {name: getattr(result, key) for name, key in BESIDE.items()}
        metrics |= {name: value for name, value in beside.items() if value is not None}
    target = str(result.gold) if about.metric == "choice" else result.reference
    doc = {"item": result.item, "subset": result.subset, "messages": turns, "reference": result.reference}
    return {
        "doc_id": number,
        "doc": doc,
        "target": target,
        "arguments": {f"gen_args_{i}": {"arg_0": a, "arg_1": b} for i, (a, b) in enumerate(arguments)},
        "resps": answers,
        "filtered_resps": filtered,
        "filter": "none",
        "metrics": list(metrics),
        "doc_hash": _hash(json.dumps(doc, indent=2, ensure_ascii=False)),
        "prompt_hash": _hash(prompt),
        "target_hash": _hash(target),
        "outcome": result.outcome,
        **metrics,
    }


def headline(about: TaskCard | Task) -> str:
    """The harness's name for the number a task is quoted by."""
    return f"pass@{about.pass_k}" if about.pass_k else HEADLINE[about.metric]


def gen_kwargs(sampling: Sampling) -> dict[str, Any]:
    """Sampling in the harness's words: `{"until": ["Q:"], "max_gen_toks": 256, "do_sample": False, ...}`."""
    greedy = {"until": list(sampling.stop), "max_gen_toks": sampling.max_new_tokens}
    if not sampling.temperature:
        return {**greedy, "do_sample": False, "temperature": 0.0}
    return {**greedy, "do_sample": True, **{key: getattr(sampling, key) for key in ("temperature", "top_p", "top_k")}}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
