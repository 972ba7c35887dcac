"""Hand-made rows in the schemas of HumanEval and BigCodeBench: right answers pass, spoiled and lying ones do not."""

from __future__ import annotations

import itertools
import json
import math

import pytest

from tercet.verify import VerifierError, verifier
from tercet.verify.programs import extract, pass_at_k, program, sanitize

pytestmark = pytest.mark.usefixtures("isolated")

PROMPT = '''from typing import List


def double(x: int) -> int:
    return x * 2


def total(numbers: List[int]) -> int:
    """Twice the sum of the numbers.
    >>> total([1, 2])
    6
    """
'''
TESTS = """
METADATA = {"author": "nobody"}

def check(candidate):
    assert candidate([1, 2]) == 6
    assert candidate([]) == 0, "empty"
"""
BODY = "    result = 0\n    for number in numbers:\n        result += double(number)\n    return result\n"
FUNCTION = "def total(numbers: List[int]) -> int:\n    return sum(double(number) for number in numbers)\n"


def reference(**changes: object) -> str:
    return json.dumps(
        {"before": PROMPT, "tests": TESTS, "entry_point": "total", "kind": "check", "seconds": 5} | changes
    )


@pytest.mark.parametrize(
    "completion",
    [
        BODY,
        BODY.lstrip(),  # a chat template has stripped the start
        BODY.replace("\n    ", "\n").lstrip().replace("    result +=", "    result +="),  # no indentation at all
        PROMPT + BODY,
        FUNCTION,
        f"Here it is:\n```python\n{FUNCTION}```\nIt doubles every number.",
        f"First a helper:\n```python\nprint('no')\n```\nthen\n```py\n{FUNCTION}```\nand so `total` works.\n```\n6\n```",
        f"```python\n{FUNCTION}",  # cut off before the end of the block
        f"{FUNCTION}```\nThe block was opened by the prompt.",
        f"{BODY}```",
        f"```\n{FUNCTION}```",
        "```python\nclass Sum:\n    def __call__(self, numbers):\n        return 2 * sum(numbers)\ntotal = Sum()\n```",
        "```python\nimport sys\nprint('noise' * 100, file=sys.stderr)\ntotal = lambda numbers: 2 * sum(numbers)\n```",
    ],
)
def test_right_answers_pass_however_they_are_written(completion: str) -> None:
    grade = program(completion, reference())
    assert (grade.score, grade.outcome) == (1.0, "graded"), grade
    assert "total" in grade.answer


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        (BODY.replace("+=", "-="), "AssertionError"),
        (FUNCTION.replace("double(number)", "number"), "AssertionError"),
        ("    return 0\n", "AssertionError"),
        ("    return nothing\n", "NameError"),
        ("    return (\n", "SyntaxError"),
        ("    import sys\n    sys.exit(0)\n", "before the last line"),
        ("    import os\n    os._exit(0)\n", "left with code 0"),
        (f"import os\nos._exit(0)\n{FUNCTION}", "left with code 0"),
        ("def check(f): pass\ndef total(numbers): return 0", "AssertionError"),
        ("import builtins\nbuiltins.exec = builtins.compile = list\ndef total(numbers): return 0", "AssertionError"),
        ("import os\nos.write = os.read = lambda *a: b''\ndef total(numbers): return 0", "left with"),
        ("import atexit, os\natexit.register(os._exit, 0)\ndef total(numbers): return 0", "AssertionError"),
        ("    return 6\n'''", "SyntaxError"),
    ],
)
def test_wrong_and_dishonest_answers_fail(completion: str, reason: str) -> None:
    grade = program(completion, reference())
    assert (grade.score, grade.outcome) == (0.0, "graded"), grade
    assert reason in grade.detail


def test_a_hanging_answer_times_out() -> None:
    grade = program("    while True:\n        pass\n", reference(seconds=0.5))
    assert (grade.score, grade.outcome, grade.detail) == (0.0, "timeout", "not done after 0.5 s")


@pytest.mark.parametrize("completion", ["", "  \n", "I am sorry, but I cannot help with that.", "```python\n```"])
def test_no_code_is_unparsed(completion: str) -> None:
    assert program(completion, reference()).outcome == "unparsed"


