"""What a machine gives a run: versions, disk, ranks."""

from __future__ import annotations

import shutil
from collections import namedtuple

import pytest

from tercet.forecast.machines import machine
from tercet.forecast.shape import known
from tercet.forecast.stages import Work, setting_of
from tercet.preflight import here
from tercet.recipe import Recipe


@pytest.mark.parametrize(
    ("version", "bounds", "holds"),
    [
        ("2.13.0+cpu", ">=2.11", True),
        ("2.9.1", ">=2.11", False),
        ("5.17", ">=5.17,<6", True),
        ("6.0.0rc1", "<6,>=5.17", False),
        ("3.9.10", ">=3.9.2,<3.10", True),
        ("1", ">=1.0", True),
        ("0.9", "", True),
    ],
)
def test_a_version_keeps_its_bounds_by_number_and_not_by_letter(version, bounds, holds):
    assert here.within(version, bounds) is holds


def test_the_packages_here_are_those_that_the_project_asks_for():
    assert here.versions().state == "ok"


def test_a_package_outside_its_range_cannot_work(monkeypatch):
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda _: ["numpy>=99", "gone-for-good>=1", 'x>=1; extra == "y"']
    )
    found = here.versions()
    assert found.state == "cannot work"
    assert "is outside >=99; gone-for-good is missing" in found.what


def recipe(**placement: int) -> Recipe:
    sft = {"kind": "sft", "model": "base", "rows": "words"}
    words = {"kind": "synth", "generator": "words@1", "rows": 8}
    about = {"name": "r", "base": {"model": "tiny:"}, "stage": {"words": words, "sft": sft}}
    return Recipe.model_validate(about | {"placement": placement})


def test_a_disk_that_cannot_hold_weights_and_checkpoints_is_found(tmp_path, monkeypatch):
    shape, where, made = known("meta-llama/Llama-3.1-8B"), machine("cpu"), recipe()
    spec = made.stage["sft"]
    works = [Work("sft", spec, shape, None, setting_of(spec, made, where), {"steps": 3})]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 10**11))
    found = here.disk(works, [], tmp_path / "not" / "made", where)
    assert found.state == "cannot work"
    assert "224.8 GB" in found.what  # 4 bytes a weight and twice 12, of 8.03 billion
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**12, 0, 10**12))
    assert here.disk(works, [], tmp_path, where).state == "ok"


def test_more_ranks_than_cores_are_no_gain(monkeypatch):
    monkeypatch.setattr("tercet.machine.cores", lambda: 2)
    assert here.ranks(recipe(ranks=1)).state == "ok"
    found = here.ranks(recipe(ranks=4))
    assert (found.state, "there are 2 cores" in found.what) == ("warning", True)
