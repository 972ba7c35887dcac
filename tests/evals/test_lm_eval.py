"""Both ways between us and lm-evaluation-harness; what needs it is skipped where it is not installed."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tercet.evals.fakes import EchoGenerator, OracleGenerator
from tercet.evals.lm_eval import harness
from tercet.evals.lm_eval.export import export_results
from tercet.evals.lm_eval.harness import HarnessError, as_lm, task_of

SHOTS = [{"question": "How many legs have two cats?", "answer": "Two times four is 8. So the answer is 8."}]
SUMS = [{"question": f"What is {i} plus {i}?", "answer": f"Twice {i}. #### {2 * i}"} for i in range(1, 5)]
TALES = [
    {"subject": subject, "question": f"Which letter is number {i + 1}?", "choices": list("WXYZ"), "answer": i}
    for subject in ("anatomy", "virology")
    for i in range(4)
]
third_party = pytest.mark.filterwarnings("ignore")  # warnings of a package that is not ours


@pytest.fixture
def lm_eval() -> ModuleType:
    pytest.importorskip("lm_eval")
    return pytest.importorskip("lm_eval.evaluator")


@pytest.fixture
def small(tmp_path: Path) -> dict[str, str]:
    """A mirror with a few rows of the public layouts."""
    files = {"sums": SUMS, "shots": SHOTS, "mmlu": TALES}
    for name, rows in files.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    mirror = {
        "openai/gsm8k:test": "sums",
        "github:allenai/olmo-eval/src/olmo_eval/evals/tasks/gsm8k.py": "shots",
        "cais/mmlu:test": "mmlu",
        "cais/mmlu:dev": "mmlu",
    }
    return {source: str(tmp_path / f"{name}.jsonl") for source, name in mirror.items()}


@pytest.fixture(scope="session")
def local(tiny_folder: Path) -> Any:
    from tercet.models.generate import LocalGenerator

    return LocalGenerator.open(tiny_folder, "float32")


@pytest.fixture
def peer(tiny_folder: Path, lm_eval: ModuleType) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(tiny_folder), dtype="float32", device="cpu", batch_size=4)


def asked(*pairs: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=pair) for pair in pairs]


def simple(lm_eval: ModuleType, model: Any, task: Any, **more: Any) -> Any:
    return lm_eval.simple_evaluate(model=model, tasks=[task], bootstrap_iters=1, **more)


# ---- our results in its layout ----


def test_an_export_has_the_scores_of_the_payload(workspace: Any) -> None:
    workspace.write_benchmark()
    workspace.evaluate("gold")
    whole = export_results(workspace.root / "gold")
    scores = json.loads((workspace.root / "gold" / "scores.json").read_text())
    assert set(whole["results"]) == set(scores) == set(whole["configs"]) == set(whole["samples"])
    assert whole["results"]["words@1"]["acc,none"] == 1.0
    assert whole["results"]["words@1"]["acc_stderr,none"] == scores["words@1"]["stderr"]
    assert whole["results"]["talk@1"]["bits_per_byte,none"] == scores["talk@1"]["score"]
    assert whole["higher_is_better"]["talk@1"] == {"bits_per_byte": False}
    assert whole["versions"]["words@1"] == 1
    assert whole["n-samples"]["facts@1"] == {"original": 3, "effective": 3}
    assert whole["configs"]["words@1"]["generation_kwargs"]["do_sample"] is False


def test_an_exported_sample_has_question_answer_and_verdict(workspace: Any) -> None:
    workspace.write_benchmark("words@1", "facts@1")
    workspace.evaluate("gold")
    samples = export_results(workspace.root / "gold")["samples"]
    written, chosen = samples["words@1"][1], samples["facts@1"][0]
    assert (written["doc_id"], written["target"], written["resps"], written["filtered_resps"], written["acc"]) == (
        *(1, "6", [["So the answer is 6."]], ["6"], 1.0),
    )
    assert json.loads(written["arguments"]["gen_args_0"]["arg_0"])[-1]["content"].startswith("Tim has 1 pens")
    assert written["arguments"]["gen_args_0"]["arg_1"]["until"] == []
    assert [chosen["arguments"][f"gen_args_{i}"]["arg_1"] for i in range(4)].count("Paris") == 1
    assert len(chosen["resps"]) == 4
    assert float(chosen["resps"][int(chosen["target"])][0][0]) == max(float(one[0][0]) for one in chosen["resps"])
    assert chosen["metrics"] == ["acc", "acc_norm", "acc_bytes"]


def test_subsets_are_exported_as_a_group(workspace: Any, small: dict[str, str], tmp_path: Path) -> None:
    payload = evaluated(workspace, "mmlu:mc@1", small)
    whole = export_results(payload)
    parts = ["mmlu:mc@1_anatomy", "mmlu:mc@1_virology"]
    assert whole["group_subtasks"]["mmlu:mc@1"] == parts == list(whole["samples"])
    assert whole["groups"]["mmlu:mc@1"]["sample_len"] == 8
    assert [whole["results"][part]["sample_len"] for part in parts] == [4, 4]
    mean = math.fsum(whole["results"][part]["acc,none"] for part in parts) / 2
    assert whole["results"]["mmlu:mc@1"]["acc,none"] == mean


def test_items_that_were_not_graded_are_not_exported(workspace: Any) -> None:
    workspace.write_benchmark("words@1")
    workspace.evaluate("gold")
    file = workspace.root / "gold" / "results.jsonl"
    first, *rest = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line) + "\n" for line in ({**first, "outcome": "error"}, *rest)))
    assert len(export_results(workspace.root / "gold")["samples"]["words@1"]) == 5


@third_party
def test_an_export_reads_like_the_harness_own_results(
    workspace: Any, lm_eval: ModuleType, small: dict[str, str]
) -> None:
    from lm_eval.utils import make_table

    ours = export_results(evaluated(workspace, "gsm8k:lm@1", small))
    theirs = simple(lm_eval, as_lm(EchoGenerator()), task_of("gsm8k:lm@1", small))
    assert set(theirs["results"]["gsm8k:lm@1"]) == set(ours["results"]["gsm8k:lm@1"])
    assert set(theirs["samples"]["gsm8k:lm@1"][0]) <= set(ours["samples"]["gsm8k:lm@1"][0])
    assert ours["samples"]["gsm8k:lm@1"][2]["prompt_hash"] == theirs["samples"]["gsm8k:lm@1"][2]["prompt_hash"]
    assert {"results", "configs", "versions", "n-samples", "higher_is_better", "n-shot"} <= set(ours)
    assert "gsm8k:lm@1" in make_table(ours)


def evaluated(workspace: Any, name: str, mirror: dict[str, str]) -> Path:
    """The payload of an evaluation on a public task, put to a model that repeats the question."""
    from tercet.evals import benchmark, run
    from tercet.recipe import BenchmarkSpec, EvalSpec

    workspace.model = EchoGenerator()
    (workspace.root / "benchmark").mkdir()
    (workspace.root / "echo").mkdir()
    benchmark.run(
        BenchmarkSpec(tasks=(name,)), workspace.inputs, workspace.root / "benchmark", workspace.ctx(mirror=mirror)
    )
    run.run(
        EvalSpec(model="base", benchmark="benchmark"),
        workspace.inputs,
        workspace.root / "echo",
        workspace.ctx("work-echo"),
    )
    return workspace.root / "echo"


# ---- its evaluations on our models ----


@third_party
def test_our_model_writes_what_the_harness_back_end_writes(local: Any, peer: Any) -> None:
    settings = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": False}
    other = {"until": ["e"], "max_gen_toks": 30}
    requests = asked(("One, two,", settings), ("Q: Why?\nA:", other), ("One, two, three and a half", settings))
    assert as_lm(local).generate_until(requests) == peer.generate_until(requests, disable_tqdm=True)


@third_party
def test_our_model_scores_what_the_harness_back_end_scores(local: Any, peer: Any) -> None:
    requests = asked(
        *(
            ("The sky is", " blue"),
            ("The sky is", " green and red"),
            ("", "A text of its own"),
            ("Ends in space ", "x"),
        ),
        ("Ends in lines\n\n", "then more"),
    )
    ours, theirs = as_lm(local).loglikelihood(requests), peer.loglikelihood(requests, disable_tqdm=True)
    assert [logp for logp, _ in ours] == pytest.approx([logp for logp, _ in theirs], abs=1e-3)
    assert [greedy for _, greedy in ours] == [greedy for _, greedy in theirs]


@third_party
def test_a_token_that_the_tokenizer_sets_first_is_set_once(tiny_folder: Path, tmp_path: Path, lm_eval: Any) -> None:
    from lm_eval.models.huggingface import HFLM

    from tercet.models.generate import LocalGenerator

    shutil.copytree(tiny_folder, tmp_path / "model")
    file = tmp_path / "model" / "tokenizer.json"
    start = {"id": "<|im_start|>", "ids": [257], "tokens": ["<|im_start|>"]}
    pieces = {part: [{"Sequence": {"id": part, "type_id": 0}}] for part in "AB"}
    first = [{"SpecialToken": {"id": start["id"], "type_id": 0}}]
    template = {"type": "TemplateProcessing", "single": first + pieces["A"], "pair": first + pieces["A"] + pieces["B"]}
    changed = {**json.loads(file.read_text()), "post_processor": {**template, "special_tokens": {start["id"]: start}}}
    file.unlink()
    file.write_text(json.dumps(changed))
    ours = as_lm(LocalGenerator.open(tmp_path / "model", "float32"))
    theirs = HFLM(pretrained=str(tmp_path / "model"), dtype="float32", device="cpu", batch_size=4)
    assert theirs.tok_encode("a") == [257, ord("a")]
    requests = asked(("The sky is", " blue"), ("<|im_start|>user\nHello", " you"))
    expected = [logp for logp, _ in theirs.loglikelihood(requests, disable_tqdm=True)]
    assert [logp for logp, _ in ours.loglikelihood(requests)] == pytest.approx(expected, abs=1e-3)


@third_party
def test_a_text_longer_than_the_context_is_scored_in_windows(local: Any, peer: Any) -> None:
    requests = asked(("Short.",), ("abcdefgh " * 300,))  # 2,700 tokens; the context has 2,048
    ours, theirs = as_lm(local).loglikelihood_rolling(requests), peer.loglikelihood_rolling(requests, disable_tqdm=True)
    assert ours == pytest.approx(theirs, rel=1e-5)


@third_party
@pytest.mark.parametrize("open_turn", [False, True])
def test_our_model_renders_conversations_as_the_harness_back_end_does(local: Any, peer: Any, open_turn: bool) -> None:
    history = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}]
    history += [{"role": "assistant", "content": "Well,"}] * open_turn
    ours = as_lm(local).apply_chat_template(history, add_generation_prompt=not open_turn)
    assert ours == peer.apply_chat_template(history, add_generation_prompt=not open_turn)
    assert as_lm(local).tokenizer_name
    assert as_lm(local).chat_template(True) == peer.chat_template(True)


@third_party
def test_the_harness_gives_its_own_benchmark_to_our_model(lm_eval: ModuleType, small: dict[str, str]) -> None:
    config = {
        "task": "doubles",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": small["openai/gsm8k:test"]}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer.split('#### ')[1]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 5},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    knows = OracleGenerator({row["question"]: row["answer"].split("#### ")[1] for row in SUMS})
    assert simple(lm_eval, as_lm(knows), config)["results"]["doubles"]["exact_match,none"] == 1.0
    assert sorted(knows.asked) == sorted(row["question"] for row in SUMS)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"until": "Q:"}, (256, 0.0, ("Q:",))),
        ({"until": ["a", ""], "max_gen_toks": 9, "temperature": 0.7, "do_sample": False}, (9, 0.0, ("a",))),
        ({"do_sample": True}, (256, 1.0, ())),
        ({"temperature": 0.7}, (256, 0.7, ())),
    ],
)
def test_generation_settings_are_read_as_the_harness_means_them(settings: dict[str, Any], expected: Any) -> None:
    found = harness._sampling(settings)
    assert (found.max_new_tokens, found.temperature, found.stop) == expected


def test_an_unknown_generation_setting_is_refused() -> None:
    with pytest.raises(HarnessError, match="num_beams"):
        harness._sampling({"num_beams": 4})


@third_party
def test_what_a_server_cannot_do_is_said(lm_eval: ModuleType) -> None:
    with pytest.raises(HarnessError, match="EchoGenerator shows neither tokenizer nor chat template"):
        as_lm(EchoGenerator()).apply_chat_template([{"role": "user", "content": "Hello"}])
    with pytest.raises(HarnessError, match="local model"):
        as_lm(EchoGenerator()).loglikelihood_rolling(asked(("text",)))


# ---- our evaluations in its hands ----


@third_party
@pytest.mark.parametrize(("name", "glue"), [("gsm8k:lm@1", "Q"), ("gsm8k@2", "Question")])
def test_our_benchmark_is_graded_by_our_verifier(
    lm_eval: ModuleType, small: dict[str, str], name: str, glue: str
) -> None:
    task = task_of(name, small)
    benchmark = [task.fewshot_context(doc, 0) for doc in task.test_docs()]
    answers = [f"It is {2 * i}." for i in (1, 2, 3, 7)]
    found = simple(lm_eval, as_lm(OracleGenerator(dict(zip(benchmark, answers, strict=True)))), task)
    assert found["results"][name]["acc,none"] == 0.75
    assert found["samples"][name][3]["acc"] == 0.0
    assert benchmark[0].startswith(f"{glue}: How many legs have two cats?")
    assert benchmark[0].endswith(f"{glue}: What is 1 plus 1?\n{'A' if glue == 'Q' else 'Answer'}:")


@third_party
def test_our_benchmark_is_asked_through_the_model_template(
    lm_eval: ModuleType, small: dict[str, str], peer: Any
) -> None:
    task = task_of("gsm8k@2", small)
    task.set_config("generation_kwargs", {"max_gen_toks": 3}, update=True)
    found = simple(lm_eval, peer, task, apply_chat_template=True, limit=2)
    prompt = found["samples"]["gsm8k@2"][1]["arguments"][0][0]
    shown = "<|im_start|>user\nQuestion: How many legs have two cats?\nAnswer:<|im_end|>\n<|im_start|>assistant\nTwo"
    assert prompt.startswith(shown)
    assert prompt.endswith("<|im_start|>user\nQuestion: What is 2 plus 2?\nAnswer:<|im_end|>\n<|im_start|>assistant\n")


@third_party
@pytest.mark.parametrize("name", ["mmlu:mc@1", "mmlu:rc@1", "gsm8k:bpb@2"])
def test_our_scored_benchmarks_give_the_harness_what_they_give_us(
    lm_eval: ModuleType, small: dict[str, str], workspace: Any, name: str
) -> None:
    found = simple(lm_eval, as_lm(EchoGenerator()), task_of(name, small))["results"][name]
    ours = export_results(evaluated(workspace, name, small))["results"][name]
    metrics = ["bits_per_byte,none"] if "bpb" in name else ["acc,none", "acc_norm,none", "acc_bytes,none"]
    assert [found[metric] for metric in metrics] == pytest.approx([ours[metric] for metric in metrics])


@third_party
def test_samples_are_judged_together(lm_eval: ModuleType, tmp_path: Path) -> None:
    row = {"task_id": "T/0", "prompt": "def one():\n", "canonical_solution": "    return 1\n", "entry_point": "one"}
    (tmp_path / "rows.jsonl").write_text(json.dumps({**row, "test": "def check(f):\n    assert f() == 1\n"}) + "\n")
    task = task_of("humaneval@1", {"openai/openai_humaneval:test": str(tmp_path / "rows.jsonl")})
    assert task.config.repeats == 20
    assert list(task.aggregation()) == ["pass@10"]


@third_party
@pytest.mark.parametrize(("name", "why"), [("words@1", "generated"), ("alpacaeval@1", "graded by an LLM judge")])
def test_benchmarks_that_need_more_than_text_are_refused(lm_eval: ModuleType, name: str, why: str) -> None:
    with pytest.raises(HarnessError, match=why):
        task_of(name, {})
