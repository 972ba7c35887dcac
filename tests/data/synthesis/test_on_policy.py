"""Pairs are what they claim to be, and a killed run samples nothing twice and ends in the same bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tercet.data.generators import constraints, words
from tercet.data.synthesis import on_policy
from tercet.data.synthesis.on_policy import CHUNK, GradedAnswer
from tercet.data.synthesis.personas import SeedCounts, synthesise
from tercet.data.synthesis.personas_checks import AnswerPlan
from tercet.precision import resolve
from tercet.recipe import BaseSpec, OnPolicyPairsSpec, Recipe
from tercet.rows import (
    Completion,
    Likelihood,
    Message,
    Messages,
    Pair,
    Row,
    RowError,
    Sampling,
    read_pairs,
    write_table,
)
from tercet.store import Artifact, Context
from tercet.track import Tracker
from tercet.verify import verifier

Answer = Callable[[str, float], str]  # (prompt, a number drawn for this sample) -> text


class Killed(BaseException):
    """Stands for SIGKILL: nothing catches it."""


@dataclass
class Writer:
    """A policy that follows `answer`; each sample's luck is a pure function of seed, prompt and number."""

    answer: Answer
    stop: str = "eos"
    calls_left: int = 10**9
    asked: list[tuple[str, int]] = field(default_factory=list)

    def complete(
        self,
        prompts: Sequence[Messages],
        sampling: Sampling,
        done: Callable[[int, list[Completion]], None] | None = None,
    ) -> list[list[Completion]]:
        self.calls_left -= 1
        if self.calls_left < 0:
            raise Killed
        self.asked += [(prompt[-1].content, sampling.n) for prompt in prompts]
        return [
            [self._sample(prompt, sampling.seed + number, index) for index in range(sampling.n)]
            for number, prompt in enumerate(prompts)
        ]

    def _sample(self, prompt: Messages, seed: int, index: int) -> Completion:
        luck = hashlib.sha256(f"{seed}/{index}".encode()).digest()[0] / 256
        text = self.answer(prompt[-1].content, luck)
        tokens = tuple(range(len(text.split())))
        return Completion(text, tokens, tuple(-1.0 for _ in tokens), self.stop)

    def likelihood(
        self, prompts: Sequence[Messages], options: Sequence[Sequence[str]], *, close: bool = False
    ) -> list[list[Likelihood]]:
        raise NotImplementedError


class StageRun:
    """The stage, run on `rows` with a `Writer` as the policy."""

    def __init__(self, folder: Path, rows: list[Row]) -> None:
        self.folder = folder
        write_table(folder / "sft-data" / "payload" / "rows.parquet", rows)
        (folder / "work").mkdir()
        (folder / "out").mkdir()
        self.inputs = {
            "sft-data": Artifact("mix", "sft-data", "1" * 64, folder / "sft-data", {}, {}),
            "sft": Artifact("sft", "sft", "abcdef0123456789", folder / "sft", {}, {}),
        }
        self.opened: list[tuple[Path, str]] = []

    def run(self, writer: Writer, seed: int = 17, **spec: Any) -> dict[str, float]:
        def open_model(path: Path, dtype: str, engine: str = "local") -> Writer:
            self.opened.append((path, dtype))
            return writer

        recipe = Recipe(name="test", base=BaseSpec(model="tiny:"), stage={})
        ctx = Context("preference-data", seed, recipe, self.folder / "work", Tracker(None), {}, open_model)
        made = OnPolicyPairsSpec(model="sft", prompts="sft-data").model_copy(update=spec)
        return on_policy.run(made, self.inputs, self.folder / "out", ctx)

    @property
    def pairs(self) -> list[Pair]:
        return read_pairs(self.folder / "out" / "pairs.parquet")

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "out" / "summary.json").read_text())

    @property
    def log(self) -> Path:
        return self.folder / "work" / "samples.jsonl"


def sums(count: int) -> list[Row]:
    return [
        Row(f"sum-{i}", (Message("user", f"What is {i} + 1?"),), "s", "words", "gsm8k@1", str(i + 1))
        for i in range(count)
    ]


def often_right(prompt: str, luck: float) -> str:
    number = int(prompt.split()[2])
    return f"It is {number + 1}." if luck < 0.5 else f"After {luck:.4f} hours of thought: {number + 2}."


def constrained() -> Row:
    text = "Do not use any commas."
    end = 'End with "Bye."'
    reference = [
        {"func_name": "validate_no_commas", "text": text},
        {"func_name": "validate_end", "end_phrase": "Bye.", "text": end},
    ]
    turns = (Message("system", "Be brief."), Message("user", f"Tell me about eggs. {text} {end}"))
    return Row("eggs", turns, "constraints@1", "constraints", "tulu_if@1", json.dumps(reference))


