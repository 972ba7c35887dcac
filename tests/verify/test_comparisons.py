"""Objects that lie about being equal do not pass a test that can ask the expected value; honest values pass as ever."""

from __future__ import annotations

import json

import pytest

from tercet.verify import verifier
from tercet.verify.comparisons import asking

pytestmark = pytest.mark.usefixtures("isolated")

LIAR = "class Any:\n    def __eq__(self, other): return True\n    def __hash__(self): return 1\n"


def passes(answer: str, *tests: str) -> bool:
    """Whether an answer passes asserts, and the same asserts inside `check`."""
    body = "\n".join(f"    {test.replace('f(', 'candidate(')}" for test in tests)
    reference = json.dumps({"tests": f"def check(candidate):\n{body}\n", "entry_point": "f", "seconds": 5})
    checked = verifier("program@1")(f"```python\n{answer}\n```", reference)
    asserted = verifier("code@1")(f"```python\n{answer}\n```", json.dumps({"tests": tests, "seconds": 5}))
    assert checked.score == (asserted.score == 1), (checked, asserted)
    return checked.score == 1


@pytest.mark.parametrize(
    ("value", "test"),
    [
        ("Any()", "assert f(2) == 4"),
        ("Any()", "assert 4 == f(2)"),
        ("Any()", "assert f(2) == [1, 2], 'message'"),
        ("Any()", "assert f(2) in (1, 2)"),
        ("[Any(), Any()]", "assert f(2) == [1, 2]"),
        ("[(Any(),)]", "assert f(2) == [(1,)]"),
        ("{'a': Any()}", "assert f(2) == {'a': 1}"),
        ("{Any(): 1}", "assert f(2) == {1: 1}"),
        ("type('I', (int,), {'__eq__': lambda *a: True})(0)", "assert f(2) == 4"),
        ("__import__('unittest.mock').mock.ANY", "assert f(2) == 4"),
        ("Any()", "assert f(2) == Any()"),
        ("Any()", "assert abs(f(2) - 4) < 1e-6"),
        ("Any()", "assert f(2) >= 4 and f(2) <= 4"),
    ],
)
def test_a_value_that_equals_everything_does_not_pass(value: str, test: str) -> None:
    assert not passes(f"{LIAR}\ndef f(x):\n    return {value}", test)


@pytest.mark.parametrize(
    ("value", "test"),
    [
        ("4.0", "assert f(2) == 4"),
        ("True", "assert f(2) == 1"),
        ("numpy.int64(4)", "assert f(2) == 4"),
        ("numpy.array([1, 2])", "assert (f(2) == [1, 2]).all()"),
        ("[numpy.float64(0.5)]", "assert f(2) == [0.5]"),
        ("Fraction(8, 2)", "assert f(2) == 4"),
        ("Decimal('4')", "assert f(2) == 4 and f(2) in [4, 5]"),
        ("Counter('aab')", "assert f(2) == {'a': 2, 'b': 1}"),
        ("namedtuple('P', 'x y')(1, 2)", "assert f(2) == (1, 2)"),
        ("Point(1)", "assert f(2).x == 1 and isinstance(f(2), Point) and f(2) is not None"),
        ("{1, 2}", "assert f(2) == {2, 1} and 1 in f(2)"),
        ("'abc'", "assert 'b' in f(2) and 1 < 2 == 2"),
    ],
)
def test_honest_values_pass_as_they_do_without_questions(value: str, test: str) -> None:
    imports = "import numpy\nfrom collections import Counter, namedtuple\nfrom dataclasses import dataclass\n"
    imports += "from decimal import Decimal\nfrom fractions import Fraction\n@dataclass\nclass Point:\n    x: int\n"
    assert passes(f"{imports}\ndef f(x):\n    return {value}", test)


def test_unittest_asks_too() -> None:
    tests = (
        "import unittest\nclass TestCases(unittest.TestCase):\n    def test(self):\n        self.assertEqual(f(2), 4)\n"
    )
    reference = json.dumps({"tests": tests, "entry_point": "f", "kind": "unittest", "seconds": 10})
    answers = [f"```python\n{LIAR}\ndef f(x):\n    return {value}\n```" for value in ("Any()", "x * 2")]
    assert [verifier("program@1")(answer, reference).score for answer in answers] == [0, 1]


def test_what_is_not_python_or_compares_otherwise_stays_as_it_is() -> None:
    for text in ("not ( Python", "assert f(1) < 2", "assert f(1) != 2", "assert 1 == f(1) == 1"):
        assert asking(text) == text
