"""A mixture loses what it must, says so row by row, and depends on nothing but seed and ids."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.data import datasheet, filters, mix, process_pool
from tercet.data.benchmark_items import BenchmarkItem
from tercet.data.decontam import Index
from tercet.data.decontaminator import Decontaminator, Document, prove
from tercet.data.generators import constraints, contaminated, words
from tercet.data.process_pool import ProcessPool
from tercet.recipe import BaseSpec, MixSpec, PairMixSpec, Placement, Recipe, UnpairedMixSpec
from tercet.rows import Message, Pair, Row, RowError, read_pairs, read_rows, read_table, write_table
from tercet.store import Artifact, Context
from tercet.track import Tracker

PROBLEM = "Ann has {} red pens and buys {} more blue pens in the shop. How many pens has she now?"


def chat(name: str, question: str, answer: str = "Fine.", **more: str) -> Row:
    return Row(name, (Message("user", question), Message("assistant", answer)), **more)


class Bench:
    """A place where mixtures are made: `add` stages, then `run` a spec."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.inputs: dict[str, Artifact] = {}

    def add(self, name: str, rows: list[Row]) -> None:
        write_table(self.folder / name / "payload" / "rows.parquet", rows)
        self._artifact("synth", name)

    def add_benchmark(self, name: str, *fields: tuple[str, ...]) -> None:
        items = [{"task": "words@1", "item": str(i), "fields": list(texts)} for i, texts in enumerate(fields)]
        write_table(self.folder / name / "payload" / "benchmark.parquet", items)
        self._artifact("benchmark", name)

    def run(
        self,
        *sources: dict[str, Any],
        seed: int = 17,
        out: str = "out",
        workers: int = 1,
        ray: bool = False,
        **spec: Any,
    ) -> dict[str, float]:
        work = self.folder / "work"
        payload = self.folder / out
        for folder in (work, payload):
            folder.mkdir(parents=True, exist_ok=True)
        placement = Placement(workers=workers, launch="ray" if ray else "torchrun")
        recipe = Recipe(name="test", base=BaseSpec(model="tiny:"), stage={}, placement=placement)
        ctx = Context("sft-data", seed, recipe, work, Tracker(None), {}, open_model=lambda *_: None)
        made = {"pair_mix": PairMixSpec, "unpaired_mix": UnpairedMixSpec}.get(spec.get("kind", ""), MixSpec)
        return mix.run(made(sources=sources, **spec), self.inputs, payload, ctx)

    def rows(self, out: str = "out") -> list[Row]:
        return read_rows(self.folder / out / "rows.parquet")

    def removed(self, out: str = "out") -> list[dict[str, Any]]:
        return read_table(self.folder / out / "removed.parquet")

    def summary(self, out: str = "out") -> dict[str, Any]:
        return json.loads((self.folder / out / "summary.json").read_text())

    def _artifact(self, kind: str, name: str) -> None:
        self.inputs[name] = Artifact(kind, name, "0" * 64, self.folder / name, {}, {})


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_each_rule_removes_its_row_and_says_why(bench: Bench) -> None:
    benchmark = PROBLEM.format(3, 4)
    bench.add_benchmark(
        "benchmark", ("",), ("A passage that nobody copies at all in any row here.", benchmark), (benchmark,)
    )
    bench.add(
        "a",
        [
            chat("good", "Hello there?"),
            chat("maker", "Who are you?", "I am ChatGPT, made by somebody."),
            chat("blank", "  "),
            chat("copy", benchmark.upper()),
        ],
    )
    bench.add("b", [chat("again", "hello   THERE?", "Other answer."), chat("also good", "Who made you? ChatGPT?")])
    metrics = bench.run({"stage": "a"}, {"stage": "b"}, against=["benchmark"])
    assert metrics == {"rows": 2.0, "removed": 4.0, "contaminated": 1.0}
    assert {row.id for row in bench.rows()} == {"good", "also good"}
    removed = {row["row"]: row for row in bench.removed()}
    assert {name: row["rule"] for name, row in removed.items()} == {
        "maker": "keywords",
        "blank": "blank",
        "copy": "contaminated",
        "again": "duplicate",
    }
    assert removed["maker"]["detail"] == "assistant says 'ChatGPT'"
    assert removed["blank"]["detail"] == "blank: turn 0 (user)"
    assert removed["again"]["detail"] == "same prompt as good"
    copy = removed["copy"]
    assert (copy["task"], copy["item"], copy["coverage"], copy["source"]) == ("words@1", "2", 1.0, "a")
    assert (copy["row_text"], copy["benchmark_text"]) == (benchmark.upper(), benchmark)
    summary = bench.summary()
    assert summary["removed"] == {"blank": 1, "contaminated": 1, "duplicate": 1, "keywords": 1}
    rest = {"said": [], "skipped": {}, "repeated": 0, "expected": None}
    gone = {"blank": 1, "contaminated": 1, "keywords": 1}
    assert summary["sources"] == [
        {"source": "a", "read": 4, "entered": 4, "sampled": 4, "kept": 1, "removed": gone, **rest},
        {"source": "b", "read": 2, "entered": 2, "sampled": 2, "kept": 1, "removed": {"duplicate": 1}, **rest},
    ]
    (found,) = summary["benchmarks"]
    assert found == {"task": "words@1", "items": 3, "copied": 1, "share": 1 / 3} | {
        "by_ngrams": 2, "as_phrases": 0, "as_turns": 0, "unsearched": 1
    }  # fmt: skip
    (lost,) = map(json.loads, (bench.folder / "out" / "unsearched.jsonl").read_text().splitlines())
    assert lost["task"] == "words@1"


