"""Less memory, more speed, the same numbers: recomputed and compiled layers, weights on the host, optimisers."""

from __future__ import annotations

import importlib.util
import sys

import pytest
import torch

from tercet.algos.tokens import Head, liger, token_logps
from tercet.device import checkpoint
from tercet.device.host_store import HostStore
from tercet.device.mesh import Mesh
from tercet.device.optim import optimizer as make_optimizer
from tercet.device.place import DeviceError
from tercet.device.shard import Trainable
from tercet.models import layer_wrappers
from tercet.models.forest import Leaf, Tree, pack_forest
from tercet.models.lora import adapt
from tercet.recipe import LoraSpec, SFTSpec
from tercet.train.batch import Batch
from tercet.train.export import open_policy
from tercet.train.loop import State
from tercet.train.sft import sft_loss

CPU = torch.device("cpu")


def spec(**changes) -> SFTSpec:
    values = {"model": "base", "rows": "sft-data", "learning_rate": 1e-3, "dtype": "float32", "weight_decay": 0.1}
    return SFTSpec.model_validate(values | changes)


def forest(seed: int = 0):
    """Two prompts with three and two answers, and a row without a trunk."""
    source = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(256, (length,), generator=source).tolist()

    leaves = [Leaf(ids(length), [True] * length) for length in (9, 30, 17, 24, 5)]
    return pack_forest([Tree(ids(40), leaves[:3]), Tree(ids(12), leaves[3:]), Tree([], [Leaf(ids(33), [True] * 33)])])


def gradients(policy, seed: int = 0) -> dict[str, torch.Tensor]:
    policy.zero_grad(set_to_none=True)
    logps, _ = policy(forest(seed))
    (-logps).sum().backward()
    return {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}


class Kept:
    """Bytes that autograd keeps for backward, weights not counted."""

    def __init__(self, policy) -> None:
        self.weights = {p.untyped_storage().data_ptr() for p in policy.parameters()}
        self.sizes: dict[int, int] = {}

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.weights:
            self.sizes[storage.data_ptr()] = storage.nbytes()
        return tensor


def kept(policy) -> int:
    count = Kept(policy)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        loss = policy(forest())[0].sum()
    loss.backward()
    return sum(count.sizes.values())


@pytest.mark.parametrize("adapters", [False, True], ids=["whole", "adapters"])
def test_recomputed_layers_give_the_same_bits_and_keep_less(tiny_folder, adapters):
    plain, other = open_policy(tiny_folder), open_policy(tiny_folder)
    if adapters:
        for policy in (plain, other):
            adapt(policy, LoraSpec(r=4), torch.float32, 1)
    layer_wrappers.recompute(other)
    mine, theirs = gradients(other), gradients(plain)
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    assert kept(other) < kept(plain) / 4


@pytest.mark.parametrize("again", [False, True], ids=["kept", "recomputed"])
def test_what_layers_save_waits_on_the_host_and_gives_the_same_bits(tiny_folder, again):
    """On a CPU host and device are one memory; what is counted is what leaves the layers, and what stays."""
    plain, other = open_policy(tiny_folder), open_policy(tiny_folder)
    store = HostStore(CPU, least=1)
    if again:
        layer_wrappers.recompute(other)
    layer_wrappers.offload(other, store)
    mine, theirs = gradients(other), gradients(plain)
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)
    layers, hidden = plain.model.config.num_hidden_layers, plain.model.config.hidden_size
    taken, tokens = store.bytes, len(forest().input_ids)
    inputs = 4 * tokens * hidden * layers
    assert taken >= inputs
    assert (taken < 2 * inputs) == again, "a layer's input alone, where it computes the rest again"
    assert kept(other) < kept(plain) / 4, "what stays are the ends of the model"


@pytest.mark.parametrize("key", ["activation_offloading", "offload"])
def test_without_a_card_offloading_is_refused(workspace, tmp_path, key):
    with pytest.raises(DeviceError, match=rf"placement.{key} moves tensors from a card"):
        workspace.run_stage("sft", tmp_path / "made", placement={key: True})


def test_recomputed_layers_write_and_score_without_gradients_as_before(tiny_folder):
    policy = open_policy(tiny_folder)
    with torch.no_grad():
        before = policy(forest())[0]
        layer_wrappers.recompute(policy)
        assert torch.equal(policy(forest())[0], before)


def learn(state: State, seeds: range) -> None:
    """One update per seed, from two batches each."""
    trainable = state.trainable
    for seed in seeds:
        for part in (seed, seed + 100):
            trainable.backward(sft_loss(trainable.module, Batch(forest(part))).objective.total)
        trainable.scale_grads(1.0 / 50)
        state.optimizer.step()
        state.optimizer.zero_grad(set_to_none=True)
        trainable.published()
        state.updates += 1


