from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tercet.cli import main
from tercet.recipe import KINDS

STAGE = '''
"""Fakes of the stages that need weights: a model is one tensor, a benchmark gives the same answers every time."""
import json
from pathlib import Path
import numpy
from safetensors.numpy import save_file

def run(spec, inputs, out, ctx):
    if not hasattr(spec, "benchmark"):
        config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 8, "vocab_size": 4}
        (out / "config.json").write_text(json.dumps(config | {"num_attention_heads": 1, "num_hidden_layers": 1}))
        save_file({"model.norm.weight": numpy.full(8, 1.5, numpy.float32)}, out / "model.safetensors")
        (out / "tercet").mkdir(exist_ok=True)
        (out / "tercet" / "private").write_text("")
        return {}
    right = [int(ctx.name == "after" or item % 2) for item in range(40)]
    keys = ("task", "skill", "metric", "answer", "outcome", "template")
    same = dict(zip(keys, ("words@1", "words", "accuracy", "", "graded", "")))
    lines = [same | {"item": str(item), "digest": str(item), "score": float(score)} for item, score in enumerate(right)]
    (out / "results.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    score = sum(right) / 40
    entry = {"metric": "accuracy", "score": score, "n": 40, "stderr": 0.05, "low": 0.0, "high": 1.0}
    (out / "scores.json").write_text(json.dumps({"words@1": entry}))
    return {"words@1": score}
'''

RECIPE = """
name = "small"
seed = 17
[base]
model = "tiny:"
[stage.words]
kind = "synth"
generator = "words@1"
rows = 30
[stage.items]
kind = "synth"
generator = "words@1"
rows = 30
split = "test"
[stage.benchmark]
kind = "benchmark"
tasks = ["words@1"]
items = ["items"]
[stage.sft]
kind = "sft"
model = "base"
rows = "words"
max_length = 512
[stage.before]
kind = "eval"
model = "base"
benchmark = "benchmark"
[stage.after]
kind = "eval"
model = "sft"
benchmark = "benchmark"
"""


def prepare(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a recipe into a folder and go there; base, sft and eval are fakes, everything else is real."""
    (folder / "modules").mkdir()
    (folder / "modules" / "cli_stage.py").write_text(STAGE, encoding="utf-8")
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", f"{folder / 'modules'}:{os.environ.get('PYTHONPATH', '')}")
    monkeypatch.delenv("TERCET_MIRROR", raising=False)
    monkeypatch.chdir(folder)
    for kind in ("base", "sft", "eval"):
        monkeypatch.setattr(KINDS[kind], "module", "cli_stage")


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a recipe that has not been run."""
    prepare(tmp_path, monkeypatch)
    yield tmp_path
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)


@pytest.fixture(scope="module")
def finished_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        prepare(folder, patch)
        assert main.main(["run", "recipe.toml"]) == 0
    yield folder
    subprocess.run(["chmod", "-R", "u+w", str(folder)], check=True)


@pytest.fixture
def finished(finished_folder, monkeypatch):
    """A folder whose recipe has been run; shared, so only to be read."""
    monkeypatch.chdir(finished_folder)
    return finished_folder


@pytest.fixture
def tercet(capsys):
    """Run a command line: exit code, standard output, standard error."""

    def tercet(*argv: str) -> tuple[int, str, str]:
        code = main.main(argv)
        said = capsys.readouterr()
        return code, said.out, said.err

    return tercet


def left_behind(place: Path) -> list[str]:
    return [path.name for path in (place / "runs").glob("*") if not path.name.startswith((".locks", ".cache"))]


def test_run_makes_the_stages_prints_the_scores_and_then_has_nothing_to_do(tercet, place):
    code, out, _ = tercet("run", "recipe.toml")
    assert code == 0
    assert "before" in out.splitlines()[-3]
    assert out.splitlines()[-1].split() == ["words@1", "accuracy", "40", "0.500", "±", "0.050", "1.000", "±", "0.050"]
    code, out, _ = tercet("run", "recipe.toml")
    assert code == 0
    assert out.startswith("nothing to do: all 7 stages exist\n")
    assert "1.000 ± 0.050" in out