@pytest.mark.parametrize("text", ["OpenAI", "open ai", "a GPT-4 model", "gpt 3.5", "GPT3", "Bing Chat", "by LAION."])
def test_names_of_other_models_are_found(text: str) -> None:
    assert filters.keywords(chat("a", "Hi", text)) is not None


@pytest.mark.parametrize("text", ["openair", "GPT-40", "reopenai", "Claude", "Gemini", "chat", "gpt", "XLAION"])
def test_other_words_are_left_alone(text: str) -> None:
    assert filters.keywords(chat("a", "Hi", text)) is None


def test_the_three_contaminated_rows_go_and_the_honest_ones_stay(bench: Bench) -> None:
    benchmark = [row for make in (words, constraints) for row in make.generate(20, "test", 5)]
    bench.add_benchmark("benchmark", *((row.user_turns[-1],) for row in benchmark))
    honest = words.generate(30, "train", 5)
    bench.add("honest", honest)
    bench.add("contaminated", contaminated.generate(3, "train", 5))
    metrics = bench.run({"stage": "honest"}, {"stage": "contaminated"}, against=["benchmark"])
    assert metrics == {"rows": 30.0, "removed": 3.0, "contaminated": 3.0}
    assert [row["row"] for row in bench.removed()] == ["contaminated-0", "contaminated-1", "contaminated-2"]
    assert all(row["coverage"] == 1.0 for row in bench.removed())
    assert {row.id for row in bench.rows()} == {row.id for row in honest}
    assert bench.summary()["benchmarks"][0]["copied"] == 3


@pytest.mark.parametrize("seed", range(5))
def test_every_contaminated_row_is_a_copy_for_any_seed(seed: int) -> None:
    benchmark = [row for make in (words, constraints) for row in make.generate(10, "test", seed)]
    index = Index([BenchmarkItem(row.source, row.id, (row.user_turns[-1],)) for row in benchmark])
    rows = contaminated.generate(7, "train", seed)
    assert len({row.id for row in rows}) == 7
    assert all(index.hits(row.user_turns) for row in rows)
    assert not {row.user_turns[0] for row in rows} & {row.user_turns[0] for row in benchmark}


def test_contaminated_rows_are_for_mixtures() -> None:
    with pytest.raises(ValueError, match='use split = "train"'):
        contaminated.generate(3, "test", 5)


