"""The pipeline with real stage processes; what they run are small fakes that tests can stop, kill and break."""

from __future__ import annotations

import importlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from tercet import pipeline
from tercet.faults import faults
from tercet.launch.ending import StageError
from tercet.recipe import KINDS, MixSpec, Recipe, RecipeError, load
from tercet.stage import main
from tercet.store import Store

STAGE = '''
"""A stage for tests: counts up to spec.rows in small steps, keeps its place in `work`, and fails when ordered to."""
import os, signal, sys, time
from pathlib import Path
from tercet.stats import GateError
from tercet.rows import RowError

def run(spec, inputs, out, ctx):
    assert "torch" not in sys.modules
    rows = getattr(spec, "rows", 3) or 3
    order, place = os.environ.get("FAKE", "").partition(":")[::2], ctx.work / "place"
    began = int(place.read_text()) if place.exists() else 0
    for step in range(began, rows):
        if order[0] == ctx.name:
            obey(order[1], step, ctx, out)
        place.write_text(str(step + 1))
        ctx.track.log(step, loss=1.0 / (step + 1))
        ctx.track.progress(step + 1, rows)
    with open(os.environ.get("CALLS", os.devnull), "a") as calls:
        calls.write(f"{ctx.name} from {began} seed {ctx.seed}\\n")
    text = "".join(f"{step}\\n" for step in range(rows)) + "".join(sorted(inputs))
    (out / "rows.txt").write_text(text)
    return {"rows": rows}

def obey(order, step, ctx, out):
    if order == "slow":
        time.sleep(0.05)
    elif step == 2 and order == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif step == 2 and order == "crash":
        raise KeyError("a bug")
    elif step == 2 and order == "bad":
        raise RowError("rows.jsonl, line 3: bad row; fix it")
    elif step == 2 and order == "library":
        raise ValueError("something inside a library")
    elif step == 2 and order == "gate":
        raise GateError("words 0.1 is below 0.3")
    elif step == 2 and order == "full":
        with open("/dev/full", "w") as stream:
            stream.write("x")
'''


