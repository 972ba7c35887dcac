"""The published recipes say what was published, and their data stage runs on small stand-ins of the public schema."""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tercet import pipeline
from tercet.data.catalogue import TOTALS, Dataset, find, of_stage
from tercet.data.sources import Reading, from_hub, label, load
from tercet.evals import suite
from tercet.hub import local_file
from tercet.recipe import BenchmarkSpec, ExamplesSpec, MixtureSpec, Recipe, SourceSpec
from tercet.recipe import load as load_recipe
from tercet.rows import read_pairs, read_rows, read_table
from tercet.store import Artifact, Store

ROOT = Path(__file__).parents[2]
STAGES = {"sft-data": "sft", "preference-data": "preference 8b", "prompts": "rlvr"}
SHOTS = "github:allenai/olmo-eval/src/olmo_eval/evals/tasks"


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(ROOT / "recipes" / "tulu3-8b.toml")


@pytest.fixture(scope="module")
def standins() -> dict[str, str]:
    return pipeline.read_mirror(ROOT / "tests" / "standins" / "mirror.toml")


def mixture(recipe: Recipe, stage: str) -> MixtureSpec:
    spec = recipe.stage[stage]
    assert isinstance(spec, MixtureSpec)
    return spec


def known(source: SourceSpec) -> Dataset:
    found = find(label(source))
    assert found is not None, label(source)
    return found


@pytest.mark.parametrize(("stage", "part"), STAGES.items())
def test_every_source_expects_its_published_count(recipe: Recipe, stage: str, part: str) -> None:
    spec = mixture(recipe, stage)
    counts: Counter[Dataset] = Counter()
    for source in spec.sources:
        counts[known(source)] += source.expect or 0
    assert counts == {dataset: dataset.rows for dataset in of_stage(part)}
    assert spec.expect == counts.total() == TOTALS[part]


def test_the_numbers_are_those_of_the_paper(recipe: Recipe) -> None:
    assert [mixture(recipe, stage).expect for stage in STAGES] == [939_344, 271_409, 29_946]
    flan = {s.subset: s.expect for s in mixture(recipe, "sft-data").sources if s.path == "Open-Orca/FLAN"}
    assert len(flan) == 7
    assert sum(map(int, filter(None, flan.values()))) == 89_982
    seventy, largest = (load_recipe(ROOT / "recipes" / f"tulu3-{size}.toml") for size in ("70b", "405b"))
    assert mixture(seventy, "preference-data-70b").expect == TOTALS["preference 70b"] == 334_302
    pairs = mixture(largest, "preference-data-405b")
    assert pairs.expect == known(pairs.sources[0]).rows == 360_924
    for_reward_model = [mixture(found, "preference-data").expect for found in (seventy, largest)]
    assert for_reward_model == [271_409] * 2
    assert mixture(largest, "prompts").expect == 7_500  # MATH alone


@pytest.mark.parametrize(("stage", "part"), STAGES.items())
def test_sources_are_read_as_the_catalogue_says(recipe: Recipe, stage: str, part: str) -> None:
    for source in mixture(recipe, stage).sources:
        dataset = known(source)
        assert source.revision, label(source)
        if source.path != dataset.hub:  # a part of the published mix
            assert source.adapter == "tulu_sft"
            continue
        assert source.adapter in (dataset.adapter, "auto")
        assert source.revision == (dataset.revision or "main"), label(source)
        assert source.split == dataset.split
        if dataset.name == "FLAN v2":
            assert source.subset.removesuffix("_data") in dataset.policy
        elif dataset.hub != "allenai/wildguardmix":
            assert source.subset == dataset.subset


def test_everything_has_a_stand_in(recipe: Recipe, standins: dict[str, str]) -> None:
    larger = [load_recipe(ROOT / "recipes" / f"tulu3-{size}.toml") for size in ("70b", "405b")]
    for spec in (spec for found in (recipe, *larger) for spec in found.stage.values()):
        if isinstance(spec, MixtureSpec):
            assert all(from_hub(source, {}) for source in spec.sources)
            assert not [label(source) for source in spec.sources if from_hub(source, standins)]
        if isinstance(spec, BenchmarkSpec):
            missing = [
                source for source in suite.sources(spec.tasks) if not Path(local_file(source, standins)).exists()
            ]
            assert not missing


@pytest.mark.parametrize("name", ["tulu3-8b", "tulu3-70b", "tulu3-405b", "tulu3.1-8b"])
def test_a_plan_needs_neither_hub_nor_mirror(name: str, standins: dict[str, str], tmp_path: Path) -> None:
    found = load_recipe(ROOT / "recipes" / f"{name}.toml")
    for local in ({}, standins):
        plan = {line.name: line for line in pipeline.plan(found, Store(tmp_path), local)}
        assert plan["preference-data"].forecast["rows"] == mixture(found, "preference-data").expect


@pytest.fixture(scope="module")
def made(standins: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Artifact]]:
    """The data stage of the 8B recipe, run as a user runs it, with stand-ins for every public set."""
    folder = tmp_path_factory.mktemp("published")
    console = Console(file=StringIO())
    path = ROOT / "recipes" / "tulu3-8b.toml"
    yield pipeline.run(path, Store(folder), only=tuple(STAGES), mirror=standins, console=console)
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)


def summary(artifact: Artifact) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((artifact.payload / "summary.json").read_text(encoding="utf-8"))
    return found


def removed(artifact: Artifact) -> dict[str, tuple[str, str]]:
    """Row -> rule and task."""
    return {row["row"]: (row["rule"], row["task"]) for row in read_table(artifact.payload / "removed.parquet")}


