"""Cards keep to the Hub's rules: read back by huggingface_hub, and held against the rules themselves."""

from __future__ import annotations

import pytest
from huggingface_hub import DatasetCard, ModelCard

from hub_rules import faults
from tercet.cli.card import Form, data_card, model_card, space_card


def test_a_models_card_is_read_by_the_hubs_library_and_keeps_its_rules(made):
    text = model_card(made.open("base"), made, Form(where="me/mine"))
    assert faults(text) == []
    card = ModelCard(text)
    assert card.data.license == "apache-2.0"
    assert card.data.pipeline_tag == "text-generation"
    [result] = card.data.eval_results
    assert result.metric_args["n"] == 2
    assert result.metric_args["evaluation"].startswith("eval-")
    for part in ("vllm serve me/mine", 'from_pretrained("me/mine"', "llama-cli", "## Limits", "Fewer than 100 items"):
        assert part in text


@pytest.mark.parametrize("form", [Form("adapter", adapted="org/base", where="me/mine"), Form("gguf", file="a.gguf")])
def test_each_form_says_how_it_is_loaded(made, form):
    text = model_card(made.open("base"), made, form)
    assert faults(text) == []
    assert (form.adapted or f"llama-cli -m {form.file}") in text


@pytest.mark.parametrize(("stage", "rows"), [("words", "16 rows"), ("mix", "1 rows")])
def test_a_data_sets_card_lists_its_sources(made, stage, rows):
    artifact = made.open(stage)
    text = data_card(artifact, artifact.payload / "rows.parquet", "me/rows")
    assert faults(text, "dataset") == []
    assert DatasetCard(text).data.size_categories == ["n<1K"]
    assert rows in text


def test_a_report_is_a_static_space(made):
    assert faults(space_card(made.open("page"), "a report"), "space") == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("license: mine", "license: 'mine'"),
        ("license: other", "license_name must be given in lower case"),
        ("language: [english]", "language: 'english'"),
        ("base_model: ./here", "'./here' is no repository"),
        (
            "model-index: [{name: a, results: [{task: {}, dataset: {}, metrics: []}]}]",
            "model-index: (None, None, None)",
        ),
    ],
)
def test_the_rules_find_what_the_hub_refuses(line, said):
    assert said in faults(f"---\n{line}\n---\n")
