"""The reward model: margins, accuracy by subset, and a folder that transformers reads to the same scores."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import softplus
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rerecord import rerecord
from tercet.data.adapters import PAIRS
from tercet.data.layouts import recognise
from tercet.models.chat import Chat
from tercet.models.forest import NAME, Leaf, Tree, pack_forest, register
from tercet.models.hf_folder import load_tokenizer
from tercet.models.policy import Scorer
from tercet.rows import RowError, read_pairs, write_table
from tercet.stats import mean
from tercet.store import Context, payload_digest
from tercet.track import Tracker, read_metrics
from tercet.train.preference_accuracy import SECTIONS, accuracies, sections, subset_pairs
from tercet.train.reward_model import open_scorer, padding

SEED = 5  # of the workspace's recipe
COUNTED = {  # pairs of RewardBench's subsets, and what its table weighs math-prm with
    "Chat": {
        "alpacaeval-easy": 100,
        "alpacaeval-length": 95,
        "alpacaeval-hard": 95,
        "mt-bench-easy": 28,
        "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37,
        "llmbar-natural": 100,
        "llmbar-adver-neighbor": 134,
        "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100,
        "refusals-offensive": 100,
        "xstest-should-refuse": 154,
        "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {"math-prm": 984, **{f"hep-{name}": 164 for name in ("cpp", "go", "java", "js", "python", "rust")}},
}


@pytest.fixture
def run_stage(workspace, tmp_path):
    """Run the reward stage in fp32 into `tmp_path/NAME`; returns payload, metrics and curve."""

    def run_stage(name: str = "out", micro_tokens: int = 256, **settings):
        out = tmp_path / name
        changes = {"dtype": "float32", **settings}
        metrics = workspace.run_stage("reward", out, reward=changes, placement={"micro_tokens": micro_tokens})
        return out, metrics, read_metrics(out.with_name(out.name + ".draft") / "metrics.jsonl")

    return run_stage


@pytest.fixture
def pairs_of_store(workspace):
    """Change the pairs of this test's own store; returns what stands there."""
    path = workspace.store.open("preference-data").payload / "pairs.parquet"

    def pairs_of_store(change=None):
        pairs = read_pairs(path)
        if change is not None:
            pairs = [change(i, pair) for i, pair in enumerate(pairs)]
            path.parent.chmod(0o755)
            path.unlink()
            write_table(path, pairs)
            rerecord(path.parents[1])
        return pairs

    return pairs_of_store


def forest_scores(folder, rows: list[list[int]]) -> torch.Tensor:
    """Scores of our own reader, from the exported weights."""
    register()
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, attn_implementation=NAME)
    with torch.no_grad():
        return Scorer(model.eval())(pack_forest([Tree([], [Leaf(ids, [True] * len(ids))]) for ids in rows]))


def answers(folder, pairs) -> list[list[int]]:
    """Token ids of every conversation, up to and with its end token."""
    chat = Chat(load_tokenizer(folder))
    sides = [chat.pair(side[:-1], side[-1].content) for pair in pairs for side in (pair.chosen, pair.rejected)]
    return [[*prompt, *answer] for prompt, answer in sides]


def share_padding_with_the_end(workspace) -> None:
    """Let the base model's tokenizer pad with its end token, as SmolLM2's does."""
    folder = workspace.store.open("base").payload
    folder.chmod(0o755)
    for name, change in (
        ("tokenizer_config.json", {"pad_token": "<|im_end|>"}),
        ("config.json", {"pad_token_id": 258}),
    ):
        text = json.dumps(json.loads((folder / name).read_text()) | change)
        (folder / name).unlink()
        (folder / name).write_text(text)
    rerecord(folder.parent)


