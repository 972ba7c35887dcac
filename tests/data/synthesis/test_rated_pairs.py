"""The stage `rated_pairs`: who answers is drawn, a request is paid once, a prompt ends as a pair or a reason."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from author_server import Author

from tercet.data.synthesis import rated_pairs
from tercet.launch.ending import StageError
from tercet.recipe import BaseSpec, RatedPairsSpec, Recipe
from tercet.rows import Completion, Message, Messages, Row, RowError, Sampling, read_pairs, read_table, write_table
from tercet.store import Artifact, Context
from tercet.track import Tracker

RECIPE = """
name = "curate"
seed = 7
[base]
model = "tiny:"
[placement]
requests = 4
gen_rows = 1
price = [1.0, 10.0]
[stage.right]
kind = "model"
model = "{url}#right"
[stage.sums]
kind = "synth"
generator = "words@1"
rows = 40
[stage.preference-data]
kind = "rated_pairs"
prompts = "sums"
rows = 16
pool = ["base", "right"]
judge = "right"
dtype = "float32"
max_new_tokens = 60
judge_tokens = 200
budget = 1.0
"""
COST = 320e-6  # what an answer of the server costs


def read_summary(made: Artifact) -> dict[str, Any]:
    return json.loads((made.payload / "summary.json").read_text())


@pytest.fixture(scope="module")
def server() -> Iterator[Author]:
    with Author() as server:
        yield server


@pytest.fixture(scope="module")
def made(new_workspace, server: Author) -> tuple[Any, Artifact, list]:
    """A workspace, its pairs, and what the server was asked for them: a budget stopped the stage on the way."""
    workspace = new_workspace()
    workspace.write(RECIPE.format(url=server.url))
    with pytest.raises(StageError, match=r"the budget is 0\.02"):
        workspace.run("preference-data", "stage.preference-data.budget=0.02")
    assert 10 < len(server.asked) < 60
    return workspace, workspace.run("preference-data"), list(server.asked)


def test_each_request_is_made_once_and_counted(made):
    _, artifact, asked = made
    pairs, summary = read_pairs(artifact.payload / "pairs.parquet"), read_summary(artifact)
    assert len(asked) == len(set(asked)) <= 16 * (1 + 4), "a stopped run has asked for nothing in vain"
    assert 5 < len(pairs) == summary["pairs"] == summary["rules"]["rated_pairs"] == artifact.metrics["pairs"]
    assert summary["pairs"] + sum(summary["no_pair"].values()) == summary["prompts"] == 16
    assert summary["requests"]["asked"] == len(asked) + 16
    assert summary["requests"]["cost"] == pytest.approx(len(asked) * COST) == artifact.metrics["cost"]
    assert len(read_table(artifact.payload / "requests.parquet")) == len(asked) + 16
    assert {name.partition("-")[0] for name in summary["requests"]["models"]} == {"base", "right"}
    assert len(summary["requests"]["models"]) == 3, "the server is also the judge"


def test_pairs_keep_who_answered_and_what_was_rated(made):
    pairs = read_pairs(made[1].payload / "pairs.parquet")
    facts = [json.loads(pair.provenance) for pair in pairs]
    assert len({pair.id for pair in pairs}) == len(pairs)
    assert all(len(one["answers"]) == 2 and one["judge"].startswith("right-") for one in facts)
    assert all(pair.chosen_rating > pair.rejected_rating for pair in pairs)
    assert {answer["model"].partition("-")[0] for one in facts for answer in one["answers"]} == {"base", "right"}


def test_killed_at_random_moments_it_ends_in_the_same_pairs_and_pays_nothing_twice(made, server):
    chance, (workspace, whole, undisturbed) = random.Random("judge"), made
    server.asked, server.pause, again = [], 0.02, workspace.copy(without="preference-data")
    for moment in (chance.randrange(1, 15), chance.randrange(36, 80)):
        again.kill_when("preference-data", moment, chance.uniform(0.0, 0.03))
    server.pause = 0.0
    killed = again.run("preference-data")
    assert set(server.asked) == set(undisturbed)
    unknown = read_summary(killed)["spent"]["unknown"]
    assert len(server.asked) - len(undisturbed) <= unknown <= 1 + 4, "only what a kill cut off"
    assert (killed.payload / "pairs.parquet").read_bytes() == (whole.payload / "pairs.parquet").read_bytes()
    answered = Counter(line["key"] for line in again.lines("preference-data") if "text" in line)
    assert set(answered.values()) == {1}
    assert len(answered) == len(undisturbed) + 16


class Model:
    """Says its name and the question, or what `says` makes of it; a judge rates a text by the length of its name."""

    def __init__(self, name: str, says: Callable[[str], str] | None = None) -> None:
        self.name, self.says = name, says
        self.asked: list[str] = []

    def complete(self, prompts: Sequence[Messages], sampling: Sampling, done: Any = None) -> list[list[Completion]]:
        texts = [prompt[-1].content for prompt in prompts]
        self.asked += texts
        return [[self._said(text)] for text in texts]

    def _said(self, text: str) -> Completion:
        if "## Your reply" in text:
            found = re.findall(r"### Text (\d+)\n(\w+) says", text)
            text = "\n".join(f"### Text {number}\nRating: {len(name)}" for number, name in found)
            return Completion(text, (1,), (), "eos")
        said = self.says(text) if self.says else f"{self.name} says {text}"
        return Completion("", (), (), "error", "full") if said == "!" else Completion(said, (1, 2), (), "eos")

    def likelihood(self, prompts: object, options: object, *, close: bool = False) -> list:
        raise AssertionError("models write here")


class StageRun:
    """The stage, run on `rows` with local models of these names."""

    def __init__(self, folder: Path, rows: list[Row], *models: Model) -> None:
        self.folder, self.models = folder, {model.name: model for model in models}
        write_table(folder / "rows" / "payload" / "rows.parquet", rows)
        (folder / "out").mkdir()
        self.inputs = {name: Artifact("model", name, f"{name:0<12}", folder / name, {}, {}) for name in self.models}
        self.inputs["rows"] = Artifact("mix", "rows", "1" * 12, folder / "rows", {}, {})
        self.opened: list[str] = []

    def run(self, seed: int = 7, **spec: Any) -> dict[str, float]:
        def open_model(path: Path, dtype: str, engine: str) -> Model:
            self.opened.append(path.parent.name)
            return self.models[path.parent.name]

        recipe = Recipe(name="test", base=BaseSpec(model="tiny:"), stage={})
        ctx = Context("preference-data", seed, recipe, self.folder / "draft" / "work", Tracker(None), {}, open_model)
        made = RatedPairsSpec(**{"prompts": "rows", "judge": "judge"} | spec)
        return rated_pairs.run(made, self.inputs, self.folder / "out", ctx)

    @property
    def pairs(self):
        return read_pairs(self.folder / "out" / "pairs.parquet")

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.folder / "out" / "summary.json").read_text())


def prompts(count: int) -> list[Row]:
    """Rows whose prompt is two turns, each with an answer that nobody should see."""
    turns = (Message("user", "Hello"), Message("assistant", "Hi"))
    return [
        Row(f"r{i}", (*turns, Message("user", f"Question {i}"), Message("assistant", "old")), "s", "chat")
        for i in range(count)
    ]


def test_on_policy_pairs_hold_the_policys_answer_and_one_other_in_fair_order(tmp_path):
    models = [Model(name) for name in ("own", "of", "other", "judge")]
    stage = StageRun(tmp_path, prompts(200), *models)
    stage.run(pool=["of", "other", "own"], own="own")
    own, of, other, judge = (len(model.asked) for model in models)
    assert (own, of + other, judge) == (200, 200, 4 * 200)
    assert 70 < of < 130, "the other one is drawn"
    assert stage.opened == ["of", "other", "own", "judge"], "one model after another, the judge last"
    facts = [json.loads(pair.provenance) for pair in stage.pairs]
    first = sum(one["answers"][0]["model"].startswith("own-") for one in facts)
    assert len(facts) == 200
    assert 70 < first < 130, "a fair coin decides who comes first"
    assert all(pair.prompt == row.prompt for pair, row in zip(stage.pairs, prompts(200), strict=True))
    assert {pair.skill for pair in stage.pairs} == {"chat"}
    assert stage.pairs[0].chosen[-1].content.endswith("says Question 0")
    rates = stage.summary["models"]
    assert rates["own-own000000000"]["chosen"] == pytest.approx(of / 200), "the longer name wins"
    before = [len(model.asked) for model in models]
    stage.run(pool=["of", "other", "own"], own="own")
    assert [len(model.asked) for model in models] == before
    assert len(stage.opened) == 4, "what is known needs no model"


def test_only_the_models_that_are_drawn_are_asked(tmp_path):
    models = [Model(name) for name in ("a", "bc", "def", "ghij", "judge")]
    stage = StageRun(tmp_path, prompts(80), *models)
    stage.run(pool=["a", "bc", "def", "ghij"], drawn=2, rows=60)
    counts = [len(model.asked) for model in models[:4]]
    assert sum(counts) == 2 * 60
    assert all(15 < count < 45 for count in counts)
    assert len(models[4].asked) == 4 * 60
    assert stage.summary["pairs"] == stage.summary["prompts"] == 60


def test_every_prompt_ends_as_a_pair_or_a_reason(tmp_path):
    rows = prompts(12)
    again = [Row("again", (*rows[3].messages[:2], Message("user", " question  3"))), Row("r5", rows[5].messages[2:])]
    models = [
        Model("a", lambda text: "!" if text == "Question 1" else f"a says {text}"),
        Model("bcd", lambda text: " " if text == "Question 2" else f"bcd says {text}"),
        Model("judge"),
    ]
    stage = StageRun(tmp_path, [*rows, *again], *models)
    stage.run(pool=["a", "bcd", "a"], temperature=0.0)
    summary = stage.summary
    assert (summary["prompts"], summary["repeats"], summary["pairs"]) == (13, 1, 11)
    assert summary["no_pair"] == {"an answer could not be had": 1, "an empty answer": 1}
    assert {pair.id for pair in stage.pairs} == {f"r{i}" for i in range(12) if i not in (1, 2)} | {"r5#2"}
    assert {pair.chosen_model.partition("-")[0] for pair in stage.pairs} == {"bcd"}
    assert summary["requests"]["failed"] == 1


def test_nothing_to_compare_and_no_pair_are_errors(tmp_path):
    stage = StageRun(tmp_path, prompts(3), Model("a"), Model("b"), Model("judge"))
    with pytest.raises(RowError, match="answers of a-a00000000000 alone cannot be compared"):
        stage.run(pool=["a"])
    with pytest.raises(RowError, match="answers of a-a00000000000 alone cannot be compared"):
        stage.run(pool=["a"], own="a")
    with pytest.raises(
        RuntimeError, match=r"rated_pairs 'preference-data': no pair from 3 prompts \(3 all answers are as good\)"
    ):
        stage.run(pool=["a", "b"])
    stage.run(pool=["a", "b"], ties="keep")
    assert len(stage.pairs) == 3
