"""What a browser finds wrong with pages: `browser/look.mjs`, run by node."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER, CHROMIUM = os.environ.get("TERCET_BROWSER", ""), shutil.which("chromium")
LOOK = Path(__file__).parent / "browser" / "look.mjs"
needs_browser = pytest.mark.skipif(
    not (FOLDER and CHROMIUM and shutil.which("node")),
    reason="TERCET_BROWSER names no folder with playwright-core and axe-core, or there is no node or chromium",
)


def findings(*pages: str) -> list[str]:
    """What is wrong with pages (files or addresses); axe's moderate and minor advice is left out."""
    call = ["node", str(LOOK), str(Path(FOLDER) / "node_modules"), str(CHROMIUM), "", *pages]
    done = subprocess.run(call, capture_output=True, text=True, check=True)
    return [one for one in json.loads(done.stdout) if "axe moderate" not in one and "axe minor" not in one]
