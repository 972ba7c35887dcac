"""A run whose training changed nothing says so: on its table, at its end, and on the page."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tercet.store import Store

RECIPE = """
name = "nothing"
seed = 3

[base]
model = "tiny:"

[stage.items]
kind = "synth"
generator = "words@1"
split = "test"
rows = 8

[stage.benchmark]
kind = "benchmark"
tasks = ["words@1"]
items = ["items"]

[stage.prompts]
kind = "mix"
sources = [{ path = "rows.jsonl", adapter = "auto", verifier = "reward.py:never", prompt = "q", answer = "a" }]

[stage.rl]
kind = "grpo"
model = "base"
prompts = "prompts"
rounds = 2
batch = 2
num_generations = 2
max_new_tokens = 4
max_length = 256

[stage.eval-rl]
kind = "eval"
model = "rl"
benchmark = "benchmark"

[stage.report]
kind = "report"
evals = ["eval-rl"]
"""


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tercet", "run", "recipe.toml"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)


def test_zero_updates_are_said_on_the_table_at_the_end_and_on_the_page(tmp_path):
    (tmp_path / "recipe.toml").write_text(RECIPE)
    (tmp_path / "reward.py").write_text("def never(completion, answer):\n    return 0.0\n")
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"q": "Say {word}.", "a": "{word}"}}\n' for word in "abcd"))
    for again in (False, True):
        done = run(tmp_path)
        assert done.returncode == 0, done.stderr
        assert "warning: rl learned nothing: no update was made in any round" in done.stdout
        assert again or "learned nothing: 0 updates" in done.stdout + done.stderr
    store = Store(tmp_path / "runs")
    assert store.open("rl").metrics["updates"] == 0
    page = (store.open("report").payload / "index.html").read_text(encoding="utf-8")
    assert 'The stage <span class="mono">rl</span> learned nothing' in page
    weights = [store.open(name).payload / "model.safetensors" for name in ("base", "rl")]
    assert weights[0].read_bytes()[-1000:] == weights[1].read_bytes()[-1000:]