@pytest.mark.parametrize("shared", [False, True], ids=["own padding token", "padding token is the end token"])
def test_transformers_reads_the_folder_to_our_scores_padded_or_not(run_stage, workspace, pairs_of_store, shared):
    if shared:
        share_padding_with_the_end(workspace)
    out, _, _ = run_stage(steps=3, learning_rate=3e-3)
    rows = answers(workspace.store.open("base").payload, pairs_of_store())
    ours = forest_scores(out, rows)
    assert ours.std() > 1e-3
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    assert tokenizer.pad_token_id == model.config.pad_token_id != rows[0][-1]
    with torch.no_grad():
        alone = torch.cat([model(input_ids=torch.tensor([row])).logits[:, 0] for row in rows])
        padded = tokenizer.pad({"input_ids": rows}, padding_side="right", return_tensors="pt")
        together = model(**padded).logits[:, 0]
    assert {len(row) for row in rows} != {len(rows[0])}
    torch.testing.assert_close(alone, ours, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, ours, rtol=0, atol=1e-5)


def test_the_card_says_what_the_folder_is_for(run_stage):
    out, _, _ = run_stage(steps=1)
    card = (out / "README.md").read_text("utf-8")
    assert "pipeline_tag: text-classification" in card
    assert "the last token that is no padding" in card


def test_padding_is_the_tokenizers_own_unless_that_ends_answers(tiny_folder):
    chat = Chat(load_tokenizer(tiny_folder))
    assert padding(chat) == 256
    for named in ("<|im_end|>", None):
        tokenizer = load_tokenizer(tiny_folder)
        tokenizer.pad_token = named
        assert padding(Chat(tokenizer)) == 256, "the special token that is called pad"


def test_a_fresh_head_has_variance_one_over_d_plus_one(tiny_folder):
    heads = torch.cat([open_scorer(tiny_folder, 256, seed).model.score.weight.detach() for seed in range(12)])
    assert heads.shape == (12, 64)
    assert float(heads.var()) == pytest.approx(1 / 65, rel=0.15)
    assert float(heads.mean()) == pytest.approx(0.0, abs=0.01)
    assert not torch.equal(heads[0], heads[1])


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_first_loss_is_the_formula_on_the_fresh_heads_scores(run_stage, workspace, pairs_of_store, margin):
    pairs = pairs_of_store(lambda i, pair: replace(pair, chosen_rating=3.0 + i % 3, rejected_rating=1.0 + i % 2))
    _, _, curve = run_stage(steps=1, batch=16, holdout=0.0, margin=margin)
    base = workspace.store.open("base").payload
    rows = answers(base, pairs)
    with torch.no_grad():
        scorer = open_scorer(base, 256, SEED)
        found = scorer(pack_forest([Tree([], [Leaf(ids, [True] * len(ids))]) for ids in rows])).double()
    gaps = torch.tensor([pair.chosen_rating - pair.rejected_rating for pair in pairs], dtype=torch.float64)
    wanted = softplus(-(found[0::2] - found[1::2] - margin * gaps)).mean()
    assert curve[0]["loss"] == pytest.approx(float(wanted), abs=1e-5)


def test_how_a_step_is_cut_does_not_change_what_margins_do(run_stage, pairs_of_store):
    pairs_of_store(lambda i, pair: replace(pair, chosen_rating=1.0 + i, rejected_rating=1.0))
    _, _, whole = run_stage("whole", 100_000, num_epochs=1, margin=0.1)
    _, _, cut = run_stage("cut", 32, num_epochs=1, margin=0.1)
    for one, other in zip(whole, cut, strict=True):
        assert other["loss"] == pytest.approx(one["loss"], rel=1e-4, abs=1e-5)


def test_a_margin_needs_ratings_on_every_pair_and_names_the_one_without(run_stage, pairs_of_store):
    pairs_of_store(lambda i, pair: pair if i == 11 else replace(pair, chosen_rating=4.0, rejected_rating=2.0))
    with pytest.raises(RowError, match=r"row 11 \(p11\): margin = 1.0 needs chosen_rating .* set margin = 0"):
        run_stage(margin=1.0)


