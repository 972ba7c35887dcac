"""Results in the files of other tools: lm-evaluation-harness, AlpacaEval, inspect_ai, OLMES, RewardBench.

Each format is a function from what was evaluated to files, name -> text; `write` puts them into a folder. What a
format has no place for is left out; what it asks for and an evaluation does not know is left empty.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from tercet.evals.lm_eval.export import export_results, gen_kwargs, headline
from tercet.records import Result, Sample, Score, read_results, read_scores
from tercet.rows import PLAIN, DetailedMessage, Message

Files = dict[str, str]
ALPACA = "alpacaeval"


class ExportError(ValueError):
    """What was evaluated has no place in the format; the message says what would have."""


@dataclass(frozen=True)
class Evaluated:
    """The payload of an evaluation (or of a reward model), the model's name, and a name for the evaluation itself."""

    payload: Path
    model: str
    name: str

    @cached_property
    def scores(self) -> dict[str, Score]:
        """By task."""
        return read_scores(self.payload)

    @cached_property
    def results(self) -> list[Result]:
        """Every item, in the order of the file."""
        return list(read_results(self.payload / "results.jsonl"))

    @cached_property
    def made(self) -> datetime:
        """When the scores were written."""
        return datetime.fromtimestamp(int((self.payload / "scores.json").stat().st_mtime), UTC)

    def of(self, task: str) -> list[Result]:
        """The items of a task."""
        return [result for result in self.results if result.task == task]

    def id(self, *parts: str) -> str:
        """The same 22 characters whenever the same thing is exported."""
        return hashlib.sha256("\n".join((self.name, *parts)).encode()).hexdigest()[:22]


def write(form: str, done: Evaluated, folder: Path) -> list[str]:
    """Write the files of a format into the folder; returns their names."""
    files = FORMATS[form](done)
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return list(files)


def lm_eval(done: Evaluated) -> Files:
    """`results_TIME.json`, and `samples_TASK_TIME.jsonl` for each task, as `lm_eval --output_path --log_samples`."""
    whole, time = export_results(done.payload), done.made.strftime("%Y-%m-%dT%H-%M-%S.000000")
    samples = whole.pop("samples")
    whole |= {"model_name": done.model, "model_source": "tercet"}
    whole["config"] |= {"model_args": {"pretrained": done.model}}
    found = {f"results_{time}.json": _json(whole)}
    return found | {f"samples_{_file(task)}_{time}.jsonl": _lines(lines) for task, lines in samples.items()}


def alpaca_eval(done: Evaluated) -> Files:
    """`model_outputs.json`, as `alpaca_eval --model_outputs` reads it."""
    found = [one for one in done.results if one.task.partition("@")[0].partition(":")[0] == ALPACA and not one.lost]
    if not found:
        raise ExportError(f"expected answers to AlpacaEval's instructions; the tasks are {', '.join(done.scores)}")
    rows = [
        {
            "instruction": one.messages[-1].content,
            "output": one.output,
            "generator": done.model,
            "dataset": one.subset or "helpful_base",
            "datasplit": "eval",
        }
        for one in found
    ]
    return {"model_outputs.json": _json(rows)}


def inspect_ai(done: Evaluated) -> Files:
    """A log for each task, as `inspect_ai.log.read_eval_log` and `inspect view` read it."""
    time = done.made.strftime("%Y-%m-%dT%H-%M-%S+00-00")
    return {f"{time}_{_file(task)}_{done.id(task)}.json": _json(_log(done, task)) for task in done.scores}