def test_plan_tells_every_stage_in_words_and_in_json(tercet, place):
    tercet("run", "recipe.toml", "--only", "words")
    code, out, _ = tercet("plan", "recipe.toml")
    assert code == 0
    assert "1 of 7 stages exist" in out
    code, out, _ = tercet("plan", "recipe.toml", "--json", "--set", "stage.words.rows=31")
    lines = {line["name"]: line for line in json.loads(out)}
    assert lines["words"]["why"] == "rows 30 -> 31"
    assert lines["sft"]["forecast"]["steps"] == 1


@pytest.fixture
def model_folder(tiny_folder, place) -> Path:
    return shutil.copytree(tiny_folder, place / "model")


def test_plan_says_how_a_model_folder_is_read(tercet, place, model_folder):
    code, out, _ = tercet("plan", "recipe.toml", "--set", f"base.model={model_folder}")
    assert code == 0
    said = "LlamaForCausalLM: read in forests, what answers share is computed once"
    assert f"base: {said}" in out.splitlines()
    code, out, _ = tercet("plan", "recipe.toml", "--json", "--set", f"base.model={model_folder}")
    assert code == 0
    assert {line["name"]: line.get("reading") for line in json.loads(out)}["base"] == said


def test_plan_refuses_a_model_folder_that_cannot_be_read_with_code_two(tercet, place, model_folder):
    config = json.loads((model_folder / "config.json").read_text("utf-8"))
    config |= {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"]}
    (model_folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    code, _, err = tercet("plan", "recipe.toml", "--set", f"base.model={model_folder}")
    assert code == 2
    assert "got an encoder-decoder (T5ForConditionalGeneration); use a decoder" in err
    assert not left_behind(place)


def test_plan_refuses_a_template_that_stages_cannot_train_with(tercet, place, model_folder):
    endless = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    endless += "{% if add_generation_prompt %}assistant: {% endif %}"
    (place / "endless.jinja").write_text(endless, encoding="utf-8")
    sets = ["--set", f"base.model={model_folder}", "--set", "base.template=endless.jinja"]
    code, _, err = tercet("plan", "recipe.toml", *sets)
    assert code == 2
    assert "missing end-of-turn token" in err
    assert tercet("plan", "recipe.toml", *sets[:2], "--set", "base.template=tulu3")[0] == 0


def test_show_prints_a_recipe_that_resolves_to_itself(tercet, place):
    shown = tercet("show", "recipe.toml", "--set", "seed=5")[1]
    (place / "again.toml").write_text(shown)
    assert tercet("show", "again.toml")[1] == shown
    assert json.loads(tercet("show", "again.toml", "--json")[1])["seed"] == 5


def test_schema_is_json_schema_with_a_sentence_for_every_knob(tercet):
    found = json.loads(tercet("schema")[1])
    assert found["$defs"]["SFTSpec"]["additionalProperties"] is False
    knobs = [knob for table in found["$defs"].values() for name, knob in table["properties"].items() if name != "kind"]
    assert all(knob.get("description") for knob in knobs)


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("run", "absent.toml"), "no such recipe file"),
        (("run", "recipe.toml", "--set", "stage.sft.epoch=2"), "did you mean 'num_epochs'"),
        (("run", "recipe.toml", "--only", "sftt"), "stages of this recipe"),
        (("run", "recipe.toml", "--mirror", "absent.toml"), "no such mirror file"),
        (("plan", "recipe.toml", "--set", 'stage.benchmark.tasks=["nope@1"]'), "nope@1"),
        (("eval", "https://example.org/v1", "--tasks", "words@1"), "URL"),
        (("eval", "absent", "--tasks", "words@1"), "no such folder or artifact"),
        (("eval", "tiny:"), "--tasks is missing"),
        (("eval", "tiny:", "--tasks", "nope@1"), "nope@1"),
        (("chat", "absent"), "no such folder or artifact"),
        (("compare", "a", "b"), "no such artifact"),
        (("grade", "nope@1", "file"), "unknown verifier"),
        (("grade", "gsm8k@1", "absent.jsonl"), "absent.jsonl: no such file"),
        (("lineage", "absent"), "no such artifact"),
        (("check",), "holds no artifacts"),
        (("export", "absent", "out"), "no such artifact"),
        (("report", "absent"), "holds no report"),
        (("report", "recipe.toml"), "has no stage of kind report"),
    ],
)
def test_bad_input_is_one_message_exit_code_two_and_nothing_left_behind(tercet, place, argv, says):
    code, out, err = tercet(*argv)
    assert code == 2
    assert says in err
    assert err.startswith("tercet: ")
    assert "Traceback" not in err
    assert out == ""
    assert left_behind(place) == []


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ('{"messages": [{"role": "user", "content": "hi"}]', "line 2: not valid JSON"),
        ('{"messages": [{"role": "user", "content": "hi"}]}', "no assistant turn"),
        (
            '{"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": " "}]}',
            "empty completion",
        ),
        ('{"messages": [{"role": "robot", "content": "hi"}]}', "expected one of system, user, assistant"),
    ],
)
def test_a_bad_row_stops_the_run_with_its_file_and_line(tercet, place, line, says):
    good = {"messages": [{"role": "user", "content": "hello"}, {"role": "assistant", "content": "hello you"}]}
    (place / "rows.jsonl").write_text(json.dumps(good) + "\n" + line + "\n")
    mixed = '[stage.mixed]\nkind = "mix"\nsources = [{ path = "rows.jsonl", max_bad = 0 }]\n'
    (place / "mixed.toml").write_text('name = "m"\n[base]\nmodel = "tiny:"\n' + mixed)
    code, _, err = tercet("run", "mixed.toml")
    assert code == 2
    assert says in err
    assert "rows.jsonl" in err
    assert left_behind(place) == []