def test_the_prompt_stands_in_for_an_empty_before() -> None:
    assert program(BODY, reference(before="", prompt=PROMPT)).score == 1.0


def test_a_class_may_be_the_entry_point() -> None:
    tests = "def check(candidate):\n    assert candidate(3).area() == 9\n"
    answer = (
        "```python\nclass Square:\n    def __init__(self, a): self.a = a\n    def area(self): return self.a**2\n```"
    )
    assert program(answer, reference(before="", tests=tests, entry_point="Square")).score == 1.0


def test_a_bad_reference_says_what_is_expected() -> None:
    for bad in (
        "no json",
        "[]",
        "{}",
        reference(kind="guess"),
        reference(entry_point="a b"),
        reference(tests=""),
        reference(more=1),
    ):
        with pytest.raises(VerifierError, match="program@1 expects"):
            program(BODY, bad)


def test_program_is_registered() -> None:
    assert verifier("program@1").loaded is program


STUB = "import os\nimport re\nimport statistics\ndef task_func(words, folder):\n"
UNITS = """
import unittest
from unittest.mock import patch

class TestCases(unittest.TestCase):
    def setUp(self):
        self.words = ["a", "bcd"]

    def test_mean(self):
        self.assertEqual(task_func(self.words, "x"), 2)

    def test_folder(self):
        with patch("os.path.exists", return_value=False):
            with self.assertRaises(FileNotFoundError):
                task_func(self.words, "x")
"""
SOLUTION = """```python
import os
import statistics

LENGTH = len
UNUSED = print("never run")

def size(word):
    return LENGTH(word)

def task_func(words, folder):
    if folder != "/" and os.path.exists("/") is False:
        raise FileNotFoundError(folder)
    return statistics.mean(size(word) for word in words)

print(task_func([], "/"))
if __name__ == "__main__":
    task_func(None, None)
```"""


def units(**changes: object) -> str:
    fields = {"before": STUB, "tests": UNITS, "entry_point": "task_func", "kind": "unittest", "seconds": 10.0}
    return json.dumps(fields | changes)


def test_unittest_rows_pass_with_the_right_answer_and_fail_with_a_spoiled_one() -> None:
    grade = program(SOLUTION, units())
    assert (grade.score, grade.outcome) == (1.0, "graded"), grade
    spoiled = program(SOLUTION.replace("LENGTH(word)", "1"), units())
    assert (spoiled.score, spoiled.outcome) == (0.0, "graded")
    assert spoiled.detail.startswith("AssertionError")
    assert "1 of 2 tests: test_mean" in spoiled.detail
    assert program(SOLUTION.replace("raise FileNotFoundError", "raise KeyError"), units()).score == 0.0


def test_the_stub_brings_imports_that_the_answer_forgot() -> None:
    assert program(SOLUTION.replace("import statistics\n", ""), units()).score == 1.0


@pytest.mark.parametrize(
    "trick",
    [
        "unittest.TestCase.assertEqual = unittest.TestCase.assertRaises = lambda *a: None",
        "unittest.TestCase.run = lambda self, result: None",
        "unittest.TestResult.addFailure = lambda *a: None",
        "sys.modules['unittest'].TestCase.setUp = lambda self: self.skipTest('')",
        "sys.exit(0)",
        "raise unittest.SkipTest",
    ],
)
@pytest.mark.parametrize("place", ["when imported", "when called"])
def test_bending_unittest_does_not_help(trick: str, place: str) -> None:
    call = f"def bend():\n    import sys, unittest\n    {trick}\n"
    at = "IGNORED = bend()\n" if place == "when imported" else ""
    inside = "    bend()\n" if place == "when called" else "    IGNORED\n"
    answer = f"```python\n{call}{at}def task_func(words, folder):\n{inside}    return 2\n```"
    assert program(answer, units()).score == 0.0


def test_no_tests_are_no_success() -> None:
    empty = "import unittest\nclass TestCases(unittest.TestCase):\n    pass\n"
    assert program(SOLUTION, units(tests=empty)).score == 0.0


