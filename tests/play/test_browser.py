"""A browser walks over the page: streaming, tokens, verdicts, traces, what is kept, one file, a phone in the dark.

Needs Node.js, Chromium, and TERCET_BROWSER: a folder in which `npm install playwright-core axe-core` was run.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(os.environ.get("TERCET_BROWSER", "/nonexistent")) / "node_modules"
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or ""
pytestmark = pytest.mark.skipif(
    not (FOLDER.is_dir() and CHROMIUM and shutil.which("node")),
    reason="TERCET_BROWSER names no folder with playwright-core and axe-core, or there is no node or chromium",
)
RECIPE = Path(__file__).parents[2] / "recipes" / "tiny.toml"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the tiny recipe."""
    root = tmp_path_factory.mktemp("played") / "runs"
    command = [sys.executable, "-m", "tercet", "run", str(RECIPE), "--store", str(root)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    return root


@pytest.fixture(scope="module")
def url(runs: Path) -> Iterator[str]:
    """Where the page is."""
    command = [sys.executable, "-m", "tercet", "play", str(runs), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield re.findall(r"http://\S+/", server.stdout.readline())[0]
        finally:
            server.terminate()


@pytest.fixture(scope="module")
def seen(url: str, runs: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the walk has seen."""
    from tercet.rows import read_rows

    (table,) = runs.glob("sft-data-*/payload/rows.parquet")
    planted = next(row.answer for row in read_rows(table) if row.answer and len(row.answer.split()) > 14)
    out = tmp_path_factory.mktemp("walk")
    script = Path(__file__).with_name("walk.mjs")
    time.sleep(1)
    subprocess.run(["node", str(script), str(FOLDER), CHROMIUM, url, str(out), planted], check=True, timeout=900)
    return {**json.loads((out / "seen.json").read_text("utf-8")), "planted text": planted}


def test_all_columns_are_streamed_in_step(seen):
    assert seen["columns"] == ["Base", "SFT", "DPO", "RLVR", "PPO"]
    middle = seen["growth"][len(seen["growth"]) // 2]
    assert min(middle) > 0
    assert max(middle) - min(middle) <= 8
    assert seen["stopped"] == 5


def test_a_token_shows_its_probability_in_every_stage_and_five_that_were_likeliest(seen):
    assert [line.split("\n")[0] for line in seen["panel"]["stages"]] == seen["columns"]
    assert all("%" in line for line in seen["panel"]["stages"])
    assert seen["panel"]["likely"] == 5
    assert seen["panelGone"]
    assert "token 4 of SFT" in seen["hovered"]
    assert seen["shaded"] > 0


def test_an_edited_turn_is_a_branch(seen):
    assert (seen["branches"], seen["back"]) == ("2 of 2", "Tell me about the sea.")


def test_the_verdict_is_the_stored_one(seen):
    for shown, stored in seen["verdicts"]:
        if "same answer" in stored:
            assert stored.endswith(f": {shown.split()[-1]}.")
    assert any("same answer" in stored for _, stored in seen["verdicts"])


def test_a_planted_sentence_is_traced_and_a_fresh_one_is_not(seen):
    assert seen["planted"]["spans"]
    assert "".join(seen["planted"]["spans"])[:40] in seen["planted text"]
    assert any(row.startswith("sft row") for row in seen["planted"]["rows"])
    assert seen["fresh"] == {"spans": [], "rows": []}


def test_a_pair_is_on_the_disk_when_the_page_says_so(seen, runs):
    assert "pair_mix" in seen["pair"]
    pair, other = [json.loads(line) for line in (runs / "play" / "pairs.jsonl").read_text("utf-8").splitlines()]
    assert (pair["chosen_model"], pair["rejected_model"]) == ("sft", "base")
    assert other["chosen"][:-1] == pair["chosen"][:-1]  # the same prompt, kept by the keyboard
    assert json.loads(pair["provenance"])["settings"]["seed"] == 0
    assert len((runs / "play" / "rows.jsonl").read_text("utf-8").splitlines()) == 2


def test_everything_can_be_reached_seen_and_used_with_the_keyboard_alone(seen):
    assert all(seen["keyboard"]["reached"].values()), seen["keyboard"]["reached"]
    assert seen["keyboard"]["unseen"] == []
    assert seen["keyboard"]["saved"].endswith(".html")


def test_the_frozen_file_asks_for_nothing(seen):
    assert seen["frozen"]["requests"] == 1  # itself
    assert seen["frozen"]["verdicts"] >= 4
    assert seen["frozen"]["traces"] == 1


def test_nothing_is_wider_than_the_page_no_serious_finding_of_axe_and_a_silent_console(seen):
    assert len(seen["axe"]) == 6
    assert [found for found in seen["axe"].values() if found] == []
    assert [found for found in seen["wide"].values() if found] == []
    assert seen["console"] == []
