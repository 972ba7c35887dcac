"""The table of the recipe's data adds up to what was published, and knows what may not be sold."""

from __future__ import annotations

import re

import pytest

from tercet.data import tables
from tercet.data.adapters import ADAPTERS, PAIRS
from tercet.data.catalogue import TOTALS, catalogue, conflicts, find, of_stage


@pytest.mark.parametrize("stage", TOTALS)
def test_the_parts_add_up_to_the_published_total(stage: str) -> None:
    assert sum(dataset.rows for dataset in of_stage(stage)) == TOTALS[stage]


def test_every_part_of_the_mixes_is_there() -> None:
    assert {stage: len(of_stage(stage)) for stage in TOTALS} == {
        "sft": 19,
        "preference 8b": 7,
        "preference 70b": 7,
        "rlvr": 3,
    }
    labels = [dataset.label for dataset in of_stage("sft")]
    assert len(set(labels)) == 19


def test_every_entry_is_complete_and_names_an_adapter() -> None:
    for dataset in catalogue():
        assert dataset.adapter in {*ADAPTERS, *PAIRS}, dataset.name
        assert (dataset.adapter in PAIRS) == ("references" in dataset.name or dataset.stage.startswith("preference"))
        assert dataset.licence
        assert dataset.policy
        assert re.fullmatch(r"([0-9a-f]{40})?", dataset.revision), dataset.name
        assert dataset.hub.count("/") == (1 if dataset.hub else 0)


def test_a_source_is_found_by_any_of_its_names() -> None:
    flan = find("FLAN v2")
    assert flan is not None
    assert find("Open-Orca/FLAN") is find("Open-Orca/FLAN:t0_fsopt_data") is flan
    assert find("ai2-adapt-dev/flan_v2_converted") is flan
    mix = "allenai/tulu-3-sft-mixture"
    assert find(f"{mix}:ai2-adapt-dev/flan_v2_converted") is flan
    whole = find(mix)
    assert whole is not None
    assert whole.stage == "published"
    assert find(f"{mix}:unheard-of") is None
    assert find("rows.jsonl") is None
    assert find("") is None


def test_what_stands_against_commercial_use_is_said() -> None:
    assert conflicts(["OpenAssistant/oasst1", "LipengCS/Table-GPT:All", "openai/gsm8k:main"]) == []
    said = conflicts(["HuggingFaceH4/no_robots", "Open-Orca/FLAN", "mine.jsonl", "mine.jsonl"])
    assert [line.split(":")[0] for line in said] == ["HuggingFaceH4/no_robots", "Open-Orca/FLAN", "mine.jsonl"]
    assert "CC-BY-NC-4.0 and what it holds do not allow commercial use" in said[0]
    assert "unclear" in said[1]
    assert "not in the catalogue" in said[2]


def test_the_template_has_slots_and_no_name_of_another_maker() -> None:
    pairs = tables.entries("hardcoded.jsonl", tuple[str, str])
    text = " ".join(part for pair in pairs for part in pair)
    assert set(re.findall(r"\{\{(\w+)\}\}", text)) == {"name", "maker", "base", "licence", "page", "about_maker"}
    assert len({question for question, _ in pairs}) == len(pairs)
