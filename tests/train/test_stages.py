"""The training stages on the tiny model: what they write, what they refuse, and the same bytes twice."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
from collections import defaultdict

import pytest
import torch
from safetensors.torch import load_file

from rerecord import rerecord
from tercet.journal import stamp
from tercet.models.chat import Chat
from tercet.models.hf_folder import load_model, load_tokenizer
from tercet.rows import Message, Row, RowError, read_pairs, read_rows, read_table, write_table
from tercet.store import payload_digest
from tercet.track import read_metrics
from tercet.train.batch import TruncationError
from tercet.train.loop import TrainingError

CALM = {"checkpoint_seconds": 1e9}


@pytest.fixture
def run_stage(workspace, tmp_path):
    """Run a stage into `tmp_path/NAME`; returns payload, metrics of the stage, and its curve."""

    def run_stage(stage: str, name: str = "out", **settings):
        out = tmp_path / name
        metrics = workspace.run_stage(stage, out, **{stage: settings}, placement=CALM)
        return out, metrics, read_metrics(out.with_name(out.name + ".draft") / "metrics.jsonl")

    return run_stage


STRIPS = (  # writes the thoughts of earlier turns no more
    "{% for m in messages %}{% if m.role == 'user' %}U{{ m.content }}{% else %}A"
    "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}A{% endif %}"
)


def test_a_row_that_splits_trains_every_answer_behind_what_the_model_will_see(run_stage, workspace):
    base, data = (workspace.store.open(name).payload for name in ("base", "sft-data"))
    subprocess.run(["chmod", "-R", "u+w", str(workspace.store.root)], check=True)
    (base / "chat_template.jinja").write_text(STRIPS, encoding="utf-8")
    talk = [("a?", "<think>hm</think>b"), ("c?", "<think>so</think>d"), ("e?", "f")]
    turns = [Message(*turn) for ask, answer in talk for turn in (("user", ask), ("assistant", answer))]
    write_table(data / "rows.parquet", [Row("split", tuple(turns)), Row("plain", tuple(turns[-2:]))])
    for payload in (base, data):
        rerecord(payload.parent)
    out, metrics, curve = run_stage("sft", dtype="float32", batch=2, num_epochs=40, learning_rate=1e-2)
    assert (metrics["rows"], metrics["split_rows"]) == (2.0, 1.0)
    first, second = "Ua?Ab<|im_end|>", "Uc?Ad<|im_end|>"  # as later turns see them
    answers = [("Ua?A", "<think>hm</think>b"), (f"{first}Uc?A", "<think>so</think>d"), (f"{first}{second}Ue?A", "f")]
    answers.append(("Ue?A", "f"))
    losses = []
    for folder in (base, out):
        model, tokenizer = load_model(folder, torch.float32, attention="sdpa").double(), load_tokenizer(folder)
        logps = [trained_logps(model, tokenizer, *answer) for answer in answers]
        losses.append(-float(torch.cat(logps).mean()))
    assert curve[0]["loss"] == pytest.approx(losses[0], abs=1e-5)
    assert curve[0]["useful_tokens"] == sum(len(answer) + 1 for _, answer in answers)  # a byte is a token
    assert losses[1] < 0.5 * losses[0], "the model says its answers where they were asked for"


def trained_logps(model, tokenizer, before: str, answer: str) -> torch.Tensor:
    """By transformers alone: the log-probabilities of an answer's tokens and of the one that ends it."""
    asked, ids = (tokenizer(text, add_special_tokens=False).input_ids for text in (before, f"{answer}<|im_end|>"))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*asked, *ids]])).logits[0, len(asked) - 1 : -1]
    return logits.log_softmax(1).gather(1, torch.tensor(ids)[:, None])[:, 0]


def weights(folder):
    return load_file(folder / "model.safetensors")


SHORT = {"sft": {"num_epochs": 1}, "dpo": {"num_epochs": 1}, "reward": {"num_epochs": 1}, "rlvr": {"rounds": 2}}


@pytest.mark.parametrize("stage", SHORT)
def test_the_same_stage_twice_leaves_the_same_bytes(run_stage, stage):
    one, metrics, curve = run_stage(stage, "one", **SHORT[stage])
    two, again, _ = run_stage(stage, "two", **SHORT[stage])
    assert payload_digest(one) == payload_digest(two)
    assert metrics == again
    assert len(curve) == metrics["steps"]
    files = {path.name for path in one.iterdir()}
    wanted = {"config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja", "generation_config.json"}
    assert wanted | {"tokenizer_config.json", "README.md", "tercet"} <= files


