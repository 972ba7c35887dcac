"""The registry of verifiers: every entry can be loaded, and what it says of itself is so."""

from __future__ import annotations

import inspect
import re

import pytest

from tercet.verify import VERIFIERS, llm_judge, newest, verifier
from tercet.verify.llm_judges import LLMJudge


def test_the_registry_is_in_order_and_every_name_has_a_version() -> None:
    assert list(VERIFIERS) == sorted(VERIFIERS)
    assert all(re.fullmatch(r"[a-z0-9_]+@\d", name) for name in VERIFIERS)


def test_a_name_without_a_version_is_its_newest() -> None:
    names = ("gsm8k", "math", "math_flex", "program", "gsm8k@1", "nothing")
    assert [*map(newest, names)] == ["gsm8k@2", "math@2", "math_flex@1", "program@1", "gsm8k@1", "nothing"]


@pytest.mark.parametrize("name", VERIFIERS)
def test_what_a_verifier_says_of_itself_is_so(name: str) -> None:
    found = verifier(name)
    if found.asks_model and not found.embeds:
        assert isinstance(found.loaded, LLMJudge)
        assert llm_judge(name).name == name
        return
    assert ("sandbox" in inspect.signature(found.loaded).parameters) == found.sandbox
    assert found.slow or not found.sandbox


def test_a_reference_is_needed_unless_the_verifier_looks_at_the_completion_alone() -> None:
    without = {"format@1", "length@1", "up_to_length@1", "quality@1", "refusal@1", "safety@1"}
    assert {name for name, one in VERIFIERS.items() if not one.needs_reference} == without
