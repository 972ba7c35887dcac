"""Recipes written for somebody who has none: of a command of one line, and a first one of one's own (`tercet new`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tercet.recipe.file import to_toml
from tercet.recipe.rl_specs import GRPOSpec
from tercet.recipe.train_specs import DPOSpec, RewardModelSpec, SFTSpec, TrainSpec

SIZE = {"rounds": 50, "batch": 16, "num_generations": 8}  # of GRPO: 6,400 answers, an hour or two of a laptop
ANSWER = 512  # most tokens of each
GENERATED = {"chats": ("talk@1", 200), "problems": ("words@1", 400)}  # rows that stand in where no file is named


@dataclass(frozen=True)
class Start:
    """What a recipe is written from. Data are files, folders or hub ids; what is empty has no stage.

    `base` holds keys of `[base]`; `context` is the most tokens that its model reads; `items` are the stages that
    make the items of generated ones among `tasks`; `grading` are keys of the problems' source, such as
    `{"verifier": "gsm8k@2"}`.
    """

    name: str
    base: dict[str, Any]
    chats: str = ""
    preferences: str = ""
    problems: str = ""
    reward_model: bool = False  # what is made of preferences, in the place of DPO
    grading: dict[str, Any] = field(default_factory=dict)
    tasks: Sequence[str] = ()
    items: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    context: float = float("inf")
    generated: Sequence[str] = ()  # of "chats" and "problems": rows of our own generators

    def text(self, why: str) -> str:
        """The recipe as TOML with a comment for each part; `why` is its first comment."""
        return "\n".join([f"# {why}", f"name = {to_toml(self.name)}", "", *self._parts()]).rstrip() + "\n"

    def _parts(self) -> Iterator[str]:
        yield from _table("base", "The model that everything starts from.", **self.base)
        yield from self._benchmark()
        last = "base"
        if self.chats or "chats" in self.generated:
            yield from self._imitate()
            last = "sft"
        if self.preferences:
            yield from self._prefer(last)
            last = last if self.reward_model else "dpo"
        if self.problems or "problems" in self.generated:
            yield from self._verify(last)
            last = "grpo"
        yield from self._evaluations(last)

    def _imitate(self) -> Iterator[str]:
        about = "Conversations; their layout is recognised (`tercet data FILE` shows what becomes of them)."
        yield from self._rows("chats", "mix", self.chats, about, {})
        values = {"kind": "sft", "model": "base", "rows": "chats", "max_length": self._fitting(SFTSpec)}
        yield from _table("stage.sft", "Imitate: learn to answer as the conversations do.", **values)

    def _prefer(self, model: str) -> Iterator[str]:
        yield from self._rows("preferences", "pair_mix", self.preferences, "Two answers to a prompt, one better.", {})
        spec: type[TrainSpec] = RewardModelSpec if self.reward_model else DPOSpec
        name, note = "dpo", "Prefer: make the better answer more probable than the other."
        if self.reward_model:
            name, note = "reward", "A model that says how good an answer is."
        values = {"kind": spec.model_fields["kind"].default, "model": model, "pairs": "preferences"}
        yield from _table(f"stage.{name}", note, **values, max_length=self._fitting(spec))

    def _verify(self, model: str) -> Iterator[str]:
        about = "Problems whose answers a verifier can check (`tercet grade` tries one)."
        yield from self._rows("problems", "mix", self.problems, about, self.grading)
        answer = int(min(ANSWER, self.context // 2))
        longest = int(min(GRPOSpec.model_fields["max_length"].default, self.context - answer))
        values = {"kind": "grpo", "model": model, "prompts": "problems", **SIZE}
        note = "Verify: answer, be graded, and learn from what was right. These numbers decide how long it takes."
        yield from _table("stage.grpo", note, **values, max_length=longest, max_new_tokens=answer)

    def _fitting(self, spec: type[TrainSpec]) -> int:
        """The longest row: what the stage takes by itself, or what the model can read."""
        return int(min(spec.model_fields["max_length"].default, self.context))

    def _rows(self, name: str, kind: str, path: str, about: str, more: dict[str, Any]) -> Iterator[str]:
        """The stage of some rows: a file's, or a generator's."""
        if path:
            against = {"against": ["benchmark"]} if self.tasks else {}
            yield from _table(f"stage.{name}", about, kind=kind, sources=[{"path": path, **more}], **against)
        else:
            generator, rows = GENERATED[name]
            yield from _table(f"stage.{name}", about, kind="synth", generator=generator, rows=rows)

    def _benchmark(self) -> Iterator[str]:
        """The tasks' items first, so that no row that copies one is trained on."""
        if not self.tasks:
            return
        note = "What is measured. Rows that copy an item of it are not trained on."
        values = {"kind": "benchmark", "tasks": list(self.tasks), **({"items": list(self.items)} if self.items else {})}
        yield from _table("stage.benchmark", note, **values)
        for name, stage in self.items.items():
            yield from _table(f"stage.{name}", "", **stage)

    def _evaluations(self, last: str) -> Iterator[str]:
        if not self.tasks or last == "base":
            return
        names = {"base": "before", last: "after"}
        for model, name in names.items():
            note = "The same questions before and after training." if name == "before" else ""
            yield from _table(f"stage.{name}", note, kind="eval", model=model, benchmark="benchmark")
        yield from _table("stage.report", "One page that tells the story.", kind="report", evals=[*names.values()])


def _table(name: str, about: str, **values: Any) -> Iterator[str]:
    if about:
        yield f"# {about}"
    yield f"[{name}]"
    yield from (f"{key} = {to_toml(value)}" for key, value in values.items())
    yield ""