def test_rows_of_every_source_arrive_under_its_name(recipe: Recipe, made: dict[str, Artifact]) -> None:
    rows = read_rows(made["sft-data"].payload / "rows.parquet")
    names = Counter(row.source for row in rows)
    wanted = {label(source) for source in mixture(recipe, "sft-data").sources}
    wanted = {name.partition(":")[2] if name.startswith("allenai/tulu-3-sft-mixture") else name for name in wanted}
    assert wanted - set(names) == {"LipengCS/Table-GPT:All"}  # it copies an unseen benchmark, and goes as a whole
    assert set(names) < wanted
    assert names["allenai/tulu-3-hardcoded-prompts"] == 20  # two rows, ten times
    assert all(row.answer for row in rows)
    by_id = {row.id: row for row in rows}
    assert [turn.role for turn in by_id["t1"].messages] == ["user", "assistant"] * 2  # an OASST path
    assert "ChatGPT" in str(by_id["no_robots-2"].answer)  # No Robots is exempt from the keywords
    assert {row.answer for row in rows if row.source == "allenai/SciRIFF-train-mix"} == {"Copper", "ChatGPT"}
    jailbreak = next(row for row in rows if row.template == "adversarial_harmful")
    assert "in a play, tell me\tin verse" in jailbreak.user_turns[0]


def test_copies_of_the_benchmark_and_other_makers_names_go_from_the_sft_data(made: dict[str, Artifact]) -> None:
    assert removed(made["sft-data"]) == {
        "WildChat-1M-Full-3": ("contaminated", "alpacaeval@1"),
        "WildChat-1M-Full-4": ("keywords", ""),
        "pg2": ("contaminated", "gsm8k@2"),
        "Magicoder-Evol-Instruct-110K-2": ("keywords", ""),
        "cc2": ("keywords", ""),
        "Table-GPT:All-1": ("contaminated set", ""),
        "Table-GPT:All-2": ("contaminated", "mmlu_pro@1"),
    }
    account = {line["source"]: line for line in summary(made["sft-data"])["sources"]}
    assert account["allenai/WildChat-1M-Full"]["skipped"] == {"not answered by GPT-4": 1}
    assert account["AI-MO/NuminaMath-TIR"]["skipped"] == {"empty answer": 1}
    assert account["nvidia/OpenMathInstruct-2"]["skipped"] == {"not grown from GSM8K": 1}
    for line in account.values():  # a stand-in holds fewer rows than its set: reported, no error
        if line["source"] != "OpenAssistant/oasst1":  # paths are fewer than messages
            assert line["read"] == line["entered"] + sum(line["skipped"].values()), line
        assert line["sampled"] == line["kept"] + sum(line["removed"].values()), line
        assert line["expected"] > line["kept"]


def test_pairs_of_every_part_arrive(made: dict[str, Artifact]) -> None:
    pairs = read_pairs(made["preference-data"].payload / "pairs.parquet")
    parts = ("reused_on", "reused_off", "if_augmented", "wildchat_if", "wildchat_reused", "ultrafeedback", "persona_if")
    assert Counter(pair.source for pair in pairs) == {f"made/{part}": 1 for part in parts}
    assert all(pair.chosen[:-1] == pair.rejected[:-1] for pair in pairs)
    assert removed(made["preference-data"]) == {"if_augmented-2": ("contaminated", "ifeval@1")}
    (skipped,) = (line["skipped"] for line in summary(made["preference-data"])["sources"] if line["skipped"])
    assert skipped == {"chosen and rejected are the same text": 1}


def test_rewarded_prompts_bring_their_verifiers_and_references(made: dict[str, Artifact]) -> None:
    rows = {row.id: row for row in read_rows(made["prompts"].payload / "rows.parquet")}
    graded = {name: (row.verifier, row.source) for name, row in rows.items()}
    assert graded == {
        "RLVR-GSM-1": ("gsm8k@1", "allenai/RLVR-GSM"),
        "RLVR-MATH-1": ("math_flex@1", "allenai/RLVR-MATH"),
        "RLVR-IFeval-1": ("tulu_if@1", "allenai/RLVR-IFeval"),
        "RLVR-IFeval-2": ("tulu_if@1", "allenai/RLVR-IFeval"),
    }
    assert rows["RLVR-GSM-1"].reference == "1050"
    assert rows["RLVR-MATH-1"].reference == r"\frac{3}{4}"
    assert json.loads(rows["RLVR-IFeval-1"].reference)["func_name"] == "verify_bullet_points"
    assert all(row.answer is None for row in rows.values())
    assert rows["RLVR-GSM-1"].user_turns[0].count("Question:") == 9
    assert removed(made["prompts"]) == {
        "RLVR-GSM-2": ("contaminated", "gsm8k@2"),
        "RLVR-IFeval-3": ("contaminated", "ifeval@1"),
    }


@pytest.mark.parametrize(
    ("path", "adapter", "file", "mark", "count", "reference"),
    [
        ("openai/gsm8k", "gsm8k_prompt", "gsm8k", "Question: ", 9, "600"),
        ("EleutherAI/hendrycks_math", "math_prompt", "minerva_math", "Problem:\n", 4, r"It is $\boxed{49}$."),
    ],
)
def test_prompts_can_be_made_from_the_first_data(
    standins: dict[str, str], path: str, adapter: str, file: str, mark: str, count: int, reference: str
) -> None:
    source = SourceSpec(
        path=path,
        adapter=adapter,
        revision="main",
        require_answer=False,
        examples=ExamplesSpec(path=f"{SHOTS}/{file}.py", revision="abc"),
    )
    (row,) = load(source, {}, standins, Reading())
    assert (row.user_turns[0].count(mark), row.reference) == (count, reference)
