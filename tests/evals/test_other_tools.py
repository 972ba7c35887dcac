"""Results in other tools' files say what the evaluation says, and those tools' own readers take them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tercet.evals.export import FORMATS, Evaluated, ExportError, write
from tercet.records import Result, Sample, Score, TaskCard, dump
from tercet.rows import PLAIN, Message, Sampling, Source

DATA = (Source("owner/words", "", "test"),)
WORDS = TaskCard("words@2", verifier="gsm8k@2", split="test", shots=0, sampling=Sampling(max_new_tokens=64), data=DATA)
ALPACA = TaskCard("alpacaeval@1", judge="alpacaeval@1", sampling=Sampling(max_new_tokens=512), data=DATA)


def payload(folder: Path) -> Path:
    """Three word problems of two samples each, one of them lost, a choice, and two of AlpacaEval's instructions."""
    ask = (Message("system", "Be brief."), Message("user", "1 + 1?"))
    right, wrong = (
        Sample("2", 1, "stop", "graded", answer="2", score=1.0),
        Sample("5 …", 2, "length", "graded", "", "5"),
    )
    lost = Sample("", 0, "error", "error", "no answer from the server")
    results = [
        Result(task="words@2", item="a", messages=ask, reference="2", samples=[right, wrong], **head(right, 0.5)),
        Result(task="words@2", item="b", messages=ask, reference="2", samples=[right, right], **head(right, 1.0)),
        Result(task="words@2", item="c", messages=ask, reference="2", samples=[lost, lost], **head(lost, 0.0)),
        Result(
            task="facts@1",
            item="d",
            metric="choice",
            messages=(Message(PLAIN, "Days in a week?"),),
            options=("five", "seven"),
            gold=1,
            logps=(-2.0, -1.0),
            greedy=(False, True),
            num_tokens=[1, 1],
            num_bytes=[4, 5],
            answer="seven",
            outcome="graded",
            score=1.0,
        ),
        *(
            Result(task="alpacaeval@1", item=str(i), messages=(Message("user", f"Ask {i} “é”"),), output=f"Say {i}")
            for i in range(2)
        ),
    ]
    scores = {
        "words@2": Score("accuracy", 0.75, 2, stderr=0.25, outcomes={"graded": 4, "error": 2}, card=WORDS),
        "facts@1": Score("choice", 1.0, 1, card=TaskCard("facts@1", metric="choice", data=DATA)),
        "alpacaeval@1": Score("accuracy", 0.5, 2, stderr=0.1, card=ALPACA),
    }
    folder.mkdir()
    (folder / "results.jsonl").write_text("".join(map(dump, results)), encoding="utf-8")
    whole = {task: score.to_json() for task, score in scores.items()}
    (folder / "scores.json").write_text(json.dumps(whole), encoding="utf-8")
    return folder


def head(sample: Sample, score: float) -> dict[str, object]:
    return vars(sample) | {"score": score}


@pytest.fixture
def done(tmp_path) -> Evaluated:
    return Evaluated(payload(tmp_path / "payload"), "sft-3f2a90c1b7de", "eval-0123456789ab")


def test_alpaca_evals_file_has_instruction_output_and_generator(done, tmp_path):
    assert write("alpaca-eval", done, tmp_path / "out") == ["model_outputs.json"]
    rows = json.loads((tmp_path / "out" / "model_outputs.json").read_text("utf-8"))
    assert [(row["instruction"], row["output"], row["generator"]) for row in rows] == [
        (f"Ask {i} “é”", f"Say {i}", "sft-3f2a90c1b7de") for i in range(2)
    ]


def test_an_evaluation_without_alpaca_evals_instructions_is_refused_with_its_tasks(done):
    for file in ("results.jsonl", "scores.json"):
        path = done.payload / file
        path.write_text(path.read_text("utf-8").replace("alpacaeval@1", "words@1"), encoding="utf-8")
    with pytest.raises(ExportError, match="the tasks are words@2, facts@1, words@1"):
        FORMATS["alpaca-eval"](done)