def _log(done: Evaluated, task: str) -> dict[str, Any]:
    score, items = done.scores[task], done.of(task)
    card, model, when = score.card, f"tercet/{done.model}", done.made.isoformat()
    name, _, version = task.rpartition("@")
    scorer = card.verifier or card.judge or headline(card)
    metric = "accuracy" if headline(card) == "acc" else headline(card)  # as inspect calls it
    measured = {metric: score.score} | ({"stderr": score.stderr} if score.stderr is not None else {})
    sampling = {key: getattr(card.sampling, key) for key in ("temperature", "top_p")}
    samples = [one for item in items for one in _samples(item, scorer, model)]
    lost = sum("error" in one for one in samples)
    metrics = {key: {"name": key, "value": value, "params": {}} for key, value in measured.items()}
    return {
        "version": 2,
        "status": "success",
        "eval": {
            "eval_id": done.id(task, "eval"),
            "run_id": done.id("run"),
            "created": when,
            "task": name,
            "task_id": done.id(task),
            "task_version": int(version),
            "task_description": card.description or None,
            "dataset": {"name": name, "samples": len(items), "sample_ids": [item.item for item in items]},
            "model": model,
            "model_generate_config": {"max_tokens": card.sampling.max_new_tokens, **sampling},
            "config": {"epochs": max((len(item.tries) for item in items), default=1)},
            "metadata": {"card": card.to_json(), "outcomes": score.outcomes},
            "scorers": [{"name": scorer}],
        },
        "plan": {"steps": [{"solver": "generate", "params": {}}], "config": {}},
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples) - lost,
            "scores": [{"name": scorer, "scorer": scorer, "params": {}, "metrics": metrics}],
        },
        "stats": {"started_at": when, "completed_at": when, "model_usage": {model: _usage(items)}},
        "samples": samples,
    }


def _samples(item: Result, scorer: str, model: str) -> Iterator[dict[str, Any]]:
    """Every sample of an item, as an epoch each."""
    plain = item.messages[0].role == PLAIN
    asked = [] if plain else [_turn(turn) for turn in item.messages]
    for epoch, one in enumerate(item.tries, 1):
        answer = {"role": "assistant", "content": one.output, "source": "generate", "model": model}
        stop = {"length": "max_tokens", "error": "unknown"}.get(one.stop, "stop")
        found: dict[str, Any] = {
            "id": item.item,
            "epoch": epoch,
            "input": item.messages[0].content if plain else asked,
            "choices": list(item.options) or None,
            "target": item.options[item.gold] if item.options and item.gold >= 0 else item.reference,
            "messages": [*(asked or [{"role": "user", "content": item.messages[0].content}]), answer],
            "output": {"model": model, "choices": [{"message": answer, "stop_reason": stop}]},
            "metadata": {"subset": item.subset, "skill": item.skill, "digest": item.digest, "outcome": one.outcome},
        }
        if one.lost:
            found["error"] = {"message": one.detail or one.outcome, "traceback": "", "traceback_ansi": ""}
        else:
            found["scores"] = {scorer: {"value": one.score, "answer": one.answer, "explanation": one.detail or None}}
        yield found


def _turn(turn: Message) -> dict[str, Any]:
    """A turn of a prompt; calls of tools stay the text they are read as."""
    role = turn.role if turn.role in ("system", "user", "assistant", "tool") else "system"
    called = turn.tool_calls if isinstance(turn, DetailedMessage) else ""
    return {"role": role, "content": "\n".join(filter(None, (turn.content, called)))}


def _usage(items: list[Result]) -> dict[str, int]:
    read, written = sum(len(item.prompt_ids) for item in items), sum(map(_written, items))
    return {"input_tokens": read, "output_tokens": written, "total_tokens": read + written}


def _written(item: Result) -> int:
    return sum(one.num_tokens for one in item.tries if isinstance(one.num_tokens, int))