def state_of(folder, settings: SFTSpec, host: torch.device | None = None) -> State:
    trainable = Trainable(open_policy(folder), getattr(torch, settings.dtype), Mesh(), host=host)
    return State(trainable, make_optimizer(settings, trainable, {"": settings.learning_rate}))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_master_weights_on_the_host_get_the_same_updates_as_beside_the_model(tiny_folder, dtype):
    beside, host = (state_of(tiny_folder, spec(dtype=dtype), place) for place in (None, CPU))
    for state in (beside, host):
        learn(state, range(4))
    own = {p.data_ptr() for p in host.trainable.module.parameters()}
    for mine, theirs in zip(host.trainable.master_weights, beside.trainable.master_weights, strict=True):
        assert torch.equal(mine, theirs)
        assert mine.data_ptr() not in own
        assert all(value.device == CPU for value in host.optimizer.state[mine].values())
    for mine, theirs in zip(host.trainable.module.parameters(), beside.trainable.module.parameters(), strict=True):
        assert torch.equal(mine, theirs)
        assert mine.grad is None


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no CUDA device")
def test_on_a_gpu_master_weights_and_moments_stay_in_pinned_memory_of_the_host(tiny_folder):
    trainable = Trainable(open_policy(tiny_folder), torch.bfloat16, Mesh(device=torch.device("cuda")), host=CPU)
    settings = spec(dtype="bfloat16")
    state = State(trainable, make_optimizer(settings, trainable, {"": settings.learning_rate}))
    before = [p.detach().clone() for p in trainable.module.parameters()]
    batch = Batch(forest().to(torch.device("cuda")))
    trainable.backward(sft_loss(trainable.module, batch).objective.total)
    state.optimizer.step()
    trainable.published()
    assert all(master.is_pinned() and master.grad.device == CPU for master in trainable.master_weights)
    assert all(value.device == CPU for moments in state.optimizer.state.values() for value in moments.values())
    for work, was, master in zip(trainable.module.parameters(), before, trainable.master_weights, strict=True):
        assert work.is_cuda
        assert torch.equal(work.cpu(), master.bfloat16())
        assert not torch.equal(work, was)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch's own, while tracing
def test_compiled_layers_give_the_same_losses_and_gradients_whatever_the_length(tiny_folder):
    from torch._dynamo.utils import counters

    plain, fast, frugal = (open_policy(tiny_folder) for _ in range(3))
    torch.compiler.reset()
    counters.clear()
    for policy in (fast, frugal):
        layer_wrappers.compile_layers(policy, CPU, backend="aot_eager")
    layer_wrappers.recompute(frugal)
    for seed in range(3):
        theirs = gradients(plain, seed)
        for policy in (fast, frugal):
            mine = gradients(policy, seed)
            torch.testing.assert_close(policy(forest(seed))[0], plain(forest(seed))[0], rtol=0, atol=1e-5)
            for name in theirs:
                torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-4)
    assert 0 < counters["stats"]["unique_graphs"] < 8, "compiled, and not anew for every length"


def test_without_a_compiler_the_layers_stay_as_they_are_and_it_says_so(tiny_folder, monkeypatch):
    policy = open_policy(tiny_folder)
    before = [vars(module).get("forward") for module in policy.modules()]
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    with pytest.warns(UserWarning, match=r"placement\.compile needs a C\+\+ compiler"):
        layer_wrappers.compile_layers(policy, CPU)
    assert [vars(module).get("forward") for module in policy.modules()] == before


def test_torch_in_a_folder_with_a_space_cannot_link_what_it_compiles(tiny_folder, monkeypatch):
    monkeypatch.setattr(torch, "__file__", "/tmp/my files/torch/__init__.py")
    with pytest.warns(UserWarning, match="needs torch installed in a folder without spaces .it lies in /tmp/my files/"):
        layer_wrappers.compile_layers(open_policy(tiny_folder), CPU)


def test_weights_in_bf16_keep_exact_rotary_frequencies(tiny_folder):
    """Rounded ones would turn late tokens by up to a radian too far."""
    exact = [buffer.clone() for buffer in open_policy(tiny_folder).buffers()]
    for policy in (open_policy(tiny_folder).to(torch.bfloat16), open_policy(tiny_folder, torch.bfloat16)):
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(policy.buffers(), exact, strict=True))
        assert {p.dtype for p in policy.parameters()} == {torch.bfloat16}


OPTIMIZERS = {
    "amsgrad": lambda master_weights: torch.optim.AdamW(master_weights, lr=1e-3, amsgrad=True),
    "nadam": lambda master_weights: torch.optim.NAdam(master_weights, lr=1e-3),
    "adafactor": lambda master_weights: torch.optim.Adafactor(master_weights, lr=1e-3),
}


