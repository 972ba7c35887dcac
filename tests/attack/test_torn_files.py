"""Files that a run keeps for itself, torn, altered, replaced or gone: seen, said, and made again, never used.

The promise: whatever becomes of one file between two runs, the second ends in the bytes of a run that nobody disturbed.
"""

from __future__ import annotations

import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.attack.scale import times
from tests.data.synthesis.test_on_policy import StageRun, Writer, often_right, sums

from tercet import hub, journal
from tercet.data.synthesis.request_log import RequestLog
from tercet.hub import downloads
from tercet.journal import JournalError
from tercet.kernels import native
from tercet.rows import Completion, Source
from tercet.store import payload_digest, source_digest

TRAINING = {
    "sft": {"num_epochs": 2},
    "dpo": {"num_epochs": 2},
    "kto": {"num_epochs": 2},
    "rlvr": {"rounds": 4},
    "lagged": {"rounds": 4},
    "ppo": {"rounds": 4},
}


class Bomb:
    """A pickle that leaves a mark where it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.mark),)


def tear(file: Path, chance: random.Random, mark: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: chance.randrange(len(data))])


def flip(file: Path, chance: random.Random, mark: Path) -> None:
    data = bytearray(file.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    file.write_bytes(data)


def empty(file: Path, chance: random.Random, mark: Path) -> None:
    file.write_bytes(b"")


def explode(file: Path, chance: random.Random, mark: Path) -> None:
    file.write_bytes(pickle.dumps(Bomb(mark)))


def link(file: Path, chance: random.Random, mark: Path) -> None:
    other = mark.with_name(f"other-{file.name}")
    file.rename(other)
    flip(other, chance, mark)
    file.symlink_to(other)


def lose(file: Path, chance: random.Random, mark: Path) -> None:
    file.unlink()


WAYS = (tear, flip, empty, explode, link, lose)


@pytest.fixture(scope="module")
def finished(filled_workspace, tmp_path_factory):
    """Each stage as it is after its last step, made when first asked for: where it lies, and the digest it ended in."""
    found: dict[str, tuple[Path, Any, str]] = {}

    def of(stage: str) -> tuple[Path, Any, str]:
        if stage not in found:
            folder = tmp_path_factory.mktemp(stage)
            own = filled_workspace.copy(folder / "runs")
            own.run_stage(stage, folder / "whole", **{stage: TRAINING[stage]})
            found[stage] = folder, own, payload_digest(folder / "whole")
        return found[stage]

    return of


def files_of(stage: str) -> list[str]:
    """Every kind of file that a stage's second run reads, as patterns from the folder of `finished`."""
    draft = ["whole.draft/work/checkpoints/step-*/*.safetensors", "whole.draft/work/checkpoints/step-*/*.json"]
    if stage in ("sft", "dpo", "kto"):
        draft += [".cache/tokens/*.arrow", ".cache/tokens/*.sha256"]
    if stage in ("dpo", "kto"):
        draft += ["whole/tercet/reference.parquet", "whole/tercet/reference.json", "whole.draft/work/*.sha256"]
    if stage == "kto":
        draft += ["whole/tercet/mismatched.parquet"]
    return draft if stage in ("sft", "dpo", "kto") else [*draft, "whole.draft/work/rollouts.jsonl"]


CASES = [(stage, pattern, way) for stage in TRAINING for pattern in files_of(stage) for way in WAYS]
CHOSEN = sorted(random.Random(15).sample(range(len(CASES)), times(len(CASES))))


@pytest.mark.parametrize(
    ("stage", "pattern", "way"),
    [
        pytest.param(*CASES[i], id=f"{CASES[i][0]}: {CASES[i][2].__name__} {Path(CASES[i][1]).name} is seen")
        for i in CHOSEN
    ],
)
def test_a_stage_that_continues_ends_in_the_bytes_of_one_that_nobody_disturbed(
    finished, tmp_path, capfd, stage, pattern, way
):
    folder, own, digest = finished(stage)
    again = tmp_path / "again"
    shutil.copytree(folder, again, symlinks=True)
    for file in (again / "runs").rglob("*"):
        file.chmod(file.stat().st_mode | 0o200)
    chance = random.Random(f"{stage} {pattern} {way.__name__}")
    file = sorted(again.glob(pattern))[-1]
    for path in (again / "whole").glob("*"):  # of the payload only the table of the reference is there in a draft
        if path.name != "tercet":
            path.unlink() if path.is_file() else shutil.rmtree(path)
    way(file, chance, tmp_path / "opened")
    disturbed = type(own)(type(own.store)(again / "runs"), own.recipe_file)
    capfd.readouterr()
    if way is link and file.suffix == ".jsonl":
        with pytest.raises(JournalError, match=f"{file}: a link"):
            disturbed.run_stage(stage, again / "whole", **{stage: TRAINING[stage]})
        file.unlink()  # what the message says to do
    disturbed.run_stage(stage, again / "whole", **{stage: TRAINING[stage]})
    assert not (tmp_path / "opened").exists(), "a pickle was opened"
    assert payload_digest(again / "whole") == digest
    said = capfd.readouterr().err
    if "checkpoints" in pattern:
        assert "continuing from the checkpoint of step" in said
        assert file.parent.name in said
    if file.suffix == ".arrow" and way is not lose:
        assert file.name in said