def test_inspects_logs_have_every_sample_as_an_epoch_with_its_score(done):
    log = next(json.loads(text) for name, text in FORMATS["inspect"](done).items() if "_words@2_" in name)
    found = [(one["id"], one["epoch"], one.get("scores", {}).get("gsm8k@2", {}).get("value")) for one in log["samples"]]
    assert found == [("a", 1, 1.0), ("a", 2, 0.0), ("b", 1, 1.0), ("b", 2, 1.0), ("c", 1, None), ("c", 2, None)]
    assert log["samples"][1]["output"]["choices"][0]["stop_reason"] == "max_tokens"
    assert log["samples"][4]["error"]["message"] == "no answer from the server"
    assert [turn["role"] for turn in log["samples"][0]["messages"]] == ["system", "user", "assistant"]
    assert log["results"]["scores"][0]["metrics"]["accuracy"]["value"] == 0.75
    assert (log["eval"]["task"], log["eval"]["task_version"], log["eval"]["config"]) == ("words", 2, {"epochs": 2})


def test_inspects_own_reader_takes_the_logs(done, tmp_path):
    reader = pytest.importorskip("inspect_ai.log", reason="inspect_ai is not installed")
    for name in write("inspect", done, tmp_path / "out"):
        log = reader.read_eval_log(str(tmp_path / "out" / name))
        assert log.status == "success"
        value = {one.value for one in log.results.scores[0].metrics.values()}
        assert done.scores[f"{log.eval.task}@{log.eval.task_version}"].score in value
        assert len(log.samples) == log.results.total_samples


def test_open_instructs_files_have_olmess_fields(done):
    files = FORMATS["open-instruct"](done)
    lines = [json.loads(line) for line in files["metrics-all.jsonl"].splitlines()]
    assert {line["task_name"]: line["metrics"]["primary_score"] for line in lines} == {
        "words": 0.75,
        "facts": 1.0,
        "alpacaeval": 0.5,
    }
    assert lines[0]["task_config"]["metadata"]["alias"] == "words"
    assert (lines[0]["num_instances"], lines[0]["metrics"]["exact_match"]) == (2, 0.75)
    whole = json.loads(files["metrics.json"])
    assert whole["all_primary_scores"] == ["words: 0.75", "facts: 1.0", "alpacaeval: 0.5"]
    assert [one["alias"] for one in whole["tasks"]] == ["words", "facts", "alpacaeval"]
    predicted = [json.loads(line) for line in files["task-000-words@2-predictions.jsonl"].splitlines()]
    assert [one["native_id"] for one in predicted] == ["a", "b"]
    assert [one["continuation"] for one in predicted[0]["model_output"]] == ["2", "5 …"]


def test_lm_evals_files_are_its_results_and_samples(done):
    files = FORMATS["lm-eval"](done)
    whole = json.loads(next(text for name, text in files.items() if name.startswith("results_")))
    assert (whole["results"]["words@2"]["acc,none"], whole["model_name"]) == (0.75, "sft-3f2a90c1b7de")
    assert "samples" not in whole
    samples = next(text for name, text in files.items() if name.startswith("samples_words@2_"))
    assert [json.loads(line)["target"] for line in samples.splitlines()] == ["2", "2"]


def test_reward_benchs_files_have_a_share_for_each_subset(tmp_path):
    folder = tmp_path / "payload" / "tercet"
    folder.mkdir(parents=True)
    subsets = {"hep-go": {"accuracy": 0.5, "n": 4}, "math-prm": {"accuracy": 1.0, "n": 2}}
    tested = {"accuracy": 2 / 3, "n": 6, "subsets": subsets, "rewardbench": {"Reasoning": {"accuracy": 0.75}}}
    done = Evaluated(tmp_path / "payload", "reward-0123456789ab", "reward-0123456789ab")
    (folder / "accuracy.json").write_text(json.dumps({"tests": {"own": {"accuracy": 1.0}}}), encoding="utf-8")
    with pytest.raises(ExportError, match="name a stage with its pairs in `tests`"):
        FORMATS["rewardbench"](done)
    (folder / "accuracy.json").write_text(json.dumps({"tests": {"bench": tested}}), encoding="utf-8")
    files = {name: json.loads(text) for name, text in FORMATS["rewardbench"](done).items()}
    assert files["eval-set.json"] == {
        "model": done.model,
        "model_type": "Seq. Classifier",
        "chat_template": "tokenizer",
        "hep-go": 0.5,
        "math-prm": 1.0,
    }
    whole = files["reward-0123456789ab.json"]
    assert (whole["num_prompts"], whole["extra_results"]) == (6, {"hep-go": 0.5, "math-prm": 1.0})