def test_a_row_that_survives_decontamination_stops_the_run() -> None:
    search = Decontaminator(Index([BenchmarkItem("words@1", "7", (PROBLEM,))])).search(list)
    with ProcessPool(search, 1) as pool:
        prove(pool, [[Document("a", "fine", ["Hello?"])]], rows=1)
        with pytest.raises(
            RuntimeError, match=r"expected 1 rows of which 0 copy the benchmark, found 1 and 1 \(copy\)"
        ):
            prove(pool, [[Document("a", "copy", [PROBLEM])]], rows=1)


def test_same_seed_same_bytes_and_order_of_rows_does_not_matter(bench: Bench) -> None:
    rows = [chat(str(i), f"Question {i}?") for i in range(50)]
    bench.add("a", rows)
    bench.add("b", [chat(f"b{i}", f"Other {i}?") for i in range(50)])
    sources = ({"stage": "a", "rows": 20}, {"stage": "b", "rows": 10})
    bench.run(*sources, out="first")
    bench.run(*sources, out="second")
    for name in ("rows.parquet", "removed.parquet", "summary.json"):
        assert (bench.folder / "first" / name).read_bytes() == (bench.folder / "second" / name).read_bytes()
    bench.add("a", rows[::-1])
    bench.run(*sources, out="third")
    assert bench.rows("third") == bench.rows("first")
    bench.run(*sources, seed=18, out="fourth")
    assert {row.id for row in bench.rows("fourth")} != {row.id for row in bench.rows("first")}
    kinds = [row.source for row in bench.rows("first")]
    assert sorted(kinds) == ["a"] * 20 + ["b"] * 10
    assert kinds != sorted(kinds)


def test_a_source_twice_and_ids_twice_stay_apart(bench: Bench) -> None:
    bench.add("a", [chat("x", "One?"), chat("x", "Two?")])
    bench.run({"stage": "a"}, {"stage": "a"})
    assert {row.id for row in bench.rows()} == {"x", "x~2"}
    assert [(entry["source"], entry["kept"]) for entry in bench.summary()["sources"]] == [("a", 2), ("a~2", 0)]


def test_rules_can_be_switched_off(bench: Bench) -> None:
    bench.add("a", [chat("x", "One?", "ChatGPT says so."), chat("y", "One?")])
    assert bench.run({"stage": "a"}, dedupe=False, keywords=False)["rows"] == 2
    assert bench.removed() == []
    columns = set(mix.Removed.__dataclass_fields__)
    import pyarrow.parquet as pq

    assert set(pq.read_schema(bench.folder / "out" / "removed.parquet").names) == columns


def test_asking_for_more_rows_than_there_are_is_an_error(bench: Bench) -> None:
    bench.add("a", [chat("x", "One?"), chat("y", " ")])
    with pytest.raises(RowError, match="source 'a' has 1 rows that no rule removes, of 2; the recipe asks for 2"):
        bench.run({"stage": "a", "rows": 2})


def test_rows_are_counted_after_the_rules(bench: Bench) -> None:
    bench.add("a", [chat(str(i), f"Question {i}?", "ChatGPT" if i % 3 else "Fine.") for i in range(60)])
    bench.run({"stage": "a", "rows": 12})
    (source,) = bench.summary()["sources"]
    assert source["kept"] == len(bench.rows()) == 12
    assert source["sampled"] == 12 + source["removed"]["keywords"] < source["entered"] == 60


def test_a_fraction_samples_or_repeats(bench: Bench) -> None:
    bench.add("a", [chat(str(i), f"Question {i}?") for i in range(40)])
    bench.run({"stage": "a", "fraction": 0.25}, out="few")
    bench.run({"stage": "a", "fraction": 0.5}, out="half")
    few, half = ({row.id for row in bench.rows(out)} for out in ("few", "half"))
    assert (len(few), len(half)) == (10, 20)
    assert few < half
    assert bench.run({"stage": "a", "fraction": 2.5}, out="more")["rows"] == 100
    rows = bench.rows("more")
    times = Counter(row.prompt for row in rows)
    assert Counter(times.values()) == {2: 20, 3: 20}
    assert len({row.id for row in rows}) == 100
    assert bench.summary("more")["sources"][0]["repeated"] == 60
    assert bench.summary("more")["sheet"][0]["rows"] == 100


