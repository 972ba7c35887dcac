"""Which tests are slow: those that tests/slow.txt lists, by the durations measured with `make durations`.

A line is a test with its seconds. The fast gate leaves these out, the slow gate runs nothing else. A test marked `fast`
stays in the fast gate whatever it takes: two kills of every algorithm. One that cannot be measured everywhere (vLLM) is
marked `slow` by hand, and so is everything below tests/attack.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

LIST = Path(__file__).with_name("slow.txt")
ATTACKS = "tests/attack/"
LIMIT = 1.0  # seconds of setup, call and teardown together, on the machine that measured


def read() -> set[str]:
    """The ids of slow tests."""
    lines = LIST.read_text(encoding="utf-8").splitlines() if LIST.is_file() else []
    return {line.split("\t")[0] for line in lines}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--measure-durations", action="store_true", help="write tests/slow.txt from this run")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    slow = read()
    for item in items:
        if item.nodeid in slow or item.nodeid.startswith(ATTACKS):
            item.add_marker(pytest.mark.slow)


class Durations:
    """Adds up the seconds of every test, and writes the list when the run ends."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if "fast" not in report.keywords:
            self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        slow = sorted((name, seconds) for name, seconds in self.seconds.items() if seconds >= LIMIT)
        head = f"# Tests of {LIMIT:g} seconds and more; written by `make durations`.\n"
        LIST.write_text(head + "".join(f"{name}\t{seconds:.1f}\n" for name, seconds in slow), encoding="utf-8")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--measure-durations") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Durations())
