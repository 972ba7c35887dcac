"""The stages that collect benchmarks, evaluate models and report on the run, and the gates of an evaluation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import Field

from tercet.recipe.specs import ComputeSpec, RecipeError, Spec, StageReference, StageSpec

_NUMBER = r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_GATE = re.compile(
    rf"\s*(?P<task>\S+)\s*(?P<sign>>=|<=)\s*(?:(?P<bound>[-+]?{_NUMBER})|(?P<stage>[A-Za-z][\w-]*)"
    rf"(?:\s+(?P<by>[-+])\s*(?P<number>{_NUMBER}))?)\s*"
)


class BenchmarkSpec(StageSpec):
    """Collect the items of tasks, so that `mix` can decontaminate against them and `eval` can run them."""

    module = "tercet.evals.benchmark"
    version = 4
    produces = "benchmark"
    accepts = {"items": ("synth",)}
    files = "tercet.evals.suite:files"
    kind: Literal["benchmark"] = "benchmark"
    tasks: tuple[str, ...] = Field(description="Task names, e.g. `words@1`; see `tercet.evals.suite`.")
    items: tuple[str, ...] = Field((), description='Synth stages (split = "test") with items of generated tasks.')
    limit: int | None = Field(None, ge=1, description="First N items per task, after a seeded shuffle.")


class EvalSpec(ComputeSpec):
    """Evaluate a model on a benchmark (paper §7)."""

    module = "tercet.evals.run"
    version = 4
    produces = "scores"
    accepts = {"model": ("weights",), "benchmark": ("benchmark",), "judge": ("weights",), "embedder": ("model",)}
    check = "tercet.evals.suite:check_final"
    kind: Literal["eval"] = "eval"
    model: str = Field(description="Stage, or `base`.")
    benchmark: str = Field(description="A stage of kind `benchmark`.")
    judge: str = Field("", description="LLM judge of the tasks that need one (a stage, usually of kind `model`).")
    embedder: str = Field("", description="Encoder for the tasks that compare embeddings (a stage of kind `model`).")
    engine: Literal["local", "vllm"] = Field("local", description="What runs the model: ours, or vLLM (an extra).")
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
    version = 5
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