def test_a_layout_that_was_recognised_is_said(bench: Bench, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"instruction": "Say hi.", "output": "Hi."}) + "\n")
    bench.run({"path": str(tmp_path / "rows.jsonl"), "adapter": "auto"})
    (source,) = bench.summary()["sources"]
    assert source["said"][0].startswith("rows.jsonl is read as 'alpaca': every row has instruction and output")


def test_prompts_that_another_stage_has_can_be_left_out(bench: Bench) -> None:
    bench.add("seen", [chat("1", "One?"), chat("2", "Two?")])
    bench.add("all", [chat("a", "one?"), chat("b", "Three?")])
    bench.run({"stage": "all", "without": "seen"})
    assert [row.id for row in bench.rows()] == ["b"]
    assert [(row["row"], row["rule"]) for row in bench.removed()] == [("a", "in seen")]


def test_a_set_that_copies_an_unseen_benchmark_goes_as_a_whole(bench: Bench) -> None:
    items = [f"This is the question of number {i} about the many rooms of house {i}." for i in range(20)]
    bench.add_benchmark("benchmark", *((text,) for text in items))
    card = [{"name": "words@1", "locked": True}]
    (bench.folder / "benchmark" / "payload" / "tasks.json").write_text(json.dumps(card))
    clean = [chat(f"clean{i}", f"Honest question {i}?", source="good") for i in range(5)]
    bad = [chat("copy", items[3], source="bad"), chat("innocent", "Hello?", source="bad")]
    bench.add("a", [*clean, *bad])
    assert bench.run({"stage": "a"}, against=["benchmark"]) == {"rows": 5.0, "removed": 2.0, "contaminated": 2.0}
    rules = {row["row"]: (row["rule"], row["detail"]) for row in bench.removed()}
    assert rules["copy"][0] == "contaminated"
    assert rules["innocent"] == ("contaminated set", "copies 5.0% of words@1, an unseen benchmark")
    (cell,) = bench.summary()["matrix"]
    numbers = {"copied": 1, "items": 20, "share": 0.05}
    assert cell == {"source": "bad", "task": "words@1", "verdict": "set dropped", **numbers}
    bench.run({"stage": "a"}, against=["benchmark"], share=0.1, out="tolerant")
    assert {row.id for row in bench.rows("tolerant")} == {*(row.id for row in clean), "innocent"}


def pair(name: str, question: str, bad: str = "Bad.") -> Pair:
    ask = Message("user", question)
    return Pair(name, (ask, Message("assistant", "Good.")), (ask, Message("assistant", bad)), "p")


def test_pairs_are_mixed_like_rows(bench: Bench) -> None:
    benchmark = PROBLEM.format(3, 4)
    bench.add_benchmark("benchmark", (benchmark,))

    pairs = [pair("1", "One?"), pair("2", benchmark), pair("3", "one?"), pair("4", "Four?", " "), pair("5", "Five?")]
    write_table(bench.folder / "a" / "payload" / "pairs.parquet", pairs[:3] + pairs[4:])
    bench._artifact("on_policy_pairs", "a")
    metrics = bench.run({"stage": "a"}, kind="pair_mix", against=["benchmark"])
    assert metrics == {"pairs": 2.0, "removed": 2.0, "contaminated": 1.0}
    found = read_pairs(bench.folder / "out" / "pairs.parquet")
    assert {one.id: one.rejected[-1].content for one in found} == {"1": "Bad.", "5": "Bad."}
    assert bench.summary()["of"] == "pairs"
    write_table(bench.folder / "a" / "payload" / "pairs.parquet", pairs)
    bench.run({"stage": "a"}, kind="pair_mix", out="all")
    (source,) = bench.summary("all")["sources"]
    assert source["entered"] + sum(source["skipped"].values()) == 5
    assert "4" not in {one.id for one in read_pairs(bench.folder / "all" / "pairs.parquet")}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def labelled(question: str, answer: str, label: object, **more: object) -> dict[str, object]:
    return {"messages": [asked(question), {"role": "assistant", "content": answer}], "label": label, **more}


