"""The verb `gc`: it says what may go, and removes nothing that a recipe, a report or a running stage needs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time

import pytest

from tercet.cli import main
from tercet.store import Store


@pytest.fixture
def place(made, recipe, tmp_path):
    """A copy of a finished store, with an old draft, a young one and a cache."""
    runs = tmp_path / "runs"
    shutil.copytree(made.root, runs)
    for name, days in (("old-0123456789ab", 3), ("young-0123456789ab", 0)):
        (runs / f".draft-{name}" / "work").mkdir(parents=True)
        for path in (runs / f".draft-{name}" / "work", runs / f".draft-{name}"):
            os.utime(path, (time.time() - days * 86_400,) * 2)
    (runs / ".cache" / "tokens").mkdir(parents=True, exist_ok=True)
    (runs / ".cache" / "tokens" / "some.arrow").write_bytes(b"x" * 1000)
    yield Store(runs)
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)


@pytest.fixture
def gc(place, capsys):
    """Run the verb: exit code, the names of what may go, standard error."""

    def gc(*options: str):
        capsys.readouterr()
        code = main.main(["gc", *options, "--store", str(place.root), "--json"])
        out, err = capsys.readouterr()
        return code, [os.path.basename(one["path"]) for one in json.loads(out)["found"]] if out else [], err

    return gc


def everything(store: Store) -> list[str]:
    return sorted(str(path.relative_to(store.root)) for path in store.root.rglob("*"))


def test_without_delete_nothing_is_removed(gc, place):
    before = everything(place)
    code, found, _ = gc()
    assert code == 0
    assert found == [".draft-old-0123456789ab", ".cache"]
    assert everything(place) == before


def test_what_the_recipe_needs_stays_and_the_rest_goes(gc, place, recipe, made):
    changed = ("run", str(recipe), "--store", str(place.root), "--only", "words", "--set", "stage.words.rows=3")
    assert main.main(changed) == 0
    drafts = {".draft-old-0123456789ab", ".draft-young-0123456789ab"}
    [other] = set(os.listdir(place.root)) - set(os.listdir(made.root)) - drafts
    code, found, err = gc(str(recipe), "--delete")
    assert code == 0, err
    assert other in found
    assert not (place.root / other).exists()
    assert not (place.root / ".draft-old-0123456789ab").exists()
    assert [path.name for path in place.folders()] == [path.name for path in made.folders()]
    assert place.lineage(place.open("page"))  # all that the report shows
    assert main.main(["check", "--store", str(place.root)]) == 0
    assert gc(str(recipe))[1] == [".cache"]  # what the check has read, remembered


def test_a_draft_that_somebody_works_on_stays_and_nothing_is_deleted_meanwhile(gc, place):
    with place.lock("old", "0123456789ab", lambda who: None):
        assert ".draft-old-0123456789ab" not in gc()[1]
        code, _, err = gc("--delete")
    assert code == 2
    assert "is in use (old-0123456789ab)" in err
    assert gc("--delete")[0] == 0


def test_a_recipe_of_which_nothing_is_there_would_empty_the_store_and_is_refused(gc, recipe):
    code, _, err = gc(str(recipe), "--set", "seed=99", "--set", "base.model=tiny:seed=99")
    assert code == 2
    assert "so all would go" in err
