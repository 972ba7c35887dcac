"""Every command of the pages is run, in the order of the pages, in one folder: of docs/how also what it prints.

A fenced block `sh` holds commands; a block of toml, python or json whose first line is a comment with a file's name, or
that has it as its `title`, is written to that file; a block without a language below commands is what they print, with
`…` for what was left out. What cannot run here is in tests/not_run.toml with its reason (in docs/how it also stands
below `<!-- not run: why -->`): it is parsed, and its recipe is planned; what takes minutes is run with
`TERCET_ATTACK=full`. Words in capitals stand for what STANDS says, the Hub is one of the tests, and what serves until
Ctrl-C is ended by it as soon as it answers.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from fake_hub import in_the_hubs_place
from tercet import pipeline
from tercet.cli import main
from tercet.cli.parser import parser
from tercet.recipe import load
from tercet.store import Store

pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")  # huggingface_hub's own upload

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

OTHERS = [
    page.relative_to(ROOT).as_posix()
    for page in sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
    if page.name not in ("log.md", "CHANGELOG.md")
]
FULL = os.environ.get("TERCET_ATTACK") == "full"
MINUTES = "minutes, run with TERCET_ATTACK=full"
NOT_RUN = {
    command: why
    for why, commands in tomllib.loads((ROOT / "tests" / "not_run.toml").read_text(encoding="utf-8")).items()
    for command in commands
    if not (FULL and why == MINUTES)
}
STANDS = {
    "MODEL": "tiny:",
    "RECIPE": "mine.toml",
    "EVAL": "eval-rlvr",
    "A": "eval-base",
    "B": "eval-rlvr",
    "DIR": "new-folder",
    "TASK=VERIFIER": "sums@1=gsm8k@2",
    "TASK,…": "gsm8k@2",
    "rows.jsonl": "chats.jsonl",
    "eval-rlvr-2c5ee39e61f8": "eval-rlvr",
    "eval-541b52eb251b": "eval-base",
    "mine": "another",  # mine.toml is the recipe of the how-tos
    "recipe.toml": "mine.toml",
    "tulu3-70b.toml": "tulu3-70b",
    "/shared/tulu3-70b.toml": "tulu3-70b",
    "/shared/recipes/tulu3-70b.toml": "tulu3-70b",
}
DATA = {"sft": "chats.jsonl", "dpo": "pairs.jsonl", "reward": "pairs.jsonl", "grpo": "sums.jsonl"}  # of a verb
SERVES = {"play", "watch"}
EXITS = {"tercet eval tiny: --tasks mmlu_pro@1": 2}  # where the page's text says so, and no comment


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
        """The commands of the block; in one that shows what was typed and printed, those behind `$`."""
        lines = re.sub(r" *\\\n *", " ", self.text).splitlines()
        if self.language in ("sh", "bash"):
            return [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]


def bare(command: str) -> str:
    """A command without its comment."""
    return re.sub(r"\s+# .*", "", command)


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
    said = re.search(r"# exit code (\d)(?! when)", command)
    return int(said[1]) if said else EXITS.get(bare(command), 0)


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
def reader(
    forked_stages: None, shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """An empty folder in which somebody types."""
    monkeypatch.chdir(tmp_path)
    known = tomllib.loads((ROOT / "tests" / "mirror.toml").read_text(encoding="utf-8"))["mirror"]
    asked = (name for name in known if FULL or "gsm8k" in name)  # all that is asked for
    files = {name: file for name in asked if (file := ROOT / "tests" / known[name]).exists()}
    mirror = tmp_path.with_name("mirror.toml")
    mirror.write_text(
        "[mirror]\n" + "".join(f'"{name}" = "{file}"\n' for name, file in files.items()), encoding="utf-8"
    )
    monkeypatch.setenv("TERCET_MIRROR", str(mirror))
    with in_the_hubs_place(monkeypatch):
        yield monkeypatch
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)


def test_every_command_of_the_pages_runs_and_the_how_tos_show_what_is_printed(reader, capsys):
    for page in HOW:
        follow(f"docs/how/{page}.md", reader, capsys)
    leave([entry.name for entry in Path().iterdir() if entry.is_file() or entry.name == "runs"])
    for page in OTHERS:
        try_out(page, reader, capsys)


def follow(page: str, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Do what a how-to says, block after block."""
    printed = ""
    for block in blocks(page):
        where = f"{page}, line {block.line}"
        if block.language == "sh":
            printed = ""
            for command in block.commands:
                assert (bare(command) in NOT_RUN) == bool(block.why), f"{where}: {command}: mark it, and say why"
                if block.why:
                    parse(command)
                    continue
                code, text = typed(command, patch, capsys)
                assert code == expected(command), f"{where}: {command}\n{text}"
                printed += text
        elif not block.language:
            assert not unseen(block.text, printed), f"{where}: what was printed is\n{printed}"
        else:
            write(block)


