"""Whatever a recipe, a file of rows or a chat template from outside holds: one clear error, soon, in little memory.

All attacks of a class run in one process of their own, whose address space is limited; each has five seconds.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.attack.limits_cases import CASES

GROUPS = sorted({group for group, _ in CASES})


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    """What came of every attack: the error, its seconds, and how much memory it took."""
    found: dict[str, dict[str, object]] = {}
    for group in GROUPS:
        command = [sys.executable, "-m", "tests.attack.limits_cases", group, str(tmp_path_factory.mktemp(group))]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=300, check=False)
        for line in done.stdout.splitlines():
            one = json.loads(line)
            found[f"{group}: {one['name']}"] = one
        assert done.returncode == 0, (group, done.stdout.splitlines()[-1:], done.stderr[-2000:])
    return found


@pytest.mark.parametrize("case", [f"{group}: {name}" for group, name in CASES])
def test_an_attack_ends_in_one_clear_error_soon_and_in_little_memory(outcomes, case):
    one = outcomes[case]
    assert one["error"] in ("RecipeError", "RowError", "SourceError", "ChatError"), one
    assert one["seconds"] < 5, one
    assert one["mib"] < 1024, one
    assert len(str(one["message"])) < 6000, one
    assert "\x1b" not in str(one["message"]), one