def test_accuracy_is_given_by_subset_with_its_error_and_by_section(run_stage, pairs_of_store):
    names = ["alpacaeval-easy", "math-prm", "hep-go", ""]
    pairs_of_store(lambda i, pair: replace(pair, skill=names[i % 4]))
    out, metrics, _ = run_stage(num_epochs=4, learning_rate=3e-3, tests=["preference-data"])
    summary = json.loads((out / "tercet" / "accuracy.json").read_text("utf-8"))
    assert metrics["accuracy"] == summary["held_out"]["accuracy"]
    assert summary["held_out"]["n"] == metrics["held_out"] == 4
    test = summary["tests"]["preference-data"]
    assert metrics["accuracy_preference-data"] == test["accuracy"] > 0.9
    assert test["n"] == 16
    assert {name: one["n"] for name, one in test["subsets"].items()} == dict.fromkeys([*names[:3], "source0"], 4)
    assert test["subsets"]["math-prm"]["stderr"] >= 0.0
    assert test["rewardbench"].keys() == {"Chat", "Reasoning"}
    assert test["rewardbench"]["Reasoning"]["n"] == 8


def test_tests_are_scored_whole_however_long_and_however_batches_are_cut(run_stage, pairs_of_store):
    long = pairs_of_store()[0]
    text = "yes " * 200
    longer = replace(long, id="long", chosen=(*long.prompt, replace(long.chosen[-1], content=text)))
    pairs_of_store(lambda i, pair: longer if i == 0 else pair)
    one, _, _ = run_stage("one", 100_000, steps=2, tests=["preference-data"], max_lost=0.2)
    two, metrics, _ = run_stage("two", 32, steps=2, tests=["preference-data"], max_lost=0.2)
    assert metrics["pairs"] + metrics["held_out"] == 15, "training leaves the long one out"
    summary = [json.loads((out / "tercet" / "accuracy.json").read_text("utf-8"))["tests"] for out in (one, two)]
    assert summary[0] == summary[1]
    assert summary[0]["preference-data"]["n"] == 16


def test_a_test_without_pairs_is_refused(workspace, tiny_folder, tmp_path):
    chat = Chat(load_tokenizer(tiny_folder))
    write_table(tmp_path / "runs" / "a" / "pairs.parquet", [])
    recipe = workspace.recipe()
    ctx = Context("a", 0, recipe, tmp_path / "runs" / "a" / "work", Tracker(None), {}, lambda *_: None)
    with pytest.raises(RowError, match=r"pairs.parquet: expected pairs to test a reward model on, found none"):
        subset_pairs(tmp_path / "runs" / "a" / "pairs.parquet", chat, ctx)


shares = st.dictionaries(
    st.sampled_from([name for names in COUNTED.values() for name in names]), st.floats(0, 1), min_size=1
)


def estimates(right: dict[str, float]):
    """Accuracies as near to these as the subset's pairs allow."""
    sizes = {name: size for names in COUNTED.values() for name, size in names.items()} | {"math-prm": 447}
    found = {}
    for name, share in right.items():
        hits = round(share * sizes[name])
        found[name] = mean([1.0] * hits + [0.0] * (sizes[name] - hits))
    return found


@settings(max_examples=25)
@given(st.lists(st.floats(0, 1), min_size=23, max_size=23))
def test_section_scores_are_those_of_rewardbenchs_table(accuracy):
    names = [name for section in COUNTED.values() for name in section]
    found = estimates(dict(zip(names, accuracy, strict=True)))
    summary = sections(found)
    means = []
    for section, weights in COUNTED.items():
        wanted = sum(weight * found[name].value for name, weight in weights.items()) / sum(weights.values())
        assert summary[section]["accuracy"] == pytest.approx(wanted)
        means.append(wanted)
    assert summary["mean"]["accuracy"] == pytest.approx(sum(means) / 4)
    assert summary["mean"]["n"] == 2985


