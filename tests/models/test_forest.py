"""The laws of the forest: it is the plain forward pass of every path, however trees are laid out."""

from __future__ import annotations

import random

import pytest
import torch
from transformers import BloomConfig
from transformers.models.llama import modeling_llama

from tercet.models.attention import Attention
from tercet.models.chat import Chat
from tercet.models.forest import NAME, Forest, ForestError, Leaf, Tree, pack_forest, register
from tercet.models.hf_folder import load_model, load_tokenizer, save_config
from tercet.models.policy import Policy, Scorer, why_not_forest
from tercet.rows import Message
from tercet.train.export import open_policy


@pytest.fixture
def policy(sharp_folder):
    return open_policy(sharp_folder)


@pytest.fixture
def exact(sharp_folder, monkeypatch):
    """The policy in float64 throughout: transformers' norm goes through float32, which hides small differences."""

    def forward(norm, hidden):
        return norm.weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + norm.variance_epsilon)

    monkeypatch.setattr(modeling_llama.LlamaRMSNorm, "forward", forward)
    return open_policy(sharp_folder, torch.float64)


def some_trees(seed: int = 0) -> list[Tree]:
    """A branching tree, conversations of several turns without a trunk, a long trunk, a leaf of one token."""
    source = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [source.randrange(256) for _ in range(count)]

    def turns(*lengths: int) -> Leaf:
        mask = [bool(turn % 2) for turn, length in enumerate(lengths) for _ in range(length)]
        return Leaf(ids(len(mask)), mask)

    return [
        Tree(ids(11), [Leaf(ids(n), [True] * n) for n in (7, 40, 3, 1)]),
        Tree([], [turns(9, 12, 5, 8)]),
        Tree(ids(70), [turns(2, 6), turns(4, 33)]),
        Tree(ids(1), [Leaf(ids(5), [True] * 5)]),
        Tree([], [turns(1, 3, 2, 2, 1, 1)]),
    ]


def plain_logps(model: torch.nn.Module, tree: Tree) -> torch.Tensor:
    """Log-probabilities of a tree's trained tokens by a forward pass of each path alone, without padding."""
    found = []
    for leaf in tree.leaves:
        path = torch.tensor([[*tree.trunk, *leaf.token_ids]])
        logps = model(input_ids=path).logits[0, :-1].log_softmax(-1).gather(1, path[0, 1:, None]).squeeze(1)
        trained = [False] * len(tree.trunk) + list(leaf.mask)
        found.append(logps[torch.tensor(trained[1:], dtype=torch.bool)])
    return torch.cat(found)


