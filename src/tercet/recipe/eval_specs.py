"""The stages that collect benchmarks, evaluate models and report on the run, and the gates of an evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field, model_validator

from tercet.recipe.specs import ComputeSpec, FileRef, Loc, RecipeError, SourceSpec, Spec, StageReference, StageSpec

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_GATE = re.compile(
    rf"\s*(?P<task>\S+)\s*(?P<sign>>=|<=)\s*(?:(?P<bound>[-+]?{_NUMBER})|(?P<stage>[A-Za-z][\w-]*)"
    rf"(?:\s+(?P<by>[-+])\s*(?P<number>{_NUMBER}))?)\s*"
)


_ASKED = ("prompt_text", "temperature", "num_generations", "pass_k", "max_new_tokens")
_TASK = ("task", "metric", "shots", "shots_from", *_ASKED)  # the keys of a task of the user's own


class BenchmarkSpec(StageSpec):
    """Collect the items of tasks, so that `mix` can decontaminate against them and `eval` can run them.

    Rows of the user's own that carry a verifier and a reference answer are a task too.
    """

    module = "tercet.evals.benchmark"
    version = 4
    produces = "benchmark"
    accepts = {"items": ("synth",)}
    files = "tercet.evals.suite:files"
    code = "tercet.evals.suite:code"
    graders = "tercet.evals.suite:graders"
    later = ("rows", "source", *_TASK, "environment", "environment_args", "environment_seconds", "max_turns")
    kind: Literal["benchmark"] = "benchmark"
    tasks: tuple[str, ...] = Field(
        (), description="Task names, e.g. `words@1`, or tasks in a file of yours, `my_tasks.py:mine`."
    )
    items: tuple[str, ...] = Field((), description='Synth stages (split = "test") with items of generated tasks.')
    limit: int | None = Field(None, ge=1, description="First N items per task, after a seeded shuffle.")
    rows: str = Field(
        "",
        description="Rows that carry verifier and reference answer, as a task of your own: a stage of rows, or a local file.",
    )
    source: SourceSpec | None = Field(
        None, description="The same from a source, which may name `verifier`, `prompt`, `answer` and `info`."
    )
    task: str = Field(
        "",
        pattern=r"^([\w.-]+@\d+)?$",
        description="Name and version of your task, `arithmetic@2`; the stage's name and @1 when absent.",
    )
    metric: Literal["accuracy", "bpb"] = Field(
        "accuracy", description="The verifier's mean score, or bits per byte of the right answer (lower is better)."
    )
    shots: int = Field(0, ge=0, description="Worked examples before every question.")
    shots_from: str = Field(
        "",
        description="A stage of rows, or a local file, whose first rows are the worked examples; the first of `rows`, which are then no items, when absent.",
    )
    prompt_text: str = Field(
        "{prompt}", description="Text around every question, e.g. `Question: {prompt}\\nThink step by step.`"
    )
    temperature: float = Field(0.0, ge=0, description="Sampling temperature of your task.")
    num_generations: int = Field(1, ge=1, description="Completions per question of your task; the score is their mean.")
    pass_k: int = Field(
        0, ge=0, description="The score is pass@k over the completions, unbiased, instead of their mean."
    )
    max_new_tokens: int = Field(512, ge=1, description="Longest completion of your task, in tokens.")
    environment: str = Field(
        "", description="What plays your rows in episodes of several turns and rewards them, e.g. `calculator@1`."
    )
    environment_args: dict[str, Any] = Field({}, description="Arguments of the environment's class.")
    environment_seconds: float = Field(60.0, gt=0, description="Seconds after which an environment's call is ended.")
    max_turns: int = Field(8, ge=1, description="Most turns of the model in an episode.")

    @model_validator(mode="after")
    def _of_one_kind(self) -> BenchmarkSpec:
        if self.rows and self.source:
            raise ValueError("a benchmark has its rows from `rows` or from `source`; give one of the two")
        if not (self.tasks or self.rows or self.source):
            raise ValueError("a benchmark needs `tasks`, or rows of your own: `rows` (a stage, a file) or `source`")
        if self.environment and (self.metric != "accuracy" or self.shots):
            raise ValueError("an environment plays rows without `shots`, and its rewards are the score: no `metric`")
        given = [name for name in (*_TASK, "environment") if name in self.model_fields_set]
        if given and not (self.rows or self.source):
            raise ValueError(f"`{given[0]}` is for a task of your own; give its `rows` or `source` too")
        if self.pass_k > self.num_generations:
            raise ValueError(f"pass_k = {self.pass_k} needs as many completions; raise num_generations")
        if "{prompt}" not in self.prompt_text:
            raise ValueError("prompt_text must hold {prompt}, where the question goes")
        return self

    @property
    def questions(self) -> SourceSpec | None:
        """Where the rows of the user's own task are."""
        return self.source or _source(self.rows)

    @property
    def examples(self) -> SourceSpec | None:
        """Where its worked examples are, if not among its rows."""
        return _source(self.shots_from)

    def references(self) -> Iterator[StageReference]:
        """Also the stages of rows that are a task, or its worked examples."""
        for ref in super().references():
            yield ref._replace(accepts=("rows",)) if ref.loc == ("source", "stage") else ref
        for name in ("rows", "shots_from"):
            if (own := _source(getattr(self, name))) and own.stage:
                yield StageReference(own.stage, (name,), ("rows",))

    def origins(self) -> Iterator[tuple[Loc, SourceSpec]]:
        """The source."""
        yield from [(("source",), self.source)] if self.source else ()

    def local_files(self) -> Iterator[FileRef]:
        """Also files of rows and of worked examples."""
        yield from super().local_files()
        for name in ("rows", "shots_from"):
            if (own := _source(getattr(self, name))) and own.path:
                yield FileRef((name,), own.path)

    def forecast(self, rows: Mapping[str, int]) -> dict[str, int]:
        """The rows of a task of one's own; how many items other tasks have is not known before."""
        own = 0 if self.tasks or not self.questions else self.questions.expected(rows)
        return {"rows": min(own, self.limit or own)}