def open_instruct(done: Evaluated) -> Files:
    """`metrics.json`, `metrics-all.jsonl` and each task's predictions, as OLMES writes them for open-instruct."""
    lines = [_olmes(done, task, number) for number, task in enumerate(done.scores)]
    summary = [f"{line['task_name']}: {line['metrics']['primary_score']:.6}" for line in lines]
    kept = ("metrics", "num_instances", "processing_time", "task_config")
    tasks = [{"alias": line["task_name"], **{key: line[key] for key in kept}} for line in lines]
    found = {"metrics-all.jsonl": _lines(lines)}
    found["metrics.json"] = _json(
        {"all_primary_scores": summary, "tasks": tasks, "model_config": {"model": done.model}}
    )
    for number, task in enumerate(done.scores):
        rows = [_prediction(i, item) for i, item in enumerate(done.of(task)) if not item.lost]
        found[f"task-{number:03d}-{_file(task)}-predictions.jsonl"] = _lines(rows)
        found[f"task-{number:03d}-{_file(task)}-metrics.json"] = _json(lines[number])
    return found


def _olmes(done: Evaluated, task: str, number: int) -> dict[str, Any]:
    score = done.scores[task]
    card, primary = score.card, {"accuracy": "exact_match", "choice": "acc_raw", "bpb": "bits_per_byte"}
    name, _, version = task.rpartition("@")
    measured = {primary.get(card.metric, headline(card)): score.score, "primary_score": score.score}
    measured |= {key: own["value"] for key, own in (score.measures or {}).items()}
    return {
        "task_name": name,
        "task_hash": done.id(task),
        "model_hash": done.id("model"),
        "model_config": {"model": done.model},
        "task_config": {
            "task_name": name,
            "version": int(version),
            "split": card.split,
            "num_shots": card.shots,
            "primary_metric": next(iter(measured)),
            "generation_kwargs": gen_kwargs(card.sampling),
            "metadata": {"alias": name, "description": card.description},
        },
        "compute_config": {},
        "processing_time": 0.0,
        "current_date": done.made.strftime("%Y-%m-%d %H:%M:%S UTC"),
        "num_instances": score.n,
        "task_idx": number,
        "metrics": measured,
    }


def _prediction(number: int, item: Result) -> dict[str, Any]:
    def output(one: Sample) -> dict[str, Any]:
        return {"continuation": one.output, "num_tokens": one.num_tokens, "stop_reason": one.stop}

    measured = {"primary_score": item.score, "extracted_answer": item.answer}
    head = {"doc_id": number, "native_id": item.item, "label": item.gold if item.options else item.reference}
    return {**head, "metrics": measured, "model_output": [output(one) for one in item.tries]}


def reward_bench(done: Evaluated) -> Files:
    """A reward model's accuracies: `MODEL.json` of the command `rewardbench`, `eval-set.json` of the leaderboard."""
    file = done.payload / "tercet" / "accuracy.json"
    tests = json.loads(file.read_text(encoding="utf-8"))["tests"] if file.is_file() else {}
    found = [one for one in tests.values() if "rewardbench" in one]
    if not found:
        raise ExportError(
            f"{done.payload}: expected a reward model that was tested on RewardBench's subsets; name a stage with its "
            "pairs in `tests` of the reward_model stage"
        )
    subsets = {name: one["accuracy"] for name, one in found[0]["subsets"].items()}
    whole = {"accuracy": found[0]["accuracy"], "num_prompts": found[0]["n"], "model": done.model, "ref_model": None}
    whole |= {"tokenizer": done.model, "chat_template": "tokenizer", "extra_results": subsets}
    board = {"model": done.model, "model_type": "Seq. Classifier", "chat_template": "tokenizer", **subsets}
    return {f"{_file(done.model)}.json": _json(whole), "eval-set.json": _json(board)}


FORMATS: dict[str, Callable[[Evaluated], Files]] = {
    "lm-eval": lm_eval,
    "alpaca-eval": alpaca_eval,
    "inspect": inspect_ai,
    "open-instruct": open_instruct,
    "rewardbench": reward_bench,
}


def _file(name: str) -> str:
    """A name of a task or model as a part of a file's."""
    return "".join(letter if letter.isalnum() or letter in "-_.@" else "_" for letter in name)


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
