"""Whether a benchmark can be put together and asked: items, judges, gates, worked examples in the model's context."""

from __future__ import annotations

from collections.abc import Iterator

from tercet import hub
from tercet.evals import gates
from tercet.evals.suite import tasks
from tercet.evals.task import Generated, Item, Task, TaskError, items, public_records, read_benchmark
from tercet.preflight.facts import Facts, Obstacle
from tercet.recipe import BenchmarkSpec, EvalSpec, SynthSpec, gate
from tercet.verify import verifier

LONGEST = 8192  # tokens of context from which no prompt of ours is too long
FIRST = 5  # items of a task that are looked at where its benchmark is not made yet


def made_of(facts: Facts, name: str) -> Iterator[Obstacle]:
    """Tasks whose items are generated need the stage that generates them."""
    spec = facts.recipe.spec(name)
    if not isinstance(spec, BenchmarkSpec):
        return
    given = {}
    for number, used in enumerate(spec.items):
        stage = facts.recipe.stage[used]
        if not isinstance(stage, SynthSpec) or stage.split != "test":
            yield Obstacle(name, f"items.{number}", f'{used!r} gives no items; name a synth stage with split = "test"')
        else:
            given[stage.generator] = used
    for task in tasks(spec.tasks, facts.recipe.folder):
        if isinstance(task.data, Generated) and task.data.generator not in given:
            made = f'generator = "{task.data.generator}", split = "test"'
            yield Obstacle(name, "items", f"{task.id} has no items; add a synth stage with {made} and name it here")


def judged(facts: Facts, name: str) -> Iterator[Obstacle]:
    """Tasks that a model grades need the model; gates need their tasks."""
    spec = facts.recipe.spec(name)
    if not isinstance(spec, EvalSpec) or not isinstance(asked := facts.recipe.stage[spec.benchmark], BenchmarkSpec):
        return
    wanted, own = tasks(asked.tasks, facts.recipe.folder), asked.task or f"{spec.benchmark}@1"
    by_model = [task for task in wanted if task.judge]
    if by_model and not spec.judge:
        who = ", ".join(f"{task.id} ({task.judge})" for task in by_model)
        advice = "name one with `judge = ...`, a stage of kind `model` (on the command line --judge)"
        yield Obstacle(name, "judge", f"an LLM judge grades {who}; {advice}")
    if encoding := [task.id for task in by_model if verifier(task.judge).embeds and not spec.embedder]:
        yield Obstacle(
            name,
            "embedder",
            f"{encoding[0]} compares embeddings; name a `model` stage with encoder = true (--embedder)",
        )
    for number, text in enumerate(spec.require):
        try:
            gates.named(gate(text), [*(task.id for task in wanted), *[own] * (asked.questions is not None)])
        except TaskError as error:
            yield Obstacle(name, f"require.{number}", str(error))


def fits(facts: Facts, name: str) -> Iterator[Obstacle]:
    """The longest prompts against the context of the model, worked examples and all."""
    spec = facts.recipe.spec(name)
    if not isinstance(spec, EvalSpec) or facts.served(spec.model):
        return
    model = facts.model(spec.model)
    if model.context >= LONGEST:
        return
    count = model.counter()
    for task, found in _items(facts, spec.benchmark).items():
        sizes = [sum(count(turn.content) for turn in item.messages) for item in found]
        if sizes and min(sizes) > model.context:  # of one long item, the evaluation says so and goes on
            yield Obstacle(
                name,
                "benchmark",
                f"prompts of {task} have {min(sizes):,} tokens and more, and the model {model.name!r} reads "
                f"{model.context:,}; leave the task out, take one with fewer worked examples, or another model",
            )


def _items(facts: Facts, name: str) -> dict[str, list[Item]]:
    """The items of a benchmark by task: all of one that is made, else the first of those whose files are here."""
    if name in facts.made:
        found: dict[str, list[Item]] = {}
        for item in read_benchmark(facts.made[name])[1]:
            found.setdefault(item.task, []).append(item)
        return found
    spec = facts.recipe.spec(name)
    known = tasks(spec.tasks, facts.recipe.folder) if isinstance(spec, BenchmarkSpec) else []
    return {task.id: _first(task, facts) for task in known if is_here(task, facts)}


def is_here(task: Task, facts: Facts) -> bool:
    """Whether all files of a public task are on this machine."""
    if isinstance(task.data, Generated):
        return False
    return all(hub.local_file(source, facts.mirror) for source in (*task.data, *task.examples))


def _first(task: Task, facts: Facts) -> list[Item]:
    examples = hub.records(task.examples, facts.mirror)
    return items(task, public_records(task, facts.mirror)[:FIRST], examples)


CHECKS = (made_of, judged, fits)