def test_a_full_disk_outside_a_stage_is_one_message(tercet, place, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "mkdir", full)
    code, _, err = tercet("run", "recipe.toml")
    assert code == 1
    assert "is full; nothing was committed" in err


def test_eval_builds_the_benchmark_and_prints_its_table(tercet, place):
    code, out, err = tercet("eval", "tiny:", "--tasks", "words@1", "--limit", "5", "--json")
    assert code == 0
    assert json.loads(out)["scores"]["words@1"]["n"] == 40
    assert "eval (eval) starts" in err
    tercet("run", "recipe.toml", "--only", "sft")
    [sft] = (place / "runs").glob("sft-*")
    code, out, _ = tercet("eval", str(sft), "--tasks", "words@1", "--limit", "5", "--json")
    assert code == 0
    found = json.loads(out)["artifact"]
    assert json.loads(tercet("eval", "sft", "--tasks", "words@1", "--limit", "5", "--json")[1])["artifact"] == found


def test_an_artifact_of_another_kind_is_no_model(tercet, place):
    tercet("run", "recipe.toml", "--only", "words")
    [words] = (place / "runs").glob("words-*")
    assert "is a synth artifact; expected a model" in tercet("eval", str(words), "--tasks", "words@1")[2]


def test_compare_pairs_two_benchmarks(tercet, finished):
    code, out, _ = tercet("compare", "before", "after")
    assert code == 0
    assert "+0.500" in out
    lines = json.loads(tercet("compare", "before", "after", "--json", "--tasks", "words@1")[1])["tasks"]
    assert lines[0]["difference"] == 0.5
    assert lines[0]["low"] > 0
    assert tercet("compare", "words", "after")[0] == 2


def test_grade_tells_every_line_and_the_mean(tercet, place):
    pairs = [("The answer is 72.", "72"), ("It is 3.", "4"), ("no idea", "4")]
    lines = [json.dumps({"completion": completion, "reference": reference}) for completion, reference in pairs]
    (place / "out.jsonl").write_text("\n".join(lines))
    code, out, _ = tercet("grade", "gsm8k@1", "out.jsonl", "--json")
    found = json.loads(out)
    assert code == 0
    assert [grade["score"] for grade in found["grades"]] == [1.0, 0.0, 0.0]
    assert found["score"] == pytest.approx(1 / 3)
    assert "over 3 completions" in tercet("grade", "gsm8k@1", "out.jsonl")[1]