def _source(name: str) -> SourceSpec | None:
    """A stage where the name could be one, else a local file whose layout is recognised."""
    if not name:
        return None
    return SourceSpec(stage=name) if re.fullmatch(r"[\w-]+", name) else SourceSpec(path=name)


class EvalSpec(ComputeSpec):
    """Evaluate a model on a benchmark (paper §7)."""

    module = "tercet.evals.run"
    version = 4
    produces = "scores"
    accepts = {"model": ("weights",), "benchmark": ("benchmark",), "judge": ("weights",), "embedder": ("model",)}
    check = "tercet.evals.suite:check_final"
    grades = True
    kind: Literal["eval"] = "eval"
    model: str = Field(description="Stage, or `base`.")
    benchmark: str = Field(description="A stage of kind `benchmark`.")
    judge: str = Field("", description="LLM judge of the tasks that need one (a stage, usually of kind `model`).")
    embedder: str = Field("", description="Encoder for the tasks that compare embeddings (a stage of kind `model`).")
    engine: Literal["local", "vllm", "sglang"] = Field(
        "local", description="What runs the model: ours, or vLLM or SGLang (docs/engines.md)."
    )
    repeats: int = Field(1, ge=1, description="Ask every item so often; the item's score is the mean.")
    sandbox: Literal["auto", "none"] = Field("auto", description="How programs run; none means unprotected.")
    temperature: float | None = Field(None, ge=0, description="Overrides every task's sampling temperature.")
    max_new_tokens: int | None = Field(None, ge=1, description="Overrides every task's most new tokens.")
    final: bool = Field(False, description="Marks the one stage that may open the unseen suite.")
    require: tuple[str, ...] = Field((), description="Gates, e.g. `words >= eval-sft - 0.01`, against another eval.")

    def references(self) -> Iterator[StageReference]:
        """Also the evals that its gates compare with."""
        yield from super().references()
        for i, text in enumerate(self.require):
            if stage := gate(text).stage:
                yield StageReference(stage, ("require", i), ("scores",))

    def forecast(self, rows: Mapping[str, int]) -> dict[str, int]:
        """A completion for each item."""
        return {"completions": rows[self.benchmark]}


class ReportSpec(StageSpec):
    """One self-contained page about the run."""

    module = "tercet.report.page"
    version = 7
    produces = "page"
    accepts = {"evals": ("scores",)}
    kind: Literal["report"] = "report"
    evals: tuple[str, ...] = Field(min_length=1, description="Eval stages in their order; the first is the baseline.")
    title: str = Field("", description="Title of the page; the recipe's name when absent.")

    def identity(self, seed: int, recipe: Spec) -> dict[str, Any]:
        """The page shows the whole recipe, placement aside."""
        return super().identity(seed, recipe) | {"recipe": recipe.model_dump(mode="json", exclude={"placement"})}


class Gate(NamedTuple):
    """`words >= eval-sft - 0.01` is `Gate(text, "words", True, "eval-sft", -0.01)`; a plain bound has no stage."""

    text: str
    task: str
    at_least: bool
    stage: str
    offset: float


def gate(text: str) -> Gate:
    """Read one `require` line of an eval stage."""
    if (match := _GATE.fullmatch(text)) is None:
        raise RecipeError(f"cannot read the gate {text!r}; write 'TASK >= STAGE - 0.01' or 'TASK >= 0.3' (or with <=)")
    offset = float(match["bound"] or f"{match['by'] or '+'}{match['number'] or 0}")
    return Gate(text, match["task"], match["sign"] == ">=", match["stage"] or "", offset)
