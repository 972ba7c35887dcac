"""Verbs of evaluations: eval, scores, rescore, compare, grade."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape

from tercet import pipeline
from tercet.cli.models import base_of
from tercet.cli.output import emit, say, scores_table, table
from tercet.inline import score
from tercet.launch.ending import StageError
from tercet.outside import printable
from tercet.recipe import Recipe, RecipeError
from tercet.records import read_scores
from tercet.rows import messages_from
from tercet.stats import mean_score
from tercet.store import Store, StoreError
from tercet.verify import Grade, Verifier, newest, verifier

REFERENCES = ("reference", "truth", "ground_truth", "answer")  # what other tools call a reference answer


def evaluate(args: argparse.Namespace) -> int:
    """A benchmark and the model's evaluation on it, through the pipeline: what exists is not computed again."""
    store = Store(args.store)
    recipe, mirror = eval_recipe(args, store), pipeline.read_mirror(args.mirror)
    made = pipeline.run(recipe, store, mirror=mirror, console=Console(stderr=True))["eval"]
    found = read_scores(made.payload)
    if args.json:
        usage = {key: value for key, value in made.metrics.items() if key not in found}
        entries = {task: one.to_json() for task, one in found.items()}
        return emit({"artifact": str(made.path), "model": args.model, "scores": entries, "usage": usage})
    scores_table({args.model: found})
    _say_averages(made.payload)
    say(f"results: {made.path}")
    return 0


def eval_recipe(args: argparse.Namespace, store: Store) -> Recipe:
    """A recipe in memory: rows of generated tasks, the benchmark, the models, the evaluation."""
    from tercet.evals.suite import item_stages

    if not args.tasks:
        raise RecipeError("--tasks is missing: name evaluation tasks or suites, e.g. --tasks gsm8k@2,ifeval@1")
    stage = item_stages(args.tasks)
    stage["benchmark"] = {"kind": "benchmark", "tasks": args.tasks, "items": list(stage), "limit": args.limit}
    stage["eval"] = {"kind": "eval", "model": "base", "benchmark": "benchmark"}
    asked = ("dtype", "repeats", "temperature", "max_new_tokens", "engine", "sandbox", "final")
    stage["eval"] |= {key: getattr(args, key) for key in asked}
    for role in ("judge", "embedder"):
        if getattr(args, role):
            stage[role] = base_of(args, store, getattr(args, role)).model_dump()
            stage[role] |= {"kind": "model", "encoder": role == "embedder", "template": "own"}
            stage["eval"][role] = role
    limits = ("requests", "requests_per_minute", "tokens_per_minute", "price")
    placement = {key: getattr(args, key) for key in limits}
    base = base_of(args, store, args.model).model_dump()
    whole = {"name": "eval", "seed": args.seed, "base": base, "stage": stage, "placement": placement}
    return Recipe.model_validate(whole)


def scores(args: argparse.Namespace) -> int:
    """A line per task: score, interval, what could have been detected, how answers ended."""
    folder = _payload(args.evaluation, args.store)
    found = read_scores(folder)
    if args.json:
        return emit({task: one.to_json() for task, one in found.items()})
    rows = [
        (
            task,
            f"{one.score:.4f}",
            f"{one.stderr:.4f}" if one.stderr is not None else "",
            f"[{one.low:.3f}, {one.high:.3f}]" if one.low is not None else "",
            one.n,
            f"{one.minimum_detectable:.3f}" if one.minimum_detectable is not None else "",
            ", ".join(f"{count} {name}" for name, count in one.outcomes.items() if count),
        )
        for task, one in found.items()
    ]
    head = ("task", "score", "stderr", "95 % interval", "n", "detectable", "outcomes")
    if args.format == "markdown":
        say("\n".join(f"| {' | '.join(map(str, row))} |" for row in (head, ["---"] * len(head), *rows)))
    else:
        table(head, rows)
    _say_averages(folder)
    return 0


def _say_averages(folder: Path) -> None:
    """The averages of the suites that the evaluation completes."""
    file = folder / "averages.json"
    for suite, found in (json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}).items():
        for name, one in found["averages"].items():
            say(f"{suite} average over {name}: {score(one['score'], one['stderr'])}")


def rescore(args: argparse.Namespace) -> int:
    """A folder of results and scores beside the evaluation's own, which stays as it is."""
    from tercet.evals.rescore import rescore as again
    from tercet.evals.run import EvalError

    if args.out.exists():
        raise ValueError(f"{args.out} exists; rescore into a folder that does not exist yet, or remove it")
    verifiers = dict(pair.split("=", 1) for pair in args.verifier if "=" in pair)
    if len(verifiers) != len(args.verifier):
        raise ValueError(f"--verifier: expected TASK=VERIFIER, e.g. ifeval@1=ifeval_reference@1; got {args.verifier}")
    try:
        found = again(_payload(args.evaluation, args.store), args.out, verifiers)
    except EvalError as error:
        raise StageError(str(error), 1) from None
    if args.json:
        return emit({task: one.to_json() for task, one in found.items()})
    scores_table({args.evaluation: found})
    say(f"results: {args.out}")
    return 0


