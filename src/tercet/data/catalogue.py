"""Every data set of the Tülu 3 recipe in one flat table: where it is, its licence, and what is kept of it.

Counts are those of the paper (T7, T15, T22) and add up to its totals; licences are those of the data cards. A revision
is given where other public code pins the same one; an empty one must be pinned in the recipe.
`commercial` reads the licence ("no" forbids it) and the texts' origin: "unclear" where the licence is not stated, is
disputed, or where answers came from a model whose terms restrict what may be trained on them. It is no legal advice.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic.dataclasses import dataclass

from tercet.data import tables
from tercet.hub import COLUMNS


@dataclass(frozen=True, config=tables.STRICT)
class Dataset:
    """One data set. `rows` is its count in the published mix of its stage, `label` its name in that mix's `source`.

    `adapter` names a function of `adapters`; `policy` says whose answers are kept and what is left out (§4.1.1).
    """

    stage: str  # "sft", "preference 8b", "preference 70b", "rlvr", "published" (a whole mix) or "origin"
    name: str
    hub: str
    subset: str
    revision: str
    licence: str
    commercial: Literal["yes", "no", "unclear"]
    adapter: str
    rows: int
    label: str
    policy: str
    split: str = "train"


TOTALS = {"sft": 939_344, "preference 8b": 271_409, "preference 70b": 334_302, "rlvr": 29_946}  # as published


def catalogue() -> tuple[Dataset, ...]:
    """Every data set, in the order of the paper's tables."""
    return tables.entries("catalogue.csv", Dataset)


def of_stage(stage: str) -> tuple[Dataset, ...]:
    """The data sets of one stage, in the order of the paper's table."""
    return tuple(dataset for dataset in catalogue() if dataset.stage == stage)


def find(name: str) -> Dataset | None:
    """The data set a source names: by hub id (with or without a subset), by its label in a mix, or by its name.

    A part of a published mix, `allenai/tulu-3-sft-mixture:LABEL`, is the data set that has this label there.
    """
    mix, _, part = name.partition(":")
    if mix in COLUMNS and part:
        return find(part)
    for dataset in catalogue():
        known = (dataset.hub, f"{dataset.hub}:{dataset.subset}", dataset.label, dataset.name)
        if name and (name in known or (dataset.hub and name.startswith(f"{dataset.hub}:"))):
            return dataset
    return None


def conflicts(names: Iterable[str]) -> list[str]:
    """The reasons against commercial use of these sources: one sentence for each that is not plainly allowed."""
    found = []
    for name in dict.fromkeys(names):
        dataset = find(name)
        if dataset is None:
            found.append(f"{name}: not in the catalogue; its licence is not known here")
        elif dataset.commercial == "no":
            found.append(f"{name}: {dataset.licence} and what it holds do not allow commercial use")
        elif dataset.commercial == "unclear":
            found.append(f"{name}: {dataset.licence}, but commercial use is unclear ({dataset.policy})")
    return found