@pytest.mark.parametrize("stage", SHORT)
def test_nothing_in_a_payload_says_where_it_was_made(run_stage, stage, tmp_path):
    out, _, _ = run_stage(stage, **SHORT[stage])
    for path in out.rglob("*"):
        if path.is_file():
            assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_sft_learns_its_rows_and_trains_every_assistant_turn(run_stage, workspace):
    out, metrics, curve = run_stage("sft", num_epochs=6, learning_rate=3e-3)
    rows = read_rows(workspace.store.open("sft-data").payload / "rows.parquet")
    chat = Chat(load_tokenizer(out))
    trained = sum(sum(chat.encode(row.messages).mask) for row in rows)
    assert sum(line["useful_tokens"] for line in curve[:3]) == trained, "one epoch is three steps"
    assert metrics == {"steps": 18.0, "rows": 24.0}
    assert curve[0]["loss"] == pytest.approx(math.log(259), rel=0.02)
    assert curve[-1]["loss"] < 0.8 * curve[0]["loss"]
    model = load_model(out, torch.float32, attention="sdpa")
    ids = torch.tensor([chat.encode(rows[0].messages).token_ids])
    assert torch.isfinite(model(input_ids=ids).logits).all()


def test_a_smaller_number_of_steps_ends_the_schedule_there(run_stage):
    _, metrics, curve = run_stage("sft", steps=4, num_epochs=8, warmup_ratio=0.0)
    assert metrics["steps"] == 4
    assert [line["lr"] for line in curve] == pytest.approx([1e-3, 0.75e-3, 0.5e-3, 0.25e-3])


def test_over_long_rows_follow_the_policy_and_are_counted_by_source(run_stage, workspace):
    chat = Chat(load_tokenizer(workspace.store.open("base").payload))
    rows = read_rows(workspace.store.open("sft-data").payload / "rows.parquet")
    lengths = [len(chat.render(row.messages)) - 1 for row in rows]  # the newline after the end token goes
    limit = sorted(lengths)[-4] - 1
    too_long = [length for length in lengths if length > limit]
    assert 4 <= len(too_long) < len(rows) / 2
    out, metrics, _ = run_stage("sft", "drop", steps=1, max_length=limit, max_lost=0.5)
    assert metrics["rows"] == len(rows) - len(too_long)
    table = json.loads((out / "tercet" / "truncation.json").read_text())
    assert set(table["sources"]) == {"source0", "source1"}
    assert sum(count["lost_rows"] for count in table["sources"].values()) == len(too_long)
    _, metrics, _ = run_stage("sft", "cut", steps=1, max_length=limit, overlong="cut")
    assert metrics["rows"] == len(rows)
    with pytest.raises(TruncationError, match=r"more than max_lost = 5%"):
        run_stage("sft", "stop", steps=1, max_length=limit)
    with pytest.raises(TruncationError, match=rf"has \d+ tokens, more than max_length = {limit}"):
        run_stage("sft", "error", steps=1, max_length=limit, overlong="error")


