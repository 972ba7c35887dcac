"""`code@1`: the reward of a program is the share of its tests that it passes, in the sandbox.

Two kinds of tests: assert statements that run behind the program, and pairs of input and output of a whole program.
Unlike the benchmarks' `program@1`, the answer is always the last code block.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tercet.sandbox.run import Ran, lacking, run_program, run_tests
from tercet.verify.grade import Grade, VerifierError, is_number, is_text, read_reference, unreadable
from tercet.verify.programs import CODE, PARTS, code_blocks, imported, parses

SECONDS = 1.0  # for each test, as published
EXAMPLE = '["assert f(1) == 2"], {"tests": [...]} or {"stdin": [{"input": "1", "output": "2"}]}'
OPTIONS = {"tests", "stdin", "seconds", "threshold"}


@dataclass(frozen=True)
class ProgramTests:
    """What a program is tested by: assert statements, or (input, output) pairs; seconds for each."""

    asserts: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    seconds: float = SECONDS
    threshold: float = 0.0


def code(completion: str, reference: str, *, sandbox: str = "auto") -> Grade:
    """`code@1`: the share of tests passed by the last fenced block (Python or bare), or by the whole text without one.

    Reference answer: a JSON list of assert statements, or `{"tests": [...]}` with them, or `{"stdin": [{"input":
    "2\\n", "output": "4\\n"}]}`; beside these `seconds` for each test (1) and `threshold`, a share below which the
    score is 0 (0). Output is compared line by line without trailing blanks, and without empty lines at the end.
    Outcomes: "unparsed" (no code), "timeout" (a test ran out of time), "error" (the sandbox broke, or cannot import
    what the tests import). `numbers`: "passed" and "tests". With asserts the program is imported (no `__main__` guard
    runs), with input and output it is run. Asserts run in a process of their own (`run_tests`), and expected output
    never enters the sandbox.
    """
    tests = _tests(reference)
    blocks = [block for block in code_blocks(completion) if block.strip()]
    text = blocks[-1] if blocks else completion
    if not text.strip() or not (blocks or CODE.search(text) or (tests.pairs and parses(text))):
        return Grade(0.0, outcome="unparsed", detail="no code in the completion")
    ran = _run(text, tests, sandbox) if parses(text) else [Ran("failed", "SyntaxError")]
    total = len(tests.asserts) or len(tests.pairs)
    passed = sum(one.outcome == "passed" for one in ran)
    share = passed / total
    outcome = next((kind for kind in ("error", "timeout") if any(one.outcome == kind for one in ran)), "graded")
    detail = next((one.detail for one in ran if one.outcome != "passed"), "")
    score = share if share >= tests.threshold and outcome != "error" else 0.0
    return Grade(score, text, outcome, detail, {"passed": float(passed), "tests": float(total)})


def _run(text: str, tests: ProgramTests, sandbox: str) -> list[Ran]:
    """What became of the tests. All asserts in one program first: if they pass there, nothing more need be run."""
    if tests.pairs:
        return [_answered(text, pair, tests.seconds, sandbox) for pair in tests.pairs]
    if missing := lacking(imported("\n".join(tests.asserts)), sandbox):
        return [Ran("error", missing)]
    limits: dict[str, Any] = {"seconds": tests.seconds, "sandbox": sandbox}
    program, before = [PARTS["as_module"], text], PARTS["as_module"]
    together = run_tests(program, [before, *tests.asserts], **limits)
    if together.outcome == "passed":
        return [together] * len(tests.asserts)
    if len(tests.asserts) == 1:
        return [together]
    alone = run_program(program, **limits)
    if alone.outcome != "passed":  # it fails before any test
        return [alone]
    return [run_tests(program, [before, test], **limits) for test in tests.asserts]


def _answered(text: str, pair: tuple[str, str], seconds: float, sandbox: str) -> Ran:
    """A whole program on one input; the expected output never enters the sandbox."""
    given, expected = pair
    parts = [PARTS["before_stdin"], PARTS["run_stdin"].format(code=text)]
    keep = max(64, 2 * len(expected.encode()) // 1024 + 1)
    ran = run_program(parts, seconds=seconds, output_kb=keep, files={"input": given}, sandbox=sandbox)
    if ran.outcome == "passed" and _lines(ran.stdout_tail) != _lines(expected):
        return Ran("failed", f"expected {expected.strip()!r:.80}, got {ran.stdout_tail.strip()!r:.80}")
    return ran


def _lines(text: str) -> list[str]:
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip("\n").split("\n")


def _tests(reference: str) -> ProgramTests:
    value = read_reference("code@1", reference, EXAMPLE)
    fields = {"tests": value} if isinstance(value, list) else value
    if not isinstance(fields, dict) or set(fields) - OPTIONS or ("tests" in fields) == ("stdin" in fields):
        raise unreadable("code@1", f"as reference answer {EXAMPLE}, beside them seconds, threshold", reference)
    asserts, pairs = fields.get("tests", []), fields.get("stdin", [])
    if (
        not (asserts or pairs)
        or not all(is_text(one) and one.strip() and parses(one) for one in asserts)
        or not all(map(_is_pair, pairs))
    ):
        raise unreadable("code@1", "tests that are statements, or texts of input and output", reference)
    seconds, threshold = fields.get("seconds", SECONDS), fields.get("threshold", 0.0)
    if not (is_number(seconds) and seconds > 0 and is_number(threshold) and 0 <= threshold <= 1):
        raise VerifierError(f"code@1 expects seconds above 0 and a threshold from 0 to 1; got {seconds}, {threshold}")
    read = tuple((one["input"], one["output"]) for one in pairs)
    return ProgramTests(tuple(asserts), read, float(seconds), float(threshold))


def _is_pair(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), str) for key in ("input", "output"))
