"""Adapters: what is trained, what is frozen, and that what is exported is the plain model that was trained."""

from __future__ import annotations

import json
import sys
import time
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from tests.models.random_models import model_of

from tercet.device.mesh import Mesh
from tercet.device.shard import Trainable
from tercet.models.adapter import KEPT, write_adapter
from tercet.models.base_layout import save_model
from tercet.models.chat import Chat
from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.models.generate import LocalGenerator
from tercet.models.hf_folder import load_model, load_tokenizer
from tercet.models.lora import LoraError, adapt
from tercet.recipe import DPOSpec, LoraSpec, SFTSpec
from tercet.rows import Sampling, read_table
from tercet.store import Context, payload_digest
from tercet.track import Tracker, read_metrics
from tercet.train.batch import Step, batches
from tercet.train.export import export, open_policy, write_folder
from tercet.train.loop import Loop, State, fit, start
from tercet.train.packing import Budget
from tercet.train.reward_model import open_scorer
from tercet.train.sft import sft_loss

LORA = {"r": 4, "alpha": 8.0}


def spec(**changes) -> SFTSpec:
    values = {"model": "base", "rows": "sft-data", "learning_rate": 1e-2, "dtype": "float32", "lora": LORA}
    return SFTSpec.model_validate(values | changes)


@pytest.fixture
def context(workspace, tmp_path):
    def context(name: str = "draft", **placement) -> Context:
        (tmp_path / name / "work").mkdir(parents=True, exist_ok=True)
        recipe = workspace.recipe(placement={"checkpoint_seconds": 1e9} | placement)
        work, track = tmp_path / name / "work", Tracker(tmp_path / name)
        return Context("sft", 1, recipe, work, track, {}, lambda folder, dtype: None)

    return context


def trees() -> list[Tree]:
    source = torch.Generator().manual_seed(0)
    rows = [torch.randint(256, (length,), generator=source).tolist() for length in (9, 30, 17, 24, 40)]
    return [Tree([], [Leaf(ids, [True] * len(ids))]) for ids in rows]


def steps(count: int) -> list[Step]:
    return [Step(batches(trees(), Budget(64), Mesh()))] * count


def trained(folder, ctx: Context, settings: SFTSpec, count: int = 4) -> State:
    return fit(start(open_policy(folder), settings, Mesh(), ctx), steps(count), sft_loss, settings, ctx, total=count)


def logps(policy) -> torch.Tensor:
    with torch.no_grad():
        return policy(pack_forest(trees()))[0]


def test_only_the_adapters_are_trained_and_the_rest_is_frozen_in_the_compute_precision(tiny_folder, context):
    state = trained(tiny_folder, context(), spec(dtype="bfloat16"))
    module, names = state.trainable.module, state.trainable.names
    assert len(names) == 2 * 7 * 2, "A and B of seven linear layers in two blocks"
    assert all(".lora_" in name for name in names)
    assert all(master.dtype == torch.float32 for master in state.trainable.master_weights)
    assert {parameter.dtype for parameter in module.parameters()} == {torch.bfloat16}
    start_weights = load_file(tiny_folder / "model.safetensors")
    for name, parameter in module.named_parameters():
        if ".lora_" not in name:
            plain = name.removeprefix("model.").replace(".base_layer.", ".")
            assert torch.equal(parameter, start_weights[plain].bfloat16()), name


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_exported_is_a_plain_model_that_reads_as_the_adapted_one(tiny_folder, context, tmp_path, dtype):
    ctx, settings = context(), spec(dtype=dtype)
    state = trained(tiny_folder, ctx, settings)
    export(state.trainable, tiny_folder, tmp_path / "out", settings, {}, ctx)
    base, merged = (load_file(folder / "model.safetensors") for folder in (tiny_folder, tmp_path / "out"))
    assert base.keys() == merged.keys()
    master_weights = dict(zip(state.trainable.names, state.trainable.master_weights, strict=True))
    layer = "model.layers.1.mlp.down_proj"
    a, b = (master_weights[f"model.{layer}.lora_{side}.default.weight"].detach() for side in "AB")
    assert torch.equal(merged[f"{layer}.weight"], base[f"{layer}.weight"] + 2.0 * (b @ a))
    assert torch.equal(merged["model.embed_tokens.weight"], base["model.embed_tokens.weight"])
    found, before = logps(open_policy(tmp_path / "out")), logps(open_policy(tiny_folder))
    adapted = logps(state.trainable.module)
    assert (found - before).abs().max() > 0.1
    torch.testing.assert_close(adapted, found, rtol=0, atol=1e-5 if dtype == "float32" else 0.1)
    assert load_model(tmp_path / "out", torch.float32).config.architectures == ["LlamaForCausalLM"]


