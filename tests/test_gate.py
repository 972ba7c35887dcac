"""`.ci/run` sets the gate's stage; what `make check` does there is this very suite's business."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAKE = """#!/bin/sh
printf '%s\\n' "$@" "$LC_ALL" > "$SAID"
git -C "$2" rev-parse HEAD >> "$SAID"
ls "$2/../shared" > "$SAID.shared" 2>/dev/null
exit 7
"""


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="not a clone")
@pytest.mark.parametrize("shared", [False, True])
def test_the_gate_runs_in_a_clone_below_tmp_with_a_space_and_an_umlaut_and_leaves_nothing(
    shared: bool, tmp_path: Path
) -> None:
    checkout, said = tmp_path / "a checkout" / "repository", tmp_path / "said"
    git = ["git", "-c", "safe.directory=*", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    allowed = tmp_path / "gitconfig"
    allowed.write_text("[safe]\n\tdirectory = *\n")
    environ = os.environ | {
        "GIT_CONFIG_GLOBAL": str(allowed),
        "SAID": str(said),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(checkout)], env=environ, check=True)
    shutil.copytree(ROOT / ".ci", checkout / ".ci", dirs_exist_ok=True)
    if shared:
        (checkout.parent / "shared" / "data").mkdir(parents=True)
    (tmp_path / "make").write_text(MAKE)
    (tmp_path / "make").chmod(0o755)
    done = subprocess.run([checkout / ".ci" / "run"], env=environ, cwd="/", check=False)
    assert done.returncode == 7
    _, place, *targets, _, commit = said.read_text().splitlines()
    assert place.startswith("/tmp/")
    assert place.endswith("/tercet gäte")
    assert (targets, commit) == (["check", "check-slow"], head)
    assert Path(f"{said}.shared").read_text().split() == (["data"] if shared else [])
    assert not Path(place).parent.exists()