@pytest.fixture
def fakes(tmp_path, monkeypatch):
    """Synth, mix and base are fakes; `FAKE=STAGE:ORDER` makes one of them misbehave."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "fake_stage.py").write_text(STAGE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'modules'}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    for kind in ("synth", "mix", "base"):
        monkeypatch.setattr(KINDS[kind], "module", "fake_stage")
        monkeypatch.setattr(KINDS[kind], "version", 1)
    return tmp_path


@pytest.fixture
def store(tmp_path):
    yield Store(tmp_path / "runs")
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)


def recipe(rows: int = 4, **changes) -> Recipe:
    stage = {
        "mixed": {"kind": "mix", "sources": [{"stage": "words"}, {"stage": "talk"}]},
        "words": {"kind": "synth", "generator": "words@1", "rows": rows},
        "talk": {"kind": "synth", "generator": "talk@1", "rows": 3},
    }
    return Recipe.model_validate({"name": "r", "seed": 1, "base": {"model": "tiny:"}, "stage": stage} | changes)


def run(what: Recipe, store: Store, **options):
    stream = io.StringIO()
    made = pipeline.run(what, store, console=Console(file=stream, width=200), **options)
    return made, stream.getvalue()


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines() if (folder / "calls").exists() else []


def drafts(store: Store) -> list[str]:
    return [path.name for path in store.root.glob(".draft-*")]


def fails(what: Recipe, store: Store) -> StageError:
    with pytest.raises(StageError) as caught:
        run(what, store)
    return caught.value


def test_a_run_makes_what_is_missing_and_a_second_run_makes_nothing(fakes, store):
    made, text = run(recipe(), store)
    assert [line.split()[0] for line in calls(fakes)] == ["words", "talk", "mixed"]
    assert made["mixed"].inputs == {"words": made["words"].key, "talk": made["talk"].key}
    assert "words (synth) starts" in text
    assert run(recipe(), store) == (made, "")
    assert len(calls(fakes)) == 3


def test_from_scratch_twice_gives_equal_payloads(fakes, store, tmp_path):
    first, second = run(recipe(), store)[0], run(recipe(), Store(tmp_path / "other"))[0]
    assert [a.record["digest"] for a in first.values()] == [a.record["digest"] for a in second.values()]


def test_only_runs_the_stages_asked_for_and_what_they_need(fakes, store):
    assert list(run(recipe(), store, only=["talk"])[0]) == ["talk"]
    assert list(run(recipe(), store, only=["mixed"])[0]) == ["words", "talk", "mixed"]
    with pytest.raises(RecipeError, match="stages of this recipe: words, talk, mixed"):
        run(recipe(), store, only=["absent"])


def test_a_recipe_without_stages_makes_its_base_model(fakes, store):
    assert list(run(recipe(stage={}), store)[0]) == ["base"]


def test_placement_and_name_are_in_no_key_but_seed_and_input_are(fakes, store):
    def keys(what):
        return {name: node.key for name, node in pipeline.graph(what, store).items()}

    plain = keys(recipe())
    assert keys(recipe(placement={"threads": 1, "micro_tokens": 99}, name="other")) == plain
    assert all(keys(recipe(seed=2))[name] != key for name, key in plain.items())
    longer = keys(recipe(rows=5))
    assert longer["talk"] == plain["talk"]
    assert longer["words"] != plain["words"]
    assert longer["mixed"] != plain["mixed"]


def test_a_new_version_of_a_stage_kind_is_a_new_key(fakes, store, monkeypatch):
    before = pipeline.graph(recipe(), store)
    monkeypatch.setattr(MixSpec, "version", 2)
    after = pipeline.graph(recipe(), store)
    assert after["mixed"].key != before["mixed"].key
    assert after["words"].key == before["words"].key


def with_source(path: str, **more) -> Recipe:
    return recipe(stage={"mixed": {"kind": "mix", "sources": [{"path": path, **more}]}})


def test_the_content_of_a_local_file_is_in_the_key_and_its_folder_is_not(store, tmp_path):
    keys = []
    for folder, text in (("a", "{}"), ("b", "{}"), ("c", "{} ")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(text)
        keys.append(pipeline.graph(with_source(str(tmp_path / folder / "rows.jsonl")), store)["mixed"].key)
    assert keys[0] == keys[1] != keys[2]


def test_a_mirrored_hub_id_is_pinned_by_the_content_of_its_file(store, tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    (tmp_path / "mirror.toml").write_text('[mirror]\n"open/rows" = "rows.jsonl"\n')
    mirror = pipeline.read_mirror(tmp_path / "mirror.toml")
    [source] = pipeline.graph(with_source("open/rows"), store, mirror)["mixed"].spec["sources"]
    assert source["path"].startswith("open/rows sha256:")
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(RecipeError, match="maps 'open/rows'"):
        pipeline.graph(with_source("open/rows"), store, mirror)


@pytest.mark.parametrize("path", ["absent.jsonl", "./absent", "/no/such/rows", "a/b/c"])
def test_a_missing_file_is_named_before_anything_runs(store, path):
    with pytest.raises(RecipeError, match="does not exist"):
        run(with_source(path), store)
    assert not store.root.exists()


def test_a_wrong_mirror_file_is_named(tmp_path):
    with pytest.raises(RecipeError, match="no such mirror file"):
        pipeline.read_mirror(tmp_path / "absent.toml")
    (tmp_path / "mirror.toml").write_text("[mirror]\na = 1\n")
    with pytest.raises(RecipeError, match=r"expected a \[mirror\] table"):
        pipeline.read_mirror(tmp_path / "mirror.toml")


def test_the_plan_says_why_a_stage_is_missing(fakes, store, monkeypatch):
    why = {line.name: line.why for line in pipeline.plan(recipe(), store)}
    assert why == {"words": "not made yet", "talk": "not made yet", "mixed": "not made yet"}
    run(recipe(), store)
    assert all(line.exists and not line.why for line in pipeline.plan(recipe(), store))
    why = {line.name: line.why for line in pipeline.plan(recipe(rows=9), store)}
    assert why == {"words": "rows 4 -> 9", "talk": "", "mixed": "input words changed"}
    monkeypatch.setattr(MixSpec, "version", 2)
    assert pipeline.plan(recipe(), store)[-1].why == "stage version 1 -> 2"
    assert pipeline.plan(recipe(rows=9), store)[-1].forecast == {"rows": 12}


def test_a_killed_stage_continues_and_ends_in_the_same_bytes(fakes, store, tmp_path, monkeypatch):
    whole = run(recipe(rows=6), Store(tmp_path / "whole"))[0]["words"].record["digest"]
    (fakes / "calls").unlink()
    monkeypatch.setenv("FAKE", "words:die")
    error = fails(recipe(rows=6), store)
    assert error.code == 1
    assert "killed by SIGKILL" in str(error)
    assert len(drafts(store)) == 1
    assert pipeline.plan(recipe(rows=6), store)[0].why == "started; will continue"
    monkeypatch.delenv("FAKE")
    made, text = run(recipe(rows=6), store)
    assert calls(fakes)[0] == "words from 2 seed 1"
    assert "continues where it stopped" in text
    assert made["words"].record["digest"] == whole
    assert drafts(store) == []


def test_bad_input_is_reported_with_its_place_and_leaves_nothing(fakes, store, monkeypatch):
    monkeypatch.setenv("FAKE", "words:bad")
    error = fails(recipe(), store)
    assert (error.code, str(error)) == (2, "stage 'words': rows.jsonl, line 3: bad row; fix it")
    assert drafts(store) == []
    assert list(store) == []


def test_a_librarys_value_error_does_not_cost_finished_work(fakes, store, monkeypatch):
    monkeypatch.setenv("FAKE", "words:library")
    assert fails(recipe(), store).code == 2
    assert len(drafts(store)) == 1


def test_a_crash_shows_the_end_of_the_log(fakes, store, monkeypatch):
    monkeypatch.setenv("FAKE", "talk:crash")
    error = fails(recipe(), store)
    assert error.code == 1
    assert "KeyError: 'a bug'" in str(error)
    assert "fake_stage.py" in str(error)
    assert [artifact.name for artifact in store] == ["words"]


def test_a_gate_that_says_no_stops_the_run_with_its_own_code(fakes, store, monkeypatch):
    monkeypatch.setenv("FAKE", "words:gate")
    error = fails(recipe(), store)
    assert error.code == 3
    assert "below 0.3" in str(error)
    assert calls(fakes) == []


def test_a_full_disk_is_one_clear_error_and_nothing_is_committed(fakes, store, monkeypatch):
    monkeypatch.setenv("FAKE", "words:full")
    error = fails(recipe(), store)
    assert error.code == 1
    assert "is full; nothing was committed" in str(error)
    assert "Traceback" not in str(error)
    assert list(store) == []


def start(store: Store, rows: int) -> subprocess.Popen[str]:
    script = (
        "import signal, sys\nfrom tercet import pipeline\nfrom tercet.recipe import KINDS, Recipe\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background jobs ignore it
        "from tercet.store import Store\n"
        "for kind in ('synth', 'mix', 'base'): KINDS[kind].module, KINDS[kind].version = 'fake_stage', 1\n"
        f"what = Recipe.model_validate_json({recipe(rows).model_dump_json()!r})\n"
        f"try: pipeline.run(what, Store({str(store.root)!r}))\n"
        "except KeyboardInterrupt: sys.exit(130)"
    )
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-u", "-c", script], stdout=pipe, stderr=subprocess.STDOUT, text=True)


def until(condition, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


def place(store: Store) -> list[Path]:
    return list(store.root.glob(".draft-words-*/work/place"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_the_stage_and_the_next_run_continues(fakes, store, monkeypatch, number):
    monkeypatch.setenv("FAKE", "words:slow")
    process = start(store, 2000)
    until(lambda: place(store))
    process.send_signal(number)
    process.communicate(timeout=15)
    assert process.returncode == 130
    [file] = place(store)
    reached = file.read_text()
    time.sleep(0.3)
    assert file.read_text() == reached
    assert len(drafts(store)) == 1


def test_a_killed_pipeline_takes_its_stage_along_and_the_lock_is_free(fakes, store, monkeypatch):
    monkeypatch.setenv("FAKE", "words:slow")
    process = start(store, 100)
    until(lambda: place(store))
    process.kill()
    process.communicate()
    monkeypatch.delenv("FAKE")
    made, _ = run(recipe(rows=100), store)
    assert made["words"].metrics == {"rows": 100}
    assert not calls(fakes)[0].startswith("words from 0")


def test_of_two_racing_runs_one_works_and_the_other_waits_and_says_so(fakes, store, monkeypatch):
    monkeypatch.setenv("FAKE", "words:slow")
    processes = [start(store, 40) for _ in range(2)]
    texts = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert any("is being made by process" in text for text in texts)
    assert sorted(line.split()[0] for line in calls(fakes)) == ["mixed", "talk", "words"]
    assert all(faults(folder) == [] for folder in store.folders())


def test_a_stages_process_has_one_hash_seed_and_the_threads_of_the_placement(fakes, store, monkeypatch):
    module = "import os\ndef run(spec, inputs, out, ctx):\n"
    module += "    (out / 'env').write_text(' '.join(os.environ[k] for k in ('PYTHONHASHSEED', 'OMP_NUM_THREADS')))\n"
    (fakes / "modules" / "env_stage.py").write_text(module + "    return {}\n")
    monkeypatch.setattr(KINDS["base"], "module", "env_stage")
    made = run(recipe(stage={}, placement={"threads": 3}), store)[0]["base"]
    assert (made.payload / "env").read_text() == "0 3"


def test_relative_paths_start_at_the_recipes_folder(fakes, store, tmp_path, monkeypatch):
    module = "import os\ndef run(spec, inputs, out, ctx):\n    (out / 'here').write_text(open('here').read())\n"
    (fakes / "modules" / "here_stage.py").write_text(module + "    return {}\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "here").write_text("read")
    (tmp_path / "sub" / "r.toml").write_text('name = "r"\n[base]\nmodel = "tiny:"\n[stage]\n')
    monkeypatch.setattr(KINDS["base"], "module", "here_stage")
    made = run(load(tmp_path / "sub" / "r.toml"), store)[0]["base"]
    assert (made.payload / "here").read_text() == "read"


def test_the_real_data_stages_run_in_their_own_process(store):
    stage = {
        "words": {"kind": "synth", "generator": "words@1", "rows": 30},
        "items": {"kind": "synth", "generator": "words@1", "rows": 20, "split": "test"},
        "benchmark": {"kind": "benchmark", "tasks": ["words@1"], "items": ["items"], "limit": 10},
        "sft-data": {"kind": "mix", "sources": [{"stage": "words"}], "against": ["benchmark"]},
    }
    made, _ = run(recipe(stage=stage), store)
    assert made["sft-data"].metrics["rows"] > 0
    forecast = {line.name: line.forecast for line in pipeline.plan(recipe(stage=stage), store)}
    assert forecast["benchmark"] == {"rows": 10}


def test_a_forecast_counts_two_answers_of_each_pair(store):
    stage = {
        "prompts": {"kind": "synth", "generator": "constraints@1", "rows": 9},
        "made": {"kind": "on_policy_pairs", "model": "base", "prompts": "prompts"},
        "answers": {"kind": "unpaired_mix", "sources": [{"stage": "made"}]},
        "again": {"kind": "unpaired_mix", "sources": [{"stage": "answers"}]},
        "tuned": {"kind": "dpo", "loss": "kto", "model": "base", "pairs": "again", "batch": 6},
    }
    forecast = {line.name: line.forecast for line in pipeline.plan(recipe(stage=stage), store)}
    assert [forecast[name]["rows"] for name in ("made", "answers", "again")] == [9, 18, 18]
    assert forecast["tuned"]["steps"] == 3


KIND = '''
"""A stage kind in one module: its spec, and what makes it."""
from typing import Literal
from tercet.recipe import Recipe, StageSpec

class Count(StageSpec):
    """How many files the inputs have."""
    module = __name__
    version = 7
    produces = "number"
    accepts = {"of": ("rows", "number")}
    kind: Literal["count"] = "count"
    of: tuple[str, ...]

    def forecast(self, rows):
        return {"rows": sum(rows[name] for name in self.of)}

Recipe.model_rebuild(force=True)

def run(spec, inputs, out, ctx):
    (out / "made").write_text(ctx.name)
    return {"files": sum(len(list(inputs[name].payload.iterdir())) for name in spec.of)}
'''


@pytest.fixture
def counting(fakes, monkeypatch):
    """A module that adds the stage kind `count`, which is forgotten after the test."""
    (fakes / "modules" / "count_kind.py").write_text(KIND, encoding="utf-8")
    monkeypatch.syspath_prepend(fakes / "modules")
    importlib.import_module("count_kind")
    yield
    del KINDS["count"], sys.modules["count_kind"]
    Recipe.model_rebuild(force=True)


def test_a_stage_kind_is_one_class_and_one_module(counting, fakes, store):
    counts = {"number": {"kind": "count", "of": ["words", "talk"]}, "again": {"kind": "count", "of": ["number"]}}
    what = recipe(stage={name: spec for name, spec in recipe().stage.items() if name != "mixed"} | counts)
    lines = {line.name: line for line in pipeline.plan(what, store)}
    assert lines["number"].forecast == {"rows": 7}
    made, text = run(what, store)
    assert made["number"].metrics == {"files": 2}
    assert made["number"].record["version"] == 7
    assert "number (count) starts" in text
    assert Recipe.model_validate_json(what.model_dump_json(), strict=True) == what


def test_a_kind_of_ones_own_is_checked_like_any_other(counting, tmp_path):
    text = 'name = "r"\n[base]\nmodel = "tiny:"\n[stage.number]\nkind = "count"\n'
    for last, says in (
        ('off = ["base"]', r"line 6: unknown key 'off' .* \(did you mean 'of'\?\); allowed keys: kind, of, seed"),
        ('of = ["base"]', r"line 6: .* needs a stage of kind .*synth.* or count here, but 'base' is of kind base"),
    ):
        (tmp_path / "r.toml").write_text(text + last + "\n")
        with pytest.raises(RecipeError, match=says):
            load(tmp_path / "r.toml")
    (tmp_path / "r.toml").write_text(text.replace("count", "cuont"))
    with pytest.raises(RecipeError, match=r"line 5: unknown kind 'cuont' .*did you mean 'count'\?\); known: model, "):
        load(tmp_path / "r.toml")


def test_a_second_run_imports_no_torch(fakes, store):
    run(recipe(), store)
    script = (
        "import sys, tercet.cli.main\nfrom tercet import pipeline\nfrom tercet.recipe import KINDS, Recipe\n"
        "from tercet.store import Store\n"
        "for kind in ('synth', 'mix', 'base'): KINDS[kind].module, KINDS[kind].version = 'fake_stage', 1\n"
        f"pipeline.run(Recipe.model_validate_json({recipe().model_dump_json()!r}), Store({str(store.root)!r}))\n"
        "print([name for name in ('torch', 'transformers', 'numpy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_several_ranks_are_launched_and_only_the_first_commits(fakes, store, monkeypatch):
    module = (
        "import os, time\ndef run(spec, inputs, out, ctx):\n"
        "    rank = os.environ['RANK']\n    ctx.track.log(0, rank=int(rank))\n"
        "    (ctx.work / rank).write_text('')\n"
        "    while len(list(ctx.work.iterdir())) < 2: time.sleep(0.02)\n"
        "    time.sleep(int(rank == '0'))\n"
        "    if rank == '0': (out / 'world').write_text(os.environ['WORLD_SIZE'])\n    return {}\n"
    )
    (fakes / "modules" / "rank_stage.py").write_text(module)
    monkeypatch.setattr(KINDS["sft"], "module", "rank_stage")
    stage = {
        "words": {"kind": "synth", "generator": "words@1", "rows": 3},
        "sft": {"kind": "sft", "model": "base", "rows": "words", "max_length": 512},
    }
    for name, value in {"RANK": "3", "WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "10.0.0.1"}.items():
        monkeypatch.setenv(name, value)  # as pods set them: no stage waits for the ranks of a job that is not its own
    made = run(recipe(stage=stage, placement={"ranks": 2}), store)[0]["sft"]
    assert (made.payload / "world").read_text() == "2"
    assert (made.path / "metrics.jsonl").read_text() == '{"step": 0, "rank": 0}\n'


def test_a_stage_refuses_a_folder_without_a_job(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"job\.json"):
        main(["--draft", str(tmp_path)])


def test_the_job_in_a_draft_is_plain_json(fakes, store, monkeypatch):
    monkeypatch.setenv("FAKE", "words:die")
    fails(recipe(), store)
    [job] = store.root.glob(".draft-words-*/job.json")
    assert json.loads(job.read_text())["module"] == "fake_stage"
