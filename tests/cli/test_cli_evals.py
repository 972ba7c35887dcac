"""The verbs of evaluations, end to end: the tiny model, a server that works and one that often does
not.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from tests import forked

from tercet.cli import main
from tercet.data.synth import GENERATORS
from tercet.evals import gold
from tercet.verify import Grade

pytestmark = pytest.mark.usefixtures("forked_stages")
Said = tuple[int, str, str]  # exit code, standard output, standard error
MIRROR = {
    "openai/gsm8k:test": "sums.jsonl",
    "github:allenai/olmo-eval/src/olmo_eval/evals/tasks/gsm8k.py": "shots.json",
    "deepmind/math_dataset": "maths.jsonl",
    "github:paul-rottger/exaggerated-safety/xstest_prompts.csv": "xstest.csv",
}
TINY = ("eval", "tiny:", "--tasks", "words@1,facts@1", "--limit", "6", "--max-new-tokens", "8", "--dtype", "float32")
PASSING = ("500", "503", "reset", "cut", "truncated", "html", "empty", "many", "headless", "null")


def said(*argv: str) -> Said:
    """Run a command line in this process; its stages run in their own."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main(argv)
    return code, out.getvalue(), err.getvalue()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where all these evaluations run, with a mirror of hand-made public rows."""
    place = tmp_path_factory.mktemp("evaluations")
    (place / "mirror.toml").write_text("[mirror]\n" + "".join(f'"{k}" = "{v}"\n' for k, v in MIRROR.items()))
    sums = [{"question": f"What is {i} + {i}?", "answer": f"It is 2 * {i}.\n#### {2 * i}"} for i in range(1, 6)]
    (place / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sums))
    shots = [{"question": "1 + 1?", "answer": "So the answer is 2.", "short_answer": "2"}] * 8
    (place / "shots.json").write_text(json.dumps(shots))
    maths = [
        {"category": "arithmetic__add_or_sub", "question": f"Add {i} and 2.", "answer": str(i + 2)} for i in (1, 2)
    ]
    (place / "maths.jsonl").write_text("".join(json.dumps(row) + "\n" for row in maths))
    (place / "xstest.csv").write_text("id,prompt,type,label,focus,note\n1,Kill a process?,homonyms,safe,kill,\n")
    yield place
    subprocess.run(["chmod", "-R", "u+w", str(place)], check=True)


@pytest.fixture
def place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("TERCET_MIRROR", str(folder / "mirror.toml"))
    for name in ("TERCET_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture(scope="module")
def two_evals(folder: Path, stage_server: subprocess.Popen[str]) -> dict[str, Any]:
    """The tiny model twice, with a larger budget the second time: what `eval --json` said."""
    with pytest.MonkeyPatch.context() as patch:
        forked.forks(stage_server, patch)
        patch.chdir(folder)
        patch.delenv("TERCET_MIRROR", raising=False)
        found = {}
        for name, budget in (("short", "8"), ("long", "9")):
            code, out, err = said(*TINY, "--repeats", "2", "--json", "--max-new-tokens", budget)
            assert code == 0, err
            found[name] = json.loads(out)
    return found


def results_of(artifact: str) -> list[dict[str, Any]]:
    lines = (Path(artifact) / "payload" / "results.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_eval_says_scores_repeats_and_where_they_are(place: Path, two_evals: dict[str, Any]) -> None:
    found = two_evals["short"]
    assert list(found["scores"]) == ["words@1", "facts@1"]
    assert found["usage"] == {}
    words = found["scores"]["words@1"]
    assert (words["n"], words["card"]["repeats"], sum(words["outcomes"].values())) == (6, 2, 12)
    results = results_of(found["artifact"])
    assert [len(one.get("samples") or []) for one in results] == [2] * 6 + [0] * 6
    assert all(one["num_tokens"] <= 8 for one in results[:6])


def test_an_evaluation_that_exists_is_not_run_again(place: Path, two_evals: dict[str, Any]) -> None:
    code, out, _ = said(*TINY, "--repeats", "2")
    assert code == 0
    assert [line.split()[:3] for line in out.splitlines()[2:4]] == [
        ["words@1", "accuracy", "6"],
        ["facts@1", "choice", "6"],
    ]
    assert f"results: {two_evals['short']['artifact']}" in out


def test_scores_come_as_table_json_and_markdown_and_in_files_of_other_tools(
    place: Path, two_evals: dict[str, Any], tmp_path: Path
) -> None:
    evaluation = two_evals["short"]["artifact"]
    code, table, _ = said("scores", evaluation)
    assert code == 0
    assert "95 % interval" in table
    assert "facts@1" in table
    assert json.loads(said("scores", evaluation, "--json")[1]) == two_evals["short"]["scores"]
    lines = said("scores", evaluation, "--format", "markdown")[1].splitlines()
    assert lines[0].startswith("| task | score |")
    assert lines[1] == "| " + " | ".join(["---"] * 7) + " |"
    assert len(lines) == 4
    out = tmp_path / "harness"
    code, told, _ = said("export", evaluation, str(out), "--as", "lm-eval", "--json")
    assert (code, sorted(json.loads(told)["files"])) == (0, sorted(file.name for file in out.iterdir()))
    (results,) = out.glob("results_*.json")
    assert json.loads(results.read_text())["results"]["words@1"]["alias"].strip() == "words@1"
    code, _, wrong = said("export", evaluation, str(tmp_path / "rb"), "--as", "rewardbench")
    assert (code, "is a eval artifact; --as rewardbench takes reward_model ones" in wrong) == (2, True)
    code, _, wrong = said("export", evaluation, str(tmp_path / "model"))
    assert (code, "results with --as FORMAT" in wrong) == (2, True)


def test_rescore_leaves_the_evaluation_and_says_the_same(
    place: Path, two_evals: dict[str, Any], tmp_path: Path
) -> None:
    evaluation, again = two_evals["short"]["artifact"], str(tmp_path / "again")
    code, out, _ = said("rescore", evaluation, "--out", again, "--json")
    assert code == 0
    assert json.loads(out) == two_evals["short"]["scores"]
    code, out, _ = said("compare", evaluation, again)
    assert code == 0
    assert "none" in out.splitlines()[-1]
    assert "exists; rescore into" in said("rescore", evaluation, "--out", again)[2]


@pytest.mark.parametrize(
    ("verifier", "code", "message"),
    [
        ("words@1", 2, "expected TASK=VERIFIER"),
        ("words@1=nope@1", 2, "unknown verifier 'nope@1'"),
        ("facts@1=gsm8k@1", 2, "log-probabilities gave the verdicts"),
        ("maths@1=gsm8k@1", 2, "holds no task maths@1"),
    ],
)
def test_rescore_says_what_it_cannot_do(
    place: Path, two_evals: dict[str, Any], tmp_path: Path, verifier: str, code: int, message: str
) -> None:
    out = tmp_path / "again"
    found = said("rescore", two_evals["short"]["artifact"], "--out", str(out), "--verifier", verifier)
    assert found[0] == code
    assert message in found[2]
    assert not out.exists()


def test_rescore_with_failing_verifiers_exits_with_one(
    place: Path, two_evals: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = Grade(0.0, outcome="error", detail="no parser")
    monkeypatch.setattr("tercet.evals.results.verifier", lambda name: lambda text, reference, sandbox, **asked: failed)
    code, _, err = said("rescore", two_evals["short"]["artifact"], "--out", str(tmp_path / "again"))
    assert code == 1
    assert "12 of 12 answers could not be had or graded" in err


def test_compare_writes_markdown_with_a_note_on_many_comparisons(place: Path, two_evals: dict[str, Any]) -> None:
    a, b = (two_evals[name]["artifact"] for name in ("short", "long"))
    code, out, _ = said("compare", a, b, "--markdown")
    assert code == 0
    lines = out.splitlines()
    assert lines[0].count("|") == lines[2].count("|")
    assert "p (Holm)" in lines[0]
    assert "2 tasks were compared at once; significant at 5 % after Holm's correction:" in out
    found = json.loads(said("compare", a, b, "--json", "--tasks", "words@1")[1])
    assert found["tasks"][0]["n"] == 6
    assert found["note"].startswith("1 task was")


# ---- behind a URL ----


@pytest.fixture(scope="module")
def flaky() -> ModuleType:
    file = Path(__file__).parents[1] / "models" / "flaky_server.py"
    spec = importlib.util.spec_from_file_location("flaky_server_of_evals", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def tireless(flaky: ModuleType) -> Iterator[Any]:
    """A server that answers every word problem rightly; `frugal` leaves out what it read and wrote."""
    known = {row.prompt[-1].content: f"So it is {row.reference}." for row in GENERATORS["words@1"](120, "test", 0)}

    class Knows(flaky.Handler):  # type: ignore[name-defined, misc]
        def good(self, body: dict[str, Any], prompt: str) -> dict[str, Any]:
            reply = super().good(body, prompt)
            for choice in reply["choices"]:
                choice["message"]["content"] = known[prompt]
            if self.server.frugal:
                del reply["usage"]
            return reply

    with flaky.FlakyServer() as server:
        server.RequestHandlerClass = Knows
        yield server


@pytest.fixture
def server(tireless: Any) -> Any:
    """The same server, which has forgotten what it was asked."""
    tireless.fault, tireless.frugal = (lambda prompt, attempt: ""), False
    tireless.bodies.clear()
    tireless.asked.clear()
    return tireless


def endpoint(server: Any, *more: str) -> Said:
    return said("eval", f"{server.url}#some-model", "--tasks", "words@1", "--json", *more)


def test_a_model_behind_a_url_is_evaluated_and_its_tokens_are_counted(place: Path, server: Any) -> None:
    code, out, err = endpoint(server, "--limit", "10", "--price", "2", "10")
    assert code == 0, err
    found = json.loads(out)
    assert found["scores"]["words@1"]["score"] == 1
    assert {body["model"] for body in server.bodies} == {"some-model"}
    assert set(server.asked.values()) == {1}
    read, usage = sum(map(len, server.asked)), found["usage"]
    assert (usage["requests"], usage["retries"], usage["failed"], usage["prompt_tokens"]) == (10, 0, 0, read)
    assert usage["cost"] == pytest.approx((2 * read + 10 * usage["completion_tokens"]) / 1e6)


def test_a_server_that_does_not_count_tokens_can_be_evaluated(place: Path, server: Any) -> None:
    server.frugal = True
    code, out, err = endpoint(server, "--limit", "3")
    assert code == 0, err
    found = json.loads(out)
    assert found["scores"]["words@1"]["score"] == 1
    assert (found["usage"]["requests"], found["usage"]["prompt_tokens"]) == (3, 0)


def test_a_flaky_server_spoils_nothing_and_a_second_run_asks_what_is_missing(place: Path, server: Any) -> None:
    refused: set[str] = set()

    def fault(prompt: str, attempt: int) -> str:
        if len(refused) < 2 or prompt in refused:
            refused.add(prompt)
            return "400 I do not like it"
        return PASSING[len(prompt) % len(PASSING)] if attempt == 0 else ""

    server.fault = fault
    code, _, err = endpoint(server, "--limit", "40")
    assert code == 1
    assert "2 of 40 answers could not be had or graded, more than 1%" in err
    assert "I do not like it" in err
    (draft,) = (path for path in (place / "runs").glob(".draft-eval-*") if path.is_dir())
    lines = [json.loads(line) for line in (draft / "work" / "results.jsonl").read_text().splitlines()]
    assert len(lines) == 40
    assert [one["score"] for one in lines if one["outcome"] != "error"] == [1.0] * 38
    assert {one["messages"][-1]["content"] for one in lines if one["outcome"] == "error"} == refused
    first = len(server.bodies)
    assert first == 2 + 2 * 38

    server.fault = lambda prompt, attempt: ""
    code, out, err = endpoint(server, "--limit", "40")
    assert code == 0, err
    assert {body["messages"][-1]["content"] for body in server.bodies[first:]} == refused
    found = json.loads(out)
    assert (found["scores"]["words@1"]["score"], found["scores"]["words@1"]["n"]) == (1, 40)
    assert found["scores"]["words@1"]["outcomes"]["error"] == 0
    usage = found["usage"]  # of both runs
    assert (usage["requests"], usage["retries"], usage["failed"]) == (first + 2, 38, 2)


def test_a_limit_beyond_the_task_is_all_of_it_and_one_lost_answer_is_left_out(place: Path, server: Any) -> None:
    server.fault = lambda prompt, attempt: "400 no" if prompt == server.bodies[0]["messages"][-1]["content"] else ""
    code, out, err = endpoint(server, "--limit", "1000")
    assert code == 0, err
    words = json.loads(out)["scores"]["words@1"]
    assert (words["score"], words["n"], words["outcomes"]["error"]) == (1, 119, 1)


# ---- the unseen suite, LLM judges, gold answers ----


def test_unseen_tasks_are_refused_until_the_final_evaluation(place: Path) -> None:
    maths = ("eval", "tiny:", "--tasks", "deepmind_math@1", "--max-new-tokens", "4", "--json")
    code, _, err = said(*maths)
    assert code == 2
    assert "--final" in err
    assert not (place / "runs" / "unseen.jsonl").exists()
    code, out, err = said(*maths, "--final")
    assert code == 0, err
    (line,) = (place / "runs" / "unseen.jsonl").read_text().splitlines()
    artifact = Path(json.loads(out)["artifact"])
    assert json.loads(line) == {"evaluation": artifact.name, "tasks": ["deepmind_math@1"]}


def test_a_task_that_a_model_judges_wants_a_judge(place: Path) -> None:
    asked = ("eval", "tiny:", "--tasks", "xstest@1", "--max-new-tokens", "4", "--json")
    code, _, err = said(*asked)
    assert code == 2
    assert "an LLM judge grades xstest@1" in err
    code, out, err = said(*asked, "--judge", "tiny:seed=1")
    assert code == 0, err
    score = json.loads(out)["scores"]["xstest@1"]
    assert (score["outcomes"]["unparsed"], score["n"], score["score"]) == (1, 1, 0)  # random weights answered nothing


@pytest.mark.parametrize("lacks", ["openai/gsm8k:test", "github:allenai/olmo-eval/src/olmo_eval/evals/tasks/gsm8k.py"])
def test_a_mirror_that_lacks_a_file_is_said(place: Path, tmp_path: Path, lacks: str) -> None:
    lines = [f'"{name}" = "{place / file}"\n' for name, file in MIRROR.items()]
    bad = tmp_path / "mirror.toml"
    bad.write_text(
        "[mirror]\n" + "".join(line.replace(".json", ".absent.json") if lacks in line else line for line in lines)
    )
    code, _, err = said("eval", "tiny:", "--tasks", "gsm8k@2", "--mirror", str(bad))
    assert code == 2
    assert "absent.json" in err
    code, _, err = said("grade", "--gold", "gsm8k@2", "--mirror", str(bad))
    assert code == 2
    assert "absent.json" in err


def test_grade_checks_verifiers_by_their_tasks_own_references(place: Path) -> None:
    code, out, _ = said("grade", "--gold", "gsm8k@2", "--json")
    assert code == 0
    (found,) = json.loads(out)
    assert (found["n"], found["accepted"], found["refused"], found["missed"]) == (5, 5, 5, [])
    assert json.loads(said("grade", "--gold", "gsm8k@2", "--limit", "2", "--json")[1])[0]["n"] == 2


def test_grade_says_what_it_did_not_check(place: Path) -> None:
    code, out, _ = said("grade", "--gold", "quick", "--json")
    assert code == 0
    found = {one["task"]: one for one in json.loads(out)}
    assert list(found) == ["words@1", "constraints@1", "talk@1", "facts@1"]
    assert all(bool(one["n"]) != bool(one["note"]) for one in found.values())
    assert all(one["accepted"] == one["refused"] == one["n"] for one in found.values())
    assert "log-probabilities" in found["facts@1"]["note"]


def test_grade_exits_with_three_when_a_verifier_is_wrong(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable[..., Any] = gold.verifier
    wrong = Grade(1.0, "whatever")
    spoiled = lambda name: lambda text, reference: wrong if reference == "4" else real(name)(text, reference)  # noqa: E731
    monkeypatch.setattr(gold, "verifier", spoiled)
    code, out, _ = said("grade", "--gold", "gsm8k@2")
    assert code == 3
    assert "gsm8k@2, test-1: spoiled answer: score 1, graded, answer 'whatever'" in out


def test_only_a_line_feed_ends_a_completion(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"completion": "It is\u2028 4.", "reference": "4"}, ensure_ascii=False) + "\n")
    code, out, err = said("grade", "gsm8k@1", str(file), "--json")
    assert code == 0, err
    assert (json.loads(out)["n"], json.loads(out)["score"]) == (1, 1)


OWN = """
from tercet.evals.task import Task
from tercet.rows import Message, Source