@settings(max_examples=40)
@given(shares)
def test_sections_take_the_subsets_that_are_there(right):
    found = estimates(right)
    summary = sections(found)
    assert set(summary) - {"mean"} == {section for section, names in SECTIONS.items() if set(names) & set(right)}
    for section, one in summary.items():
        inside = [found[name] for name in SECTIONS.get(section, ()) if name in found]
        assert section == "mean" or min(e.value for e in inside) - 1e-9 <= one["accuracy"]
        assert section == "mean" or one["accuracy"] <= max(e.value for e in inside) + 1e-9
        assert one["stderr"] is None or 0 <= one["stderr"] <= max(e.stderr for e in found.values()) + 1e-9


def test_sections_are_of_rewardbenchs_subsets_and_a_single_pair_has_no_error():
    assert {section: set(names) for section, names in SECTIONS.items()} == {k: set(v) for k, v in COUNTED.items()}
    assert sections({"mine": mean([1.0, 0.0])}) == {}
    alone = sections({"donotanswer": mean([1.0])})
    assert alone == {"Safety": {"accuracy": 1.0, "stderr": None, "n": 1}}
    assert json.loads(json.dumps(accuracies(None, {}))) == {"held_out": None, "tests": {}}
    assert math.isnan(mean([1.0]).stderr)


RAW = {"prompt": "Hi?", "chosen": "Hello.", "rejected": "No.", "chosen_model": "a", "rejected_model": "b", "id": "7"}


def test_rewardbenchs_rows_become_pairs_whose_skill_is_the_subset():
    pair = PAIRS["rewardbench"](RAW | {"subset": "hep-go"}, "here")
    assert (pair.id, pair.skill, pair.chosen_model, pair.rejected_model) == ("7", "hep-go", "a", "b")
    assert [turn.content for turn in pair.chosen] == ["Hi?", "Hello."]
    assert recognise([RAW | {"subset": "hep-go"}]).adapter == "rewardbench"
    assert recognise([RAW]).adapter == "prompt_pair"
    with pytest.raises(RowError, match="expected text under subset"):
        PAIRS["rewardbench"](dict(RAW), "here")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_that_continues_ends_in_the_same_bytes(run_stage, pairs_of_store, tmp_path, dtype):
    pairs_of_store(lambda i, pair: replace(pair, chosen_rating=2.0 + i, rejected_rating=1.0))
    whole, metrics, _ = run_stage("whole", dtype=dtype, num_epochs=2, margin=0.1, tests=["preference-data"])
    first, draft = payload_digest(whole), tmp_path / "whole.draft"  # a checkpoint belongs to its draft
    shutil.rmtree(whole)
    (draft / "metrics.jsonl").unlink()
    shutil.rmtree(max((draft / "work" / "checkpoints").glob("step-*")))
    later, again, curve = run_stage("whole", dtype=dtype, num_epochs=2, margin=0.1, tests=["preference-data"])
    assert [line["step"] for line in curve] == [5, 6]
    assert payload_digest(later) == first
    assert again == metrics


def test_two_ranks_have_one_ranks_margins_losses_and_weights(workspace, launch, run_stage, pairs_of_store):
    pairs_of_store(lambda i, pair: replace(pair, chosen_rating=2.0 + i, rejected_rating=1.0))
    settings = {"dtype": "float32", "num_epochs": 2, "eps": 1e-4, "margin": 0.1, "tests": ["preference-data"]}
    sets = [f"stage.reward.{key}={json.dumps(value)}" for key, value in settings.items()]
    running = launch(workspace, "reward", "placement.ranks=2", "placement.threads=1", *sets)
    assert running.process.wait(timeout=240) == 0, running.output.read_text(encoding="utf-8")
    two = workspace.store.open("reward")
    one, metrics, mine = run_stage("one", **settings)
    for ours, other in zip(mine, read_metrics(two.path / "metrics.jsonl"), strict=True):
        assert other["loss"] == pytest.approx(ours["loss"], rel=1e-4, abs=1e-5)
    assert two.metrics == pytest.approx(metrics)
    alone, shared = (load_file(folder / "model.safetensors") for folder in (one, two.payload))
    for name, weight in alone.items():
        torch.testing.assert_close(shared[name], weight, rtol=1e-4, atol=1e-5)
