"""The stage `personas`: through the pipeline, killed and continued, stopped by its budget, and never asking twice."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from author_server import Author

from tercet.data.synthesis import personas_stage
from tercet.data.synthesis.request_log import RequestLogError
from tercet.launch.ending import StageError
from tercet.recipe import BaseSpec, PersonasSpec, Recipe
from tercet.rows import Message, RowError, read_rows, read_table, write_table
from tercet.store import Artifact, Context
from tercet.track import Tracker
from tercet.verify import verifier

RECIPE = """
name = "curate"
seed = 7
[base]
model = "tiny:"
[placement]
requests = 4
price = [1.0, 10.0]
[stage.author]
kind = "model"
model = "{url}#author"
[stage.sums]
kind = "personas"
model = "author"
write = "persona_gsm"
seeds = {{ path = "personas.jsonl", adapter = "persona" }}
rows = 20
answers = 3
max_new_tokens = 60
budget = 1.0
"""
KILLS, COST = 3, 320e-6  # what an answer of the server costs
PERSONAS = [{"persona": f"A keeper of {number} bees"} for number in range(25)]
LOCAL = """
name = "curate"
seed = 7
[base]
model = "tiny:"
[placement]
gen_rows = 1
[stage.asks]
kind = "personas"
model = "base"
write = "if_augmented"
seeds = { path = "asks.jsonl" }
answers = 4
temperature = 1.5
max_new_tokens = 120
dtype = "float32"
"""


def read_summary(made: Artifact) -> dict[str, Any]:
    return json.loads((made.payload / "summary.json").read_text())


def asks(count: int) -> list[dict]:
    return [{"messages": [{"role": "user", "content": f"Tell me of river {number}."}]} for number in range(count)]


@pytest.fixture(scope="module")
def server() -> Iterator[Author]:
    with Author() as server:
        yield server


@pytest.fixture(scope="module")
def made(new_workspace, server: Author) -> tuple[Any, Artifact, list]:
    """A workspace, its rows, and what the server was asked for them: a budget stopped the stage on the way."""
    workspace = new_workspace()
    workspace.write(RECIPE.format(url=server.url), personas=PERSONAS)
    with pytest.raises(StageError, match=r"the budget is 0\.01: .* is spent on \d+ answers") as stopped:
        workspace.run("sums", "stage.sums.budget=0.01")
    assert stopped.value.code == 2
    assert 10 < len(server.asked) <= 0.01 / COST
    return workspace, workspace.run("sums"), list(server.asked)


def test_rows_pass_their_check_and_a_stopped_run_has_asked_for_nothing_in_vain(made):
    _, artifact, asked = made
    assert len(asked) == len(set(asked)) == 20 * 4
    rows, summary = read_rows(artifact.payload / "rows.parquet"), read_summary(artifact)
    assert 5 < len(rows) == summary["rows"] == artifact.metrics["rows"]
    assert summary["rows"] + sum(summary["dropped"].values()) == summary["seeds"] == 20
    assert (summary["source"], summary["read"], summary["write"]) == ("personas.jsonl", 25, "persona_gsm")
    assert len({row.id for row in rows}) == len(rows)
    assert all(verifier(row.verifier)(row.answer, row.reference).score == 1 for row in rows)


def test_what_was_asked_and_paid_is_in_the_summary(made):
    _, artifact, _ = made
    summary, table = read_summary(artifact), read_table(artifact.payload / "requests.parquet")
    requests = summary["requests"]
    assert (requests["asked"], requests["answered"], requests["failed"]) == (80, 80, 0)
    assert requests["cost"] == pytest.approx(80 * COST) == artifact.metrics["cost"]
    (line,) = requests["models"].values()
    assert (line["read"], line["wrote"]) == (1600, 2400)
    assert (summary["spent"]["answers"], summary["spent"]["cost"]) == (80, pytest.approx(80 * COST))
    assert len({line["key"] for line in table}) == 80
    assert sum(line["cost"] for line in table) == pytest.approx(requests["cost"])


def test_killed_at_random_moments_it_ends_in_the_same_rows_and_pays_nothing_twice(made, server):
    chance, (workspace, whole, undisturbed) = random.Random("author"), made
    server.asked, server.pause, again = [], 0.02, workspace.copy(without="sums")
    for moment in sorted(chance.sample(range(1, 70), KILLS)):
        again.kill_when("sums", moment, chance.uniform(0.0, 0.03))
    server.pause = 0.0
    killed = again.run("sums")
    assert set(server.asked) == set(undisturbed)
    unknown = read_summary(killed)["spent"]["unknown"]
    assert len(server.asked) - len(undisturbed) <= unknown <= KILLS * 4, "only what a kill cut off"
    assert (killed.payload / "rows.parquet").read_bytes() == (whole.payload / "rows.parquet").read_bytes()
    answered = Counter(line["key"] for line in again.lines("sums") if "text" in line)
    assert set(answered.values()) == {1}
    assert len(answered) == len(undisturbed)
    server.asked.clear()
    assert again.run("sums", "stage.sums.rows=22").metrics["seeds"] == 22
    assert len(server.asked) == 2 * 4, "more rows ask only for what is new"


def test_a_budget_without_a_price_and_odd_seeds_are_refused(tmp_path):
    write_table(tmp_path / "author" / "payload" / "rows.parquet", [])
    (tmp_path / "author" / "payload" / "endpoint.json").write_text("{}")
    (tmp_path / "personas.jsonl").write_text(json.dumps(PERSONAS[0]))
    author = Artifact("model", "author", "1" * 12, tmp_path / "author", {}, {})
    recipe = Recipe(name="test", base=BaseSpec(model="tiny:"), stage={})
    ctx = Context("sums", 7, recipe, tmp_path / "draft" / "work", Tracker(None), {}, lambda *args: None)
    seeds = {"path": str(tmp_path / "personas.jsonl"), "adapter": "persona"}

    def run(more: dict) -> None:
        spec = PersonasSpec(model="author", write="persona_gsm", seeds=seeds | more, budget=1.0)
        personas_stage.run(spec, {"author": author}, tmp_path, ctx)

    with pytest.raises(RequestLogError, match=r"nobody knows what 'author' costs; give `placement\.price"):
        run({})
    with pytest.raises(RowError, match="the seeds of 'sums' have `fraction`"):
        run({"fraction": 0.5})
    with pytest.raises(RowError, match="expected at least one persona"):
        run({"rows": 0})


def test_a_local_model_is_killed_and_ends_in_the_same_rows(new_workspace):
    workspace = new_workspace()
    workspace.write(LOCAL, asks=asks(6))
    whole = workspace.run("asks")
    again = workspace.copy(without="asks")
    again.kill_when("asks", 11, 0.0)
    killed = again.run("asks")
    assert (killed.payload / "rows.parquet").read_bytes() == (whole.payload / "rows.parquet").read_bytes()
    answered = Counter(line["key"] for line in again.lines("asks") if "text" in line)
    assert set(answered.values()) == {1}
    assert len(answered) == 6 * 4
    rows = read_rows(killed.payload / "rows.parquet")
    assert rows
    assert all(verifier(row.verifier)(row.answer, row.reference).score == 1 for row in rows)
    assert all(row.messages[0] == Message("user", row.prompt[0].content) for row in rows)
    assert killed.metrics["cost"] == 0