def obedient(prompt: str, luck: float) -> str:
    """Keeps every constraint that is asked for, and breaks the others."""
    start = "Eggs are good." if "commas" in prompt else "Eggs, I say, are good."
    return f"{start} {luck} Bye." if "Bye." in prompt else f"{start} {luck}"


def test_right_against_wrong(tmp_path: Path) -> None:
    stage = StageRun(tmp_path, [*sums(40), Row("chat", (Message("user", "Hi"), Message("assistant", "Ho")))])
    metrics = stage.run(Writer(often_right), num_generations=4)
    assert stage.opened == [(tmp_path / "sft" / "payload", resolve("auto"))]
    verify = verifier("gsm8k@1")
    references = {row.id: row.reference for row in sums(40)}
    assert len(stage.pairs) == metrics["pairs"] > 25
    for pair in stage.pairs:
        reference = references[pair.id.removesuffix("/0")]
        assert verify(pair.chosen[-1].content, reference).score == pair.chosen_rating == 1
        assert verify(pair.rejected[-1].content, reference).score == pair.rejected_rating == 0
        assert pair.chosen_model == pair.rejected_model == "sft-abcdef012345"
        facts = json.loads(pair.provenance)
        assert (facts["rule"], facts["verifier"], facts["seed"]) == ("right_wrong", "gsm8k@1", 17)
    summary = stage.summary
    assert summary["prompts"] == 40
    assert summary["rules"] == {"right_wrong": len(stage.pairs)}
    assert summary["skills"]["words"]["samples"] == 160
    assert 0.3 < summary["skills"]["words"]["pass_rate"] < 0.7
    assert metrics["pass_rate_words"] == summary["skills"]["words"]["pass_rate"]
    assert sum(summary["no_pair"].values()) == 40 - len(stage.pairs)
    assert set(summary["no_pair"]) <= {"nothing failed", "nothing passed"}
    assert summary["mean_length"]["chosen"] < summary["mean_length"]["rejected"]


def test_rejected_answers_the_instruction_without_one_constraint(tmp_path: Path) -> None:
    stage = StageRun(tmp_path, [constrained()])
    writer = Writer(obedient)
    stage.run(writer, num_generations=3, dropped_samples=2, max_pairs=5)
    assert len(stage.pairs) == 2  # as many as there are rejected answers
    original, weaker = writer.asked
    assert original == (constrained().prompt[-1].content, 3)
    assert weaker[1] == 2
    verify = verifier("tulu_if@1")
    for pair in stage.pairs:
        assert pair.prompt == constrained().prompt
        assert verify(pair.chosen[-1].content, constrained().reference).score == 1
        assert verify(pair.rejected[-1].content, constrained().reference).score == 0
        facts = json.loads(pair.provenance)
        assert facts["rule"] == "persona_if"
        assert facts["rejected"]["origin"] == "dropped"
        assert facts["dropped"]["text"] not in weaker[0]
        assert facts["dropped"]["text"] == json.loads(constrained().reference)[facts["dropped"]["index"]]["text"]
    assert stage.summary["rules"] == {"persona_if": 2}
    assert stage.summary["skills"]["constraints"] == {"samples": 3, "pass_rate": 1.0, "truncated": 0.0}


def test_without_samples_the_rows_own_answer_is_chosen(tmp_path: Path) -> None:
    rows = constraints.generate(12, "train", 3)
    stage, writer = StageRun(tmp_path, rows), Writer(lambda prompt, luck: "No, I will not, and here is why")
    stage.run(writer, num_generations=0)
    golden = {row.prompt: row.answer for row in rows}
    assert {prompt for prompt, _ in writer.asked}.isdisjoint(prompt[-1].content for prompt in golden)
    assert len(stage.pairs) + sum(stage.summary["no_pair"].values()) == 12
    assert len(stage.pairs) > 6
    for pair in stage.pairs:
        assert pair.chosen[-1].content == golden[pair.prompt]
        assert json.loads(pair.provenance)["chosen"]["origin"] == "row"
        assert json.loads(pair.provenance)["rule"] == "persona_if"
        assert pair.chosen_model == pair.source != pair.rejected_model
    assert stage.summary["mean_length"] == {"rejected": 8.0}


@pytest.mark.parametrize("num_generations", [0, 2])
def test_rows_of_a_persona_stage_give_persona_if_pairs(tmp_path: Path, num_generations: int) -> None:
    def author(prompt: str, luck: float) -> str:
        return "User instruction: Plan my week." if "Imagine" in prompt else "my week is calm and slow."

    personas = [f"Person number {number} from Leeds" for number in range(150)]
    rows = list(synthesise("persona_if", personas, Writer(author), 5, plan=AnswerPlan(answers=1), counts=SeedCounts()))
    assert len(rows) > 5
    stage = StageRun(tmp_path, rows)
    whole = {row.prompt[-1].content for row in rows}
    policy = Writer(lambda prompt, luck: "my week is calm and slow." if prompt in whole else "NO, and I, so")
    stage.run(policy, num_generations=num_generations)
    assert len(stage.pairs) > 2
    assert stage.summary["rules"] == {"persona_if": len(stage.pairs)}
    for pair in stage.pairs:
        assert pair.chosen[-1].content == "my week is calm and slow."
        assert json.loads(pair.provenance)["dropped"]["text"] in pair.prompt[-1].content


