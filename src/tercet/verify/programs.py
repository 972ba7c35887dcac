"""The verifier of code: put an answer and its tests together, run them in the sandbox, and grade what happened.

`program@1` covers HumanEval (a `check` function) and BigCodeBench (unittest classes); `pass_at_k` turns the counts of
several samples into the published number.
"""

from __future__ import annotations

import ast
import json
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

from tercet.sandbox.run import lacking, run_program, run_tests
from tercet.verify.comparisons import asking
from tercet.verify.grade import Grade, VerifierError, unreadable

FENCE = re.compile(r"^(?P<indent>[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)?)```[ \t]*(?P<language>\w*)[^\n]*$", re.MULTILINE)
CODE = re.compile(r"^\s*(def |class |import |from \w+ import |return\b|@\w|\w+ = )", re.MULTILINE)
PYTHON = ("", "python", "python3", "py")
MEMORY_MB = {"check": 1024, "unittest": 4096}  # BigCodeBench programs load pandas, scipy and the like

PARTS: dict[str, str] = tomllib.loads(Path(__file__).with_name("programs.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class ProgramReference:
    """How an answer is tested; see `program` for the fields."""

    tests: str
    entry_point: str
    kind: str = "check"
    before: str = ""
    prompt: str = ""
    seconds: float = 3.0


def program(completion: str, reference: str, *, sandbox: str = "auto") -> Grade:
    """`program@1`: the completion's code passes the tests, run without network and within limits (sandbox/run.py).

    The reference answer is JSON: `{"before": "def f(x):\\n", "tests": "def check(f): ...", "entry_point": "f",
    "kind": "check", "seconds": 3.0, "prompt": "..."}`. `before` is the code that stands before the answer; with kind
    "check" (HumanEval) `prompt` stands in when it is empty, and `check(entry_point)` is called at the end. Kind
    "unittest" (BigCodeBench) reduces the answer to what the entry point needs and runs the class TestCases: no
    failures, no errors, and no test skipped that its author did not mark. As in the published harnesses the program is
    imported and not run: what stands behind `if __name__ == "__main__":` does not run.
    Tests run in a process of their own (`run_tests`), so an answer passes by what it returns alone. Classes of tests
    that patch, capture, seed, or need frames, figures and the like (`_separable`) share the answer's interpreter as
    in the published harness: there an object that equals everything does not pass as far as comparisons.py can ask
    the expected value, and an answer written against the runner can forge its pass.
    Outcomes: "graded", "timeout", "unparsed" (no code at all), "error" (the sandbox broke, or cannot import what the
    row's own code imports; nothing is known about the answer). The answer in the Grade is the code that was run. A
    SandboxError means that no program can be run here.
    """
    how = _reference(reference)
    code = extract(completion, how.entry_point)
    if not code.strip() or ("```" not in completion and not CODE.search(code) and not _arranged(code, how)[1]):
        return Grade(0.0, outcome="unparsed", detail="no code in the completion")
    if how.kind == "unittest":
        answer = f"{_stub(how.before)}\n{sanitize(code, how.entry_point)}\n"
        tests = [PARTS["before_unittest"], how.tests, "__run_tests()"]
        apart = _separable(how)
    else:
        answer, apart = _arranged(code, how)[0], True
        tests = [how.tests, f"check({how.entry_point})"]
    memory_mb = MEMORY_MB[how.kind]
    if missing := lacking([*imported(_stub(how.before or how.prompt)), *imported(how.tests)], sandbox, memory_mb):
        return Grade(0.0, answer, "error", missing)
    limits: dict[str, Any] = {"seconds": how.seconds, "memory_mb": memory_mb, "sandbox": sandbox}
    program = [PARTS["as_module"], answer]
    if apart:
        ran = run_tests(program, [PARTS["as_module"], _used(how), *tests], **limits)
    else:
        harness, text, call = tests
        ran = run_program([*program, harness, PARTS["before_tests"], asking(text), call], **limits)
    outcome = ran.outcome if ran.outcome in ("timeout", "error") else "graded"
    return Grade(float(ran.outcome == "passed"), answer, outcome, ran.detail)


def extract(completion: str, entry_point: str = "") -> str:
    """The code of an answer in chat form: the last fenced block that defines the entry point, else the first block.

    Without a fence the whole text counts, its indentation untouched. A block may lack its end (the answer was cut) or
    its beginning (the prompt had opened it).
    """
    fences = list(FENCE.finditer(completion))
    if not fences:
        return completion
    head = completion[: fences[0].start()]
    if len(fences) % 2 and not fences[0]["language"] and (parses(head) or parses(f"def f():\n{head}")) and head.strip():
        return head  # the prompt had opened the block
    blocks = _fenced(completion, fences)
    code = [text for language, text in blocks if language in PYTHON] or [blocks[0][1]]
    return next((text for text in reversed(code) if entry_point and _defines(text, entry_point)), code[0])


def code_blocks(completion: str) -> list[str]:
    """The fenced blocks of an answer that are Python or name no language, in order; the last may lack its end."""
    fences = list(FENCE.finditer(completion))
    return [text for language, text in _fenced(completion, fences) if language in PYTHON]


def _fenced(completion: str, fences: list[re.Match[str]]) -> list[tuple[str, str]]:
    """Language and text of each block; every second fence closes one. A block in a list is indented with its fence."""
    blocks = []
    for place in range(0, len(fences), 2):
        end = fences[place + 1].start() if place + 1 < len(fences) else len(completion)
        text = completion[fences[place].end() + 1 : end]
        blocks.append((fences[place]["language"].lower(), dedent(text) if fences[place]["indent"] else text))
    return blocks


def sanitize(code: str, entry_point: str) -> str:
    """Only what the entry point needs: imports, and definitions and assignments that it reaches by name.

    Text around the code that is not Python is cut off first. Where the entry point is not defined, every definition
    stays; where nothing parses, the text comes back as it is and will fail with its own error.
    """
    tree = _longest(code)
    if tree is None:
        return code
    known = {name: node for node in tree.body for name in _names(node)}
    wanted, waiting = set[str](), [entry_point] if entry_point in known else list(known)
    while waiting:
        name = waiting.pop()
        if name in wanted:
            continue
        wanted.add(name)
        for node in (node for node in tree.body if name in _names(node)):
            waiting += [part.id for part in ast.walk(node) if isinstance(part, ast.Name) and part.id in known]
    kept = [node for node in tree.body if _imports(node) or wanted & set(_names(node))]
    return "\n".join(map(ast.unparse, kept))


def imported(code: str) -> list[str]:
    """The modules that code imports at its top, by their first names; what is only tried (`try: import`) is left out.

    Used on prompts and tests, never on an answer: a wrong answer must not become an error by what it imports.
    """
    try:
        body = ast.parse(code).body
    except (SyntaxError, ValueError):
        return []
    plain = [alias.name for node in body if isinstance(node, ast.Import) for alias in node.names]
    parts = [node.module for node in body if isinstance(node, ast.ImportFrom) and node.module and not node.level]
    return [name.partition(".")[0] for name in (*plain, *parts)]


def pass_at_k(n: int, c: int, k: int) -> float:
    """The chance that at least one of k samples passes, drawn without return from n of which c pass (unbiased).

    1 if n − c < k, else 1 − Π_{i=n−c+1..n} (1 − k/i); Chen et al. 2021, Evaluating Large Language Models Trained on
    Code, §2.1.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k expects 0 <= c <= n and 1 <= k <= n samples; got n={n}, c={c}, k={k}")
    missed = 1.0 if n - c >= k else 0.0
    for i in range(n - c + 1, n + 1):
        missed *= 1 - k / i
    return 1 - missed


def _reference(text: str) -> ProgramReference:
    try:
        reference = ProgramReference(**json.loads(text))
    except (ValueError, TypeError) as error:
        expected = 'JSON with "tests", "entry_point" (also "before", "kind", "seconds", "prompt") as reference answer'
        raise unreadable("program@1", expected, text, error) from error
    if reference.kind not in MEMORY_MB or not reference.entry_point.isidentifier() or not reference.tests.strip():
        raise VerifierError(
            f'program@1 expects kind "check" or "unittest", a function name as entry_point, and tests; got kind '
            f"{reference.kind!r}, entry_point {reference.entry_point!r}, {len(reference.tests)} characters of tests"
        )
    return reference


def _arranged(code: str, how: ProgramReference) -> tuple[str, bool]:
    """The program before its tests, and whether it is Python.

    Code that defines the entry point stands alone, behind the prompt's imports and helpers. Anything else continues
    the prompt: as it is, or with the indentation given back that a chat answer has lost on its first line or on all.
    """
    before = how.before or how.prompt
    if _defines(code, how.entry_point):
        return f"{_helpers(before, how.entry_point)}\n{code}\n", True
    indented = "\n".join(f"    {line}" if line.strip() else line for line in code.splitlines())
    forms = [f"{before}{form}\n" for form in (code, f"    {code.lstrip()}", indented)]
    parsed = next((form for form in forms if parses(form)), "")
    return parsed or forms[0], bool(parsed)


def _helpers(before: str, entry_point: str) -> str:
    """What stands in a prompt beside the function to write: imports and helpers."""
    try:
        body = ast.parse(_stub(before)).body
    except SyntaxError:
        return before
    return "\n".join(ast.unparse(node) for node in body if entry_point not in _names(node))


def _used(how: ProgramReference) -> str:
    """What stands in a prompt beside the function to write, as far as the tests use it; they run it themselves."""
    helpers = _helpers(how.before or how.prompt, how.entry_point)
    if not parses(helpers):
        return ""
    waiting, kept, text = ast.parse(helpers).body, list[ast.stmt](), how.tests
    while found := [node for node in waiting if set(re.findall(r"\w+", text)) & set(_bound(node))]:
        kept += found
        waiting = [node for node in waiting if node not in found]
        text = "\n".join(map(ast.unparse, found))
    return "\n".join(map(ast.unparse, sorted(kept, key=lambda node: node.lineno)))


def _separable(how: ProgramReference) -> bool:
    """Whether a class of tests needs no more of the answer than plain values, judged by the row's own text."""
    try:
        nodes = [*ast.walk(ast.parse(how.tests)), *ast.walk(ast.parse(_stub(how.before)))]
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    names = [(node.module or "") for node in nodes if isinstance(node, ast.ImportFrom)]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    words = {word for text in (how.tests, how.before) for word in re.findall(r"\w+", text)}
    modules = {name.partition(".")[0] for name in names}
    return modules <= set(PARTS["plain_modules"].split()) and not words & set(PARTS["shared_words"].split())


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement at the top of a program brings, also by import."""
    yield from _names(node)
    for part in ast.walk(node) if _imports(node) else ():
        if isinstance(part, ast.alias):
            yield from re.findall(r"\w+", part.asname or part.name)[:1]


def _stub(before: str) -> str:
    """Code that may end in an open function, closed with `pass`."""
    return before if parses(before) else f"{before}\n    pass\n"


def parses(code: str) -> bool:
    """Whether a text is Python."""
    try:
        compile(code, "<answer>", "exec", dont_inherit=True)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def _defines(code: str, name: str) -> bool:
    if not parses(code):
        return re.search(rf"^(async )?(def|class) +{re.escape(name)}\b", code, re.MULTILINE) is not None
    return any(name in _names(node) for node in ast.parse(code).body)


def _names(node: ast.stmt) -> Iterator[str]:
    """The names that a statement at the top of a program defines."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        yield from (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))


def _imports(node: ast.stmt) -> bool:
    if isinstance(node, ast.Try):  # try: import ... except ImportError: ...
        return all(map(_imports, node.body))
    return isinstance(node, ast.Import | ast.ImportFrom)


def _longest(code: str) -> ast.Module | None:
    """The code as a tree, if need be without lines at its ends that are not Python."""
    lines = code.splitlines()
    first = next((place for place, line in enumerate(lines) if CODE.match(line)), 0)
    for start, end in [(0, len(lines)), *((first, end) for end in range(len(lines), first, -1))]:
        text = "\n".join(lines[start:end])
        if parses(text):
            return ast.parse(text)
    return None
