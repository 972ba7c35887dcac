"""No text becomes markup on a page, and a page that had some would still run nothing: a browser says so."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.attack.hostile_texts import MARKUP, OBEYED

from tercet.report.data_page import write_page
from tercet.report.page import run
from tercet.rows import read_table, write_table
from tercet.store import Artifact

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from fake_rollouts import write_rewarded
from fake_run import FakeRun

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
needs_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")
TEXTS = MARKUP + OBEYED
PAGES = ("index.html", "rollouts.html", "data.html")
LOOKS = [(390, "dark"), (1400, "light")]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pages of a run whose every answer, prompt, detail, name and message is hostile."""
    out = tmp_path_factory.mktemp("pages")
    fake = write_rewarded(tmp_path_factory.mktemp("hostile") / "runs")
    _poison(fake)
    fake.recipe.stage["page"] = fake.spec.model_copy(update={"title": MARKUP[4]})
    run(fake.spec, fake.inputs, out, fake.context)
    write_page(Artifact.read(fake.folder("sft-data")), out / "data.html")
    return out


def _poison(fake: FakeRun) -> None:
    texts = _endless()
    for file in fake.store.glob("*/payload/results.jsonl"):
        lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
        for line in lines:
            line |= {key: next(texts) for key in ("output", "answer", "detail", "subset", "reference") if key in line}
            for turn in line.get("messages", ()):
                turn["content"] = next(texts)
        file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for name, columns in {
        "rollouts": ("text", "answer", "outcome"),
        "removed": ("row_text", "detail", "rule"),
        "rows": ("source", "reference", "verifier"),
    }.items():
        for file in fake.store.rglob(f"{name}.parquet"):
            rows = read_table(file)
            for row in rows:
                plain = (text.encode("utf-8", "replace").decode() for text in texts)
                row |= {key: next(plain) for key in columns if key in row}
            write_table(file, rows)
    for file in fake.store.rglob("alerts.jsonl"):
        alerts = [json.loads(line) | {"message": next(texts)} for line in file.read_text("utf-8").splitlines()]
        file.write_text("".join(json.dumps(one) + "\n" for one in alerts), encoding="utf-8")


def _endless() -> Iterator[str]:
    while True:
        yield from TEXTS


def browse(page: Path, profile: Path, width: int = 1400, scheme: str = "light") -> tuple[str, list[str]]:
    """The document after its scripts ran, and what the console said."""
    assert CHROMIUM
    look = f"--blink-settings=preferredColorScheme={0 if scheme == 'dark' else 1}"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--disable-dev-shm-usage"]
    options += [f"--user-data-dir={profile}", f"--window-size={width},900", look, "--virtual-time-budget=3000"]
    done = subprocess.run(
        [CHROMIUM, *options, "--dump-dom", page.as_uri()], capture_output=True, timeout=120, env=os.environ, check=True
    )
    said = re.findall(r"CONSOLE[^\n]*", done.stderr.decode("utf-8", "replace"))
    return done.stdout.decode("utf-8", "replace"), said


def ran(document: str) -> bool:
    """Whether a hostile text has run: it marks the root."""
    return "data-pwned" in document[: document.find("<head")]


@needs_browser
@pytest.mark.parametrize(("width", "scheme"), LOOKS)
@pytest.mark.parametrize("page", PAGES)
def test_a_page_of_hostile_texts_works_and_runs_none_of_them(page, width, scheme, pages, tmp_path):
    document, said = browse(pages / page, tmp_path, width, scheme)
    assert not ran(document)
    assert said == []
    theme = re.search(r'<button[^>]*id="theme"[^>]*>', document)
    assert theme is not None  # our own script has run: without it the button is hidden
    assert "hidden" not in theme.group()


@needs_browser
@pytest.mark.parametrize("page", PAGES)
def test_markup_that_were_not_escaped_would_not_run_either(page, pages, tmp_path):
    html = (pages / page).read_text("utf-8")
    raw = "\n".join(f"<div>{text.encode('utf-8', 'replace').decode()}</div>" for text in MARKUP)
    for place in (html.index(">", html.index("<body")) + 1, html.rindex("</body>")):
        (tmp_path / page).write_text(html[:place] + raw + html[place:], encoding="utf-8")
        document, said = browse(tmp_path / page, tmp_path / str(place))
        assert not ran(document)
        assert any("Content Security Policy" in line for line in said)


@needs_browser
def test_the_same_markup_runs_where_there_is_no_policy(tmp_path):
    """The control: the browser would show what these tests look for."""
    (tmp_path / "page.html").write_text(f"<html><head></head><body>{MARKUP[0]}{MARKUP[5]}", encoding="utf-8")
    document, _ = browse(tmp_path / "page.html", tmp_path / "profile")
    assert ran(document)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_has_a_policy_and_nothing_that_it_forbids(page, pages):
    html = (pages / page).read_text("utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', html)
    assert policy is not None
    assert policy.group(1).startswith(
        "default-src 'none'; base-uri 'none'; form-action 'none'; img-src data:; style-src 'sha256-"
    )
    assert "unsafe" not in policy.group(1)
    assert html.index("http-equiv") < html.index("<style>")
    tags = re.findall(r"<[a-z][^<>]*>", html)
    assert not [tag for tag in tags if re.search(r'\s(style|on\w+)\s*=\s*"', tag)]
