"""Personas, a mixture and rated pairs through a real server: a run that is killed ends as one that is not."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).parents[1] / "bench" / "synthesis.py"


def test_a_killed_run_ends_with_the_same_rows_and_pairs_and_pays_for_nothing_twice(tmp_path):
    people = [
        f"A {who} who collects {what}." for who in ("cook", "pilot", "nurse", "judge") for what in ("tea", "maps")
    ]
    (tmp_path / "personas.jsonl").write_text("".join(json.dumps({"persona": one}) + "\n" for one in people))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    sizes = ["--count", "8", "--others", "4", "--rated", "3", "--tokens", "16", "--judge-tokens", "16", "--kills", "1"]
    places = ["--personas", "personas.jsonl", "--work", "work", "--out", "out.json", "--port", str(port)]
    done = subprocess.run(
        [sys.executable, str(BENCH), "--model", "tiny:", *sizes, *places, "--threads", "1"],
        cwd=tmp_path,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert all(found["checks"].values())
    assert found["runs"]["killed"]["requests"] == found["runs"]["whole"]["requests"]
    assert found["pairs"] > 0