@pytest.mark.parametrize("stage", TRAINING if times(10) > 1 else ["sft", "rlvr"])
def test_with_both_checkpoints_damaged_training_begins_anew_and_ends_in_the_same_bytes(
    finished, tmp_path, capfd, stage
):
    folder, own, digest = finished(stage)
    again = tmp_path / "again"
    shutil.copytree(folder / "whole.draft", again / "out.draft")
    for number, name in enumerate(("*.safetensors", "*.json")):
        file = sorted(again.glob(f"out.draft/work/checkpoints/step-*/{name}"))[number]
        (flip, tear)[number](file, random.Random(stage), tmp_path / "opened")
    capfd.readouterr()
    own.run_stage(stage, again / "out", **{stage: TRAINING[stage]})
    assert payload_digest(again / "out") == digest
    assert capfd.readouterr().err.count("beginning anew") == 2


@pytest.mark.parametrize("number", range(times(50)))
def test_sampled_answers_that_were_damaged_are_drawn_again(tmp_path, number):
    whole, chance = StageRun(tmp_path, sums(70)), random.Random(number)
    whole.run(Writer(often_right), num_generations=2)
    digest = payload_digest(tmp_path / "out")
    way = WAYS[number % len(WAYS)]
    way(whole.log, chance, tmp_path / "opened")
    if way is link:
        with pytest.raises(JournalError, match="a link"):
            whole.run(Writer(often_right), num_generations=2)
        whole.log.unlink()
    whole.run(Writer(often_right), num_generations=2)
    assert payload_digest(tmp_path / "out") == digest
    assert not (tmp_path / "opened").exists()


@pytest.mark.parametrize("number", range(times(100)))
def test_no_answer_of_a_damaged_request_log_is_another(tmp_path, number):
    path, chance, said = tmp_path / "log.jsonl", random.Random(number), []
    texts = {f"{i:064x}": f"answer {i} ü" for i in range(20)}
    with RequestLog(path) as log:
        for key, text in texts.items():
            log.reserve({key: 0.5})
            log.write(key, "model", Completion(text, (), (), "eos", "", 3), (9, 3, 0.25))
    way = WAYS[number % len(WAYS)]
    way(path, chance, tmp_path / "opened")
    if way is link:
        with pytest.raises(JournalError, match="a link"):
            journal.mend(path, said.append)
        return
    journal.mend(path, said.append)
    with RequestLog(path) as log:
        found = {key: log.claim([key])[0] for key in texts}
        assert all(answer[key].text == texts[key] for key, answer in found.items() if key in answer)
        if way is flip:
            assert len(log) >= len(texts) - 2
        assert log.spent.cost <= 0.25 * len(texts)


@pytest.mark.parametrize("way", WAYS)
def test_a_download_that_was_damaged_is_fetched_again(tmp_path, monkeypatch, way):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "rows.jsonl").write_text('{"text": "ü"}\n' * 50)
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "GITHUB", f"file://{tmp_path}/there/{{file}}")
    source = Source("github:owner/name/rows.jsonl", "", "train", "abc")
    wanted = [row for row, _ in hub.stream(source, {})]
    (file,) = (tmp_path / "cache" / "files").glob("*/rows.jsonl")
    for part in (file, file.with_name(f"{file.name}.sha256")):
        way(part, random.Random(part.name), tmp_path / "opened")
        assert [row for row, _ in hub.stream(source, {})] == wanted
        assert not file.is_symlink()
        assert journal.intact(file)


@pytest.mark.parametrize("way", WAYS if times(10) > 1 else WAYS[:1])
def test_a_kernel_library_that_was_damaged_is_compiled_again(tmp_path, monkeypatch, way):
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path / "cache"))
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    build = getattr(native, "_built")  # noqa: B009 - the library in the cache, without loading it into this process
    file = build(compiler, ("-fopenmp-simd",))
    way(file, random.Random(way.__name__), tmp_path / "opened")
    assert build(compiler, ("-fopenmp-simd",)) == file
    assert journal.intact(file)
    assert not file.is_symlink()


@pytest.mark.parametrize("number", range(times(60)))
def test_a_digest_that_was_damaged_is_computed_again(tmp_path, number):
    (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
    os.utime(tmp_path / "rows.jsonl", (1, 1))
    wanted, cache = source_digest(tmp_path / "rows.jsonl"), tmp_path / "cache"
    entry = None
    while entry is None:  # what changed within the last tick is not remembered
        assert source_digest(tmp_path / "rows.jsonl", cache) == wanted
        entry = next(iter(cache.glob("*")), None)
    WAYS[number % len(WAYS)](entry, random.Random(number), tmp_path / "opened")
    assert source_digest(tmp_path / "rows.jsonl", cache) == wanted
