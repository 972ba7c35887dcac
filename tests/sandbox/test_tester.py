"""Tests in a process of their own: what they can do with an answer as if it were in theirs, and what is an error."""

from __future__ import annotations

import pytest

from tercet.sandbox.run import Ran, SandboxError, isolation, run_tests

ANSWER = """
import math, collections, enum, dataclasses
LIMIT = 7
def double(x): return 2 * x
def grow(rows):
    rows.append([9]); rows[0][0] = 5
def fill(table, seen): table["a"] = 1; seen.add(3); table.pop("b")
def apply(function, *values, **named): return [function(value, **named) for value in values]
def total(numbers): return sum(numbers)
def squares(n):
    for i in range(n): yield i * i
def fail(kind): raise kind("no", 3)
class OddError(ValueError): pass
def odd(): raise OddError("odd")
def missing(): open("/no/such/file")
def say(text): print(text)
def add(n): return lambda x: x + n
class Stack(list):
    def push(self, value): self.append(value)
class Node:
    def __init__(self, value): self.value, self.next = value, None
    def __len__(self): return 1 if self.next is None else 1 + len(self.next)
    def __getitem__(self, place): return self.value if place == 0 else self.next[place - 1]
    def __str__(self): return f"<{self.value}>"
    def __enter__(self): return self
    def __exit__(self, *a): self.value = "left"
def last(node): return node.value if node.next is None else last(node.next)
Pair = collections.namedtuple("Pair", "one two")
class Color(enum.IntEnum):
    RED = 1
class Shape(enum.Enum):
    ROUND = 1
"""


@pytest.fixture(scope="module")
def level() -> str:
    try:
        return isolation("auto")
    except SandboxError as error:
        pytest.skip(str(error))


def ran(level: str, tests: str) -> Ran:
    return run_tests([ANSWER], [tests], seconds=5, sandbox=level)


@pytest.mark.parametrize(
    "tests",
    [
        "assert double(2) == 4 and double('a') == 'aa' and double([1]) == [1, 1] and LIMIT == 7 and type(LIMIT) is int",
        "rows = [[1], 2]\ninner = rows[0]\ngrow(rows)\nassert rows == [[5], 2, [9]]\ngrow(rows)\nassert len(rows) == 4",
        "table, seen = {'b': 2}, {1}\nfill(table, seen)\nassert table == {'a': 1} and seen == {1, 3}",
        "assert apply(lambda x: x + 1, 1, 2) == [2, 3] and apply(len, 'ab') == [2] and apply(int, '3') == [3]",
        "def scale(x, by): return x * by\nassert apply(scale, 1, 2, by=3) == [3, 6]",
        "assert total(iter([1, 2])) == 3 and total(x for x in range(4)) == 6 and total(range(3)) == 3",
        "assert list(squares(3)) == [0, 1, 4]\nsteps = squares(9)\nassert next(steps) == 0 and next(steps) == 1",
        "for kind in (ValueError, KeyError, SystemExit, AssertionError):\n    try:\n        fail(kind)\n"
        "    except kind as error:\n        assert error.args == ('no', 3)\n    else:\n        assert 0",
        "try:\n    odd()\nexcept OddError as error:\n    assert isinstance(error, ValueError) and str(error) == 'odd'",
        "try:\n    missing()\nexcept FileNotFoundError as error:\n    assert error.errno == 2",
        "class Own(Exception): pass\ndef own(x): raise Own(x)\ntry:\n    apply(own, 1)\nexcept Own as error:\n"
        "    assert error.args == (1,)",
        "import contextlib, io\nwith contextlib.redirect_stdout(io.StringIO()) as said: say('hello')\n"
        "assert said.getvalue() == 'hello\\n'",
        "assert add(3)(4) == 7",
        "s = Stack()\ns.push(3)\nassert s == [3] and [3] == s and 3 in s and len(s) == 1 and isinstance(s, list)\n"
        "s.push(4)\nassert s == [3, 4] and s != [3] and s < [5] and isinstance(s, Stack) and s[1] == 4",
        "a = Node(1)\na.next = Node(2)\nassert len(a) == 2 and a[1] == 2 and a.next.value == 2 and last(a) == 2\n"
        "assert str(a) == '<1>' and f'{a}' == '<1>' and a.next.next is None and a == a and a.next is a.next\n"
        "assert a and a != None and isinstance(a, Node)\nwith a as b: assert b is a\nassert a.value == 'left'",
        "p = Pair(1, 2)\nassert p == (1, 2) and p.one == 1 and [*p] == [1, 2]",
        "assert Color.RED == 1 and double(Color.RED) == 2 and Shape.ROUND is Shape.ROUND and Shape.ROUND.value == 1",
        "assert math.sqrt(4) == 2 and collections.Counter('aa') == {'a': 2}",
        "import random\nassert {double(x) for x in range(3)} == {0, 2, 4}",
    ],
)
def test_honest_use_of_an_answer_works(tests: str, level: str) -> None:
    assert ran(level, tests).outcome == "passed", ran(level, tests)


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("assert Node(1) == Node(1)", "an object of type Node, which cannot be compared outside it"),
        ("assert Node(1) == 1", "an object of type Node"),
        ("assert Node(1) < 2", "an object of type Node"),
        ("assert 1 in [Node(1)]", "an object of type Node"),
        ("assert Node(1) + 1", "TypeError"),
        ("class Own: pass\ndouble(Own())", "the tests pass an object of type Own, which cannot leave their process"),
        ("assert double(2) == 5", "AssertionError (line 1)"),
        ("double(None)", "TypeError (line 1): unsupported operand type(s)"),
        ("nothing(1)", "NameError (line 1): name 'nothing' is not defined"),
        ("assert not(", "SyntaxError"),
        ("a = Node(1)\na.__array_interface__ = {}\na.__array_interface__", "AttributeError (line 3)"),
        ("import numpy\nassert numpy.allclose(Node(1), 1)", "TypeError (line 2)"),
        ("import sys\nsys.exit(0)", "SystemExit (line 2), before the last line was reached"),
    ],
)
def test_what_cannot_be_judged_here_is_an_error_with_its_reason(tests: str, reason: str, level: str) -> None:
    ended = ran(level, tests)
    assert ended.outcome == "failed"
    assert reason in ended.detail


def test_names_of_python_are_pythons_and_a_module_is_imported_by_the_tests(level: str) -> None:
    answer = (
        "import math\nlen = all = lambda *a: True\nmath.sqrt = lambda x: 3\nclass AssertionError(BaseException): pass"
    )
    tests = "assert len('ab') == 2 and math.sqrt(9) == 3 and math.sqrt(4) == 2\nassert not all([0])"
    assert run_tests([answer], [tests], sandbox=level).outcome == "passed"
    assert (
        run_tests(["import types\nmath = types.ModuleType('os')"], ["math.sqrt(4)"], sandbox=level).outcome == "failed"
    )


def test_an_answer_that_fails_or_leaves_says_how(level: str) -> None:
    for answer, reason in (
        ("x = 1\nraise ValueError('no')", "ValueError (line 2): no"),
        ("def f(:", "SyntaxError"),
        ("import os\nos._exit(3)", "left with code 3 before its last line"),
        ("import os\nos.kill(os.getpid(), 9)", "ended by signal 9"),
        ("raise SystemExit", "SystemExit (line 1), before the last line was reached"),
    ):
        assert run_tests([answer], ["pass"], sandbox=level).detail.startswith(reason)
    assert run_tests(["while True: pass"], ["pass"], seconds=0.3, sandbox=level).outcome == "timeout"