def save(folder, state, step: int) -> None:
    found = checkpoint.snapshot(step, state.trainable, state.optimizer, {"updates": step})
    checkpoint.Saver(folder, state.trainable.mesh, beside=False).save(found)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_checkpoint_holds_whatever_state_an_optimizer_keeps(tiny_folder, tmp_path, name):
    whole, first, second = (state_of(tiny_folder, spec()) for _ in range(3))
    for state in (whole, first, second):
        state.optimizer = OPTIMIZERS[name](state.trainable.master_weights)
    learn(whole, range(5))
    learn(first, range(2))
    save(tmp_path, first, 2)
    assert checkpoint.load(tmp_path, second.trainable, second.optimizer)["updates"] == 2
    learn(second, range(2, 5))
    for mine, theirs in zip(second.trainable.master_weights, whole.trainable.master_weights, strict=True):
        assert torch.equal(mine, theirs)


def test_a_part_that_never_moved_has_no_state_after_a_restart_either(tiny_folder, tmp_path):
    """As a policy that waits for its critic: bias correction begins at its own first update."""
    first, second = (state_of(tiny_folder, spec()) for _ in range(2))
    still = first.trainable.part("model.model.norm")
    for master in first.trainable.master_weights:
        master.grad = None if any(master is one for one in still) else torch.ones_like(master)
    first.optimizer.step()
    save(tmp_path, first, 1)
    checkpoint.load(tmp_path, second.trainable, second.optimizer)
    master_weights = dict(zip(second.trainable.names, second.trainable.master_weights, strict=True))
    steps = {name: second.optimizer.state.get(master) for name, master in master_weights.items()}
    assert steps.pop("model.model.norm.weight") is None
    assert all(float(found["step"]) == 1.0 for found in steps.values())


def test_moments_of_8_bits_need_a_gpu(tiny_folder):
    with pytest.raises(ValueError, match=r"keeps its moments on one GPU, and training runs on cpu; use optimizer"):
        state_of(tiny_folder, spec(optimizer="adamw8bit"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no CUDA device")
def test_without_bitsandbytes_it_says_what_to_install(tiny_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    trainable = Trainable(open_policy(tiny_folder), torch.float32, Mesh(device=torch.device("cuda")))
    with pytest.raises(ValueError, match=r"pip install 'tercet\[bits\]'"):
        make_optimizer(spec(optimizer="adamw8bit"), trainable, {"": 1e-3})


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.accelerator.is_available() or importlib.util.find_spec("bitsandbytes") is None, reason="no bitsandbytes"
)
def test_moments_of_8_bits_go_on_after_a_restart(tiny_folder, tmp_path):
    def made() -> State:
        trainable = Trainable(open_policy(tiny_folder), torch.float32, Mesh(device=torch.device("cuda")))
        settings = spec(optimizer="adamw8bit")
        return State(trainable, make_optimizer(settings, trainable, {"": settings.learning_rate}))

    def step(state: State, seeds: range) -> None:
        for seed in seeds:
            source = torch.Generator().manual_seed(seed)
            for master in state.trainable.master_weights:
                master.grad = torch.randn(master.shape, generator=source).to(master.device)
            state.optimizer.step()

    whole, first, second = made(), made(), made()
    step(whole, range(5))
    step(first, range(2))
    save(tmp_path, first, 2)
    checkpoint.load(tmp_path, second.trainable, second.optimizer)
    step(second, range(2, 5))
    for mine, theirs in zip(second.trainable.master_weights, whole.trainable.master_weights, strict=True):
        assert torch.equal(mine, theirs)


def test_the_placement_of_a_stage_reaches_its_layers_and_changes_no_byte(workspace, tmp_path):
    from tercet.store import payload_digest

    for name, placement in (("plain", {}), ("frugal", {"recompute": True})):
        workspace.run_stage("sft", tmp_path / name, sft={"num_epochs": 1}, placement=placement)
    assert payload_digest(tmp_path / "plain") == payload_digest(tmp_path / "frugal")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available() or liger() is None, reason="no CUDA device, or no Liger")
def test_ligers_kernels_give_our_log_probs_and_gradients_however_tokens_are_weighed():
    source = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 64, generator=source).cuda().requires_grad_() for n in (37, 1001))
    targets, slopes = (torch.randint(1001, (37,), generator=source), torch.randn(37, generator=source))
    mine, _ = token_logps(hidden, Head(weight), targets.cuda())
    other, _ = token_logps(hidden, Head(weight), targets.cuda(), entropy=True)
    torch.testing.assert_close(mine, other, rtol=1e-3, atol=1e-3)
    for one, two in zip(
        *(torch.autograd.grad((x * slopes.cuda()).sum(), (hidden, weight)) for x in (mine, other)), strict=True
    ):
        torch.testing.assert_close(one, two, rtol=1e-2, atol=1e-2)