def test_without_a_dropped_answer_the_policys_own_failures_serve(tmp_path: Path) -> None:
    stage = StageRun(tmp_path, [constrained()])
    stage.run(
        Writer(lambda _, luck: f"{luck} Bye." if luck < 0.5 else f"{luck}, well. Bye."),
        num_generations=8,
        dropped_samples=0,
    )
    assert [json.loads(pair.provenance)["rule"] for pair in stage.pairs] == ["constraint_failed"]


def test_generated_rows_give_pairs(tmp_path: Path) -> None:
    rows = [*constraints.generate(12, "train", 3), *words.generate(4, "train", 3)]
    golden = {row.prompt[-1].content: row.answer or "" for row in rows}
    stage = StageRun(tmp_path, rows)
    stage.run(
        Writer(lambda prompt, luck: golden.get(prompt, "") if luck < 0.6 else f"No idea {luck}"), num_generations=6
    )
    assert {pair.skill for pair in stage.pairs} == {row.skill for row in rows}


def test_what_was_cut_off_or_blank_is_never_chosen(tmp_path: Path) -> None:
    good = GradedAnswer("It is 2.", 3, "eos", "full", 0, score=1.0)
    assert good.passes
    assert not replace(good, stop="length").passes
    assert not replace(good, text=" \n").passes
    assert not replace(good, origin="dropped").passes
    bad = replace(good, score=0.0)
    assert bad.fails
    assert replace(bad, stop="length", outcome="unparsed").fails
    assert not replace(bad, outcome="timeout").fails
    assert not replace(bad, text="").fails
    assert not replace(bad, text="<think>So?</think>\n", outcome="unparsed").fails
    assert not replace(bad, text="<think>So", outcome="truncated").fails
    with pytest.raises(
        RuntimeError, match=r"no pair from 5 prompts \(.*passed only when cut off or blank.*max_new_tokens"
    ):
        StageRun(tmp_path, sums(5)).run(Writer(often_right, stop="length"), num_generations=16)


def test_no_text_and_no_sample_is_used_twice(tmp_path: Path) -> None:
    stage = StageRun(tmp_path, sums(20))
    stage.run(Writer(often_right), num_generations=8, max_pairs=8)
    assert len(stage.pairs) == len({pair.id for pair in stage.pairs}) <= 20  # the right answer is always the same text
    assert len({pair.rejected[-1].content for pair in stage.pairs}) == len(stage.pairs)


@pytest.mark.parametrize("calls", [0, 1, 2, 3])
def test_a_killed_run_continues_and_ends_in_the_same_bytes(tmp_path: Path, calls: int) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    rows = sums(3 * CHUNK + 5)
    whole, killed = StageRun(tmp_path / "whole", rows), StageRun(tmp_path / "killed", rows)
    whole.run(Writer(often_right))
    with pytest.raises(Killed):
        killed.run(Writer(often_right, calls_left=calls))
    with killed.log.open("ab") as stream:
        stream.write(b'{"chunk": 9, "samp')  # the line that was being written
    second = Writer(often_right)
    killed.run(second)
    assert [prompt for prompt, _ in second.asked] == [row.prompt[-1].content for row in rows[calls * CHUNK :]]
    for name in ("pairs.parquet", "summary.json"):
        assert (killed.folder / "out" / name).read_bytes() == (whole.folder / "out" / name).read_bytes()
    killed.opened.clear()
    killed.run(Writer(often_right, calls_left=0))
    assert killed.opened == []  # nothing is left to sample, so no model is loaded


def test_a_log_with_a_gap_is_refused(tmp_path: Path) -> None:
    stage = StageRun(tmp_path, sums(5))
    stage.log.write_text('{"chunk": 1, "samples": []}\n')
    with pytest.raises(RuntimeError, match=r"samples\.jsonl: the chunks are not 0, 1, 2"):
        stage.run(Writer(often_right))


def test_the_seed_chooses_prompts_and_samples(tmp_path: Path) -> None:
    made = []
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        stage = StageRun(tmp_path / name, sums(60))
        stage.run(Writer(often_right), seed=seed, rows=30)
        assert stage.summary["prompts"] == 30
        made.append((stage.folder / "out" / "pairs.parquet").read_bytes())
    assert made[0] == made[1] != made[2]


def test_rows_without_a_verifier_are_no_prompts(tmp_path: Path) -> None:
    stage = StageRun(tmp_path, [Row("chat", (Message("user", "Hi"), Message("assistant", "Ho")))])
    with pytest.raises(RowError, match=r"rows\.parquet: no row carries a verifier"):
        stage.run(Writer(often_right))
