"""The host waits for a GPU once per step: nothing in a loss or in the loop asks a tensor for a number before that.

Run on the CPU, where asking costs nothing, with every operation written down that would wait for a GPU.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tercet.device.mesh import Mesh
from tercet.device.shard import Trainable
from tercet.models.flops import model_size, training_flops
from tercet.models.forest import Leaf, Tree
from tercet.recipe import DPOSpec, GRPOSpec, PPOSpec, RewardModelSpec, SFTSpec
from tercet.train.batch import Batch, Step, batches
from tercet.train.dpo import preference_loss
from tercet.train.export import open_policy
from tercet.train.loop import fit, start
from tercet.train.packing import Budget
from tercet.train.reference import ReferenceModel
from tercet.train.reward_model import open_scorer, reward_loss
from tercet.train.rl.actor_critic import CRITIC, POLICY, ActorCritic, open_critic
from tercet.train.rl.grpo import grpo_loss
from tercet.train.rl.ppo import PPO, for_critic, ppo_loss
from tercet.train.sft import sft_loss

STOPS = {"_local_scalar_dense", "nonzero", "bincount", "masked_select", "_unique2", "unique_dim", "is_nonzero", "equal"}


class Waits(TorchDispatchMode):
    """Operations whose result the host has to see."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.lists = Lists(self.found)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put_") and any(
            place is not None and place.dtype == torch.bool for place in args[1]
        )
        if name in STOPS or by_mask or (name == "repeat_interleave" and not (kwargs or {}).get("output_size")):
            self.found.append(name)
        return func(*args, **kwargs or {})

    def __enter__(self):
        self.lists.__enter__()
        return super().__enter__()

    def __exit__(self, *error):
        super().__exit__(*error)
        self.lists.__exit__(*error)


class Lists(TorchFunctionMode):
    """Whole tensors that are copied to the host."""

    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.tolist, torch.Tensor.numpy, torch.Tensor.cpu):
            self.found.append(func.__name__)
        return func(*args, **kwargs or {})


COMMON = {"model": "base", "learning_rate": 1e-4, "dtype": "float32"}


def trees(leaves: int = 2) -> list[Tree]:
    source = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(256, (length,), generator=source).tolist()

    lengths = [(5, 9), (12, 3), (7, 7), (20, 4)]
    return [Tree(ids(n), [Leaf(ids(m + i), [True] * (m + i)) for i in range(leaves)]) for n, m in lengths]


