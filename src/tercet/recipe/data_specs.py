"""The stages that make data: models beside the base, rows, mixtures, synthesis and preference pairs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from tercet.recipe.specs import ComputeSpec, Loc, ModelSource, SourceSpec, StageSpec


class ModelSpec(StageSpec, ModelSource):
    """Another model beside the base: an LLM judge, an author of data, an encoder for embeddings."""

    kind: Literal["model"] = "model"
    encoder: bool = Field(False, description="An encoder such as RoBERTa, read for embeddings: no chat template.")


TABLES = {  # the files of `tercet.data.tables` that a generator reads; {split} is the stage's split
    "words@1": ("words.toml", "words_{split}.jsonl"),
    "calls@1": ("words.toml", "words_{split}.jsonl"),
    "constraints@1": ("phrases.toml", "topics_{split}.jsonl"),
    "talk@1": ("talk_{split}.jsonl",),
    "facts@1": ("facts_{split}.jsonl",),
    "contaminated@1": ("words.toml", "words_test.jsonl", "phrases.toml", "topics_test.jsonl"),
}


class SynthSpec(StageSpec):
    """Make rows with a seeded generator of `tercet.data`."""

    module = "tercet.data.synth"
    version = 2
    produces = "rows"
    kind: Literal["synth"] = "synth"
    generator: Literal["words@1", "calls@1", "constraints@1", "talk@1", "facts@1", "contaminated@1"] = Field(
        description="Which generator makes the rows."
    )
    rows: int = Field(ge=1, description="How many rows.")
    split: Literal["train", "test"] = Field("train", description="The splits share no template and no topic.")

    def tables(self) -> list[str]:
        """Those of the generator."""
        return [name.format(split=self.split) for name in TABLES[self.generator]]

    def forecast(self, rows: Mapping[str, int]) -> dict[str, int]:
        """As many as are asked for."""
        return {"rows": self.rows}


class MixtureSpec(StageSpec):
    """What mixtures of rows and of pairs share."""

    module = "tercet.data.mix"
    accepts = {"against": ("benchmark",), "tokenizer": ("weights",)}
    sources: tuple[SourceSpec, ...] = Field(min_length=1, description="What goes in.")
    against: tuple[str, ...] = Field((), description="Benchmark stages whose items must not be in the mixture.")
    ngram: int = Field(8, ge=1, description="N-gram size of decontamination (paper §3.2).")
    threshold: float = Field(
        0.5, gt=0, le=1, description="A row goes when it covers more than this share of a benchmark item (paper §3.2)."
    )
    share: float = Field(
        0.02, ge=0, le=1, description="A source goes whole when it copies more than this share of an unseen benchmark."
    )
    exact: bool = Field(False, description="Look for whole benchmark fields as phrases instead of n-gram coverage.")
    where: Literal["user", "all"] = Field(
        "user", description="Turns that may not copy a benchmark: the user's (paper §3.2), or also what others say."
    )
    published: bool = Field(
        False,
        description="Look as the paper does: texts as they stand, and no item that is shorter than an n-gram.",
    )
    shots: bool = Field(
        True, description="Rows may not copy worked examples either; false where prompts show them (paper §6.1)."
    )
    dedupe: bool = Field(True, description="Remove rows whose prompt was seen before (normalised text).")
    keywords: bool = Field(True, description="Drop rows whose assistant names another maker's model (Tülu 3's list).")
    filters: dict[str, dict[str, Any]] = Field(
        {}, description="More filters with parameters, `{ repetition = { share = 0.3 } }`; see `tercet.data.filters`."
    )
    near: float = Field(0.0, ge=0, le=1, description="Drop prompts of this Jaccard similarity to an earlier one.")
    commercial: bool = Field(False, description="For commercial use: list the licences that stand against it.")
    tokenizer: str = Field("", description="Model whose tokenizer counts the datasheet's tokens; words when absent.")
    expect: int | None = Field(None, ge=1, description="Rows that the sources give together, before decontamination.")
    within: float = Field(0.0, ge=0, le=1, description="Share by which the rows may miss `expect` without an error.")

    @model_validator(mode="after")
    def _columns_make_rows(self) -> MixtureSpec:
        odd = [name for source in self.sources for name in source.by_columns]
        if odd and self.produces != "rows":
            raise ValueError(f"`{odd[0]}` of a source makes rows, and this stage makes {self.produces}; use a mix")
        return self

    def origins(self) -> Iterator[tuple[Loc, SourceSpec]]:
        """The sources."""
        yield from ((("sources", i), source) for i, source in enumerate(self.sources))

    def forecast(self, rows: Mapping[str, int]) -> dict[str, int]:
        """What the sources may give."""
        return {"rows": sum(source.expected(rows) for source in self.sources)}


class MixSpec(MixtureSpec):
    """Filter, dedupe, decontaminate and mix sources into one table of conversations."""

    version = 4
    produces = "rows"
    kind: Literal["mix"] = "mix"


class PairMixSpec(MixtureSpec):
    """Filter, dedupe, decontaminate and mix preference pairs into one table."""

    version = 2
    produces = "pairs"
    kind: Literal["pair_mix"] = "pair_mix"


class UnpairedMixSpec(MixtureSpec):
    """Filter, dedupe, decontaminate and mix answers that are labelled good or bad; a pair gives one of each."""

    produces = "unpaired"
    mixes = ("unpaired", "pairs")
    only = (
        'these answers have a label each and no partner: `loss = "kto"` of a dpo stage learns from them, what compares '
        "two answers (other losses, reward models) needs pairs, and bad answers are no targets of SFT"
    )
    kind: Literal["unpaired_mix"] = "unpaired_mix"
    dedupe: bool = Field(True, description="Remove answers that were seen before to their prompt with their label.")


class AskingSpec(ComputeSpec):
    """What the stages share that ask models for texts and pay for them."""

    turn = 1
    max_new_tokens: int = Field(1024, ge=1, description="Longest text, in tokens.")
    budget: float | None = Field(
        None, ge=0, description="Most that this stage's requests may cost in one store, in `placement.price`'s unit."
    )
    engine: Literal["local", "vllm", "sglang"] = Field(
        "local", description="What runs local models: ours, or vLLM or SGLang (docs/engines.md)."
    )


class PersonasSpec(AskingSpec):
    """New prompts and answers from a model that is given a persona, checked before they are kept (paper §3.1.2)."""

    module = "tercet.data.synthesis.personas_stage"
    version = 2
    produces = "rows"
    accepts = {"model": ("weights",)}
    reads = ("personas.toml", "phrases.toml")
    kind: Literal["personas"] = "personas"
    model: str = Field(description="The model that writes questions and answers; usually a stage of kind `model`.")
    write: Literal[
        "persona_if",
        "persona_math",
        "persona_gsm",
        "persona_algebra",
        "persona_python",
        "if_augmented",
        "wildchat_if",
        "noncompliance",
    ] = Field(description="What is written; `if_augmented` and `wildchat_if` start from instructions, not personas.")
    seeds: SourceSpec = Field(description="Personas (or instructions): the first user turn of each row.")
    rows: int | None = Field(None, ge=1, description="Use this many seeds (seeded sample); all when absent.")
    answers: int = Field(4, ge=0, description="Answers per question, of which a majority must agree; 0: prompts only.")
    agree: float = Field(0.5, ge=0, le=1, description="Share of the answers that must agree (more than this).")
    temperature: float = Field(0.8, ge=0, description="Sampling temperature of answers.")
    author_temperature: float = Field(1.0, ge=0, description="Sampling temperature of questions.")

    def origins(self) -> Iterator[tuple[Loc, SourceSpec]]:
        """The seeds."""
        yield ("seeds",), self.seeds

    def forecast(self, rows: Mapping[str, int]) -> dict[str, int]:
        """A row for each seed; a question and its answers are asked for."""
        seeds = self.rows or self.seeds.expected(rows)
        return {"rows": seeds, "completions": seeds * (1 + self.answers)}


class RatedPairsSpec(AskingSpec):
    """Preference pairs from answers of several models that an LLM judge rates in four aspects (paper §5.2)."""

    module = "tercet.data.synthesis.rated_pairs"
    version = 3
    produces = "pairs"
    accepts = {"prompts": ("rows",), "pool": ("weights",), "own": ("weights",), "judge": ("weights",)}
    author = "own"
    kind: Literal["rated_pairs"] = "rated_pairs"
    prompts: str = Field(description="A stage whose rows give the prompts; answers they have are ignored.")
    pool: tuple[str, ...] = Field(min_length=1, description="The models that answer: local ones and servers.")
    own: str = Field("", description="The policy: each prompt gets its answer and one of the pool (on-policy pairs).")
    judge: str = Field(description="The LLM judge that rates.")
    rows: int | None = Field(None, ge=1, description="Use this many prompts (seeded sample); all when absent.")
    drawn: int = Field(4, ge=2, description="Answers rated per prompt, drawn from the pool (paper: 4).")
    temperature: float = Field(1.0, ge=0, description="Sampling temperature of answers (paper: 1.0).")
    ties: Literal["drop", "keep"] = Field("drop", description="What becomes of prompts whose answers are all as good.")
    paper: bool = Field(False, description="Read and pair the ratings with the quirks of the published run.")
    judge_tokens: int = Field(1024, ge=1, description="Longest verdict, in tokens.")

    def forecast(self, rows: Mapping[str, int]) -> dict[str, int]:
        """A pair for each prompt; answers and their four ratings are asked for."""
        prompts = min(rows[self.prompts], self.rows or rows[self.prompts])
        answers = 2 if self.own else min(self.drawn, len(self.pool))
        return {"rows": prompts, "completions": prompts * (answers + 4)}


class OnPolicyPairsSpec(ComputeSpec):
    """On-policy preference pairs graded by verifiers (paper §5.2–5.3)."""

    module = "tercet.data.synthesis.on_policy"
    version = 3
    produces = "pairs"
    accepts = {"model": ("weights",), "prompts": ("rows",)}
    author = "model"
    grades = True
    later = ("engine",)
    kind: Literal["on_policy_pairs"] = "on_policy_pairs"
    model: str = Field(description="The policy that writes both sides; usually the SFT stage.")
    prompts: str = Field(description="A stage of rows that carry verifiers: mix, synth or personas.")
    rows: int | None = Field(None, ge=1, description="Use this many prompts (seeded sample); all when absent.")
    num_generations: int = Field(4, ge=0, description="Completions per prompt; 0: the row's own answer is chosen.")
    dropped_samples: int = Field(1, ge=0, description="Completions with one constraint dropped (persona-IF rule).")
    max_pairs: int = Field(1, ge=1, description="Pairs kept per prompt.")
    temperature: float = Field(1.0, gt=0, description="Sampling temperature (paper pipeline: 1.0).")
    max_new_tokens: int = Field(160, ge=1, description="Longest completion, in tokens.")
    engine: Literal["local", "vllm", "sglang"] = Field(
        "local", description="What runs the model: ours, or vLLM or SGLang (docs/engines.md)."
    )

    def forecast(self, rows: Mapping[str, int]) -> dict[str, int]:
        """The most pairs that the prompts may give, and what is drawn for them."""
        prompts = min(rows[self.prompts], self.rows or rows[self.prompts])
        drawn = self.num_generations + self.dropped_samples
        return {"rows": prompts * self.max_pairs, "completions": prompts * drawn}