@pytest.mark.parametrize(("loss", "beta"), [("dpo", 0.1), ("dpo_norm", 5.0)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_dpo_starts_at_log_2_and_goes_down(run_stage, loss, beta, dtype):
    _, _, curve = run_stage("dpo", loss=loss, beta=beta, dtype=dtype, warmup_ratio=0.0)
    assert curve[0]["loss"] == pytest.approx(math.log(2), abs=1e-5 if dtype == "float32" else 0.01)
    assert curve[-1]["loss"] < 0.95 * math.log(2)
    assert curve[-1]["accuracy"] > 0.9
    last = curve[-1]
    assert last["margin"] == pytest.approx(last["reward_chosen"] - last["reward_rejected"], rel=1e-3, abs=1e-4)


def answer_logp(model, chat: Chat, messages) -> float:
    prompt, answer = chat.pair(messages[:-1], messages[-1].content)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
    return float(logits.log_softmax(1).gather(1, torch.tensor(answer)[:, None]).sum())


def test_the_reference_is_the_starting_models_log_probability_of_each_answer(run_stage, workspace):
    out, _, _ = run_stage("dpo", steps=1, dtype="float32")
    base = workspace.store.open("base").payload
    model, chat = load_model(base, torch.float32, attention="sdpa"), Chat(load_tokenizer(base))
    table = read_table(out / "tercet" / "reference.parquet")
    pairs = read_pairs(workspace.store.open("preference-data").payload / "pairs.parquet")
    assert [row["pair"] for row in table] == list(range(len(pairs)))
    for row, pair in zip(table[:5], pairs, strict=False):
        assert row["chosen"] == pytest.approx(answer_logp(model, chat, pair.chosen), rel=1e-4)
        assert row["rejected"] == pytest.approx(answer_logp(model, chat, pair.rejected), rel=1e-4)


def sealed(out):
    """A reference table that was altered before its digest was taken: as whole as any."""
    work = out.with_name(f"{out.name}.draft") / "work"
    work.mkdir(parents=True)
    for name in ("reference.json", "reference.parquet"):
        stamp(out / "tercet" / name, work)


def test_a_reference_of_other_weights_tokens_or_precision_is_computed_again(run_stage, tmp_path):
    one, _, _ = run_stage("dpo", "one", steps=1, dtype="float32")
    right = (one / "tercet" / "reference.parquet").read_bytes()
    (tmp_path / "two" / "tercet").mkdir(parents=True)
    write_table(tmp_path / "two" / "tercet" / "reference.parquet", [{"pair": 0, "chosen": 1.0, "rejected": 2.0}])
    note = json.loads((one / "tercet" / "reference.json").read_text())
    (tmp_path / "two" / "tercet" / "reference.json").write_text(json.dumps(note | {"tokens": "other"}))
    sealed(tmp_path / "two")
    two, _, _ = run_stage("dpo", "two", steps=1, dtype="float32")
    assert (two / "tercet" / "reference.parquet").read_bytes() == right


def test_a_reference_that_does_not_belong_to_the_weights_stops_the_run(run_stage, tmp_path):
    one, _, _ = run_stage("dpo", "one", steps=1, dtype="float32")
    shutil.copytree(one / "tercet", tmp_path / "two" / "tercet")
    table = [row | {"chosen": row["chosen"] - 3.0} for row in read_table(one / "tercet" / "reference.parquet")]
    write_table(tmp_path / "two" / "tercet" / "reference.parquet", table)
    sealed(tmp_path / "two")
    with pytest.raises(TrainingError, match=r"not log 2 = 0.693147: .*delete the draft and run again"):
        run_stage("dpo", "two", steps=1, dtype="float32")


def test_simpo_has_no_reference(run_stage, workspace):
    out, _, curve = run_stage("dpo", loss="simpo", beta=2.0, gamma_beta_ratio=0.5, dtype="float32", steps=1, batch=16)
    assert not (out / "tercet" / "reference.parquet").exists()
    base = workspace.store.open("base").payload
    model, chat = load_model(base, torch.float32, attention="sdpa"), Chat(load_tokenizer(base))
    losses = []
    for pair in read_pairs(workspace.store.open("preference-data").payload / "pairs.parquet"):
        chosen, rejected = (
            answer_logp(model, chat, side) / len(chat.pair(side[:-1], side[-1].content)[1])
            for side in (pair.chosen, pair.rejected)
        )
        losses.append(math.log1p(math.exp(-2.0 * (chosen - rejected - 0.5))))
    assert curve[0]["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-4)


def test_the_reward_model_learns_to_prefer_and_is_a_classifier_folder(run_stage):
    out, metrics, curve = run_stage("reward", num_epochs=6)
    assert (metrics["pairs"], metrics["held_out"]) == (12.0, 4.0)
    assert metrics["accuracy"] == 1.0
    assert curve[0]["loss"] > curve[-1]["loss"]
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(str(out), local_files_only=True)
    assert model.score.out_features == 1
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForSequenceClassification"]


def groups(out) -> dict[tuple[int, str], list[dict]]:
    found = defaultdict(list)
    for row in read_table(out / "tercet" / "rollouts.parquet"):
        found[row["step"], row["prompt_id"]].append(row)
    return found


def test_rlvr_rewards_verified_answers_that_end_and_centres_each_group(run_stage):
    out, metrics, curve = run_stage("rlvr", rounds=3, reward_scale=10.0)
    found = groups(out)
    assert len(found) == 3 * 6
    assert all(len(rows) == 8 for rows in found.values())
    for rows in found.values():
        assert sum(row["advantage"] for row in rows) == pytest.approx(0.0, abs=1e-6)
        for row in rows:
            assert row["reward"] == (10.0 * row["score"] if row["stop"] == "eos" else 0.0)
    assert {row["score"] for rows in found.values() for row in rows} == {0.0, 1.0}
    for line in curve:
        mine = [rows for (step, _), rows in found.items() if step == line["step"] - 1]
        flat = [rows for rows in mine if len({row["reward"] for row in rows}) == 1]
        assert line["skipped_groups"] == len(flat)
        assert line["zero_variance"] == pytest.approx(len(flat) / 6)
        assert line["reward"] == pytest.approx(sum(row["reward"] for rows in mine for row in rows) / 48)
        assert line["reward_tulu_if@1"] == pytest.approx(line["reward"])
    assert metrics["updates"] == 3
    assert curve[0]["kl"] == pytest.approx(0.0, abs=1e-6)
    assert curve[-1]["kl"] > 0
    assert curve[0]["clip_share"] == 0.0


def test_an_answer_that_never_ends_gets_the_other_reward_instead(run_stage):
    out, _, _ = run_stage("rlvr", rounds=1, no_eos_reward=-3.0)
    rows = [row for group in groups(out).values() for row in group]
    assert {row["reward"] for row in rows if row["stop"] == "length"} == {-3.0}
    assert {row["reward"] for row in rows if row["stop"] == "eos"} <= {0.0, 10.0}


def test_the_generators_log_probabilities_are_the_trainers_in_fp32(run_stage):
    _, _, curve = run_stage("rlvr", rounds=2, dtype="float32")
    assert all(line["logp_gap"] < 1e-5 for line in curve)


def replace_rows(workspace, change) -> None:
    """Put other rows into the sft-data of this test's own store."""
    path = workspace.store.open("sft-data").payload / "rows.parquet"
    rows = read_table(path)
    path.parent.chmod(0o755)
    path.unlink()
    write_table(path, [change(row) for row in rows])
    rerecord(path.parents[1])


def test_rewards_that_never_differ_give_no_update_and_are_counted(run_stage, workspace):
    impossible = json.dumps({"func_name": "validate_end", "end_phrase": "THE END OF A LONG STORY"})
    replace_rows(workspace, lambda row: row | {"reference": impossible})
    out, metrics, curve = run_stage("rlvr", rounds=2)
    assert metrics == {"steps": 2.0, "updates": 0.0, "prompts": 24.0}
    assert [line["zero_variance"] for line in curve] == [1.0, 1.0]
    base = weights(workspace.store.open("base").payload)
    assert all(torch.equal(weight, base[name]) for name, weight in weights(out).items())


def test_minibatches_learn_twice_from_one_round(run_stage):
    _, metrics, curve = run_stage("rlvr", rounds=2, minibatches=2, dtype="float32", clip_low=0.001, clip_high=0.001)
    assert (metrics["steps"], metrics["updates"]) == (4.0, 4.0)
    assert curve[0]["clip_share"] == 0.0
    assert curve[1]["clip_share"] > 0.0, "the second half meets weights that have moved"
    assert ["reward" in line for line in curve] == [True, False, True, False]


def test_without_kl_there_is_no_reference_and_other_weights_come_out(run_stage):
    plain, _, curve = run_stage("rlvr", "plain", rounds=2, kl_beta=0.0)
    held, _, _ = run_stage("rlvr", "held", rounds=2, kl_beta=1.0)
    assert [line["kl"] for line in curve] == [0.0, 0.0]
    assert any(not torch.equal(weight, weights(held)[name]) for name, weight in weights(plain).items())


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "constant"])
def test_every_reduction_and_advantage_trains(run_stage, reduction):
    out, metrics, _ = run_stage("rlvr", rounds=1, reduction=reduction, advantage="centered")
    assert metrics["updates"] == 1
    assert all(torch.isfinite(weight).all() for weight in weights(out).values())


def test_prompts_without_a_verifier_are_refused(run_stage, workspace):
    replace_rows(workspace, lambda row: row | {"verifier": ""})
    with pytest.raises(RowError, match=r"rows.parquet: row 'r0' names no verifier; an RL stage's rows need"):
        run_stage("rlvr", rounds=1)


def test_an_unknown_verifier_is_refused_before_any_sampling(run_stage, workspace):
    replace_rows(workspace, lambda row: row | {"verifier": "gsm8k@99"})
    with pytest.raises(ValueError, match=r"gsm8k@99.*gsm8k@1"):
        run_stage("rlvr", rounds=1)
