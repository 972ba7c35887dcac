"""The table of bad input, through the command line: one clear error with place and remedy, nothing left over."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tercet.cli import main
from tercet.store import Store

HEAD = """
name = "bad"
seed = 1

[base]
model = "tiny:seed=2"

[stage.sft-data]
kind = "mix"
sources = [{ path = "rows.jsonl", max_bad = 0 }]
dedupe = false
"""

SFT = """
[stage.sft]
kind = "sft"
model = "base"
rows = "sft-data"
batch = 4
num_epochs = 2
max_length = 128
learning_rate = 1e-3

[placement]
threads = 1
checkpoint_seconds = 0
"""


def row(number: int, **changes) -> dict[str, object]:
    turns = [{"role": "user", "content": f"question {number}?"}, {"role": "assistant", "content": f"answer {number}."}]
    return {"id": f"r{number}", "messages": turns} | changes


def write_rows(folder: Path, rows: list[object]) -> None:
    lines = [line if isinstance(line, str) else json.dumps(line) for line in rows]
    (folder / "rows.jsonl").write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with eight good rows and a recipe that mixes them."""
    monkeypatch.delenv("TERCET_MIRROR", raising=False)
    monkeypatch.chdir(tmp_path)
    write_rows(tmp_path, [row(number) for number in range(8)])
    (tmp_path / "recipe.toml").write_text(HEAD, encoding="utf-8")
    yield tmp_path
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)


@pytest.fixture
def fails(place, capsys):
    """Run the recipe and expect it to fail: with this code, with one message that has all these words."""

    def fails(code: int, *words: str, only: str = "sft-data", sets: tuple[str, ...] = ()) -> str:
        options = [part for text in sets for part in ("--set", text)]
        assert main.main(["run", "recipe.toml", "--only", only, *options]) == code
        said = capsys.readouterr().err
        assert said.count("tercet: ") == 1, said
        for word in words:
            assert word in said, said
        assert "Traceback" not in said
        assert "\n  | " not in said, "an error we foresaw needs no piece of the log"
        return said

    return fails


def left(place: Path) -> list[str]:
    """What is in the store, without locks and caches."""
    return sorted(path.name for path in (place / "runs").glob("*") if path.name not in (".locks", ".cache"))


def test_an_unknown_recipe_key_is_named_with_its_line(fails, place):
    (place / "recipe.toml").write_text(HEAD.replace("dedupe", "dedup"), encoding="utf-8")
    fails(2, "recipe.toml, line 11", "'dedup'", "'dedupe'")
    assert left(place) == []


def test_a_missing_file_is_named_with_the_source_that_wants_it(fails, place):
    (place / "rows.jsonl").unlink()
    fails(2, "rows.jsonl", "does not exist", "[stage.sft-data]", "paths start at the recipe's folder")
    assert left(place) == []


def test_a_missing_recipe_is_named(place, capsys):
    assert main.main(["run", "nowhere.toml"]) == 2
    assert "nowhere.toml: no such recipe file; check the path" in capsys.readouterr().err
    assert left(place) == []


