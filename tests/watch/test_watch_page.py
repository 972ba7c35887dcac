"""The page of `tercet watch` in a browser: see tests/report/test_looks.py for what it needs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_large import LONG, write_large
from looked import findings, needs_browser
from test_server import served
from tests.attack.hostile_texts import MARKUP, OBEYED

from tercet.models.access import Access
from tercet.store import Store
from tercet.watch.server import WatchSite


@needs_browser
@pytest.mark.slow
def test_the_page_of_a_large_run_looks_right_and_hostile_texts_stay_texts(tmp_path: Path) -> None:
    fake = write_large(tmp_path / "runs")
    folder = fake.store / f".draft-{LONG}-0123456789ab"
    (folder / "work").mkdir(parents=True)
    texts = [text.encode("utf-8", "replace").decode() for text in MARKUP + OBEYED]
    recipe = {"name": texts[0], "stage": {LONG: {"kind": "eval"}}}
    (folder / "job.json").write_text(json.dumps({"name": LONG, "recipe": recipe, "identity": {}, "inputs": {}}))
    progress = {"done": 3, "total": 9, "note": texts[1], "metrics": {texts[2]: 1.0, "reward": None}, "seconds": 9.0}
    (folder / "progress.json").write_text(json.dumps(progress))
    (folder / "log.txt").write_text("\n".join(texts))
    (folder / "metrics.jsonl").write_text(json.dumps({"step": 1, texts[3]: 1.0, "loss": 1e300}) + "\n")
    line = {"outcome": "graded", "score": 1.0, "task": texts[4], "item": "x"}
    answers = [line | {"messages": [{"role": "user", "content": text}], "output": text} for text in texts]
    (folder / "work" / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in answers))
    stages = (f"{LONG}-0123456789ab", fake.folder("ppo").name, fake.folder(f"eval-{LONG}").name)
    with served(WatchSite(Store(fake.store), Access())) as port:
        found = findings(*(f"http://127.0.0.1:{port}/#stage={stage}" for stage in stages))
    assert not found, "\n".join(found)
