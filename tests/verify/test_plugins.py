"""Verifiers of other packages: real little distributions on the path of a fresh interpreter."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = """
from tercet.verify import Grade, VerifierError

def mine(completion, reference):
    if not reference:
        raise VerifierError("mine@1 expects a word as reference answer")
    return Grade(float(reference in completion), completion[:1].upper())

def stumbles(completion, reference):
    return Grade(float(completion.split()[0] == reference))

def number(completion, reference):
    return 1.0

def nothing(completion, reference):
    return Grade(float("nan"))

def hangs(completion, reference):
    while completion:
        pass
    return Grade(0.0)

constant = 3
"""


def install(
    folder: Path, package: str, module: str, entries: dict[str, str], source: str = SOURCE, group: str = "verifiers"
) -> Path:
    """A distribution as an installer leaves it: a module and a dist-info folder with its entry points."""
    folder.mkdir(exist_ok=True)
    (folder / f"{module}.py").write_text(source, encoding="utf-8")
    info = folder / f"{package.replace('-', '_')}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    lines = "\n".join(f"{name} = {value}" for name, value in entries.items())
    (info / "entry_points.txt").write_text(f"[tercet.{group}]\n{lines}\n", encoding="utf-8")
    return folder


def python(*args: str, path: list[Path]) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": os.pathsep.join([*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])])}
    return subprocess.run([sys.executable, *args], env=env, capture_output=True, text=True, check=False)


def say(expression: str, *path: Path) -> str:
    """The value of an expression about `v`, tercet.verify, where these folders are installed; or its VerifierError."""
    script = (
        f"import tercet.verify as v\ntry:\n    print({expression})\nexcept v.VerifierError as error:\n    print(error)"
    )
    ran = python("-c", script, path=list(path))
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.strip()


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = ("mine", "stumbles", "number", "nothing", "hangs", "constant")
    entries = {f"{name}@1": f"my_verifiers:{name}" for name in names}
    return install(tmp_path_factory.mktemp("site") / "mine", "my-verifiers", "my_verifiers", entries)


def test_the_command_line_grades_with_a_verifier_of_another_package(mine: Path, tmp_path: Path) -> None:
    answers = tmp_path / "answers.jsonl"
    rows = [{"completion": "a pear", "reference": "pear"}, {"completion": "a fig", "reference": "pear"}]
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    ran = python("-m", "tercet", "grade", "mine@1", str(answers), "--json", path=[mine])
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert (found["verifier"], found["n"], found["score"]) == ("mine@1", 2, 0.5)
    assert [grade["answer"] for grade in found["grades"]] == ["A", "A"]
    unknown = python("-m", "tercet", "grade", "mine@2", str(answers), path=[mine])
    assert unknown.returncode == 2
    assert "mine@1" in unknown.stderr.replace("\n", " ")


def test_verifiers_of_other_packages_are_listed_beside_ours(mine: Path) -> None:
    listed = say("*v.verifiers()", mine).split()
    assert {"mine@1", "gsm8k@1"} <= set(listed)
    assert listed == sorted(listed)
    packages = say("*(v.verifier(name).package or '-' for name in ('mine@1', 'gsm8k@1', 'rubric@1'))", mine)
    assert packages == "my-verifiers - -"


def test_a_reference_is_checked_and_an_accident_on_an_empty_completion_is_no_verdict(mine: Path) -> None:
    assert say("v.check_reference('mine@1', '')", mine) == "mine@1 expects a word as reference answer"
    assert say("v.check_reference('mine@1', 'pear')", mine) == "None"
    assert say("v.check_reference('stumbles@1', 'pear')", mine) == "None"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("v.verifier('number@1')('', '').score", "1.0"),
        ("v.verifier('nothing@1')('', '')", "expected a finite number, a tercet.verify.Grade or a dict"),
        (
            "v.verifier('constant@1')",
            "of the package 'my-verifiers', my_verifiers:constant, cannot be used: 'constant'",
        ),
    ],
)
def test_what_is_no_verdict_or_no_function_is_said_with_its_package(mine: Path, call: str, message: str) -> None:
    assert message in say(call, mine)


def test_a_name_of_ours_cannot_be_taken(tmp_path: Path) -> None:
    folder = install(tmp_path / "thief", "thief", "thief", {"gsm8k@1": "thief:mine", "rubric@1": "thief:mine"})
    expected = "the package 'thief' names a verifier 'gsm8k@1', which Tercet has; give it another name"
    assert say("v.verifier('gsm8k@1')", folder) == expected
    assert say("v.verifiers()", folder) == expected
    assert "'rubric@1', which Tercet has" in say("v.verifier('rubric@1')", folder)
    assert say("v.verifier('choice@1')('The answer is B', 'B').score", folder) == "1.0"


def test_two_packages_cannot_share_a_name(mine: Path, tmp_path: Path) -> None:
    other = install(tmp_path / "other", "other", "other", {"mine@1": "other:mine"})
    assert say("v.verifier('mine@1')", mine, other) == (
        "the packages 'my-verifiers' and 'other' both name a verifier 'mine@1'; remove or rename one"
    )


def test_a_name_needs_a_version(tmp_path: Path) -> None:
    folder = install(tmp_path / "plain", "plain", "plain", {"mine": "plain:mine"})
    assert "names a verifier 'mine'; expected NAME@VERSION" in say("v.verifier('mine')", folder)


@pytest.mark.parametrize(
    ("value", "why"),
    [("absent_module:mine", "ModuleNotFoundError"), ("broken:absent", "AttributeError"), ("bad:mine", "ZeroDivision")],
)
def test_an_import_that_fails_names_the_package(tmp_path: Path, value: str, why: str) -> None:
    folder = install(tmp_path / "site", "broken", "broken", {"mine@1": value})
    (folder / "bad.py").write_text("1 / 0\n", encoding="utf-8")
    said = say("v.verifier('mine@1')", folder)
    assert said.startswith(f"the verifier 'mine@1' of the package 'broken', {value}, cannot be used: {why}")
    assert said.endswith("repair it, or name another one")
    assert "mine@1" in say("v.verifiers()", folder)


REWARDED = """
from tercet.recipe import GRPOSpec
from tercet.rows import Completion, Message, Row
from tercet.train.rl import reward_fn
from tercet.verify import plugins