def asked(question: str) -> dict[str, str]:
    return {"role": "user", "content": question}


def unpaired(bench: Bench, out: str = "out") -> list[tuple[str, str, bool]]:
    rows = read_table(bench.folder / out / "unpaired.parquet")
    return sorted((row["messages"][0]["content"], row["messages"][-1]["content"], row["good"]) for row in rows)


def test_answers_with_labels_are_mixed_and_a_prompt_keeps_good_and_bad_ones(bench: Bench) -> None:
    benchmark = PROBLEM.format(3, 4)
    bench.add_benchmark("benchmark", (benchmark,))
    lines = [
        labelled("One?", "Yes.", True),
        labelled("one? ", "No.", False),
        labelled("One?", "Yes.", True),
        labelled("One?", "Yes.", False),
        labelled(benchmark, "Seven.", True),
        labelled("Blank?", " ", False),
    ]
    write_lines(bench.folder / "kto.jsonl", lines)
    source = {"path": str(bench.folder / "kto.jsonl"), "adapter": "auto"}
    metrics = bench.run(source, kind="unpaired_mix", against=["benchmark"])
    assert metrics == {"unpaired": 3.0, "removed": 2.0, "contaminated": 1.0}
    assert unpaired(bench) == [("One?", "Yes.", False), ("One?", "Yes.", True), ("one? ", "No.", False)]
    assert {row["detail"] for row in bench.removed()} >= {"same prompt, answer and label as kto.jsonl-1"}
    summary = bench.summary()
    assert (summary["of"], summary["labels"]) == ("unpaired", {"bad": 2, "good": 1})
    assert summary["sources"][0]["skipped"] == {"empty answer": 1}


def test_each_pair_gives_a_good_and_a_bad_answer(bench: Bench) -> None:
    pairs = [pair(name, f"Question {name}?") for name in "abc"]
    write_table(bench.folder / "a" / "payload" / "pairs.parquet", pairs)
    bench._artifact("on_policy_pairs", "a")
    lines = [{"prompt": "And?", "chosen": "Good.", "rejected": "Worse."}]
    write_lines(bench.folder / "pairs.jsonl", lines)
    source = {"path": str(bench.folder / "pairs.jsonl"), "adapter": "auto"}
    bench.run({"stage": "a"}, source, kind="unpaired_mix")
    asked = [("And?", "Good.", True), ("And?", "Worse.", False)]
    both = [(f"Question {name}?", text, text == "Good.") for name in "abc" for text in ("Bad.", "Good.")]
    assert unpaired(bench) == asked + both
    first, second = bench.summary()["sources"]
    assert (first["read"], first["entered"], first["kept"]) == (3, 6, 6)
    assert (second["read"], second["entered"], second["kept"]) == (1, 2, 2)


def test_a_mixture_of_answers_with_labels_is_mixed_again_as_it_was(bench: Bench) -> None:
    lines = [labelled(f"Question {i}?", f"Answer {i % 2}.", i % 3 == 0) for i in range(12)]
    write_lines(bench.folder / "kto.jsonl", lines)
    bench.run({"path": str(bench.folder / "kto.jsonl"), "adapter": "kto"}, kind="unpaired_mix", out="one/payload")
    bench._artifact("unpaired_mix", "one")
    bench.run({"stage": "one"}, kind="unpaired_mix", out="two")
    assert unpaired(bench, "two") == unpaired(bench, "one/payload")
    assert len(unpaired(bench, "two")) == 12