@pytest.mark.parametrize("line", ["{", '{"completion": "x"}', "[]", '{"completion": 3, "reference": "3"}'])
def test_grade_names_a_bad_line(tercet, place, line):
    (place / "out.jsonl").write_text('{"completion": "3", "reference": "3"}\n\n' + line)
    code, _, err = tercet("grade", "gsm8k@1", "out.jsonl")
    assert code == 2
    assert "out.jsonl, line 3" in err


def test_lineage_shows_what_an_artifact_was_made_from(tercet, finished):
    code, out, _ = tercet("lineage", "after")
    assert code == 0
    assert [line.split("-")[0].strip() for line in out.splitlines()] == [
        "after",
        "sft",
        "base",
        "words",
        "benchmark",
        "items",
    ]
    assert [record["name"] for record in json.loads(tercet("lineage", "after", "--json")[1])][-1] == "after"


def test_check_says_no_with_code_three_when_a_payload_has_changed(tercet, place):
    tercet("run", "recipe.toml", "--only", "words")
    assert tercet("check")[0] == 0
    [file] = (place / "runs").glob("words-*/payload/rows.parquet")
    file.chmod(0o600)
    file.write_bytes(b"changed")
    code, out, _ = tercet("check", "words")
    assert code == 3
    assert "payload has changed" in out
    assert list(json.loads(tercet("check", "--json")[1])["faults"])


def test_export_writes_a_plain_folder_with_a_card(tercet, finished, tmp_path):
    model = str(tmp_path / "model")
    code, out, _ = tercet("export", "sft", model)
    assert code == 0
    assert "exported sft-" in out
    found = sorted(path.name for path in (tmp_path / "model").iterdir())
    assert found == ["README.md", "config.json", "model.safetensors"]
    assert os.access(tmp_path / "model" / "config.json", os.W_OK)
    card = (tmp_path / "model" / "README.md").read_text()
    for part in (
        "## Lineage",
        "| base | base |",
        "30 rows of the generator `words@1`",
        "| words@1 | accuracy | 1.000 ± 0.050 |",
    ):
        assert part in card
    assert "exists; export into a folder" in tercet("export", "sft", model)[2]
    assert "only models can be exported" in tercet("export", "words", "other")[2]


def test_report_finds_the_page_of_a_store_and_of_a_recipe(tercet, place, monkeypatch):
    module = "def run(spec, inputs, out, ctx):\n    (out / 'index.html').write_text('page')\n    return {}\n"
    (place / "modules" / "page_stage.py").write_text(module)
    monkeypatch.setattr(KINDS["report"], "module", "page_stage")
    (place / "page.toml").write_text('extends = "recipe.toml"\n[stage.page]\nkind = "report"\nevals = ["before"]\n')
    code, out, _ = tercet("report", "page.toml")
    assert code == 0
    assert Path(out.strip()).read_text() == "page"
    assert tercet("report", "runs")[1] == out
    assert json.loads(tercet("report", "runs", "--json")[1]) == [out.strip()]
    assert f"report: {out}" in tercet("run", "page.toml")[1]


def test_chat_answers_the_lines_of_a_pipe(place, tiny_folder):
    argv = [
        sys.executable,
        "-m",
        "tercet",
        "chat",
        str(tiny_folder),
        "--max-new-tokens",
        "4",
        "--json",
        "--temperature",
        "0",
    ]
    text = "hello\n\n/reset\nhello\nagain\n/quit\nnever\n"
    done = subprocess.run(argv, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    turns = [json.loads(line) for line in done.stdout.splitlines()]
    assert [turn["user"] for turn in turns] == ["hello", "hello", "again"]
    assert turns[0] == turns[1]


def test_the_public_surface_is_listed_in_one_place():
    import tercet

    assert all(getattr(tercet, name) is not None for name in tercet.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = tercet.nothing


def test_module_and_command_are_the_same(place):
    done = subprocess.run([sys.executable, "-m", "tercet", "schema"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["title"] == "Recipe"
