"""Programs that want to pass without the answer: none does, at any level of isolation that holds on this machine.

Each is asked for `f(2)`, which must be a text that nobody can guess and that stands in the tests alone. Some say that
whatever they return is equal to it, some look for it (in frames, memory, descriptors, files), some try to end or bend
the process that decides, and some break the line between the two.
"""

from __future__ import annotations

import json
import secrets
import tomllib
from contextlib import suppress
from functools import cache
from pathlib import Path

import pytest
from tests.attack.scale import times

from tercet.sandbox import kernel
from tercet.sandbox.run import LEVELS, SandboxError, isolation, run_tests
from tercet.verify import verifier

CASES = tomllib.loads(Path(__file__).with_name("forgeries.toml").read_text(encoding="utf-8"))
PRELUDE = CASES["prelude"]
FORGERIES = {name: code for kind in ("equal", "look", "bend", "line") for name, code in CASES[kind].items()}
TESTS = """
EXPECTED = {expected!r}
def check(candidate):
    value = candidate(2)
    assert value == EXPECTED
    assert EXPECTED == value
    assert value in (EXPECTED,)
    assert not value != EXPECTED
"""


@cache
def levels() -> tuple[str, ...]:
    """The levels of isolation that hold on this machine, with the one that is none."""
    held = []
    for level in (*LEVELS, "none"):
        with suppress(SandboxError):
            held.append(isolation(level))
    return tuple(held)


@pytest.fixture
def landlock() -> None:
    try:
        kernel.landlock_version()
    except OSError as error:
        pytest.skip(f"without landlock nothing is promised at the level none: {error}")


@pytest.mark.parametrize("name", FORGERIES)
def test_an_answer_passes_only_by_what_it_returns(name: str, landlock: None) -> None:
    """Each forgery at one level, the next at the next one; with `TERCET_ATTACK=full` each at all."""
    turn = list(FORGERIES).index(name) % len(levels())
    for level in levels() if times(10) > 1 else levels()[turn : turn + 1]:
        expected = f"marker-{secrets.token_hex(16)}"
        program = [PRELUDE, FORGERIES[name]]
        ran = run_tests(program, [TESTS.format(expected=expected), "check(f)"], seconds=1.0, sandbox=level)
        # Without isolation a program may end the process that watches it (before Linux 6.12): no verdict then.
        assert ran.outcome in ("failed", "timeout", *(["error"] if level == "none" else [])), (name, level, ran)
        assert expected not in f"{ran.stdout_tail}", ran


def test_an_honest_answer_passes_the_same_tests_at_every_level(landlock: None) -> None:
    for level in levels():
        tests = [TESTS.format(expected="xx"), "check(f)"]
        assert run_tests([PRELUDE, "def f(x): return 'x' * x"], tests, sandbox=level).outcome == "passed", level


@pytest.mark.parametrize("name", CASES["equal"])
def test_the_verifiers_refuse_what_calls_itself_equal(name: str) -> None:
    answer = f"```python\n{PRELUDE}\n{CASES['equal'][name]}\n```"
    check = {"tests": "def check(g):\n    assert g(2) == 4\n", "entry_point": "f", "seconds": 5}
    assert verifier("program@1")(answer, json.dumps(check)).score == 0
    assert verifier("code@1")(answer, json.dumps({"tests": ["assert f(2) == 4"], "seconds": 5})).score == 0
