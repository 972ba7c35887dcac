"""What comes from outside cannot speak to the terminal, whichever way it is printed; as JSON it keeps its value."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from tests.attack.hostile_texts import OBEYED

from tercet import journal
from tercet.cli import output
from tercet.cli.main import complain, main
from tercet.models.openai.refusals import Refusals
from tercet.track import Board, LiveBoard

FORBIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
OWN = re.compile(r"\r?\x1b\[[0-9;?]*[A-Za-z]")  # what rich itself sends to a terminal; a link is none of these


def board(kind: type[Board], text: str) -> str:
    """What a board prints of a stage whose note, metrics and log say this."""
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=kind is LiveBoard, width=300, color_system="standard")
    with kind(console, {"stage": "sft"}) as view:
        view.every = -1.0
        view.start("stage", text)
        view.update("stage", {"done": 1, "total": 2, "note": text})
        view.update("stage", {"done": 1, "total": 2, "metrics": {text: 1.0}})
        view.note(text)
        view.done("stage", {text: 2.0}, 1.0)
    assert text not in stream.getvalue() or not FORBIDDEN.search(text)
    return OWN.sub("", stream.getvalue()) if kind is LiveBoard else stream.getvalue()


def rows(text: str, tmp_path: Path, *more: str) -> list[str]:
    """A file of rows that says it everywhere, which `tercet data` shows."""
    turns = [{"role": "user", "content": text}, {"role": "assistant", "content": f"a {text}"}]
    lines = [{"id": text, "messages": turns, "source": text}, {"messages": text}, {text: 1}]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return ["data", str(file), "--store", str(tmp_path), *more]


def grades(text: str, tmp_path: Path) -> list[str]:
    """Answers that cannot be graded."""
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps({"completion": text, "reference": text, "source": text}) + "\n", encoding="utf-8")
    return ["grade", str(file), "--verifier", "ifeval@1"]


def recipe(text: str, tmp_path: Path) -> list[str]:
    """A recipe with a wrong key, value and name."""
    escaped = json.dumps(text.encode("utf-8", "replace").decode()).replace("\x7f", "\\u007f")
    file = tmp_path / "r.toml"
    head = f"name = {escaped}\n[base]\nmodel = {escaped}\n{escaped} = {escaped}\n[stage.{escaped}]\nkind = {escaped}\n"
    file.write_text(head, encoding="utf-8")
    return ["plan", str(file), "--store", str(tmp_path / "runs")]


VERBS: dict[str, Callable[[str, Path], list[str]]] = {
    "data": rows,
    "data --json": lambda text, folder: rows(text, folder, "--json"),
    "grade": grades,
    "plan": recipe,
    "check": lambda text, folder: ["check", text, "--store", str(folder)],
    "lineage": lambda text, folder: ["lineage", text, "--store", str(folder)],
    "compare": lambda text, folder: ["compare", text, text, "--store", str(folder)],
    "run": lambda text, folder: ["run", text],
    "--set": lambda text, folder: ["show", "recipes/tiny.toml", "--set", f"{text}={text}"],
    "a wrong verb": lambda text, folder: [text],
    "a wrong option": lambda text, folder: ["run", "x", f"--{text}"],
    "eval": lambda text, folder: ["eval", text, "--tasks", text, "--store", str(folder)],
}


@pytest.mark.parametrize("text", OBEYED, ids=ascii)
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_repeats_what_a_terminal_obeys(verb, text, tmp_path, capsys):
    try:
        code = main(VERBS[verb](text, tmp_path))
    except SystemExit as end:
        code = end.code
    told = capsys.readouterr()
    assert not FORBIDDEN.findall(told.out + told.err)
    assert code in (0, 1, 2)
    assert "Traceback" not in told.err


@pytest.mark.parametrize("text", OBEYED, ids=ascii)
def test_nothing_that_prints_lets_it_through(text, capsys):
    output.say(text)
    output.table((text, "n"), [(text, 1)])
    output.waiting([1], text)
    complain(text, 1)
    Refusals(text).leave_out(text, text)
    for kind in (Board, LiveBoard):
        assert not FORBIDDEN.findall(board(kind, text))
    told = capsys.readouterr()
    assert not FORBIDDEN.findall(told.out + told.err)


@pytest.mark.parametrize("text", OBEYED, ids=ascii)
def test_json_keeps_its_value(text, capsys):
    output.emit({text: [text]})
    told = capsys.readouterr().out
    assert json.loads(told) == {text: [text]}
    assert not FORBIDDEN.findall(told)


def test_a_fault_of_ours_shows_its_traceback_without_them(monkeypatch, capsys):
    def fail(args: object) -> int:
        raise RuntimeError("".join(OBEYED))

    monkeypatch.setitem(main.__globals__["VERBS"], "schema", fail)
    assert main(["schema"]) == 1
    told = capsys.readouterr()
    assert "RuntimeError" in told.err
    assert not FORBIDDEN.findall(told.out + told.err)


def test_the_tail_of_a_log_is_shown_without_them(tmp_path, capsys):
    from tercet.launch.ending import failure
    from tercet.store import Draft

    draft = Draft(tmp_path, "sft", "0" * 12)
    draft.path.mkdir(parents=True)
    (draft.path / "log.txt").write_text("\n".join(OBEYED), encoding="utf-8", errors="surrogatepass")
    journal.write_json(draft.path / "x.json", {})
    complain(str(failure(draft, -9)), 1)
    assert not FORBIDDEN.findall(capsys.readouterr().err)
