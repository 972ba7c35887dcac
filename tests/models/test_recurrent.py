"""Recurrent layers follow the branches of a forest: it is the plain forward pass of every path, with its gradients."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BambaConfig,
    FalconH1Config,
    GraniteMoeHybridConfig,
    JambaConfig,
    KimiLinearConfig,
    Lfm2Config,
    Lfm2MoeConfig,
    Mamba2Config,
    NemotronHConfig,
    OlmoHybridConfig,
    PretrainedConfig,
    Qwen3_5TextConfig,
    Qwen3NextConfig,
)

from tercet.device.mesh import Mesh
from tercet.models.forest import NAME, Forest, ForestError, Leaf, Tree, pack_forest, register
from tercet.models.forest_cpu import Segment
from tercet.models.layer_wrappers import compile_layers, recompute
from tercet.models.policy import Policy, why_not_forest
from tercet.models.state_plan import state_plan
from tercet.train.batch import batches
from tercet.train.branches import branches
from tercet.train.packing import Budget

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "head_dim": 8,
    "num_hidden_layers": 3,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
STATE_SPACE = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 16,
    "mamba_chunk_size": 32,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}

MODELS: dict[str, PretrainedConfig] = {
    "Qwen3-Next": Qwen3NextConfig(
        **COMMON, **DELTA, **EXPERTS, intermediate_size=48, shared_expert_intermediate_size=16
    ),
    "Qwen3.5": Qwen3_5TextConfig(**COMMON, **DELTA, intermediate_size=48),
    "OLMo Hybrid": OlmoHybridConfig(**COMMON, **DELTA | {"linear_num_value_heads": 2}, intermediate_size=48),
    "Kimi Linear": KimiLinearConfig(
        **COMMON | {"num_key_value_heads": 4},
        intermediate_size=48,
        num_hidden_layers=3,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
        mlp_layer_types=["dense", "sparse", "dense"],
        moe_intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
        linear_head_dim=8,
        linear_num_heads=4,
    ),
    "LFM2": Lfm2Config(
        **COMMON,
        intermediate_size=48,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=3,
        layer_types=["conv", "full_attention", "conv"],
    ),
    "LFM2-MoE": Lfm2MoeConfig(
        **COMMON,
        **EXPERTS,
        intermediate_size=48,
        num_dense_layers=1,
        num_hidden_layers=3,
        layer_types=["conv", "full_attention", "conv"],
    ),
    "Granite 4": GraniteMoeHybridConfig(
        **COMMON,
        **STATE_SPACE,
        intermediate_size=16,
        shared_intermediate_size=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        num_hidden_layers=3,
        layer_types=["linear_attention", "full_attention", "linear_attention"],
    ),
    "Bamba": BambaConfig(**COMMON, **STATE_SPACE, intermediate_size=48, num_hidden_layers=3, attn_layer_indices=[1]),
    "Falcon-H1": FalconH1Config(
        **COMMON, **STATE_SPACE, mamba_d_ssm=64, intermediate_size=48, num_hidden_layers=2, head_dim=8
    ),
    "Nemotron-H": NemotronHConfig(
        **COMMON,
        layers_block_type=["linear_attention", "moe", "full_attention", "linear_attention", "mlp"],
        head_dim=8,
        intermediate_size=48,
        mamba_num_heads=8,
        mamba_head_dim=8,
        ssm_state_size=16,
        n_groups=2,
        chunk_size=32,
        time_step_limit=(0.01, 0.5),
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        moe_shared_expert_intermediate_size=16,
    ),
    "Mamba-2": Mamba2Config(
        vocab_size=64,
        hidden_size=32,
        num_heads=8,
        head_dim=8,
        state_size=16,
        n_groups=2,
        chunk_size=32,
        num_hidden_layers=2,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    ),
}


@cache
def weights(name: str) -> dict[str, torch.Tensor]:
    """Random weights large enough that what a state holds shows in the logits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(MODELS[name], dtype=torch.float32)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return model.state_dict()


def opened(name: str, attention: str) -> Any:
    register()
    config = deepcopy(MODELS[name])  # a model keeps its configuration, the kind of attention in it
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    model.load_state_dict(weights(name))
    return model.eval()


