from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fake_rollouts import rollouts as made
from fake_run import SCRIPT, FakeRun
from tests.attack.test_pages import browse, needs_browser

from tercet.cli.main import main
from tercet.report import rollouts, unfinished
from tercet.report.page import run
from tercet.report.render import HERE
from tercet.rows import Message, Row, RowError, write_table
from tercet.store import Artifact

NEW = ("reference", "parts", "version")  # columns that older artifacts lack


class Scripts(HTMLParser):
    """The content of every script of a page, and the tags around them, as a browser sees them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[str] = []
        self.inside = False
        self.links: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside = tag == "script"
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if self.inside:
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.scripts[-1] += data


def data_of(page: Path) -> list[dict[str, Any]]:
    """The stages inside a page, with samples as objects."""
    data = json.loads(Scripts(page.read_text(encoding="utf-8")).scripts[0])
    for stage in data["stages"]:
        for group in stage["groups"]:
            group["samples"] = [dict(zip(data["columns"], row, strict=True)) for row in group["samples"]]
    stages: list[dict[str, Any]] = data["stages"]
    return stages


def artifact(fake: FakeRun, name: str, rows: list[dict[str, Any]] | None = None) -> Artifact:
    found = Artifact.read(fake.folder(name))
    if rows is not None:
        write_table(found.payload / rollouts.FILE, rows)
    return found


def test_the_report_writes_the_browser_beside_its_page(rewarded: FakeRun, tmp_path: Path) -> None:
    run(rewarded.spec, rewarded.inputs, tmp_path, rewarded.context)
    stages = data_of(tmp_path / "rollouts.html")
    kinds = {stage["counts"]["stage"]: stage["counts"]["kind"] for stage in stages}
    assert kinds == {"rlvr": "grpo", "ppo": "ppo"}
    assert 'href="rollouts.html"' in (tmp_path / "index.html").read_text()
    assert 'href="index.html"' in (tmp_path / "rollouts.html").read_text()


def test_a_report_without_rollouts_has_no_browser(fake: FakeRun, tmp_path: Path) -> None:
    (fake.folder("rlvr") / "payload" / rollouts.FILE).unlink()
    run(fake.spec, fake.inputs, tmp_path, fake.context)
    assert not (tmp_path / "rollouts.html").exists()
    assert "rollouts.html" not in (tmp_path / "index.html").read_text()


def test_every_completion_is_there_with_all_that_is_known(rewarded: FakeRun, tmp_path: Path) -> None:
    rows = made(random.Random(3), num_rounds=5)
    rollouts.write([artifact(rewarded, "ppo", rows)], tmp_path / "page.html")
    (stage,) = data_of(tmp_path / "page.html")
    assert [len(group["samples"]) for group in stage["groups"]] == [4] * 30
    flat = [(group, sample) for group in stage["groups"] for sample in group["samples"]]
    for row, (group, sample) in zip(rows, flat, strict=True):
        assert stage["prompts"][group["prompt"]] == row["prompt"]
        assert (group["step"], group["id"], group["verifier"]) == (row["step"], row["prompt_id"], row["verifier"])
        assert group["reference"] == row["reference"]
        for name in ("sample", "reward", "score", "answer", "outcome", "stop", "length", "version", "text"):
            assert sample[name] == row[name]
        assert sample["parts"] == json.loads(row["parts"])
        assert sample["advantage"] == pytest.approx(row["advantage"], rel=1e-5)


def test_older_artifacts_and_those_of_ppo_lack_columns(rewarded: FakeRun, tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k not in NEW} for row in made(random.Random(3), num_rounds=2)]
    rollouts.write([artifact(rewarded, "rlvr", rows), artifact(rewarded, "ppo")], tmp_path / "page.html")
    old, ppo = data_of(tmp_path / "page.html")
    sample = old["groups"][0]["samples"][0]
    assert (old["groups"][0]["reference"], sample["parts"], sample["version"]) == ("", {}, None)
    assert sample["advantage"] is not None
    assert ppo["groups"][0]["samples"][0]["advantage"] is None


def test_the_report_shows_rollouts_of_ppo_without_advantages(rewarded: FakeRun, tmp_path: Path) -> None:
    run(rewarded.spec, rewarded.inputs, tmp_path, rewarded.context)
    assert "Browse the rollouts" in (tmp_path / "index.html").read_text()


def test_texts_cannot_end_the_script_or_become_markup(rewarded: FakeRun, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    rollouts.write([artifact(rewarded, "ppo")], page, title="<b>bold</b>")
    html = page.read_text(encoding="utf-8")
    assert len(Scripts(html).scripts) == 2
    assert "<b>bold" not in html
    assert SCRIPT not in html
    data = Scripts(html).scripts[0]
    assert not set("<>&") & set(data)
    texts = [sample["text"] for group in data_of(page)[0]["groups"] for sample in group["samples"]]
    assert any(text.startswith(f"{SCRIPT}</script><!--") for text in texts)
    assert not re.search(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", (HERE / "rollouts.js").read_text()
    )


def test_the_browser_needs_no_network(rewarded: FakeRun, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    rollouts.write([artifact(rewarded, "ppo")], page)
    html = page.read_text(encoding="utf-8")
    assert Scripts(html).links == ["data:,"]
    assert "default-src 'none'" in html
    own = "".join((HERE / f"rollouts.{kind}").read_text() for kind in ("css", "js"))
    assert not re.search(r"url\(|@import|fetch\(|XMLHttpRequest", own)


def test_too_many_groups_are_chosen_evenly_over_the_rounds_and_the_page_says_so(
    rewarded: FakeRun, tmp_path: Path
) -> None:
    page = tmp_path / "page.html"
    (counts,) = rollouts.write([artifact(rewarded, "ppo")], page, most=80)
    assert (counts["rounds"], counts["groups"], counts["shown"], counts["completions"]) == (40, 240, 80, 960)
    (stage,) = data_of(page)
    steps = [group["step"] for group in stage["groups"]]
    assert steps == sorted(steps)
    assert {steps.count(step) for step in range(40)} == {2}
    assert "<b>80 groups are here</b>, chosen by the hash" in page.read_text()
    assert len(stage["rounds"]) == 40  # the means are of all completions
    first = page.read_bytes()
    rollouts.write([artifact(rewarded, "ppo")], page, most=80)
    assert page.read_bytes() == first


def test_long_texts_are_bounded(rewarded: FakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row | {"text": "word " * 6000, "length": 6000} for row in made(random.Random(3), num_rounds=20)]
    monkeypatch.setattr(rollouts, "MOST_CHARACTERS", 1_000_000)
    (counts,) = rollouts.write([artifact(rewarded, "ppo", rows)], tmp_path / "page.html")
    assert counts["groups"] == 120
    assert 5 < counts["shown"] < 15
    assert (tmp_path / "page.html").stat().st_size < 1_500_000
    text = data_of(tmp_path / "page.html")[0]["groups"][0]["samples"][0]["text"]
    assert text.endswith("… [10000 more characters]")


@needs_browser
def test_completions_are_counted_and_coloured_by_their_reward(rewarded: FakeRun, tmp_path: Path) -> None:
    rows = [row | {"score": 1.0} for row in made(random.Random(3), num_rounds=1)[:4]]
    for row, reward in zip(rows, (10.0, 4.0, 0.0, -1.0), strict=True):  # of which penalties took some or all
        row["reward"] = reward
    rollouts.write([artifact(rewarded, "ppo", rows)], tmp_path / "page.html")
    document, _ = browse(tmp_path / "page.html", tmp_path / "profile")
    assert re.findall(r'class="pill (\w+)">reward ([^<]+)<', document) == [
        ("right", "10"), ("partly", "4"), ("wrong", "0"), ("wrong", "−1"),
    ]  # fmt: skip
    assert "<dt>rewarded</dt><dd>2 of 4</dd>" in document


def test_a_prompt_drawn_twice_in_a_round_makes_two_groups(rewarded: FakeRun, tmp_path: Path) -> None:
    rows = [row for row in made(random.Random(3), num_rounds=1) if row["prompt_id"] == "words-1"]
    (counts,) = rollouts.write([artifact(rewarded, "ppo", rows + rows)], tmp_path / "page.html")
    assert (counts["groups"], len(data_of(tmp_path / "page.html")[0]["prompts"])) == (2, 1)


def test_a_figure_that_is_no_number_stays_valid_json(rewarded: FakeRun, tmp_path: Path) -> None:
    rows = [row | {"advantage": float("nan")} for row in made(random.Random(3), num_rounds=1)]
    rollouts.write([artifact(rewarded, "ppo", rows)], tmp_path / "page.html")
    assert data_of(tmp_path / "page.html")[0]["groups"][0]["samples"][0]["advantage"] is None


def test_a_stage_without_rollouts_and_too_few_groups_are_refused(rewarded: FakeRun, tmp_path: Path) -> None:
    with pytest.raises(RowError, match=r"sft: no tercet/rollouts\.parquet; stages of kind grpo and ppo write one"):
        rollouts.write([artifact(rewarded, "sft"), artifact(rewarded, "ppo")], tmp_path / "page.html")
    with pytest.raises(RowError, match="at most 0 groups of 1 stages"):
        rollouts.write([artifact(rewarded, "ppo")], tmp_path / "page.html", most=0)


def test_the_command_writes_the_page_and_counts(
    rewarded: FakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "deep" / "page.html"
    call = ["rollouts", "ppo", "rlvr", "--store", str(rewarded.store), "--out", str(page)]
    assert main([*call, "--json", "--groups", "100"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written["page"] == str(page)
    counts = [(one["stage"], one["groups"], one["shown"]) for one in written["stages"]]
    assert counts == [("ppo", 240, 50), ("rlvr", 160, 50)]
    assert main(call) == 0
    assert "40 rounds, 240 groups, 960 completions, mean reward" in capsys.readouterr().out
    assert main(["rollouts", "sft", "--store", str(rewarded.store), "--out", str(page)]) == 2
    assert main(["rollouts", "nobody", "--store", str(rewarded.store), "--out", str(page)]) == 2


def draft(store: Path, lines: list[dict[str, Any]]) -> Path:
    """A PPO stage that was stopped in its third round: its last line is cut short."""
    folder = store / ".draft-ppo-0123456789ab"
    (folder / "work").mkdir(parents=True)
    rows = [Row(f"r{i}", (Message("user", f"Question {i}?"),), verifier="gsm8k@1", reference=str(i)) for i in range(4)]
    (store / "sft-data-1" / "payload").mkdir(parents=True)
    write_table(store / "sft-data-1" / "payload" / "rows.parquet", rows)
    spec = {"kind": "ppo", "prompts": "sft-data"}
    job = {"name": "ppo", "recipe": {"stage": {"ppo": spec}}, "inputs": {"sft-data": str(store / "sft-data-1")}}
    (folder / "job.json").write_text(json.dumps(job))
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "work" / "rollouts.jsonl").write_text(text + '{"round": 2, "rec')
    return folder


def test_the_rollouts_of_a_stage_that_was_stopped_can_be_seen(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sample = {"ids": [5, 6, 0], "logps": [-0.1] * 3, "text": "It is 3.", "stop": "eos"}
    sample |= {"grade": [1.0, "3", "graded", ""], "score": 1.0, "reward": 10.0, "parts": {"gsm8k@1": 1.0}}
    lines: list[dict[str, Any]] = []
    for number in range(2):
        groups = [{"place": i, "prompt_id": f"r{i}", "samples": [sample] * 2} for i in (number, 3)]
        lines.append({"round": number, "records": [*groups, {"done": True, "version": 0, "cursor": 2 * number}]})
    page = tmp_path / "page.html"
    folder = draft(tmp_path / "runs", lines)
    assert main(["rollouts", str(folder), "--out", str(page), "--json"]) == 0
    (counts,) = json.loads(capsys.readouterr().out)["stages"]
    assert (counts["stage"], counts["kind"], counts["key"]) == ("ppo", "ppo", "0123456789ab")
    assert (counts["rounds"], counts["completions"]) == (2, 8)
    (stage,) = data_of(page)
    first, last = stage["groups"][0], stage["groups"][-1]
    assert stage["prompts"][last["prompt"]] == "Question 3?"
    assert (last["step"], last["id"], last["reference"]) == (1, "r3", "3")
    expected = {"sample": 1, "reward": 10.0, "score": 1.0, "advantage": None, "answer": "3", "outcome": "graded"}
    expected |= {"stop": "eos", "length": 3, "version": 0, "parts": {"gsm8k@1": 1.0}, "text": "It is 3."}
    assert first["samples"][1] == expected | {"version_last": None, "replica": None}


def test_a_stream_shows_the_versions_of_each_group(tmp_path: Path) -> None:
    sample = {"ids": [5], "logps": [-0.1], "text": "It is 3.", "stop": "eos", "grade": [1.0, "3", "graded", ""]}
    sample |= {"score": 1.0, "reward": 10.0, "parts": {}}
    streamed = {"draw": 3, "tries": 0, "first": 1, "last": 2, "replica": "vllm-1", "place": 3, "prompt_id": "r3"}
    done = {"done": True, "version": 1, "cursor": 1, "dropped": [0]}
    folder = draft(tmp_path / "runs", [{"round": 2, "records": [streamed | {"samples": [sample]}, done]}])
    assert main(["rollouts", str(folder), "--out", str(tmp_path / "page.html")]) == 0
    (stage,) = data_of(tmp_path / "page.html")
    shown = stage["groups"][0]["samples"][0]
    assert (shown["version"], shown["version_last"], shown["replica"]) == (1, 2, "vllm-1")


def test_a_draft_without_a_whole_round_says_so(tmp_path: Path) -> None:
    folder = draft(tmp_path / "runs", [])
    with pytest.raises(RowError, match="holds no whole round yet"):
        unfinished.unfinished(folder, tmp_path)
    (folder / "work" / "rollouts.jsonl").unlink()
    with pytest.raises(RowError, match=r"no work/rollouts\.jsonl; only stages of kind grpo and ppo keep one"):
        unfinished.unfinished(folder, tmp_path)


def test_the_table_is_read_without_torch() -> None:
    code = "import sys, tercet.report.rollouts; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