@pytest.mark.parametrize("name", ["kto_pc", "kto_tag", "kto_msgs"])
def test_labelled_rows_of_other_tools_are_used_unpaired_and_their_bad_answers_are_no_targets(
    bench: Bench, shared_data: Path, name: str
) -> None:
    source = {"path": str(shared_data / "cases" / "rows" / f"{name}.jsonl"), "adapter": "auto"}
    bench.run(source, kind="unpaired_mix")
    answers = [(f"Which sky colour {i}?", "It is green." if i % 2 else "It is blue.", i % 2 == 0) for i in range(6)]
    assert unpaired(bench) == answers
    bench.run(source, out="rows")
    assert {row.answer for row in bench.rows("rows")} == {"It is blue."}
    assert bench.summary("rows")["sources"][0]["skipped"] == {"labelled bad": 3}


def test_an_adapter_without_labels_is_refused_before_anything_is_read(bench: Bench) -> None:
    with pytest.raises(RowError, match="'sharegpt' gives no answers with labels; the adapters that do are auto, hh,"):
        bench.run({"path": "nowhere.jsonl", "adapter": "sharegpt"}, kind="unpaired_mix")


def test_near_duplicates_of_answers_have_one_label_and_the_answer_counts(bench: Bench) -> None:
    ask = PROBLEM.format(3, 4)
    long = "Ann had three red pens and she bought four more of them, which makes seven pens for her altogether"
    answers = [
        (long, True),
        (f"{long} now", True),
        (long, False),
        ("No idea, to be honest with you and with her", True),
    ]
    write_lines(bench.folder / "kto.jsonl", [labelled(ask, text, good) for text, good in answers])
    source = {"path": str(bench.folder / "kto.jsonl"), "adapter": "kto"}
    bench.run(source, kind="unpaired_mix", near=0.8)
    assert unpaired(bench) == sorted((ask, *answer) for answer in (answers[0], *answers[2:]))
    assert [row["detail"][:9] for row in bench.removed()] == ["98% like "]