BAD_ROWS = {
    "a malformed line": ('{"id": "r2", "messages": [', "line 3", "not valid JSON", "fix or remove the line"),
    "a line that is no object": ("[1, 2]", "line 3", "expected a JSON object", "got list"),
    "a row without messages": (
        {"id": "r2", "text": "x"},
        "row 3",
        "rows with text are not read",
        "give prompt and completion",
    ),
    "a row without assistant turn": (
        row(2, messages=[{"role": "user", "content": "Hello?"}]),
        "row 3",
        "no assistant turn at its end",
        "add the answer, remove the row",
    ),
    "an empty completion": (
        row(2, messages=[{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": " "}]),
        "row 3",
        "empty completion",
        "fill or remove the row",
    ),
    "an unknown role": (
        row(2, messages=[{"role": "critic", "content": "x"}]),
        "row 3",
        "role 'critic'",
        "expected one of",
    ),
    "an unknown verifier": (row(2, verifier="gsm9k@1", reference="4"), "'r2'", "gsm9k@1", "gsm8k@1"),
}


@pytest.mark.parametrize("what", BAD_ROWS)
def test_a_bad_row_is_named_with_its_place_and_remedy(fails, place, what):
    bad, *words = BAD_ROWS[what]
    write_rows(place, [row(0), row(1), bad, row(3)])
    fails(2, "sft-data", *words)
    assert left(place) == []


def test_within_the_share_a_bad_row_is_left_out_counted_and_said(place, capsys):
    (place / "recipe.toml").write_text(HEAD.replace(", max_bad = 0", ""), encoding="utf-8")
    write_rows(place, [row(0), '{"id": "r1",', row(2, context="a book"), row(3)])
    assert main.main(["run", "recipe.toml", "--only", "sft-data"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "rows.jsonl: 1 of 4 rows cannot be read: 1 not valid JSON (Expecting property name enclosed in double quotes)"
        in said
    )
    assert "rows.jsonl: left behind, because nothing reads it: 1 rows of context" in said
    assert main.main(["data", "sft-data", "--json"]) == 0
    (source,) = json.loads(capsys.readouterr().out)["sources"]
    assert (source["read"], source["entered"], source["kept"]) == (4, 3, 3)
    assert [(one["rows"], len(one["examples"])) for one in source["bad"]] == [(1, 1)]
    assert "rows.jsonl, line 2: not valid JSON" in source["bad"][0]["examples"][0]
    assert source["left"] == {"context": 1}


def test_after_the_row_is_mended_the_same_command_works(fails, place):
    write_rows(place, [row(0), '{"id"'])
    fails(2, "line 2")
    write_rows(place, [row(0), row(1)])
    assert main.main(["run", "recipe.toml", "--only", "sft-data"]) == 0
    assert len(left(place)) == 1


@pytest.mark.parametrize(
    ("verifier", "line", "words"),
    [
        ("gsm9k@1", '{"completion": "4", "reference": "4"}', ("gsm9k@1", "gsm8k@1")),
        ("gsm8k@1", '{"completion": "4"', ("answers.jsonl, line 1", "not valid JSON", "fix or remove")),
        ("gsm8k@1", '{"completion": "4"}', ("answers.jsonl, line 1", "'reference'")),
        (
            "tulu_if@1",
            '{"completion": "4", "reference": "{}"}',
            ("answers.jsonl, line 1", "knows no instruction None; expected one of"),
        ),
    ],
)
def test_grading_names_an_unknown_verifier_and_the_line_it_cannot_use(place, capsys, verifier, line, words):
    (place / "answers.jsonl").write_text(line + "\n", encoding="utf-8")
    assert main.main(["grade", verifier, "answers.jsonl"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in words), said


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A store with the base model and the SFT data made, to be linked into a test's own."""
    folder = tmp_path_factory.mktemp("model")
    write_rows(folder, [row(number) for number in range(8)])
    (folder / "recipe.toml").write_text(HEAD + SFT, encoding="utf-8")
    store = str(folder / "runs")
    assert main.main(["run", str(folder / "recipe.toml"), "--only", "base,sft-data", "--store", store]) == 0
    yield folder
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)


@pytest.fixture
def trainer(place, model):
    """A place with a training stage whose inputs exist."""
    (place / "recipe.toml").write_text(HEAD + SFT, encoding="utf-8")
    subprocess.run(["cp", "-r", str(model / "runs"), str(place / "runs")], check=True)
    return place


def names(place: Path) -> set[str]:
    return {artifact.name for artifact in Store(place / "runs")}


def test_an_over_long_row_is_named_when_the_recipe_says_error(fails, trainer):
    before = left(trainer)
    sets = ("stage.sft.overlong=error", "stage.sft.max_length=30")
    fails(
        2,
        "stage 'sft'",
        "of rows.jsonl has 40 tokens",
        "more than max_length = 30",
        'overlong = "drop" or "cut"',
        only="sft",
        sets=sets,
    )
    assert left(trainer) == before


def test_a_loss_that_is_not_a_number_stops_at_its_step_and_commits_nothing(fails, trainer):
    sets = ("stage.sft.learning_rate=1e30", "stage.sft.warmup_ratio=0.0")
    said = fails(1, "stage 'sft'", "at step 2", "ower learning_rate", only="sft", sets=sets)
    assert names(trainer) == {"base", "sft-data"}
    (draft,) = [name for name in left(trainer) if name.startswith(".draft")]
    assert draft in said.replace("\n", ""), "what is kept to be looked at is named"


FULL = '''
"""A disk that is full from the third checkpoint on, for the process of a stage."""
import errno, os, sys

if os.environ.get("DISK") == "full" and "tercet.stage" in sys.orig_argv:
    sync, calls = os.fsync, []

    def fsync(handle):
        calls.append(handle)
        if len(calls) > 8:
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(handle)

    os.fsync = fsync
'''


def test_a_full_disk_is_reported_and_the_same_command_continues_when_there_is_space(fails, trainer, monkeypatch):
    (trainer / "site").mkdir()
    (trainer / "site" / "sitecustomize.py").write_text(FULL, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{trainer / 'site'}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("DISK", "full")
    fails(1, "stage 'sft'", "is full; nothing was committed. Free some space and run the same command", only="sft")
    assert names(trainer) == {"base", "sft-data"}
    monkeypatch.setenv("DISK", "empty")
    assert main.main(["run", "recipe.toml", "--only", "sft"]) == 0
    assert names(trainer) == {"base", "sft-data", "sft"}
    assert not [name for name in left(trainer) if name.startswith(".draft")]


def test_a_model_folder_without_tokenizer_is_named(fails, place, tiny_folder):
    (place / "recipe.toml").write_text(HEAD + SFT, encoding="utf-8")
    (place / "mute").mkdir()
    for name in ("config.json", "model.safetensors"):
        (place / "mute" / name).write_bytes((tiny_folder / name).read_bytes())
    sets = (f"base.model={place / 'mute'}",)
    fails(
        2, "stage 'base'", "expected a tokenizer (tokenizer.json)", "copy the tokenizer files", only="base", sets=sets
    )
    assert left(place) == []