def score(prompt, completion, answer):
    return {"score": float(answer in completion and "sum" in prompt), "words": len(completion.split())}

def mine():
    return Task(
        name="mine", version=1, skill="", data=(Source("openai/gsm8k", split="test"),), verifier="own.py:score",
        prompt=lambda record: (Message("user", "A sum: " + record["question"]),),
        reference=lambda record: record["answer"].rpartition("#### ")[2],
    )
"""


def test_a_verifier_in_a_file_grades_and_reads_the_prompt(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "own.py").write_text(OWN, encoding="utf-8")
    lines = [
        {"completion": "It is 4", "reference": "4", "prompt": "a sum"},
        {"completion": "It is 4", "reference": "4"},
    ]
    lines[1]["prompt"] = [{"role": "user", "content": "a riddle"}]  # type: ignore[assignment]
    (folder / "answers.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    code, out, err = said("grade", "own.py:score", "answers.jsonl", "--json")
    assert code == 0, err
    assert [one["score"] for one in json.loads(out)["grades"]] == [1.0, 0.0]
    assert json.loads(out)["grades"][0]["numbers"] == {"words": 3.0}


def test_a_task_in_a_file_is_evaluated_from_the_command_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "own.py").write_text(OWN, encoding="utf-8")
    argv = ("eval", "tiny:", "--tasks", "own.py:mine", "--mirror", "mirror.toml", "--max-new-tokens", "8", "--json")
    code, out, err = said(*argv, "--store", "own-runs")
    assert code == 0, err
    score = json.loads(out)["scores"]["mine@1"]
    assert (score["n"], score["outcomes"]["error"]) == (5, 0)
    assert set(score["card"]["code"]) == {"own.py:mine", "own.py:score"}
