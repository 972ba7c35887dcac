"""The dpo stage with every loss of the preference family on the tiny model, and the combinations it refuses."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError

from tercet.algos.preference import Sides, dpo_norm, nll
from tercet.models.chat import Chat, ChatError
from tercet.models.hf_folder import load_tokenizer
from tercet.recipe import DPOSpec
from tercet.rows import Message, Pair, read_table, write_table
from tercet.track import read_metrics
from tercet.train.dpo import ALL_TURNS, PAIRS, RULES, all_turns, pair_losses

FREE = {"simpo", "orpo"}
SETTINGS = {
    "dpo": {"loss": "dpo", "beta": 0.1},
    "dpo_norm": {"loss": "dpo_norm"},
    "simpo": {"loss": "simpo", "beta": 2.0},
    "ipo": {"loss": "ipo", "beta": 0.5},
    "wpo": {"loss": "wpo", "beta": 0.1, "label_smoothing": 0.1},
    "wpo, published": {"loss": "wpo", "beta": 0.1, "wpo_weight": "published"},
    "orpo": {"loss": "orpo", "odds_weight": 0.5},
    "anchored": {"loss": "dpo_norm", "sft_weight": 1.0},
    "kto": {"loss": "kto", "beta": 0.1, "sft_weight": 0.1},
    "all turns": {"loss": "dpo_norm", "turns": "all"},
    "polyak": {"loss": "dpo", "beta": 0.1, "polyak": 0.5, "polyak_every": 1},
}


@pytest.fixture
def run_stage(workspace, tmp_path):
    """Run the dpo stage in fp32 into `tmp_path/NAME`; returns its payload and its curve."""

    def run_stage(name: str = "out", **settings):
        out = tmp_path / name
        workspace.run_stage("dpo", out, dpo={"dtype": "float32", **settings}, placement={"checkpoint_seconds": 1e9})
        return out, read_metrics(out.with_name(out.name + ".draft") / "metrics.jsonl")

    return run_stage


@pytest.mark.parametrize("name", SETTINGS)
def test_the_stage_takes_a_step_with_every_loss_and_a_reference_only_where_the_loss_has_one(run_stage, name):
    settings = SETTINGS[name]
    out, curve = run_stage(steps=1, **settings)
    assert len(curve) == 1
    assert math.isfinite(curve[0]["loss"])
    if name != "wpo, published":  # the weight of a whole answer's probability is as good as nothing
        assert curve[0]["grad_norm"] > 0
    table = settings["loss"] not in FREE and "polyak" not in settings
    assert (out / "tercet" / "reference.parquet").exists() is table


def test_ipo_starts_at_its_squared_target(run_stage):
    _, curve = run_stage(steps=1, loss="ipo", beta=0.5)
    assert curve[0]["loss"] == pytest.approx(1.0, abs=1e-5)


def test_orpo_starts_at_the_loss_of_guessing_and_learns_which_answer_is_the_chosen_one(run_stage):
    _, curve = run_stage(loss="orpo", odds_weight=1.0, warmup_ratio=0.0)
    assert curve[0]["loss"] == pytest.approx(math.log(259) + math.log(2), rel=0.02)
    assert curve[-1]["loss"] < 0.9 * curve[0]["loss"]
    assert curve[-1]["accuracy"] > 0.9


def test_an_anchor_adds_its_weight_times_the_mean_token_loss_of_the_chosen_answers(run_stage, workspace):
    _, plain = run_stage("plain", steps=1, batch=16)
    out, anchored = run_stage("anchored", steps=1, batch=16, sft_weight=0.5)
    table = read_table(out / "tercet" / "reference.parquet")
    assert len(table) == 16
    added = anchored[0]["loss"] - plain[0]["loss"]
    assert added == pytest.approx(0.5 * math.log(259), rel=0.02)


def test_pair_losses_of_the_defaults_are_dpo_norms():
    source = torch.Generator().manual_seed(0)
    policy, base = (Sides(*(-9 * torch.rand(2, 5, generator=source)), *torch.full((2, 5), 3.0)) for _ in range(2))
    spec = DPOSpec(model="base", pairs="preference-data")
    plain = pair_losses(policy, base, spec)
    assert torch.equal(plain, dpo_norm(policy, base, beta=5.0))
    anchored = pair_losses(policy, base, spec.model_copy(update={"sft_weight": 2.0}))
    torch.testing.assert_close(anchored, plain + 2.0 * nll(policy))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "ipo", "label_smoothing": 0.1}, "label_smoothing is not defined"),
        ({"loss": "orpo", "label_smoothing": 0.1}, "label_smoothing is not defined"),
        ({"loss": "orpo", "sft_weight": 1.0}, "orpo has that term"),
        ({"loss": "orpo", "beta": 0.1}, "the weight of the odds ratio is odds_weight"),
        ({"loss": "dpo", "odds_weight": 0.2}, "odds_weight belongs to orpo"),
        ({"loss": "dpo", "wpo_weight": "published"}, "wpo_weight belongs to wpo"),
        ({"loss": "kta"}, "'dpo', 'dpo_norm', 'simpo', 'ipo', 'wpo', 'orpo' or 'kto'"),
        (
            {"loss": "kto", "label_smoothing": 0.1},
            "label_smoothing is not defined for it; dpo, dpo_norm, simpo and wpo",
        ),
        ({"loss": "kto", "turns": "all"}, 'scores one answer to a prompt; leave turns = "last"'),
        ({"loss": "dpo", "desirable_weight": 2.0}, "belong to kto"),
        ({"loss": "ipo", "undesirable_weight": 2.0}, "belong to kto"),
        ({"loss": "simpo", "polyak": 0.1}, "no reference that polyak could move"),
        ({"loss": "orpo", "polyak": 0.1}, "no reference that polyak could move"),
    ],
)
def test_settings_that_a_loss_does_not_have_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        DPOSpec(model="base", pairs="preference-data", **settings)


def turns(*contents: str) -> tuple[Message, ...]:
    return tuple(Message("assistant" if i % 2 else "user", text) for i, text in enumerate(contents))


def test_all_turns_train_the_earlier_answers_alike_on_both_sides(tiny_folder, tmp_path):
    chat = Chat(load_tokenizer(tiny_folder))
    talk = Pair("a", turns("hi", "hello", "so?", "yes"), turns("hi", "hello", "so?", "no way"), "talks")
    short = Pair("b", turns("hi", "yes"), turns("hi", "no"), "short")
    write_table(tmp_path / "pairs.parquet", [talk, short])
    (_, _, tree), (_, _, alone) = ALL_TURNS.trees(chat, tmp_path / "pairs.parquet", 1)
    (_, _, last), (_, _, same) = PAIRS.trees(chat, tmp_path / "pairs.parquet", 1)
    for leaf, of_last, side in zip(tree.leaves, last.leaves, (talk.chosen, talk.rejected), strict=True):
        whole = chat.encode(side)
        ids, mask = [*tree.trunk, *leaf.token_ids], [*[False] * len(tree.trunk), *leaf.mask]
        assert (ids, mask) == (whole.token_ids[: len(ids)], whole.mask[: len(ids)])
        assert not any(whole.mask[len(ids) :])
        assert sum(leaf.mask) == sum(of_last.mask) + len("hello") + 1
    assert [alone.trunk, *alone.leaves] == [same.trunk, *same.leaves], "one answer: nothing else to train"
    assert PAIRS.name != ALL_TURNS.name, "their token files have other keys"


def test_all_turns_are_refused_where_the_template_rewrites_them_and_both_ways_round_work(tiny_folder, tmp_path):
    tokenizer = load_tokenizer(tiny_folder)
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'user' %}U{{ m.content }}{% else %}A"
        "{{ m.content.split('</think>')[-1] if not loop.last else m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}A{% endif %}"
    )
    before = ("hi", "<think>a</think>hello", "so?")
    write_table(tmp_path / "pairs.parquet", [Pair("a", turns(*before, "yes"), turns(*before, "no"), "talks")])
    chat = Chat(tokenizer)
    with pytest.raises(ChatError, match=r'set turns = "last" \(.*\), or thinking = "drop" where only thoughts'):
        list(ALL_TURNS.trees(chat, tmp_path / "pairs.parquet", 1))
    for rule in (PAIRS, RULES[all_turns, True]):
        ((_, _, tree),) = rule.trees(chat, tmp_path / "pairs.parquet", 1)
        assert len(tree.leaves) == 2


@pytest.mark.parametrize("name", SETTINGS)
def test_a_resolved_spec_is_read_again_as_it_was(name):
    spec = DPOSpec(model="base", pairs="preference-data", **SETTINGS[name])
    assert DPOSpec(**spec.model_dump(mode="json")) == spec