def test_sanitize_keeps_what_the_entry_point_reaches() -> None:
    code = """Sure, here is the code:
from a import b
try:
    import c
except ImportError:
    c = None
K: int = 1
K += 1
L = M = 2
def used(): return K + Kind.x
class Kind:
    x = other()
def other(): return 0
def unused(): return L
@used
def main_task(): return used()
print(main_task())
for i in range(3): pass
That is all!"""
    kept = sanitize(code, "main_task")
    for line in ("from a import b", "import c", "K: int = 1", "K += 1", "class Kind", "def other", "@used"):
        assert line in kept
    for line in ("unused", "L = M", "print", "for i", "Sure", "That"):
        assert line not in kept
    assert "def unused" in sanitize(code, "missing")
    assert "print" not in sanitize(code, "missing")
    assert sanitize("not ( Python", "f") == "not ( Python"


def test_extract_takes_the_block_that_defines_the_entry_point() -> None:
    text = "```bash\nls\n```\n```python\ndef g(): pass\n```\n```python\ndef f(): pass\n```\n```python\nf()\n```"
    assert extract(text, "f").strip() == "def f(): pass"
    assert extract(text, "h").strip() == "def g(): pass"
    assert extract("    return 1\n") == "    return 1\n"
    assert extract("```json\n{}\n```").strip() == "{}"


def test_pass_at_k_is_the_share_of_draws_that_hold_a_pass() -> None:
    for n in range(1, 8):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            draws = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert math.isclose(pass_at_k(n, c, k), sum(map(any, draws)) / len(draws), abs_tol=1e-12)


@pytest.mark.parametrize(("n", "c", "k"), [(5, 1, 6), (5, 6, 1), (5, -1, 1), (5, 1, 0), (0, 0, 1)])
def test_pass_at_k_refuses_impossible_counts(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k expects"):
        pass_at_k(n, c, k)


def test_what_a_rows_own_code_cannot_import_is_an_error_and_what_an_answer_cannot_is_wrong() -> None:
    tests = "def check(f):\n    assert f() == 1\n"
    answer = "```python\ndef f():\n    return 1\n```"
    missing = {"tests": f"import no_such_package.part\n{tests}", "entry_point": "f"}
    for reference in (
        missing,
        {"before": "from no_such_package import x\ndef f():\n", "tests": tests, "entry_point": "f"},
    ):
        grade = program(answer, json.dumps(reference))
        assert (grade.score, grade.outcome) == (0.0, "error")
        assert "cannot import no_such_package (ModuleNotFoundError" in grade.detail
    fine = {"tests": f"try:\n    import no_such_package\nexcept ImportError:\n    pass\n{tests}", "entry_point": "f"}
    assert program(answer, json.dumps(fine)).score == 1.0
    grade = program(answer.replace("def", "import no_such_package\ndef"), json.dumps(fine))
    assert (grade.score, grade.outcome) == (0.0, "graded")


@pytest.mark.parametrize(
    "guard",
    [
        "n = int(input())\n    print(total(n))",
        "import argparse\n    argparse.ArgumentParser().add_argument('n')\n    raise SystemExit(2)",
        "import unittest\n    unittest.main()",
        "import doctest\n    doctest.testmod(raise_on_error=True)",
    ],
)
def test_what_a_program_does_when_it_is_run_is_not_done(guard: str) -> None:
    assert program(f'```python\n{FUNCTION}\nif __name__ == "__main__":\n    {guard}\n```', reference()).score == 1.0


def test_classes_of_an_answer_can_be_found_by_their_module() -> None:
    body = "import dataclasses, pickle\n@dataclasses.dataclass\nclass Sum:\n    value: 'int' = 0\n"
    function = FUNCTION.replace("sum(", "pickle.loads(pickle.dumps(Sum())).value + sum(")
    assert program(f"```python\n{body}\n{function}```", reference()).score == 1.0


@pytest.mark.parametrize("mark", ["1. ", "- ", "   ", "10) "])
def test_a_block_in_a_list_is_indented_with_its_fence(mark: str) -> None:
    indent = " " * len(mark)
    block = f"```python\n{FUNCTION}```".replace("\n", f"\n{indent}")
    assert program(f"Steps:\n{mark}{block}\n\nDone.", reference()).score == 1.0