def gradients(module: torch.nn.Module, logps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Gradients of a sum in which no two tokens weigh the same."""
    module.zero_grad()
    (logps * torch.linspace(0.5, 2.0, len(logps), dtype=logps.dtype)).sum().backward()
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def furthest(mine: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of a parameter's gradient."""
    assert mine.keys() == theirs.keys()
    return max(float((mine[name] - theirs[name]).norm() / theirs[name].norm()) for name in mine)


def check_against_plain(policy: Policy, plain: torch.nn.Module, trees: list[Tree], close: float) -> None:
    logps, _ = policy(pack_forest(trees))
    wanted = torch.cat([plain_logps(plain, tree) for tree in trees])
    torch.testing.assert_close(logps, wanted, rtol=close, atol=close)
    assert furthest(gradients(policy.model, logps), gradients(plain, wanted)) < close


@pytest.mark.parametrize("kernel", ["eager", "sdpa"])
def test_a_forest_is_the_plain_forward_of_every_path_with_its_gradients(policy, sharp_folder, kernel):
    check_against_plain(policy, load_model(sharp_folder, torch.float32, attention=kernel), some_trees(), 1e-4)


def test_in_float64_nothing_but_rounding_is_left(exact, sharp_folder):
    check_against_plain(exact, load_model(sharp_folder, torch.float64, attention="sdpa"), some_trees(), 1e-9)


def test_a_wrong_mask_would_show(exact, sharp_folder):
    """The tests above can see one key too many."""
    tree = some_trees()[0]
    forest, other = pack_forest([tree]), pack_forest([tree])
    other.segments = [
        s._replace(ancestors=tuple((start, end - 1) for start, end in s.ancestors)) for s in other.segments
    ]
    assert (exact(forest)[0] - exact(other)[0]).abs().max() > 1e-3


def test_another_document_never_moves_a_documents_logits(policy):
    trees = some_trees()
    changed = [
        Tree(
            [(i + 1) % 256 for i in tree.trunk],
            [Leaf([(i + 7) % 256 for i in n.token_ids], n.mask) for n in tree.leaves],
        )
        for tree in trees
    ]
    for kept in range(len(trees)):
        mixed = [tree if i == kept else changed[i] for i, tree in enumerate(trees)]
        one, two = pack_forest(trees), pack_forest(mixed)
        own = [owner for owner, tree in enumerate(trees) for _ in tree.leaves]
        mine = torch.tensor([own[leaf] == kept for leaf in one.leaf_P.tolist()])
        with torch.no_grad():
            before, after = policy(one)[0], policy(two)[0]
        assert torch.equal(before[mine], after[mine])
        assert not torch.equal(before[~mine], after[~mine])


def test_a_leaf_never_sees_its_sister(policy):
    tree = some_trees()[0]
    first, *others = tree.leaves
    changed = Tree(tree.trunk, [first, *(Leaf([(i + 7) % 256 for i in n.token_ids], n.mask) for n in others)])
    size = sum(first.mask)
    with torch.no_grad():
        before, after = policy(pack_forest([tree]))[0], policy(pack_forest([changed]))[0]
    assert torch.equal(before[:size], after[:size])
    assert not torch.equal(before[size:], after[size:])


@pytest.mark.parametrize("cuts", [[[0, 1, 2, 3, 4]], [[0], [1], [2], [3], [4]], [[4, 2], [3, 0, 1]]], ids=str)
def test_cutting_the_batch_differently_does_not_change_the_gradient(exact, cuts):
    def gradient(parts: list[list[int]]) -> dict[str, torch.Tensor]:
        exact.zero_grad()
        trees = some_trees()
        for part in parts:
            (-exact(pack_forest([trees[i] for i in part], 64))[0]).sum().backward()
        return {name: p.grad.clone() for name, p in exact.named_parameters()}

    assert furthest(gradient(cuts), gradient([[0, 1], [2, 3, 4]])) < 1e-9


def test_a_branched_tree_is_its_paths_packed_alone(exact):
    tree = some_trees()[0]
    alone = [Tree(tree.trunk, [leaf]) for leaf in tree.leaves]
    torch.testing.assert_close(exact(pack_forest([tree]))[0], exact(pack_forest(alone))[0], rtol=1e-10, atol=1e-10)
    assert pack_forest([tree]).num_tokens < pack_forest(alone).num_tokens


@pytest.mark.parametrize("multiple", [2, 64, 500])
def test_filling_changes_nothing(exact, multiple):
    trees = some_trees()
    plain, filled = pack_forest(trees), pack_forest(trees, multiple)
    assert len(filled.input_ids) % multiple == 0
    assert filled.num_tokens == plain.num_tokens == len(plain.input_ids)
    for name in ("predict_P", "targets_P", "leaf_P", "last_L"):
        assert torch.equal(getattr(filled, name), getattr(plain, name))
    mine, theirs = exact(filled)[0], exact(plain)[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-12)
    assert furthest(gradients(exact, mine), gradients(exact, theirs)) < 1e-10


def test_positions_continue_from_the_trunk():
    forest = pack_forest(
        [Tree([1, 2, 3], [Leaf([4, 5], [True, True]), Leaf([6], [True])]), Tree([], [Leaf([7, 8], [True] * 2)])]
    )
    assert forest.input_ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 8]
    assert forest.position_ids.tolist() == [0, 1, 2, 3, 4, 3, 0, 1]
    assert forest.predict_P.tolist() == [2, 3, 2, 6]
    assert forest.targets_P.tolist() == [4, 5, 6, 8], "the first token of a leaf without a trunk has no predictor"
    assert forest.leaf_P.tolist() == [0, 0, 1, 2]
    assert forest.last_L.tolist() == [4, 5, 7]
    assert forest.segments == [(0, 3, ()), (3, 5, ((0, 3),)), (5, 6, ((0, 3),)), (6, 8, ())]
    assert forest.counts_L.tolist() == [2, 1, 1]
    assert forest.num_trained == 3


def queries_keys_values(heads: tuple[int, int], size: int, device: str = "cpu") -> list[torch.Tensor]:
    source = torch.Generator().manual_seed(0)
    return [torch.randn(1, n, size, 16, generator=source).to(device) for n in (*heads, heads[1])]


HEADS = pytest.mark.parametrize("heads", [(4, 4), (4, 2)], ids=["own keys", "shared keys"])


@HEADS
@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no CUDA device")
def test_on_a_gpu_flex_attention_and_its_gradients_are_those_by_segments(heads):
    forest = pack_forest(some_trees(), 64)
    found = []
    for device in ("cpu", "cuda"):
        inputs = [tensor.requires_grad_() for tensor in queries_keys_values(heads, len(forest.input_ids), device)]
        output = forest.to(torch.device(device)).attend(0, *inputs, Attention(0.25))
        slope = torch.linspace(-1, 1, output.numel()).reshape(output.shape).to(device)
        found.append(
            [tensor.detach().cpu() for tensor in (output, *torch.autograd.grad((output * slope).sum(), inputs))]
        )
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-3, atol=2e-3)


OPTIONS = {
    "usual": Attention(0.5),
    "window": Attention(0.5, window=2),
    "chunk": Attention(0.5, chunk=2),
    "cap": Attention(0.5, softcap=0.7),
    "all": Attention(0.5, window=3, softcap=0.7),
}


