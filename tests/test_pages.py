"""Every command of the pages is run, in the order of the pages, in one folder: of docs/how also what it prints.

A fenced block `sh` holds commands; a block of toml, python or json whose first line is a comment with a file's name, or
that has it as its `title`, is written to that file; a block without a language below commands is what they print, with
`…` for what was left out. What cannot run here stands below `<!-- not run: why -->`.
"""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.forked import stages

from tercet.cli import main

ROOT = Path(__file__).parents[1]
FENCE = re.compile(
    r"^(?:<!-- not run: (?P<why>[^>]+) -->\n+)?"
    r"```(?P<language>\w*)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<text>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
NAME = re.compile(r"# ([\w./-]+\.(?:toml|py|jsonl?))\n")
HOW = (  # in the order of reading: pages use what earlier ones made
    "own-data",
    "own-verifier",
    "own-benchmark",
    "thinking-models",
    "gpu",
    "cluster",
    "evaluate-any-model",
    "decontaminate",
    "read-a-report",
    "push",
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page. Example: `Block("how/gpu.md", 12, "sh", "", "a GPU", "tercet run mine.toml\\n")`."""

    page: str
    line: int
    language: str
    title: str
    why: str  # it is not run
    text: str

    @property
    def commands(self) -> list[str]:
        """The commands of the block, without those that are comments."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [line.strip() for line in lines if line.strip() and not line.startswith("#")]


def blocks(page: str) -> list[Block]:
    """The fenced blocks of a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Block(
            page,
            text.count("\n", 0, one.start()) + 1,
            one["language"],
            one["title"] or "",
            one["why"] or "",
            one["text"],
        )
        for one in FENCE.finditer(text)
    ]


def words(command: str) -> tuple[dict[str, str], list[str]]:
    """The variables that a command sets, and its words, without a comment."""
    found = shlex.split(command, comments=True)
    count = next(number for number, word in enumerate(found) if not re.match(r"[A-Z_]+=", word))
    return dict(word.split("=", 1) for word in found[:count]), found[count:]


def expected(command: str) -> int:
    """The exit code that a command's comment speaks of, else 0."""
    said = re.search(r"#.*exit code (\d)", command)
    return int(said[1]) if said else 0


def told(text: str) -> str:
    """A line of output without what differs from run to run: keys, times, widths of columns."""
    text = re.sub(r"\b[0-9a-f]{12}\b", "KEY", text)
    text = re.sub(r"\b\d+:\d\d\b|\b\d+(\.\d+)? s\b", "TIME", text)
    return " ".join(re.sub(r"[─\s]+", " ", text).split())


def unseen(shown: str, printed: str) -> list[str]:
    """Lines of a page that were not printed; `…` stands for anything."""
    lines = {told(line) for line in printed.splitlines()}
    wanted = [told(line) for line in shown.splitlines()]
    return [line for line in wanted if line not in lines and not any(fits(line, one) for one in lines if "…" in line)]


def fits(line: str, printed: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, line.split("…"))), printed) is not None


@pytest.fixture
def reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An empty folder in which somebody types."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TERCET_MIRROR", str(ROOT / "tests" / "mirror.toml"))
    yield monkeypatch
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)


def test_every_command_of_the_how_tos_runs_and_prints_what_the_page_shows(reader, capsys):
    with stages(reader):
        for page in HOW:
            follow(f"docs/how/{page}.md", reader, capsys)


def follow(page: str, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Do what a page says, block after block."""
    printed = ""
    for block in blocks(page):
        where = f"{page}, line {block.line}"
        if block.language == "sh" and not block.why:
            printed = ""
            for command in block.commands:
                code, text = typed(command, patch, capsys)
                assert code == expected(command), f"{where}: {command}\n{text}"
                printed += text
        elif not block.language:
            assert not unseen(block.text, printed), f"{where}: what was printed is\n{printed}"
        else:
            write(block)


def typed(command: str, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and output of a command of ours."""
    variables, (name, *rest) = words(command)
    assert name == "tercet", f"{command}: this test runs tercet alone; mark the block"
    with patch.context() as given:
        for variable, value in variables.items():
            given.setenv(variable, value)
        given.setattr("sys.argv", ["tercet", *rest])
        given.setattr("sys.stdin", io.StringIO(""))
        code = main.main(rest)
    said = capsys.readouterr()
    return code, said.out + said.err


def write(block: Block) -> None:
    """Put a block that has a file's name into that file."""
    named = NAME.match(block.text)
    if name := block.title or (named[1] if named else ""):
        Path(name).write_text(block.text, encoding="utf-8")
