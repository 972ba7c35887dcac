"""What the page shows of data stages: sheet, sources, matrix, copies, statistics of ratings, and requests."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from fake_data import BENCHMARKS, CHOICES, MATRIX, age
from fake_run import SCRIPT, FakeRun
from test_page import written

from tercet.cli.main import main
from tercet.folders import payload_digest
from tercet.report import data
from tercet.report.data_page import row_samples
from tercet.report.render import count, paid
from tercet.rows import RowError


def section(fake: FakeRun, tmp_path: Path) -> str:
    """The texts of the data section, one after another."""
    html = written(fake, tmp_path)
    part = html[html.index('<section id="data">') : html.index('<section id="recipe">')]
    return " ".join(unescape(re.sub(r"<[^>]+>", " ", part)).split())


def test_the_sheet_says_what_came_from_where_on_which_terms(fake: FakeRun, tmp_path: Path) -> None:
    text = section(fake, tmp_path)
    assert "Part Rows Words Mean turns Licence Commercial use words@1 words 297 20,790 2.0 CC-BY-4.0 yes" in text
    assert "constraints@1 orders 298 1,192,000 2.0 not known here unknown All 595 1,212,790" in text
    assert "orders may not be sold" in text
    assert "Part Pairs Tokens of base" in text


def test_every_source_says_what_was_read_skipped_and_removed(fake: FakeRun, tmp_path: Path) -> None:
    text = section(fake, tmp_path)
    head = "Source Read Skipped Entered Sampled contaminated duplicate keywords contaminated set Kept Expected"
    assert f"{head} words 400 – 400 300 3 0 0 0 297 –" in text
    assert "orders 305 4 no user turn, 1 a turn is empty 300 300 0 1 1 0 298 –" in text
    assert "expects 700 rows after the paper's filters; the sources gave 688." in text
    assert "Not as expected Expected Found Difference someone/quiz-bowl 100 90 −10" in text


def test_what_cannot_be_read_and_what_nobody_reads_are_shown(fake: FakeRun, tmp_path: Path) -> None:
    text = section(fake, tmp_path)
    bad = "not valid JSON 2 orders.jsonl, line 9: not valid JSON; fix the line"
    assert f"Source Rows that cannot be read Rows The first of them orders {bad}" in text
    assert "Left behind of orders, because nothing reads it: 12 rows of images, 3 rows of messages.score." in text
    assert f"personas.jsonl {bad}" in text


def test_the_matrix_has_a_line_for_each_part_and_marks_dropped_sets(fake: FakeRun, tmp_path: Path) -> None:
    text = section(fake, tmp_path)
    assert "% of items copied gpqa@1 words@1 words@1:examples quiz-bowl set dropped 6.9 31 of 448 – –" in text
    assert "words@1 – 2.5 3 of 120 12.5 1 of 8 Any of them 6.9 2.5 12.5" in text
    assert "Not copied at all: constraints@1." in text
    assert "more than 2 % of an unseen benchmark is removed as a whole" in text
    assert "No row copies an item of constraints@1." in text  # the mixture of pairs


def test_copies_stand_side_by_side_and_other_rules_give_examples(fake: FakeRun, tmp_path: Path) -> None:
    text = section(fake, tmp_path)
    assert re.search(r"Homework: \w+ buys .* words · copy-0 .* words@1 · item-0 97.0 %", text)
    assert "Removed by other rules 2 examples Rule Row Why duplicate" in text
    assert f"keywords {SCRIPT} orders · o-9 assistant says 'GPT-4'" in text


def test_stages_that_ask_models_show_their_requests(fake: FakeRun, tmp_path: Path) -> None:
    text = section(fake, tmp_path)
    assert "41 rows (persona gsm) from 60 seeds of personas.jsonl, which has 5,000." in text
    assert "Dropped: 14 answers disagree, 5 no question." in text
    assert "120 requests, of which 2 failed; cost: 0.42 of a budget of 2." in text
    assert "38 pairs from 50 prompts: 38 rated pairs. The other prompts gave none: 9 all answers are as good" in text
    assert "Answers of Rated Chosen Rejected author-0123456789ab 38 60.5 % 39.5 %" in text
    assert "Chosen answers have 112 words in the mean, rejected ones 96. Ratings: 364 rated, 12 not applicable." in text
    assert "in 91.0 % of cases by helpfulness, 74.0 % of cases by honesty" in text
    assert "Why is the sea salt?" in text


def test_a_summary_of_an_older_version_is_shown_as_far_as_it_goes(fake: FakeRun, tmp_path: Path) -> None:
    age(fake.folder("sft-data") / "payload" / "summary.json")
    text = section(fake, tmp_path)
    sft_data = text[: text.index("choices mixture of pairs")]
    assert "Data sheet" not in sft_data
    assert "Source Read Sampled contaminated duplicate keywords contaminated set Kept words 400 300" in sft_data
    assert "Benchmark task Items Found in the sources Share" in sft_data
    assert "covers more than 50 % of one benchmark item" in sft_data


@pytest.mark.parametrize("name", ["sft-data", "choices", "stories", "verdicts", "preference-data"])
def test_an_empty_summary_and_a_missing_one_still_make_a_page(fake: FakeRun, tmp_path: Path, name: str) -> None:
    path = fake.folder(name) / "payload" / "summary.json"
    path.write_text("{}")
    assert name in section(fake, tmp_path)
    path.unlink()
    assert name in section(fake, tmp_path)
    shutil.rmtree(fake.folder(name))
    assert f"of stage {name} : its folder is gone" in section(fake, tmp_path)


def test_every_cell_shows_its_largest_copies_once_and_other_rules_a_few_rows(tmp_path: Path) -> None:
    blank = {"detail": "", "item": "", "coverage": 0.0, "row_text": "", "benchmark_text": "", "source": "s"}
    rows: list[dict[str, Any]] = [blank | {"rule": "duplicate", "task": "", "row": f"d{k}"} for k in range(30)]
    copy = blank | {"rule": "contaminated", "task": "t@1"}
    for k in range(2000):  # every item twice, at half the coverage
        coverage, item = (k * 7 % 2000) / 2000, f"{k:04}"
        rows += [copy | {"row": f"c{k}{half}", "coverage": coverage / half, "item": item} for half in (2, 1)]
    rows += [copy | {"source": "z", "row": "last", "coverage": 0.6, "item": "1"}]
    rows += [copy | {"task": f"u{k}@1", "row": "r", "coverage": 0.9, "item": f"{i}"} for k in range(30) for i in (1, 2)]
    found = data.removed_texts(rows)
    largest = [1 - (k + 1) / 2000 for k in range(data.MOST_OF_CELL)]
    assert [row["coverage"] for row in found["copies"] if row["task"] == "t@1"][:-1] == largest[:2]
    assert found["copies"][-1]["row"] == "last"
    assert len({(row["source"], row["task"]) for row in found["copies"]}) == 32
    assert (len(found["copies"]), found["num_copies"]) == (data.MOST_COPIES, 4061)
    assert [row["row"] for row in found["others"]] == ["d0", "d1", "d2", "d3"]


def test_a_matrix_names_the_tasks_nobody_copies() -> None:
    found = data.matrix(MATRIX, BENCHMARKS)
    assert found["tasks"] == ["gpqa@1", "words@1", "words@1:examples"]
    assert [(line["part"], line["whole"]) for line in found["lines"]] == [("quiz-bowl", ["gpqa@1"]), ("words@1", [])]
    assert found["untouched"] == ["constraints@1"]


def test_a_mixture_of_labelled_answers_says_how_good_and_bad_compare(tmp_path: Path) -> None:
    def shown(labels: dict[str, int]) -> dict[str, Any]:
        text = json.dumps(CHOICES | {"of": "unpaired", "labels": labels})
        (tmp_path / "summary.json").write_text(text, encoding="utf-8")
        return data.summary("unpaired_mix", tmp_path)

    found = shown({"good": 3000, "bad": 2000})
    assert found["of"] == "answers"
    assert found["balance"].startswith("3,000 good and 2,000 bad answers: good / bad is 1.50 with equal weights; KTO's")
    assert shown({"good": 7})["balance"].endswith("needs both")


def test_a_broken_summary_says_where(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"rows": 1,\n')
    with pytest.raises(RowError, match=r"summary\.json, line 2: not valid JSON"):
        data.summary("mix", tmp_path)
    assert data.summary("mix", tmp_path / "nowhere") == {}


def test_a_length_of_one_side_alone_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"mean_length": {"chosen": 3.0}, "mean_words": null}')
    found = data.summary("on_policy_pairs", tmp_path)
    assert (found["mean_length"], found["mean_words"]) == ({}, {})


def test_counts_and_costs_are_written_short() -> None:
    assert [count(None), count(1234567)] == ["–", "1,234,567"]
    assert [paid(0), paid(0.00042), paid(12.4)] == ["nothing", "0.00042", "12.4"]


def test_a_data_stage_has_a_page_of_its_own(fake: FakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = {}
    for name in ("sft-data", "stories", "verdicts", "preference-data"):
        page = tmp_path / "pages" / f"{name}.html"
        seal(fake.folder(name))
        assert main(["data", name, "--store", str(fake.store), "--out", str(page)]) == 0
        assert f"page: {page}" in capsys.readouterr().out
        html = page.read_text("utf-8")
        assert SCRIPT not in html
        assert "default-src 'none'" in html
        pages[name] = " ".join(unescape(re.sub(r"<[^>]+>", " ", html)).split())
    assert "595 rows, made from" in pages["sft-data"]
    assert "gpqa@1 words@1" in pages["sft-data"]  # the matrix
    assert re.search(r"words@1 · words@1-\d+", pages["sft-data"])  # a row
    assert "41 rows (persona gsm) from 60 seeds" in pages["stories"]
    assert "Why is the sea salt?" in pages["verdicts"]
    assert "right_wrong · 20 pairs" in pages["preference-data"]


def test_rows_of_a_page_are_few_of_every_part_and_the_same_every_time(fake: FakeRun) -> None:
    payload = fake.folder("sft-data") / "payload"
    rows = row_samples(payload)
    assert Counter(row["part"] for row in rows) == {"words@1": 6, "constraints@1": 6}
    assert rows == row_samples(payload)
    assert all(row["turns"][0]["role"] == "user" for row in rows)
    (payload / "rows.parquet").unlink()
    assert row_samples(payload) == []


def seal(folder: Path) -> None:
    """Give a made-up artifact the digest of its payload."""
    record = json.loads((folder / "artifact.json").read_text())
    (folder / "artifact.json").write_text(json.dumps(record | {"digest": payload_digest(folder / "payload")}))