@pytest.mark.parametrize("sinks", [False, True], ids=["", "sinks"])
@pytest.mark.parametrize("name", OPTIONS)
def test_the_attention_by_segments_has_the_gradients_it_claims(name, sinks):
    source = torch.Generator().manual_seed(0)
    forest = pack_forest(
        [Tree([1, 2, 3], [Leaf([4, 5], [True] * 2), Leaf([6], [True])]), Tree([], [Leaf([7, 8], [True] * 2)])]
    )
    shapes = [(1, 2, 8, 3), (1, 1, 8, 3), (1, 1, 8, 2), (2,)]
    inputs = [torch.randn(shape, generator=source, dtype=torch.float64, requires_grad=True) for shape in shapes]

    def attend(query, key, value, sink):
        how = OPTIONS[name]._replace(sinks=sink) if sinks else OPTIONS[name]
        return forest.attend(0, query, key, value, how)

    assert torch.autograd.gradcheck(attend, inputs)


def test_a_scorer_reads_the_last_token_of_each_leaf(sharp_folder):
    from tercet.train.reward_model import open_scorer

    scorer = open_scorer(sharp_folder, 256, seed=0)
    assert isinstance(scorer, Scorer)
    trees = some_trees()
    plain = load_model(sharp_folder, torch.float32, attention="sdpa").model
    wanted = [
        scorer.model.score(plain(input_ids=torch.tensor([[*tree.trunk, *leaf.token_ids]])).last_hidden_state[0, -1])
        for tree in trees
        for leaf in tree.leaves
    ]
    torch.testing.assert_close(scorer(pack_forest(trees, 64)), torch.cat(wanted), rtol=1e-4, atol=1e-4)


def test_a_layer_that_bypasses_the_attention_interface_is_refused(policy):
    attention = policy.model.model.layers[1].self_attn
    attention.forward = lambda hidden_states, **_options: (hidden_states.cumsum(1), None)
    assert "1 of 2 layers used the attention interface" in why_not_forest(policy)


def test_attention_of_a_kind_that_is_not_known_is_refused_by_name(policy):
    attention = policy.model.model.layers[1].self_attn
    plain = attention.forward
    attention.forward = lambda *inputs, **options: plain(*inputs, **options, block_indices=torch.ones(3))
    assert "LlamaAttention 1: its attention takes block_indices, which is not known" in why_not_forest(policy)


def test_logits_that_the_head_does_not_make_are_refused(policy):
    policy.model.lm_head.register_forward_hook(lambda _layer, _inputs, logits: logits.sin())
    assert "its logits are not its output projection's" in why_not_forest(policy)


def other_architecture(folder, tiny_folder, config, name: str):
    """A folder with random weights of another architecture."""
    import shutil

    import transformers

    config.architectures = [name]
    model = getattr(transformers, name)(config)
    shutil.copytree(tiny_folder, folder)
    model.save_pretrained(folder)
    save_config(folder, config)
    return folder


def test_an_architecture_with_attention_of_its_own_is_read_a_path_a_row(tiny_folder, tmp_path):
    config = BloomConfig(vocab_size=259, hidden_size=32, n_layer=2, n_head=2)
    assert open_policy(other_architecture(tmp_path / "bloom", tiny_folder, config, "BloomForCausalLM")).padded


def test_a_model_loaded_for_forests_cannot_be_called_without_one(policy):
    with pytest.raises(ForestError, match="Policy"):
        policy.model(input_ids=torch.tensor([[1, 2, 3]]))


def test_a_forest_moves_whole():
    forest = pack_forest(some_trees())
    moved = forest.to(torch.device("meta"))
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert isinstance(moved, Forest)
    assert len(tensors) == 7
    assert all(tensor.is_meta for tensor in tensors)


def test_a_forest_is_the_plain_forward_of_a_real_model(smollm):
    chat = Chat(load_tokenizer(smollm))
    prompt = [Message("user", "What is 7 times 6?")]
    pairs = [chat.pair(prompt, answer) for answer in ("42.", "It is forty-two, I think.")]
    assert pairs[0][0] == pairs[1][0]
    two_turns = chat.encode(
        [*prompt, Message("assistant", "42."), Message("user", "Sure?"), Message("assistant", "Yes.")]
    )
    trees = [
        Tree(pairs[0][0], [Leaf(ids, [True] * len(ids)) for _, ids in pairs]),
        Tree([], [Leaf(two_turns.token_ids, two_turns.mask)]),
    ]
    with torch.no_grad():
        logps, _ = open_policy(smollm)(pack_forest(trees, 64))
        plain = load_model(smollm, torch.float32, attention="sdpa")
        wanted = torch.cat([plain_logps(plain, tree) for tree in trees])
    torch.testing.assert_close(logps, wanted, rtol=1e-4, atol=1e-4)


def test_the_padding_tokens_embedding_is_trained_like_any_other(sharp_folder):
    """Where the end token pads, transformers would keep its row still."""
    register()
    model = load_model(sharp_folder, torch.float32, attention=NAME)
    embedding = model.get_input_embeddings()
    embedding.padding_idx = 7
    policy = Policy(model)
    policy(pack_forest([Tree([], [Leaf([5, 7, 9, 11], [False, True, True, True])])]))[0].sum().backward()
    assert all(embedding.weight.grad[token].abs().max() > 0 for token in (5, 7, 9))
