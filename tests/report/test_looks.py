"""How pages look, as a browser measures it: nothing cut, outside its frame or on something else, no fault of axe.

Needs node, chromium and TERCET_BROWSER: a folder in which `npm install playwright-core axe-core` was run. It takes
about three minutes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_large import write_large
from fake_rollouts import write_rewarded
from fake_run import FakeRun, write_suite
from looked import findings, needs_browser

from tercet.report.data_page import write_page
from tercet.report.page import run
from tercet.store import Artifact


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("make", [write_large, write_rewarded, write_suite])
def test_pages_of_a_run_look_right_on_phone_screen_and_paper_in_both_themes(
    make: Callable[[Path], FakeRun], tmp_path: Path
) -> None:
    fake = make(tmp_path / "runs")
    run(fake.spec, fake.inputs, tmp_path, fake.context)
    for name in ("sft-data", "stories", "verdicts"):
        write_page(Artifact.read(fake.folder(name)), tmp_path / f"{name}.html")
    found = findings(*sorted(map(str, tmp_path.glob("*.html"))))
    assert not found, "\n".join(found)