def test_neither_workers_nor_batches_change_a_byte(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = [f"Tell me all about the long way from town {i} to the sea, please." for i in range(9)]
    bench.add_benchmark("benchmark", *((text,) for text in benchmark))
    rows = [chat(str(i), benchmark[i // 7] if i % 7 == 0 else f"Question {i % 40}?") for i in range(60)]
    bench.add("a", rows)
    sources = ({"stage": "a", "rows": 9}, {"stage": "a"})
    bench.run(*sources, against=["benchmark"], out="one", workers=1)
    monkeypatch.setattr(mix, "AT_ONCE", 4)
    monkeypatch.setattr(process_pool, "ALONE", 0)
    bench.run(*sources, against=["benchmark"], out="two", workers=2)
    assert bench.rows("one") == bench.rows("two")
    assert sorted(bench.removed("one"), key=str) == sorted(bench.removed("two"), key=str)
    assert bench.summary("one") == bench.summary("two")


def test_what_was_expected_is_reported_and_asked_of_the_hub(bench: Bench) -> None:
    bench.add("a", [chat("1", "One?"), chat("2", "Two?", "ChatGPT")])
    bench.run({"stage": "a", "expect": 2}, expect=2)
    difference = [{"source": "a", "expected": 2, "found": 1}]
    assert bench.summary()["expected"] == {"rows": 2, "found": 1, "differences": difference}
    tally = datasheet.Tally("hub/set", sampled=90, expected=100)
    spec = MixSpec(sources=({"stage": "a"},), expect=100, within=0.05)
    with pytest.raises(RowError, match=r"give 90 rows, the recipe expects 100 \(within 5.00%\). hub/set: expected 100"):
        datasheet.expectation(spec, [tally], strict=True)


def test_the_data_sheet_counts_words_or_tokens(bench: Bench, tiny_folder: Path) -> None:
    bench.add("a", [chat("1", "How are you?", "I am fine.")])
    bench.run({"stage": "a"})
    line = {"source": "a", "part": "a", "rows": 1, "turns": 2.0, "licence": "not known here", "commercial": "unknown"}
    assert bench.summary()["sheet"] == [line | {"tokens": 6}]
    (bench.folder / "model").mkdir()
    (bench.folder / "model" / "payload").symlink_to(tiny_folder)
    bench._artifact("model", "model")
    bench.run({"stage": "a"}, tokenizer="model")
    assert bench.summary()["sheet"][0]["tokens"] > 6
    assert bench.summary()["counted"] == "tokens of model"


def test_an_empty_mixture_is_an_error(bench: Bench) -> None:
    bench.add("a", [chat("x", "One?", "ChatGPT")])
    with pytest.raises(RowError, match=r"no row is left of 1; .*'keywords': 1"):
        bench.run({"stage": "a"})


def test_an_unknown_verifier_is_an_error(bench: Bench) -> None:
    bench.add("a", [chat("x", "One?", verifier="magic@9")])
    with pytest.raises(RowError, match="row 'x' of a: unknown verifier 'magic@9'"):
        bench.run({"stage": "a"})


def test_a_benchmark_without_fields_is_an_error(bench: Bench) -> None:
    bench.add("a", [chat("x", "One?")])
    bench.add_benchmark("benchmark", ("",))
    write_table(bench.folder / "benchmark" / "payload" / "benchmark.parquet", [{"task": "t", "item": "1"}])
    with pytest.raises(RowError, match=r"benchmark\.parquet, row 0: expected task, item and fields"):
        bench.run({"stage": "a"}, against=["benchmark"])


@given(
    st.lists(
        st.tuples(st.text(max_size=40), st.text(min_size=1, max_size=40)),
        max_size=30,
    )
)
def test_nothing_disappears_silently(texts: list[tuple[str, str]]) -> None:
    rows = [chat(str(i), question, answer) for i, (question, answer) in enumerate(texts)]
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder))
        bench.add_benchmark("benchmark", (PROBLEM,))
        bench.add("a", [chat("sure", "A question that stays?"), *rows])
        if any(not answer.strip() for _, answer in texts):
            with pytest.raises(RowError, match="empty completion"):
                bench.run({"stage": "a", "max_bad": 0}, against=["benchmark"], ngram=2)
            return
        bench.run({"stage": "a"}, against=["benchmark"], ngram=2)
        found = [row.id for row in bench.rows()] + [row["row"] for row in bench.removed()]
        assert sorted(found) == sorted(["sure", *(row.id for row in rows)])


def test_near_duplicates_go_after_their_first_and_are_taken_off_the_counts(bench: Bench) -> None:
    long = "Write a short note to the whole team about the meeting that was moved from Monday to Friday afternoon, {}."
    bench.add("a", [chat("first", long.format("please")), chat("other", "What is rain made of?")])
    bench.add("b", [chat("twin", long.format("thanks"))])
    metrics = bench.run({"stage": "a"}, {"stage": "b"}, near=0.6)
    assert {row.id for row in bench.rows()} == {"first", "other"}
    assert metrics["removed"] == 1
    assert [(row["row"], row["rule"]) for row in bench.removed()] == [("twin", "near duplicate")]
    assert [source["kept"] for source in bench.summary()["sources"]] == [2, 0]


def test_a_source_may_have_filters_of_its_own_and_the_mix_more(bench: Bench) -> None:
    maker = chat("maker", "Who are you?", "I am ChatGPT, made by somebody.")
    bench.add("a", [maker, chat("plain", "Hello there?")])
    bench.run({"stage": "a", "filters": ["blank"]})
    assert {row.id for row in bench.rows()} == {"maker", "plain"}
    bench.run({"stage": "a", "filters": ["blank"]}, filters={"identity": {}})
    assert {row.id for row in bench.rows()} == {"plain"}
    with pytest.raises(ValueError, match="unknown filter 'shoe'"):
        bench.run({"stage": "a"}, filters={"shoe": {}})


def test_licences_are_named_where_the_mixture_is_for_sale(bench: Bench) -> None:
    bench.add("a", [chat("plain", "Hello there?")])
    bench.run({"stage": "a"}, commercial=True)
    assert bench.summary()["licences"] == ["a: not in the catalogue; its licence is not known here"]