def ids(count: int, seed: int) -> list[int]:
    return torch.randint(64, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def some_trees() -> list[Tree]:
    """Trunks longer than a chunk and shorter than a window, leaves of one token and of several chunks, roots alone."""
    return [
        Tree(ids(70, 1), [Leaf(ids(n, n), [True] * n) for n in (1, 2, 40, 75, 38)]),
        Tree([], [Leaf(ids(33, 2), [False] * 3 + [True] * 30)]),
        Tree(ids(2, 3), [Leaf(ids(n, n + 100), [True] * n) for n in (5, 3)]),
        Tree([], [Leaf(ids(90, 4), [True] * 90)]),
    ]


def plain_logps(model: Any, tree: Tree) -> torch.Tensor:
    """Log-probabilities of a tree's trained tokens by a forward pass of each path alone."""
    found = []
    for leaf in tree.leaves:
        path = torch.tensor([[*tree.trunk, *leaf.token_ids]])
        logps = model(input_ids=path, use_cache=False).logits[0, :-1].log_softmax(-1)
        chosen = logps.gather(1, path[0, 1:, None]).squeeze(1)
        trained = torch.tensor([*[False] * len(tree.trunk), *leaf.mask])
        found.append(chosen[trained[1:]])
    return torch.cat(found)


def gradients(model: Any, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    (logps * torch.linspace(0.5, 2.0, len(logps))).sum().backward()
    return {name: one.grad for name, one in model.named_parameters() if one.grad is not None}


def check_gradients(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], close: float) -> None:
    assert mine.keys() == theirs.keys()
    scale = max(float(grad.norm()) for grad in theirs.values())
    for name, grad in theirs.items():
        assert float((mine[name] - grad).norm()) < close * (float(grad.norm()) + 1e-3 * scale), name


@pytest.mark.parametrize("name", MODELS)
def test_a_forest_is_the_plain_forward_of_every_path_with_its_gradients(name):
    policy, plain = Policy(opened(name, NAME)), opened(name, "eager")
    logps, _ = policy(pack_forest(some_trees(), 64))
    wanted = torch.cat([plain_logps(plain, tree) for tree in some_trees()])
    torch.testing.assert_close(logps, wanted, rtol=2e-4, atol=2e-4)
    check_gradients(gradients(policy.model, logps), gradients(plain, wanted), 2e-3)


def deep_forest(nodes: list[tuple[int | None, list[int]]]) -> tuple[Forest, list[list[int]]]:
    """A tree of any depth from (parent, tokens), and the place of every token on each node's path, its own included."""
    places: list[list[int]] = []
    spans: list[tuple[tuple[int, int], ...]] = []
    row: list[int] = []
    for parent, tokens in nodes:
        own = (len(row), len(row) + len(tokens))
        spans.append((*(() if parent is None else spans[parent]), own))
        places.append([*([] if parent is None else places[parent]), *range(*own)])
        row.extend(tokens)
    positions = torch.zeros(len(row), dtype=torch.long)
    for path in places:
        positions[path] = torch.arange(len(path))
    forest = pack_forest([Tree([], [Leaf(row, [True] * len(row))])])
    segments = [Segment(*path[-1], path[:-1]) for path in spans]
    return replace(forest, position_ids=positions, segments=segments), places


@pytest.mark.parametrize("name", ["Qwen3.5", "LFM2", "Nemotron-H", "Falcon-H1"])
def test_a_tree_of_any_depth_is_each_path_alone(name):
    policy, plain = Policy(opened(name, NAME)), opened(name, "eager")
    lengths = [(None, 20), (0, 1), (1, 1), (2, 9), (1, 66), (0, 7), (None, 3), (5, 2), (7, 30)]
    forest, places = deep_forest([(parent, ids(n, i)) for i, (parent, n) in enumerate(lengths)])
    hidden = policy.hidden(forest, forest.input_ids, forest.position_ids)
    for path in places:
        alone = plain.base_model(input_ids=forest.input_ids[path][None], use_cache=False).last_hidden_state[0]
        torch.testing.assert_close(hidden[path], alone, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("name", ["Qwen3.5", "LFM2", "Nemotron-H"])
def test_a_layer_that_reads_the_row_from_left_to_right_would_show(name, monkeypatch):
    policy = Policy(opened(name, NAME))
    forest = pack_forest(some_trees())
    with torch.no_grad():
        following = policy(forest)[0]
        space = sys.modules[type(policy.model).__module__]
        plain = space.causal_conv1d_fn
        monkeypatch.setattr(space, "causal_conv1d_fn", lambda *given, forest=None, **more: plain(*given, **more))
        assert (policy(forest)[0] - following).abs().max() > 1e-2


@pytest.mark.parametrize("name", ["Qwen3.5", "LFM2", "Falcon-H1"])
def test_layers_that_are_computed_again_give_the_same_gradients(name):
    once, again = Policy(opened(name, NAME)), Policy(opened(name, NAME))
    recompute(again)
    found = [gradients(policy.model, policy(pack_forest(some_trees()))[0]) for policy in (once, again)]
    check_gradients(*found, 1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # of torch itself, while it compiles
@pytest.mark.parametrize("name", ["Qwen3.5", "LFM2", "Bamba"])
def test_compiled_layers_give_the_same_numbers(name):
    policy = Policy(opened(name, NAME))
    before = policy(pack_forest(some_trees()))[0]
    compile_layers(policy, torch.device("cpu"), backend="eager")
    torch.testing.assert_close(policy(pack_forest(some_trees()))[0], before)


@pytest.mark.parametrize("name", ["Qwen3.5", "LFM2", "Nemotron-H"])
def test_in_bf16_a_branch_is_as_near_to_fp32_as_the_plain_forward(name):
    tree = some_trees()[0]
    exact = plain_logps(opened(name, "eager"), tree)
    plain = plain_logps(opened(name, "eager").to(torch.bfloat16), tree).float()
    found = Policy(opened(name, NAME).to(torch.bfloat16))(pack_forest([tree]))[0]
    assert (found - exact).abs().mean() < 1.5 * (plain - exact).abs().mean()


def test_another_document_never_moves_a_documents_hidden_states():
    policy = Policy(opened("Qwen3.5", NAME))
    trees = some_trees()
    changed = [trees[0], *(Tree([1] * len(tree.trunk), tree.leaves) for tree in trees[1:])]
    one, two = pack_forest(trees), pack_forest(changed)
    with torch.no_grad():
        before, after = (policy.hidden(forest, forest.input_ids, forest.position_ids) for forest in (one, two))
    assert torch.equal(before[: trees[0].num_tokens], after[: trees[0].num_tokens])
    assert not torch.equal(before, after)


def test_without_a_forest_a_model_computes_what_it_did_before():
    path = torch.tensor([ids(50, 0)])
    plain = opened("Bamba", "eager")
    before = plain(input_ids=path).logits
    Policy(opened("Bamba", NAME))  # from here on the modelling file's functions follow trees
    assert torch.equal(plain(input_ids=path).logits, before)


def test_a_layout_without_segments_is_refused_in_words():
    policy = Policy(opened("LFM2", NAME))

    class Past:
        def attend(self, *given: Any) -> Any:
            raise AssertionError("not reached: the first layer is recurrent")

    with pytest.raises(ForestError, match="Past has none"):
        policy.hidden(Past(), torch.tensor([1, 2]), torch.tensor([0, 1]))


@pytest.mark.parametrize("name", MODELS)
def test_numbers_say_that_a_forest_carries_the_model(name):
    assert why_not_forest(Policy(opened(name, NAME))) == ""


def test_a_scan_that_takes_no_state_is_found_out_by_numbers():
    """Mamba-1 reads a row from left to right, whatever the branches; one path a row serves it."""
    values = {"mamba_d_state": 4, "attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2}
    config = JambaConfig(**COMMON, **values, intermediate_size=48, num_hidden_layers=2, use_mamba_kernels=False)
    register()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=NAME)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    assert why_not_forest(Policy(model.eval()))


def test_segments_of_a_level_are_batches_of_like_length_behind_their_parents():
    lengths = [(0, 100), (100, 110), (110, 210), (210, 305), (305, 310)]
    above = [(), ((0, 100),), (), ((110, 210),), ((0, 100), (100, 110))]
    plan = state_plan([Segment(*span, path) for span, path in zip(lengths, above, strict=True)], torch.device("cpu"))
    shape = [[(batch.segments, batch.length) for batch in level] for level in plan.levels]
    assert shape == [[(2, 100)], [(1, 10), (1, 95)], [(1, 5)]]
    assert [batch.parents_S.tolist() for level in plan.levels[1:] for batch in level] == [[0], [1], [0]]
    x = torch.arange(310.0)[:, None]
    assert torch.equal(plan.batches.gather(plan.batches.spread(x)), x)
    windows = plan.windows(4).spread(x)[:, 0].tolist()
    assert windows[:4] == [0, 0, 0, 0]
    assert windows[-8:] == [107, 108, 109, 305, 306, 307, 308, 309]


def test_a_batch_beyond_the_budget_is_computed_whole():
    """A trunk that is run ahead hands on keys and values, but no states."""
    batch = batches(some_trees()[:1], Budget(100, depth_first=True), Mesh())[0]
    assert batch.walk is not None
    assert list(branches(Policy(opened("LFM2", NAME)), batch, torch.autograd.backward)) == [batch]