spec = GRPOSpec(model="base", prompts="rows", rounds=1, learning_rate=1e-6, reward_scale=1)
names = ("mine", "stumbles", "hangs")
rows = [Row(name, (Message("user", "?"),), verifier=f"{name}@1", reference="pear") for name in names]
texts = ("pear", "a pear", "")
written = [[Completion(text, (1,), (0.0,), "eos") for text in texts] for _ in rows]
assess = reward_fn.RewardFunction(spec, None)
assess.check(rows)
plugins.SECONDS = 0.5
for marks in assess(rows, written):
    print(*(f"{mark.reward:g} {mark.grade.outcome} {len(mark.errors)};" for mark in marks))
"""


def test_rollouts_survive_a_verifier_that_stumbles_or_hangs(mine: Path) -> None:
    ran = python("-c", REWARDED, path=[mine])
    assert ran.stdout.splitlines() == [
        "1 graded 0; 1 graded 0; 0 graded 0;",
        "1 graded 0; 0 graded 0; 0 error 1;",
        "0 timeout 0; 0 timeout 0; 0 graded 0;",
    ], ran.stderr


TASK = """
from tercet.evals.task import Task
from tercet.rows import Row, Source, Message

mine = Task(
    name="mine", version=1, skill="play", data=(Source("mine.jsonl"),), verifier="gsm8k@1",
    prompt=lambda record: (Message("user", record["question"]),), reference=lambda record: record["answer"],
)
"""
TASKS = """
from tercet.evals import suite
from tercet.recipe import BenchmarkSpec
from pathlib import Path

print(suite.task("mine@1").id, suite.files(BenchmarkSpec(tasks=("mine@1",)), Path())[0].path)
print(*suite.code(BenchmarkSpec(tasks=("mine@1",)), Path()).items())
"""


def test_a_package_adds_tasks_that_are_pinned_by_name_version_and_digest(tmp_path: Path) -> None:
    folder = install(tmp_path / "site", "my-tasks", "my_tasks", {"mine@1": "my_tasks:mine"}, TASK, "tasks")
    ran = python("-c", TASKS, path=[folder])
    first, second = ran.stdout.splitlines() or [ran.stderr, ""]
    assert first == "mine@1 mine.jsonl"
    digest = hashlib.sha256((folder / "my_tasks.py").read_bytes()).hexdigest()
    assert second == f"('mine@1', 'my-tasks 1.0 sha256:{digest}')"


def test_a_verifier_of_a_package_is_pinned_by_name_version_and_digest(mine: Path) -> None:
    digest = hashlib.sha256((mine / "my_verifiers.py").read_bytes()).hexdigest()
    assert say("v.custom_digest('mine@1')", mine) == f"my-verifiers 1.0 sha256:{digest}"
    assert say("repr(v.custom_digest('gsm8k@1'))", mine) == "''"