def made(*names: str, leaves: int = 2) -> list[Batch]:
    """Two micro-batches with random numbers of these names."""

    def values(_items, forest):
        sizes = {"L": forest.num_leaves, "P": len(forest.leaf_P), "B": forest.num_leaves // 2}
        return {name: torch.randn(sizes[name[-1]]) for name in names}

    found = batches(trees(leaves), Budget(48), Mesh(), values)
    assert len(found) > 1
    return found


def waits_of(module, spec, loss, steps: list[list[Batch]], context, rates=None) -> list[str]:
    state = start(module, spec, Mesh(), context, rates=rates)
    with Waits() as waits:
        fit(state, [Step(parts) for parts in steps], loss, spec, context, total=len(steps))
    return waits.found


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_sft_waits_once_a_step(tiny_folder, context, reduction, dtype):
    spec = SFTSpec.model_validate({**COMMON, "rows": "sft-data", "reduction": reduction, "dtype": dtype})
    loss = partial(sft_loss, reduction=reduction, length=50)
    assert waits_of(open_policy(tiny_folder), spec, loss, [made(), made()], context()) == ["tolist"] * 2


@pytest.mark.parametrize("name", ["dpo", "dpo_norm", "simpo", "ipo", "wpo", "orpo"])
def test_preference_losses_wait_once_a_step(tiny_folder, context, name):
    spec = DPOSpec.model_validate({**COMMON, "pairs": "preference-data", "loss": name})
    loss = partial(preference_loss, spec=spec)
    found = waits_of(open_policy(tiny_folder), spec, loss, [made("reference_L"), made("reference_L")], context())
    assert found == ["tolist"] * 2


def test_kto_waits_once_a_step(tiny_folder, context):
    spec = DPOSpec.model_validate({**COMMON, "pairs": "preference-data", "loss": "kto"})
    step = made("reference_L")
    for batch in step:
        batch.values["kl"] = torch.zeros(())
    loss = partial(preference_loss, spec=spec)
    assert waits_of(open_policy(tiny_folder), spec, loss, [step], context()) == ["tolist"]


def test_the_reward_model_waits_once_a_step(tiny_folder, context):
    spec = RewardModelSpec.model_validate({**COMMON, "pairs": "preference-data"})
    scorer = open_scorer(tiny_folder, 256, seed=0)
    assert waits_of(scorer, spec, reward_loss, [made("margin_B"), made("margin_B")], context()) == ["tolist"] * 2


@pytest.mark.parametrize("name", ["grpo", "cispo", "gspo"])
@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean", "constant"])
def test_grpo_and_its_kin_wait_once_a_step(tiny_folder, context, name, reduction):
    settings = {"prompts": "sft-data", "rounds": 1, "loss": name, "reduction": reduction, "kl_beta": 0.05}
    spec = GRPOSpec.model_validate({**COMMON, **settings, "importance_cap": 2.0})
    step = made("advantages_P", "sampled_P", "reference_P")
    assert waits_of(open_policy(tiny_folder), spec, partial(grpo_loss, spec=spec), [step], context()) == ["tolist"]


@pytest.mark.parametrize("reduction", ["token_mean", "sequence_mean"])
def test_ppo_waits_once_an_update_for_both_models(tiny_folder, context, reduction):
    settings = {"prompts": "sft-data", "value": "base", "rounds": 1, "reduction": reduction, "max_new_tokens": 32}
    spec = PPOSpec.model_validate({**COMMON, **settings, "truncated": "mask"})
    models = ActorCritic(open_policy(tiny_folder), open_critic(tiny_folder, 256, 0))
    reference = ReferenceModel(open_policy(tiny_folder, torch.float32), 0.0, 1)
    algorithm = PPO(Trainable(models, torch.float32, Mesh()), reference, spec, Budget(48))
    step = made("sampled_P", "rewards_L")
    for batch in step:
        batch.values["kept_L"] = torch.arange(batch.forest.num_leaves) % 3 > 0
    with torch.no_grad():
        policy = [algorithm.for_policy(batch) for batch in step]
    learned = [*policy, *map(for_critic, policy)]
    rates = {POLICY: spec.learning_rate, CRITIC: spec.learning_rate}
    assert waits_of(models, spec, partial(ppo_loss, spec=spec), [learned], context(), rates) == ["tolist"]


def test_the_cost_of_a_step_is_that_of_its_forests(tiny_folder, context, monkeypatch):
    """As logged on a GPU whose peak is known; a share of it, of all tokens and of the trained ones."""
    from tercet.train import loop

    monkeypatch.setattr(loop, "peak_flops", lambda device: 1e12)
    spec = SFTSpec.model_validate({**COMMON, "rows": "sft-data"})
    policy, ctx, step = open_policy(tiny_folder), context(), made()
    size, lines = model_size(policy), []
    monkeypatch.setattr(ctx.track, "log", lambda step, **values: lines.append(values))
    fit(start(policy, spec, Mesh(), ctx), [Step(step)], sft_loss, spec, ctx, total=1)
    (line,) = lines
    seconds = line["tokens"] / line["tokens_per_second"]
    assert line["mfu"] == pytest.approx(sum(training_flops(size, batch.forest) for batch in step) / seconds / 1e12)
    whole = sum(p.numel() for p in policy.parameters())
    assert line["useful_mfu"] == pytest.approx(6 * whole * line["useful_tokens"] / seconds / 1e12)
