"""The bytes of a stage: against what autograd really keeps, and against sums done by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForSequenceClassification

from tercet.forecast.memory import Setting, activations, adapters, disk, generation, training
from tercet.forecast.shape import ModelShape, known
from tercet.models.forest import NAME, Leaf, Tree, pack_forest
from tercet.models.layer_wrappers import recompute
from tercet.models.lora import adapt
from tercet.models.opening import laid_out
from tercet.models.policy import Scorer
from tercet.recipe import DPOSpec, GRPOSpec, LoraSpec, PPOSpec
from tercet.train.batch import Batch
from tercet.train.dpo import preference_loss
from tercet.train.reward_model import reward_loss
from tercet.train.rl.actor_critic import CRITIC, POLICY, ActorCritic, Critic
from tercet.train.rl.grpo import grpo_loss
from tercet.train.rl.ppo import ppo_loss
from tercet.train.sft import sft_loss

BIG = known("meta-llama/Llama-3.1-8B")
TOKENS = 256


def model(layers: int, inner: int, kv_heads: int) -> AutoModelForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=128,
        intermediate_size=inner,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        num_hidden_layers=layers,
        vocab_size=128,
        tie_word_embeddings=True,
    )
    return AutoModelForCausalLM.from_config(config)


def kept(layers: int, inner: int, kv_heads: int, dtype: torch.dtype, again: bool) -> int:
    """Bytes of all tensors that autograd saves in a forward pass over one row, weights left out."""
    policy = laid_out(model(layers, inner, kv_heads).to(dtype).eval(), "auto")
    if again:
        recompute(policy)
    row = pack_forest([Tree([], [Leaf(list(range(5, 105)) * 2 + list(range(56)), [False] + [True] * 255)])])
    weights = {parameter.untyped_storage().data_ptr() for parameter in policy.parameters()}
    saved: dict[int, torch.Tensor] = {}  # tensors are held, so that no address is used twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        policy(row)[0].sum()
    return sum(tensor.untyped_storage().nbytes() for place, tensor in saved.items() if place not in weights)


def test_ranks_that_share_tokens_keep_their_part_and_the_last_hidden_states():
    one, two = (activations(BIG, Setting(tokens=65536, context=n)) for n in (1, 2))
    assert two == pytest.approx(one / 2 + 2 * 2 * BIG.hidden * 65536)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inner", "kv_heads"), [(448, 2), (256, 4)])
def test_a_layer_keeps_what_autograd_saves(inner, kv_heads, dtype, again):
    found = (kept(4, inner, kv_heads, dtype, again) - kept(2, inner, kv_heads, dtype, again)) / 2
    shapes = [ModelShape.of(model(layers, inner, kv_heads).config.to_dict()) for layers in (2, 4)]
    setting = Setting(width=dtype.itemsize, tokens=TOKENS, recompute=again)
    two, four = (activations(shape, setting) for shape in shapes)
    assert (four - two) / 2 == pytest.approx(found, rel=0.01)


def saved(module: nn.Module, loss: Callable[[], object]) -> int:
    """Bytes of the storages that autograd keeps of a loss, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in module.parameters()}
    found: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        found[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        held = loss()
    del held
    return sum(tensor.untyped_storage().nbytes() for place, tensor in found.items() if place not in weights)


COMMON = {"model": "base", "learning_rate": 1e-4, "dtype": "float32"}
RL = {**COMMON, "prompts": "prompts", "rounds": 1, "kl_beta": 0.05}
PAIRED = [Tree([], [Leaf(range(9, 127), [False] * 60 + [True] * 58), Leaf(range(5, 123), [False] * 60 + [True] * 58)])]
GROUP = [Tree(range(60), [Leaf(range(9, 58), [True] * 49)] * 4)]
ROWS = [Tree([], [Leaf(range(5, 125), [False] * 20 + [True] * 100)])] * 2


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kind", ["sft", "dpo", "reward_model", "grpo", "policy of ppo", "critic of ppo"])
def test_every_loss_keeps_what_its_stage_is_said_to_keep(kind, again):
    """Within 15 %, of a model with enough layers that they are most of it."""
    layers = 16 if again else 8
    policy = laid_out(model(layers, 448, 2).eval(), "auto")
    models = ActorCritic(policy, Critic(scored(layers, 448, 2)))
    part = models.critic if kind in ("critic of ppo", "reward_model") else policy
    if again:
        recompute(part)
    trees = {"sft": ROWS, "dpo": PAIRED, "reward_model": PAIRED}.get(kind, GROUP)
    forest = pack_forest(trees)
    each = {name: torch.zeros(len(forest.targets_P)) for name in ("advantages_P", "sampled_P", "reference_P", "old_P")}
    at = torch.arange(len(forest.targets_P))
    more = {"learned_at": at, "valued_at": at, "old_values_V": each["old_P"], "returns_V": each["old_P"]}
    batch = Batch(forest, each | more | {"reference_L": torch.zeros(forest.num_leaves)})
    batch.part = {"policy of ppo": POLICY, "critic of ppo": CRITIC}.get(kind, "")
    losses = {
        "sft": lambda: sft_loss(policy, batch),
        "dpo": lambda: preference_loss(policy, batch, spec=DPOSpec.model_validate({**COMMON, "pairs": "pairs"})),
        "reward_model": lambda: reward_loss(Scorer(part.model), batch),
        "grpo": lambda: grpo_loss(policy, batch, spec=GRPOSpec.model_validate(RL)),
    }
    ppo = partial(ppo_loss, models, batch, spec=PPOSpec.model_validate({**RL, "value": "base"}))
    found = saved(models, losses.get(kind, ppo))
    shape = ModelShape.of(policy.model.config.to_dict())
    setting = Setting(width=4, tokens=len(forest.input_ids), recompute=again, card=False)
    one, two = (activations(replace(shape, layers=n), replace(setting, recompute=False)) for n in (1, 2))
    passing = (two - one) * (2 if again else 1)  # of the layer at work, and of the one that is computed again
    assert found == pytest.approx(activations(shape, setting) - passing, rel=0.15)


def scored(layers: int, inner: int, kv_heads: int) -> nn.Module:
    """The same transformer with a scalar head, laid out."""
    config = model(layers, inner, kv_heads).config
    config.num_labels = 1
    config._attn_implementation = NAME
    torch.manual_seed(0)
    return LlamaForSequenceClassification(config).eval()


def test_fused_norms_keep_half_in_bf16_on_a_cpu():
    found = []
    for layers in (2, 4):
        policy = laid_out(model(layers, 448, 2).eval(), "auto").to(torch.bfloat16)
        forest = pack_forest(ROWS)
        found.append(saved(policy, partial(policy, forest)))
    shape = ModelShape.of(policy.model.config.to_dict())
    setting = Setting(width=2, tokens=len(forest.input_ids), card=False)
    two, four = (activations(replace(shape, layers=layers), setting) for layers in (2, 4))
    assert four - two == pytest.approx(found[1] - found[0], rel=0.05)


def test_full_training_on_one_card_takes_18_bytes_a_weight():
    found = training(BIG, Setting())
    state = sum(found[name] for name in ("master weights", "gradients", "moments", "compute copy"))
    assert state == 18 * BIG.parameters
    assert training(BIG, Setting(offload=True))["host"] == 16 * BIG.parameters
    assert training(BIG, Setting(eight_bits=True))["moments"] == 2 * BIG.parameters


def test_ranks_share_the_state_and_open_it_whole():
    found = training(BIG, Setting(ranks=8, node=8))
    assert found["master weights"] + found["gradients"] + found["moments"] == 2 * BIG.parameters
    assert found["host"] == 8 * 4 * BIG.parameters
    assert found["opening"] == pytest.approx(4 * BIG.parameters, rel=0.1)
    assert training(BIG, Setting(ranks=256, node=8))["peak"] >= found["opening"]


def test_a_reference_and_a_generator_are_whole_on_every_rank():
    bare = training(BIG, Setting(ranks=8, node=8))
    found = training(BIG, Setting(ranks=8, node=8, reference=True, copies=2))
    assert found["peak"] - bare["peak"] == 3 * 2 * BIG.parameters


def test_a_cache_of_llama_has_128_kib_a_token():
    assert BIG.cache(2) == 131_072
    assert generation(BIG, Setting(cached=1000))["cache"] == 131_072_000


def test_adapters_are_those_of_peft():
    pytest.importorskip("peft")
    policy = laid_out(model(2, 448, 2).eval(), "auto")
    adapt(policy, LoraSpec(r=8), torch.float32, 0)
    trained = sum(parameter.numel() for parameter in policy.parameters() if parameter.requires_grad)
    shape = ModelShape.of(model(2, 448, 2).config.to_dict())
    assert adapters(shape, 8) == trained
    assert training(shape, Setting(lora=8))["gradients"] == 4 * trained


def test_the_disk_holds_fp32_and_two_checkpoints():
    assert disk(BIG, Setting()) == (4 * BIG.parameters, 24 * BIG.parameters)
