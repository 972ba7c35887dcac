"""The files that a public project has beside its code say what is true of the code."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
TARGETS = set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[0].split())
TOOLS = ("ruff format", "ruff check", "mypy")


def jobs(workflow: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"]
    return found


def steps(workflow: Path) -> list[dict[str, Any]]:
    return [step for job in jobs(workflow).values() for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_calls_targets_that_the_makefile_has(workflow):
    called = [step["run"].split() for step in steps(workflow) if step.get("run", "").startswith("make ")]
    assert called
    for _, *words in called:
        assert {word for word in words if "=" not in word} <= TARGETS


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda file: file.stem)
def test_a_workflow_may_read_and_has_an_end(workflow):
    document = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert document["permissions"] == {"contents": "read"}
    assert all(job["timeout-minutes"] <= 120 for job in jobs(workflow).values())
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert all(re.fullmatch(r"(actions|pypa)/[\w-]+@(v\d+|release/v1)", name) for name in used)
    assert all(step["with"]["persist-credentials"] is False for step in steps(workflow) if "checkout" in str(step))


def test_the_fast_gate_runs_on_every_python_that_the_package_names():
    matrix = jobs(ROOT / ".github" / "workflows" / "check.yml")["fast"]["strategy"]["matrix"]
    named = [text.rpartition(" ")[2] for text in PROJECT["classifiers"] if "Python :: 3." in text]
    assert matrix["python"] == named
    assert f">={named[0]}" == PROJECT["requires-python"]
    assert [one["os"] for one in matrix["include"]] == ["macos-latest"]


@pytest.mark.parametrize("name", ["release", "pages"])
def test_only_the_job_that_publishes_may_ask_for_an_identity(name):
    workflow = ROOT / ".github" / "workflows" / f"{name}.yml"
    assert {name for name, job in jobs(workflow).items() if "id-token" in job.get("permissions", {})} == {"publish"}
    assert "password" not in workflow.read_text(encoding="utf-8").split("#")[0]


def test_pre_commit_runs_the_tools_of_the_gate():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    assert [hook["entry"].removeprefix(".venv/bin/").removesuffix(" --fix") for hook in hooks] == list(TOOLS)
    assert all(f"$(BIN)/{tool}" in MAKEFILE for tool in TOOLS)


def test_every_form_of_an_issue_has_a_question():
    for file in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("[!c]*.yml"):
        form = yaml.safe_load(file.read_text(encoding="utf-8"))
        assert form["name"]
        assert form["description"]
        assert any(part.get("validations", {}).get("required") for part in form["body"])


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.stem)
def test_an_image_is_pinned_copies_what_exists_and_runs_as_a_user(file):
    text = file.read_text(encoding="utf-8")
    first = re.findall(r"^FROM (\S+)", text, re.M)[0]
    assert re.search(r":[\w.-]*\d", first)
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    for line in re.findall(r"^COPY (.+) \S+$", text, re.M):
        assert all((ROOT / name).exists() and name in sent for name in line.split())
    pins = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.M))
    assert f"torch=={pins['torch']}" in text
    assert text.rindex("USER tercet") > text.rindex("RUN ")
    assert json.loads(re.findall(r"^ENTRYPOINT (.+)$", text, re.M)[0]) == ["tercet"]


def test_the_devcontainer_builds_a_stage_that_exists_and_runs_a_target_that_exists():
    container = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    file = ROOT / ".devcontainer" / container["build"]["dockerfile"]
    assert f"AS {container['build']['target']}\n" in file.read_text(encoding="utf-8")
    assert re.search(r"^\$\(VENV\)/\.dev:", MAKEFILE, re.M)


def test_the_editors_rules_are_the_linters():
    rules = (ROOT / ".editorconfig").read_text(encoding="utf-8")
    ruff = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["ruff"]
    assert f"max_line_length = {ruff['line-length']}" in rules


@pytest.mark.parametrize("name", ["SUPPORT.md", "SECURITY.md", "CONTRIBUTING.md"])
def test_links_of_the_projects_pages_lead_somewhere(name):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", (ROOT / name).read_text(encoding="utf-8")):
        assert (ROOT / target).exists(), target
