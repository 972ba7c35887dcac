"""KTO in the dpo stage: its KL is the step's, whoever computes it, and mismatched answers answer other prompts."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tercet.models.chat import Chat
from tercet.models.forest import Leaf, Tree
from tercet.models.hf_folder import load_model, load_tokenizer
from tercet.rows import Message, read_pairs, read_table
from tercet.store import payload_digest
from tercet.track import read_metrics
from tercet.train.batch import chosen_rows
from tercet.train.checks import CheckError
from tercet.train.kto import Labels, check_batches, mismatched

SETTINGS = {"loss": "kto", "beta": 0.1, "dtype": "float32", "warmup_ratio": 0.0, "schedule": "constant", "eps": 1e-4}
SEED = 5  # of the workspace's recipe


@pytest.fixture
def run_stage(workspace, tmp_path):
    """Run the dpo stage with kto into `tmp_path/NAME`, a checkpoint after every step; returns payload and curve."""

    def run_stage(name: str = "out", micro_tokens: int = 256, *, stage: str = "dpo", **settings):
        out, placement = tmp_path / name, {"micro_tokens": micro_tokens}
        workspace.run_stage(stage, out, placement=placement, **{stage: {**SETTINGS, **settings}})
        return out, read_metrics(out.with_name(out.name + ".draft") / "metrics.jsonl")

    return run_stage


def tree(number: int) -> Tree:
    """A pair whose prompts part before the answers: the first token of each leaf is prompt."""
    chosen, rejected = (Leaf([50, side, number], [False, True, True]) for side in (1, 2))
    return Tree([100 + number, 9], [chosen, rejected])


def test_each_prompt_gets_the_chosen_answer_of_the_next_pair_in_the_steps_order():
    made = mismatched([tree(i) for i in range(6)], [4, 0, 3], 99)
    assert [one.trunk for one in made] == [[104, 9, 50], [100, 9, 50], [103, 9, 50]]
    assert [one.leaves for one in made] == [[Leaf([1, n], [True, True])] for n in (0, 3, 4)]
    assert mismatched([tree(0), tree(1)], [0, 1], 4)[0] == Tree([100, 9, 50], [Leaf([1], [True])])


@pytest.mark.parametrize(
    ("pairs", "batch", "total", "fine"),
    [(16, 4, 8, True), (16, 1, 8, False), (1, 4, 1, False), (17, 4, 5, False), (17, 4, 4, True), (18, 4, 5, True)],
)
def test_a_pair_that_is_alone_in_its_step_is_refused_where_the_run_would_meet_it(pairs, batch, total, fine):
    if fine:
        check_batches(pairs, batch, total)
    else:
        with pytest.raises(CheckError, match=rf"{pairs} pairs in steps of batch = {batch} leave one alone"):
            check_batches(pairs, batch, total)


def test_the_stage_refuses_batches_of_one(run_stage):
    with pytest.raises(CheckError, match="choose another batch"):
        run_stage(batch=1)


def test_kto_starts_at_half_with_a_kl_of_nothing_and_tells_the_answers_apart(run_stage):
    _, curve = run_stage(num_epochs=4, beta=0.5, learning_rate=3e-3)
    assert curve[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert curve[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert curve[-1]["loss"] < 0.45
    assert curve[-1]["accuracy"] > 0.9
    assert curve[-1]["reward_chosen"] > curve[-1]["reward_rejected"]
    assert all(line["kl"] >= 0.0 for line in curve)


def test_weights_of_the_two_kinds_scale_the_first_loss(run_stage):
    _, curve = run_stage(steps=1, desirable_weight=3.0, undesirable_weight=0.5)
    assert curve[0]["loss"] == pytest.approx((3.0 + 0.5) / 4, abs=1e-5)


@pytest.mark.parametrize("stage", ["dpo", "kto"])
@pytest.mark.parametrize("settings", [{}, {"polyak": 0.5, "polyak_every": 2}], ids=["table", "moving reference"])
def test_how_a_step_is_cut_changes_nothing(run_stage, settings, stage):
    settings |= {"num_epochs": 2, "learning_rate": 3e-3}
    whole, curve = run_stage("whole", 100_000, stage=stage, **settings)
    cut, again = run_stage("cut", 32, stage=stage, **settings)
    assert any(line["kl"] > 1e-3 for line in curve)
    for one, other in zip(curve, again, strict=True):
        for name in ("loss", "kl", "reward_chosen", "reward_rejected", "grad_norm"):
            assert other[name] == pytest.approx(one[name], rel=1e-3, abs=1e-5), name
    weights = [load_file(folder / "model.safetensors") for folder in (whole, cut)]
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, rtol=1e-4, atol=1e-5)


def test_a_live_reference_that_has_not_moved_yet_gives_the_tables_kl(run_stage):
    _, known = run_stage("known", steps=5, learning_rate=3e-3)
    _, live = run_stage("live", steps=5, learning_rate=3e-3, polyak=0.5, polyak_every=100)
    assert known[-1]["kl"] > 1e-3
    for one, other in zip(known, live, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-6)
        assert other["kl"] == pytest.approx(one["kl"], abs=1e-5)


def logp(model, chat: Chat, prompt, answer: str) -> float:
    """By transformers alone, one conversation at a time."""
    asked, ids = chat.pair(prompt, answer)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*asked, *ids]])).logits[0, len(asked) - 1 : -1].double()
    return float(logits.log_softmax(1).gather(1, torch.tensor(ids)[:, None]).sum())


def test_the_losses_are_the_papers_formula_on_the_log_probabilities_of_transformers(run_stage, workspace):
    out, _ = run_stage("one", steps=1, learning_rate=3e-3)
    _, curve = run_stage("two", steps=2, learning_rate=3e-3)
    base = workspace.store.open("base").payload
    pi, ref = (load_model(folder, torch.float32, attention="sdpa") for folder in (out, base))
    chat = Chat(load_tokenizer(base))
    pairs = read_pairs(workspace.store.open("preference-data").payload / "pairs.parquet")
    step = [pairs[i] for i in chosen_rows(1, len(pairs), 4, SEED)]

    def ratio(prompt: tuple[Message, ...], answer: str) -> float:
        return logp(pi, chat, prompt, answer) - logp(ref, chat, prompt, answer)

    others = [ratio(a.prompt, b.chosen[-1].content) for a, b in zip(step, [*step[1:], step[0]], strict=True)]
    kl = max(0.0, sum(others) / len(others))
    assert curve[1]["kl"] == pytest.approx(kl, abs=1e-4)
    signed = [beta * (ratio(p.prompt, side[-1].content) - kl) for p in step for beta, side in sides(p)]
    losses = [1 - float(torch.tensor(x, dtype=torch.float64).sigmoid()) for x in signed]
    assert len(losses) == 8
    assert curve[1]["loss"] == pytest.approx(sum(losses) / 8, abs=1e-5)


def sides(pair):
    return (0.1, pair.chosen), (-0.1, pair.rejected)


def test_a_run_that_continues_ends_in_the_same_bytes_and_reads_its_table(run_stage, tmp_path):
    whole, _ = run_stage("whole", num_epochs=2)
    shutil.copytree(tmp_path / "whole.draft" / "work", tmp_path / "later" / "whole.draft" / "work")
    shutil.copytree(whole / "tercet", tmp_path / "later" / "whole" / "tercet")
    later, curve = run_stage("later/whole", num_epochs=2)
    assert [line["step"] for line in curve] == [8]
    assert payload_digest(later) == payload_digest(whole)
    table = read_table(whole / "tercet" / "mismatched.parquet")
    assert [row["step"] for row in table] == [step for step in range(8) for _ in range(4)]


def test_unpaired_losses_are_the_papers_formula_on_the_log_probabilities_of_transformers(run_stage, workspace):
    """In float64, one answer at a time: eq. 7 and 8 with z0 from the answers of the step to the prompts before them."""
    settings = {"stage": "kto", "learning_rate": 3e-3, "desirable_weight": 1.5, "undesirable_weight": 0.5}
    out, first = run_stage("one", steps=1, **settings)
    _, curve = run_stage("two", steps=2, **settings)
    base = workspace.store.open("base").payload
    pi, ref = (load_model(folder, torch.float32, attention="sdpa") for folder in (out, base))
    chat = Chat(load_tokenizer(base))
    rows = read_table(workspace.store.open("labelled").payload / "unpaired.parquet")
    weights = [1.5 if rows[i]["good"] else 0.5 for i in chosen_rows(0, len(rows), 5, SEED)]
    assert first[0]["loss"] == pytest.approx(sum(weights) / 2 / 5, abs=1e-5)
    step = [rows[i] for i in chosen_rows(1, len(rows), 5, SEED)]
    asked = [tuple(Message(turn["role"], turn["content"]) for turn in row["messages"][:-1]) for row in step]
    said = [row["messages"][-1]["content"] for row in step]

    def ratios(answers: list[str]) -> list[float]:
        scored = zip(asked, answers, strict=True)
        return [logp(pi, chat, prompt, text) - logp(ref, chat, prompt, text) for prompt, text in scored]

    kl = max(0.0, sum(ratios([*said[1:], said[0]])) / 5)
    found, losses = ratios(said), []
    for row, ratio in zip(step, found, strict=True):
        weight, sign = (1.5, 1) if row["good"] else (0.5, -1)
        losses.append(weight * (1 - 1 / (1 + math.exp(-sign * 0.1 * (ratio - kl)))))
    assert {row["good"] for row in step} == {True, False}
    assert curve[1]["kl"] == pytest.approx(kl, abs=1e-4)
    assert curve[1]["loss"] == pytest.approx(sum(losses) / 5, abs=1e-5)
    good = [ratio for row, ratio in zip(step, found, strict=True) if row["good"]]
    assert curve[1]["reward_chosen"] == pytest.approx(0.1 * sum(good) / len(good), abs=1e-4)


def test_unpaired_answers_are_told_apart_and_a_bad_one_becomes_less_likely(run_stage):
    out, curve = run_stage(stage="kto", num_epochs=8, beta=0.5, learning_rate=3e-3)
    assert curve[0]["loss"] == pytest.approx(0.5, abs=1e-5)
    assert curve[0]["kl"] == pytest.approx(0.0, abs=1e-5)
    assert curve[-1]["loss"] < 0.45
    assert curve[-1]["accuracy"] > 0.9
    assert curve[-1]["reward_chosen"] > 0 > curve[-1]["reward_rejected"]
    assert curve[-1]["logps_rejected"] < curve[0]["logps_rejected"]
    assert set(read_table(out / "tercet" / "reference.parquet")[0]) == {"row", "logp"}


def test_the_anchor_of_unpaired_answers_is_the_good_ones_mean_token_loss(run_stage):
    _, plain = run_stage("plain", stage="kto", steps=1, batch=20)
    _, anchored = run_stage("anchored", stage="kto", steps=1, batch=20, sft_weight=0.5)
    share = 12 / 20  # that is good
    assert anchored[0]["loss"] - plain[0]["loss"] == pytest.approx(0.5 * share * math.log(259), rel=0.02)


def test_an_unpaired_run_that_continues_ends_in_the_same_bytes(run_stage, tmp_path):
    whole, _ = run_stage("whole", stage="kto", num_epochs=2)
    shutil.copytree(tmp_path / "whole.draft" / "work", tmp_path / "later" / "whole.draft" / "work")
    shutil.copytree(whole / "tercet", tmp_path / "later" / "whole" / "tercet")
    later, curve = run_stage("later/whole", stage="kto", num_epochs=2)
    assert [line["step"] for line in curve] == [8]
    assert payload_digest(later) == payload_digest(whole)
    again, _ = run_stage("again", stage="kto", num_epochs=2)
    assert payload_digest(again) == payload_digest(whole)


def test_a_run_says_how_the_weighted_numbers_of_good_and_bad_answers_compare(workspace, tmp_path, capsys):
    found = workspace.run_stage("kto", tmp_path / "out", kto={**SETTINGS, "steps": 1, "desirable_weight": 0.5})
    assert (found["good"], found["bad"]) == (12.0, 8.0)
    assert found["weighted_ratio"] == pytest.approx(0.75)
    said = "12 good and 8 bad answers: desirable_weight x good / (undesirable_weight x bad) is 0.75; "
    said += "the paper advises 1 to 1.5 (eq. 9): set desirable_weight = 0.667"
    assert said in capsys.readouterr().err
    assert said in (tmp_path / "out" / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    ("labels", "weights", "says"),
    [
        ([True, True, False], (1.0, 1.0), "is 2.00; the paper advises 1 to 1.5 (eq. 9): set undesirable_weight = 2"),
        ([True, False], (1.0, 1.0), "is 1.00; the paper advises 1 to 1.5 (eq. 9)"),
        ([True, True], (1.0, 1.0), "2 good and 0 bad answers: KTO tells good answers from bad ones and needs both"),
        ([False], (1.0, 1.0), "0 good and 1 bad answers: KTO tells good answers from bad ones and needs both"),
    ],
)
def test_the_balance_of_labels_is_a_sentence_with_a_way_out(labels, weights, says):
    assert Labels(np.array(labels), np.arange(len(labels)), weights).sentence().endswith(says)


def test_a_step_of_one_unpaired_row_is_refused_as_rows(run_stage):
    with pytest.raises(CheckError, match="20 rows in steps of batch = 1 leave one alone"):
        run_stage(stage="kto", batch=1)


@pytest.mark.parametrize("stage", ["dpo", pytest.param("kto", marks=pytest.mark.slow)])
def test_two_ranks_have_one_ranks_kl_losses_and_weights(workspace, launch, run_stage, stage):
    settings = {**SETTINGS, "num_epochs": 2, "learning_rate": 3e-3, "polyak": 0.5, "polyak_every": 3}
    sets = [f"stage.{stage}.{key}={json.dumps(value)}" for key, value in settings.items()]
    running = launch(workspace, stage, "placement.ranks=2", "placement.threads=1", *sets)
    assert running.process.wait(timeout=240) == 0, running.output.read_text(encoding="utf-8")
    two = workspace.store.open(stage)
    one, mine = run_stage("one", stage=stage, **settings)
    theirs = read_metrics(two.path / "metrics.jsonl")
    for ours, other in zip(mine, theirs, strict=True):
        assert other["loss"] == pytest.approx(ours["loss"], rel=1e-4, abs=1e-5)
        assert other["kl"] == pytest.approx(ours["kl"], rel=1e-3, abs=1e-4)
    assert any(line["kl"] > 1e-3 for line in mine)
    alone, shared = (load_file(folder / "model.safetensors") for folder in (one, two.payload))
    for name, weight in alone.items():
        torch.testing.assert_close(shared[name], weight, rtol=1e-4, atol=1e-5)