def test_adapters_follow_from_the_seed_and_change_nothing_at_first(tiny_folder):
    def made(seed: int, disturbed: int) -> dict[str, torch.Tensor]:
        torch.manual_seed(disturbed)
        policy = open_policy(tiny_folder)
        torch.manual_seed(7)
        adapt(policy, LoraSpec.model_validate(LORA), torch.float32, seed)
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(7)))
        assert torch.equal(logps(policy), logps(open_policy(tiny_folder)))
        return {name: p.detach() for name, p in policy.named_parameters() if "lora_A" in name}

    one, same, other = made(1, 2), made(1, 3), made(2, 2)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)


def test_targets_are_the_layers_that_get_adapters(tiny_folder, context):
    state = trained(tiny_folder, context(), spec(lora={**LORA, "target_modules": ["q_proj", "v_proj"]}), 1)
    kinds = {name.split(".lora_")[0].rpartition(".")[2] for name in state.trainable.names}
    assert kinds == {"q_proj", "v_proj"}


def test_a_layer_that_is_not_there_is_named_with_those_that_are(tiny_folder, context):
    wrong = spec(lora={**LORA, "target_modules": ["c_attn"]})
    with pytest.raises(LoraError, match=r"no linear layer c_attn below its head; .*has down_proj, gate_proj"):
        start(open_policy(tiny_folder), wrong, Mesh(), context())


