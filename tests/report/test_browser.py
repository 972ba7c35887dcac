"""How pages look, as a browser measures it: nothing cut, outside its frame or on something else, no fault of axe.

Needs node, chromium and a folder of node_modules with playwright-core and axe-core (`npm install playwright-core
axe-core`), whose path is in TERCET_NODE_MODULES. It takes about a minute.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_large import write_large
from fake_rollouts import write_rewarded
from fake_run import FakeRun, write_suite

from tercet.report.data_page import write_page
from tercet.report.page import run
from tercet.store import Artifact

MODULES, CHROMIUM = os.environ.get("TERCET_NODE_MODULES", ""), shutil.which("chromium")
LOOK = Path(__file__).parent / "browser" / "look.mjs"
needs_browser = pytest.mark.skipif(
    not (MODULES and CHROMIUM and shutil.which("node")), reason="no TERCET_NODE_MODULES, no node or no chromium"
)


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("make", [write_large, write_rewarded, write_suite])
def test_pages_of_a_run_look_right_on_phone_screen_and_paper_in_both_themes(make, tmp_path: Path) -> None:
    fake: FakeRun = make(tmp_path / "runs")
    run(fake.spec, fake.inputs, tmp_path, fake.context)
    for name in ("sft-data", "stories", "verdicts"):
        write_page(Artifact.read(fake.folder(name)), tmp_path / f"{name}.html")
    assert findings(tmp_path) == []


def findings(folder: Path) -> list[str]:
    """What is wrong with the pages of a folder; axe's moderate and minor advice is left out."""
    pages = sorted(map(str, folder.glob("*.html")))
    done = subprocess.run(
        ["node", str(LOOK), MODULES, str(CHROMIUM), "", *pages], capture_output=True, text=True, check=True
    )
    return [one for one in json.loads(done.stdout) if "axe moderate" not in one and "axe minor" not in one]