def try_out(page: str, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Type the commands of another page in the folder of the how-tos, and remove what they leave beside the store."""
    ran = {bare(line) for how in HOW for block in blocks(f"docs/how/{how}.md") for line in block.commands}
    for block in blocks(page):
        for command in block.commands:
            if bare(command) in NOT_RUN or bare(command) in ran:
                parse(command)
                continue
            before = [entry.name for entry in Path().iterdir()]
            code, text = typed(command, patch, capsys)
            assert code == expected(command), f"{page}, line {block.line}: {command}\n{text}"
            leave(before)


def leave(names: list[str]) -> None:
    """Remove all but these from the folder."""
    for entry in Path().iterdir():
        if entry.name not in names:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def parse(command: str) -> None:
    """Look at a command that is not run: its words, its recipe, its extras or its target."""
    _, (name, *rest) = words(re.sub(r"^(exec|cat \S+ \||torchrun .* -m) ", "", command))
    if name == "tercet":
        args = parser(main.VERBS).parse_args(rest)
        if recipe := getattr(args, "recipe", ""):
            pipeline.plan(load(STANDS.get(recipe, recipe), args.set), Store("runs"))
    elif name == "pip":
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        wanted = re.search(r"\[([\w,]+)\]", rest[-1])
        assert not wanted or set(wanted[1].split(",")) <= set(project["optional-dependencies"]), command
    else:
        assert name in ("make", "source"), f"{command}: nothing knows how to look at it"
        assert name == "source" or re.search(rf"^{rest[0]}\b.*:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)


def typed(command: str, patch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and output of a command of ours."""
    piped = re.sub(r"^cat \S+ \| ", "", command)
    variables, (name, *rest) = words(piped)
    assert name == "tercet", f"{command}: this test runs tercet alone; name the command in tests/not_run.toml"
    rest = [DATA[rest[0]] if word == "DATA" else STANDS.get(word, word) for word in rest]
    with patch.context() as given, ended(rest[0] in SERVES and "--once" not in rest):
        for variable, value in variables.items():
            given.setenv(variable, value)
        given.setattr("sys.argv", ["tercet", *rest])
        given.setattr("sys.stdin", io.StringIO("" if piped == command else "What is 2 + 2? It is 4."))
        code = main.main(rest)
    said = capsys.readouterr()
    return code, said.out + said.err


@contextmanager
def ended(is_server: bool) -> Iterator[None]:
    """Ctrl-C for what serves, once the address that it says answers."""
    done = threading.Event()

    def press() -> None:
        while not done.wait(0.05):
            said = sys.stdout.getvalue() if isinstance(sys.stdout, io.TextIOWrapper) else ""
            if found := re.search(r"at http://127\.0\.0\.1:(\d+).*Ctrl-C", said):
                with suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{found[1]}/", timeout=20).close()
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=press, daemon=True)
    if is_server:
        thread.start()
    try:
        yield
    finally:
        done.set()


def write(block: Block) -> None:
    """Put a block that has a file's name into that file."""
    named = NAME.match(block.text)
    if name := block.title or (named[1] if named else ""):
        Path(name).write_text(block.text, encoding="utf-8")


def test_what_is_not_run_stands_on_a_page():
    pages = [*OTHERS, *(f"docs/how/{page}.md" for page in HOW)]
    typed_there = {bare(command) for page in pages for block in blocks(page) for command in block.commands}
    assert not set(NOT_RUN) - typed_there
    assert {page.stem for page in (ROOT / "docs" / "how").glob("*.md")} == set(HOW)


def test_commands_in_running_text_name_verbs_and_options_that_exist():
    top = parser(main.VERBS)
    verbs = next(action.choices for action in top._actions if isinstance(action.choices, dict))
    found = []
    for page in [*OTHERS, *(f"docs/how/{page}.md" for page in HOW)]:
        text = FENCE.sub("", (ROOT / page).read_text(encoding="utf-8"))
        for command in re.findall(r"`tercet ([^`]+)`", text):
            verb, *rest = command.split()
            known = verbs[verb]._option_string_actions if verb in verbs else {}
            wrong = [word for word in rest if re.fullmatch(r"--[a-z-]+", word) and word not in known]
            if verb not in ("VERB", "--help") and (verb not in verbs or wrong):
                found.append(f"{page}: tercet {command}")
    assert not found, "\n".join(found)


def test_a_line_that_was_not_printed_is_found_and_what_differs_from_run_to_run_is_not():
    printed = "sft-0123456789ab  (sft)  5 s\nsft done in 0:12  steps 4\n───\nrows   3\n"
    assert not unseen("sft-ba9876543210 (sft) 71.5 s\nsft done in 1:02   steps 4\n…\nrows …", printed)
    assert unseen("rows 4\nsft done in 0:12  steps 5\n… 4", printed) == ["rows 4", "sft done in TIME steps 5"]