def test_without_peft_it_says_what_to_install(tiny_folder, context, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(LoraError, match=r"pip install 'tercet\[lora\]'"):
        start(open_policy(tiny_folder), spec(), Mesh(), context())


def test_the_adapted_model_writes_what_the_merged_one_writes(tiny_folder, context, tmp_path):
    ctx, settings = context(), spec()
    state = trained(tiny_folder, ctx, settings, 8)
    export(state.trainable, tiny_folder, tmp_path / "out", settings, {}, ctx)
    prompts, sampling = [[257, 5, 9], [257, 70, 71, 72, 73]], Sampling(n=2, temperature=1.0, max_new_tokens=24, seed=3)
    chat = Chat(load_tokenizer(tiny_folder))
    adapted = LocalGenerator(state.trainable.module, chat).write(prompts, sampling)
    merged = LocalGenerator(open_policy(tmp_path / "out"), chat).write(prompts, sampling)
    assert [[c.token_ids for c in group] for group in adapted] == [[c.token_ids for c in group] for group in merged]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_policy_and_a_critic_side_by_side_have_adapters_each_and_the_critics_head_is_trained(tiny_folder, dtype):
    both = torch.nn.Module()
    both.policy, both.critic = open_policy(tiny_folder), open_scorer(tiny_folder, 256, 3)
    head = both.critic.model.score.weight.detach().clone()
    trainable = Trainable(both, dtype, Mesh(), merge=adapt(both, LoraSpec(r=2), dtype, 1))
    assert len(trainable.part("policy.")) == 28
    assert len(trainable.part("critic.")) == 29
    base = load_file(tiny_folder / "model.safetensors")
    for part, extra in (("policy.", {}), ("critic.", {"score.weight": head})):
        found = {name.removeprefix("model."): value for name, value in trainable.full_state(part)}
        assert found.keys() == base.keys() | extra.keys()
        assert all(torch.equal(value, (base | extra)[name]) for name, value in found.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_restored_state_goes_on_as_if_nothing_had_happened(tiny_folder, context, dtype):
    settings, loss = spec(dtype=dtype), partial(sft_loss)
    whole = trained(tiny_folder, context("whole"), settings, 5)
    ctx = context("parts")
    first = start(open_policy(tiny_folder), settings, Mesh(), ctx)
    fit(first, steps(2), loss, settings, ctx, total=5)
    Loop(first, loss, settings, ctx, total=5).save()
    second = start(open_policy(tiny_folder), settings, Mesh(), ctx)
    assert second.step == 2
    fit(second, steps(3), loss, settings, ctx, total=5)
    for mine, theirs in zip(second.trainable.master_weights, whole.trainable.master_weights, strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft asks
def test_the_adapter_is_kept_beside_the_merged_weights_and_peft_computes_the_same_with_it(
    tiny_folder, context, tmp_path
):
    peft = pytest.importorskip("peft")
    ctx, settings = context(), spec()
    state = trained(tiny_folder, ctx, settings, 8)
    export(state.trainable, tiny_folder, tmp_path / "out", settings, {}, ctx)
    ids = torch.tensor([[257, 5, 9, 33, 70]])
    model = peft.PeftModel.from_pretrained(load_model(tiny_folder, torch.float32), tmp_path / "out" / KEPT).eval()
    with torch.no_grad():
        found, merged = model(ids).logits, load_model(tmp_path / "out", torch.float32)(ids).logits
    torch.testing.assert_close(found, merged, rtol=0, atol=1e-5)
    assert (merged - load_model(tiny_folder, torch.float32)(ids).logits).abs().max() > 0.1


def test_the_head_of_a_scorer_is_part_of_its_adapter(tiny_folder, tmp_path):
    scorer = open_scorer(tiny_folder, 256, 3)
    trainable = Trainable(scorer, torch.float32, Mesh(), merge=adapt(scorer, LoraSpec(r=2), torch.float32, 1))
    write_folder(trainable, scorer.model.config, tiny_folder, tmp_path / "out", "")
    config = json.loads((tmp_path / "out" / KEPT / "adapter_config.json").read_text())
    assert (config["modules_to_save"], config["task_type"]) == (["score"], "SEQ_CLS")
    head = load_file(tmp_path / "out" / KEPT / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert torch.equal(head, scorer.model.score.weight)


def test_training_goes_on_with_an_adapter_where_it_had_stopped(tiny_folder, context, tmp_path):
    ctx, settings = context("first"), spec()
    state = trained(tiny_folder, ctx, settings)
    export(state.trainable, tiny_folder, tmp_path / "first", settings, {}, ctx)
    further = spec(lora={"adapter": str(tmp_path / "first" / KEPT)})
    begun = start(open_policy(tiny_folder), further, Mesh(), context("second"))
    assert torch.equal(logps(begun.trainable.module), logps(state.trainable.module))
    assert begun.trainable.names == state.trainable.names
    fit(begun, steps(3), sft_loss, further, context("second"), total=3)
    export(begun.trainable, tiny_folder, tmp_path / "second", further, {}, ctx)
    config = json.loads((tmp_path / "second" / KEPT / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8.0)
    torch.testing.assert_close(
        logps(open_policy(tmp_path / "second")), logps(begun.trainable.module), rtol=0, atol=1e-5
    )


def test_an_adapter_of_another_model_is_refused(tiny_folder, context, tmp_path):
    write_adapter(
        tmp_path,
        2,
        4.0,
        {"model.layers.7.mlp.down_proj.lora_A.weight": torch.zeros(2, 128)}
        | {"model.layers.7.mlp.down_proj.lora_B.weight": torch.zeros(64, 2)},
    )
    with pytest.raises(LoraError, match=r"adapts model\.layers\.7\.mlp\.down_proj .*does not have"):
        start(open_policy(tiny_folder), spec(lora={"adapter": str(tmp_path)}), Mesh(), context())


@pytest.mark.parametrize(
    ("stage", "lora", "told"),
    [
        (SFTSpec, {"adapter": "x", "r": 8}, "r come from the adapter's folder"),
        (DPOSpec, {"adapter": "x"}, r"lora\.adapter is for sft and reward_model stages: .*merge it into the base"),
        (DPOSpec, {"quantize": "nf4"}, r"lora\.quantize is for sft and reward_model stages"),
    ],
)
def test_a_recipe_is_refused_where_an_adapter_does_not_go(stage, lora, told):
    fields = {"model": "base", "rows": "a"} if stage is SFTSpec else {"model": "base", "pairs": "a"}
    with pytest.raises(ValueError, match=told):
        stage.model_validate({**fields, "lora": lora})


def test_frozen_weights_that_are_stored_under_other_names_are_merged_exactly(tiny_folder, tmp_path):
    model = model_of("Qwen3Moe")
    save_model(tmp_path, model.config, model.state_dict(), source=tiny_folder)
    policy = open_policy(tmp_path)
    trainable = Trainable(policy, torch.bfloat16, Mesh(), merge=adapt(policy, LoraSpec(r=2), torch.bfloat16, 1))
    found = {name.removeprefix("model."): value for name, value in trainable.full_state()}
    assert "model.layers.0.mlp.experts.gate_up_proj" in found
    assert all(torch.equal(found[name], parameter) for name, parameter in model.named_parameters())


ENOUGH = {"lora": LORA, "learning_rate": 1e-2, "num_epochs": 3}


def test_the_policy_of_ppo_leaves_its_adapter_and_not_the_critics(workspace, tmp_path):
    workspace.run_stage("ppo", tmp_path / "out", ppo={"lora": LORA, "learning_rate": 1e-2, "rounds": 2})
    kept = load_file(tmp_path / "out" / KEPT / "adapter_model.safetensors")
    assert len(kept) == 28
    assert all(name.startswith("base_model.model.model.layers.") for name in kept)


@pytest.mark.parametrize("stage", ["sft", "dpo", "reward"])
def test_a_stage_learns_with_adapters_and_leaves_a_plain_folder_the_same_twice(workspace, tmp_path, stage):
    for name in ("one", "two"):
        workspace.run_stage(stage, tmp_path / name, **{stage: ENOUGH})
    curve = read_metrics(tmp_path / "one.draft" / "metrics.jsonl")
    assert curve[-1]["loss"] < 0.95 * curve[0]["loss"]
    assert payload_digest(tmp_path / "one") == payload_digest(tmp_path / "two")
    found = load_file(tmp_path / "one" / "model.safetensors")
    base = load_file(workspace.store.open("base").payload / "model.safetensors")
    assert found.keys() - base.keys() == ({"score.weight"} if stage == "reward" else set())


def test_rlvr_writes_and_learns_with_adapters(workspace, tmp_path):
    workspace.run_stage(
        "rlvr", tmp_path / "out", rlvr={"lora": LORA, "learning_rate": 1e-2, "rounds": 3, "kl_beta": 0.1}
    )
    rows = read_table(tmp_path / "out" / "tercet" / "rollouts.parquet")
    assert len({row["text"] for row in rows}) > 1
    curve = read_metrics(tmp_path / "out.draft" / "metrics.jsonl")
    assert curve[0]["kl"] == pytest.approx(0.0, abs=1e-6), "adapters begin at the reference"
    assert curve[-1]["kl"] > 1e-4
    base, found = (
        load_file(folder / "model.safetensors") for folder in (workspace.store.open("base").payload, tmp_path / "out")
    )
    assert base.keys() == found.keys()


def test_killed_and_run_again_it_ends_in_the_bytes_of_a_run_nobody_disturbed(workspace, launch, tmp_path):
    sets = ("stage.sft.lora={r=4,alpha=8.0}", "stage.sft.learning_rate=1e-2")
    running = launch(workspace, "sft", *sets)
    deadline = time.monotonic() + 120
    while running.progress() < 6:
        assert time.monotonic() < deadline
        assert running.process.poll() is None, "ended too early"
        time.sleep(0.002)
    running.kill()
    assert list((running.draft / "work" / "checkpoints").glob("step-*"))
    assert launch(workspace, "sft", *sets).process.wait(timeout=120) == 0
    workspace.run_stage("sft", tmp_path / "whole", sft={"lora": LORA, "learning_rate": 1e-2})
    assert workspace.store.open("sft").record["digest"] == payload_digest(tmp_path / "whole")
