"""A frozen page of hostile texts shows them, and a browser runs none of them."""

from __future__ import annotations

from typing import Any

from tests.attack.hostile_texts import MARKUP, OBEYED
from tests.attack.test_pages import browse, needs_browser, ran

from tercet.play import assets

TEXTS = [*MARKUP, *OBEYED]


def hostile_state(text: str) -> dict[str, Any]:
    """A state whose every text is this one."""
    token = {"text": text, "name": text, "logp": -1.0, "top": [[text, -1.0]]}
    part = {"label": text, "right": False, "detail": text}
    verdict = {"right": False, "score": 0.0, "outcome": text, "answer": text, "detail": text, "parts": [part]}
    row = {
        "stage": text,
        "number": 1,
        "source": text,
        "role": text,
        "licence": text,
        "text": text,
        "start": 0,
        "stop": 3,
    }
    trace = {
        "covered": [[0, 4]],
        "share": 0.5,
        "spans": [{"text": text, "start": 0, "stop": 4, "words": 9, "count": 1, "rows": [row]}],
    }
    samples = [
        {
            "text": text,
            "tokens": [token, token],
            "stop": "eos",
            "others": {},
            "reasons": {"b": text},
            "verdict": verdict,
        },
        {"text": text, "edited": text, "tokens": [], "stop": "eos", "verdict": verdict},
    ]
    traced = [{**samples[0], "trace": trace}]
    answers = {"a": {"status": "done", "error": text, "samples": samples, "shown": 0, "seconds": 1.0},
               "b": {"status": "failed", "error": text, "samples": traced, "shown": 0}}  # fmt: skip
    stored = {"a": {"right": True, "output": text}}
    return {
        "title": text, "date": text, "system": text, "verifier": text, "reference": text, "shade": "change",
        "settings": {"seed": text, "stop": [text]}, "shown": ["a", "b"],
        "columns": [{"name": name, "label": text, "about": text, "place": 0} for name in "ab"],
        "path": [{"id": 1, "user": text, "raw": False, "answers": answers, "stored": stored}],
    }  # fmt: skip


@needs_browser
def test_a_frozen_page_of_hostile_texts_shows_them_and_runs_none(tmp_path):
    state = hostile_state("")
    state["path"] = [{**hostile_state(text)["path"][0], "id": number} for number, text in enumerate(TEXTS, 1)]
    state |= {"title": MARKUP[0], "system": MARKUP[0], "columns": hostile_state(MARKUP[0])["columns"]}
    page = tmp_path / "frozen.html"
    page.write_bytes(assets.frozen(state).encode("utf-8", "backslashreplace"))
    document, said = browse(page, tmp_path / "profile")
    assert not ran(document)
    assert said == []
    assert document.count('class="exchange"') == len(TEXTS)
    assert document.count("verdict") >= len(TEXTS)