def _payload(name: str, root: str) -> Path:
    """The payload of an evaluation: a folder with results, or an artifact of the store."""
    if (Path(name) / "results.jsonl").is_file():
        return Path(name)
    artifact = Store(root).open(name)
    if artifact.kind != "eval":
        raise StoreError(f"{artifact.path.name} is a {artifact.kind} artifact; expected an eval artifact")
    return artifact.payload


def compare(args: argparse.Namespace) -> int:
    """A line per task: difference, interval, test."""
    from tercet.evals.compare import cells, markdown, note
    from tercet.evals.compare import compare as paired

    a, b = (_payload(name, args.store) for name in (args.a, args.b))
    lines = paired(a, b, args.tasks or None)
    if args.json:
        return emit({"a": str(a), "b": str(b), "tasks": [asdict(line) for line in lines], "note": note(lines)})
    if args.markdown:
        say(markdown(lines, args.a, args.b))
        return 0
    rows = [[*(row := cells(line))[:-1], line.test, row[-1]] for line in lines]
    say(f"A = {args.a}, B = {args.b}")
    table(("task", "n", "A", "B", "B - A", "95 % interval", "p", "p (Holm)", "test", "detectable"), rows)
    say(note(lines))
    return 0


def grade(args: argparse.Namespace) -> int:
    """Every completion's grade and the mean; or the check of verifiers by their tasks' own answers."""
    if args.gold:
        return _grade_gold(args)
    if not args.verifier or not args.file:
        raise ValueError("expected VERIFIER FILE, or --gold with task names; see tercet grade --help")
    name = newest(args.verifier)
    verify = verifier(name)
    grades = []
    for number, answer in _answers(args.file):
        try:
            grades.append((number, _graded(verify, answer)))
        except ValueError as error:
            raise ValueError(f"{args.file}, line {number}: {error}") from None
    if not grades:
        raise ValueError(f"{args.file}: holds no completions; expected lines of JSON")
    whole = mean_score([found.score for _, found in grades])
    if args.json:
        found = [{"line": number, **asdict(one)} for number, one in grades]
        head = {"verifier": name, "n": whole.n, "score": whole.value, "stderr": whole.stderr}
        return emit({**head, "grades": found})
    rows = [(number, f"{g.score:g}", g.outcome, _short(g.answer), _short(g.detail)) for number, g in grades]
    table(("line", "score", "outcome", "answer", "detail"), rows)
    say(f"{name}: {score(whole.value, whole.stderr)} over {whole.n} completions")
    return 0


def _grade_gold(args: argparse.Namespace) -> int:
    """Exit code 3 when more than 0.2 % of a verifier's grades of own and spoiled answers are wrong."""
    from tercet.data.synth import GENERATORS
    from tercet.evals.gold import check
    from tercet.evals.suite import tasks

    mirror = pipeline.read_mirror(args.mirror)
    found = []
    with Console(stderr=True).status("grading") as status:
        for task in tasks(args.gold):
            status.update(escape(printable(f"grading {task.id}")))
            found.append(check(task, mirror, args.limit, lambda own: GENERATORS[own.generator](own.rows, "test", 17)))
    if args.json:
        emit([asdict(one) for one in found])
    else:
        rows = [(one.task, one.verifier, one.n, one.accepted, one.refused, one.note) for one in found]
        table(("task", "verifier", "items", "own accepted", "spoiled refused", "note"), rows)
        for one in found:
            for item, why in one.missed[:20]:
                say(f"{one.task}, {item}: {why}")
    return 3 if any(one.agreement < 0.998 for one in found) else 0


def _graded(verify: Verifier, answer: dict[str, Any]) -> Grade:
    """The grade of a line, whose prompt may be a text or a list of turns."""
    prompt = answer.get("prompt") or ()
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    asked: dict[str, Any] = {"prompt": messages_from(turns) if turns else (), "source": str(answer.get("source") or "")}
    found = verify(answer["completion"], answer["reference"], **asked)
    if found.refused:
        raise ValueError(found.detail)
    return found


def _answers(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and object of each line; the first one without completion and reference answer is named."""
    try:
        lines = file.read_text(encoding="utf-8").split("\n")  # only a line feed ends a line of JSON
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file; expected one with a line of JSON for each completion") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read as UTF-8 text ({error})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{file}, line {number}: not valid JSON ({error.msg}); fix or remove the line") from None
        given = next((key for key in REFERENCES if isinstance(value, dict) and key in value), "")
        fields = (value["completion"], value[given]) if given and "completion" in value else (None,)
        if not all(isinstance(text, str) for text in fields):
            got = sorted(value) if isinstance(value, dict) else type(value).__name__
            raise ValueError(f"{file}, line {number}: expected the texts 'completion' and 'reference', got {got}")
        yield number, value | {"reference": value[given]}


def _short(text: str, most: int = 60) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[: most - 1] + "…"
