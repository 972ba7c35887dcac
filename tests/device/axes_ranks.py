"""Laws of placement.mesh: a program that runs the same updates on one rank and, forked from it, on ranks of a mesh.

`python axes_ranks.py JOB.json` prints a line for each case: how far the ranks are from one rank, or what went wrong.
"""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import os
import socket
import sys
import traceback
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tercet.device.checkpoint import Saver, load, snapshot
from tercet.device.mesh import Mesh, mesh
from tercet.device.optim import optimizer
from tercet.device.plans import SplitError, check_split
from tercet.device.shard import Trainable, share_frozen
from tercet.models.forest import Forest, Leaf, Tree, pack_forest
from tercet.models.meta_policy import meta_policy
from tercet.models.miniature import build
from tercet.models.opening import laid_out, open_policy
from tercet.models.policy import Policy
from tercet.recipe import DPOSpec, GRPOSpec, Placement, PPOSpec, RewardModelSpec, SFTSpec
from tercet.train.batch import Batch, Step, batches
from tercet.train.dpo import preference_loss
from tercet.train.loop import State, update_once
from tercet.train.packing import Budget
from tercet.train.reference import ReferenceModel
from tercet.train.reward_model import open_scorer, reward_loss
from tercet.train.rl.actor_critic import CRITIC, POLICY, ActorCritic, open_critic
from tercet.train.rl.grpo import grpo_loss
from tercet.train.rl.ppo import PPO, for_critic, ppo_loss
from tercet.train.sft import sft_loss

AXES = ("replicate", "shard", "context", "tensor")
UPDATES = 2
PAIRED = Budget(40)
WALKED = Budget(40, depth_first=True)
COMMON: dict[str, Any] = {"model": "base", "learning_rate": 1e-2, "dtype": "float32", "eps": 1e-3}
SPECS = {
    "sft": SFTSpec.model_validate({**COMMON, "rows": "data"}),
    "dpo": DPOSpec.model_validate({**COMMON, "pairs": "data"}),
    "reward": RewardModelSpec.model_validate({**COMMON, "pairs": "data"}),
    "grpo": GRPOSpec.model_validate({**COMMON, "prompts": "data", "rounds": 1, "kl_beta": 0.05, "kl_in": "loss"}),
    "ppo": PPOSpec.model_validate({**COMMON, "prompts": "data", "value": "base", "rounds": 1, "max_new_tokens": 16}),
}
LOSSES = {
    "sft": partial(sft_loss, reduction="token_mean", length=50),
    "dpo": partial(preference_loss, spec=SPECS["dpo"]),
    "reward": reward_loss,
    "grpo": partial(grpo_loss, spec=SPECS["grpo"]),
    "ppo": partial(ppo_loss, spec=SPECS["ppo"]),
}
RATES = {"ppo": {POLICY: 1e-2, CRITIC: 1e-2}}


class Found(NamedTuple):
    """What is compared: what each update measured, its gradients, and the weights at the end."""

    measured: list[dict[str, float]]
    grads: list[dict[str, Tensor]]
    weights: dict[str, Tensor]


def trees(leaves: int) -> list[Tree]:
    """Prompts that begin alike in part, with answers of several lengths."""
    source = torch.Generator().manual_seed(0)

    def ids(length: int) -> list[int]:
        return torch.randint(5, 90, (length,), generator=source).tolist()

    prompts = [ids(n) for n in (5, 12, 7, 18)] + [[*range(20, 40), *ids(3)], [*range(20, 40), *ids(2)]]
    return [Tree(prompt, [Leaf(ids(m), [True] * m) for m in (9, 3, 6, 4)[:leaves]]) for prompt in prompts]


def values_of(made: list[Tree]) -> Any:
    """Numbers of leaves and predicted tokens, fixed by the tree's place among all."""

    def values(items: list[int], forest: Forest) -> dict[str, Tensor]:
        def drawn(sizes: list[int], seed: int) -> Tensor:
            parts = [torch.randn(n, generator=torch.Generator().manual_seed(seed + 10 * i)) for i, n in sizes]
            return torch.cat(parts) if parts else torch.zeros(0)

        leaves = [(i, len(made[i].leaves)) for i in items]
        tokens = [(i, sum(sum(leaf.mask) for leaf in made[i].leaves)) for i in items]
        names = {"advantages_P": 1, "sampled_P": 2, "reference_P": 3}
        found = {name: drawn(tokens, seed) for name, seed in names.items()}
        found |= {"reference_L": drawn(leaves, 4), "rewards_L": drawn(leaves, 5)} if items else {}
        none = torch.zeros(forest.num_leaves)
        found = {"reference_L": none, "rewards_L": none, **found}
        return found | {"kept_L": torch.arange(forest.num_leaves) % 3 > 0 if items else none.bool()}

    return values


def module_of(law: str, folder: Path, ranks: Mesh) -> nn.Module:
    """What a law trains: on several ranks a policy has no numbers yet."""
    policy = policy_of(folder, ranks)
    if law == "reward":
        return open_scorer(folder, 1, 0, like=policy)
    return ActorCritic(policy, open_critic(folder, 1, 0, like=policy)) if law == "ppo" else policy


def policy_of(folder: Path, ranks: Mesh) -> Policy:
    found = meta_policy(folder, "auto") if ranks.size > 1 else open_policy(folder)
    assert found is not None
    return found


def step_of(law: str, folder: Path, ranks: Mesh, trainable: Trainable) -> Step:
    made = trees(1 if law == "sft" else 2 if law in ("dpo", "reward") else 4)
    budget = PAIRED if law in ("dpo", "reward") else WALKED
    found = batches(made, budget, ranks, values_of(made))
    return Step(with_estimates(found, folder, ranks, trainable) if law == "ppo" else found)


def with_estimates(found: list[Batch], folder: Path, ranks: Mesh, trainable: Trainable) -> list[Batch]:
    """As a round of PPO prepares its only minibatch."""
    reference = policy_of(folder, ranks)
    if ranks.size > 1:
        share_frozen(reference, torch.float32, ranks)
    algorithm = PPO(trainable, ReferenceModel(reference, 0.0, 1), SPECS["ppo"], WALKED)
    with torch.no_grad():
        policy = [algorithm.for_policy(batch) for batch in found]
        algorithm._whiten(policy)
    return [*policy, *map(for_critic, policy)]


def run(law: str, folder: Path, ranks: Mesh, kept: Path | None = None) -> Found:
    """Two updates; where `kept` has a checkpoint, they begin there, and else one is left there after the first."""
    trainable = Trainable(module_of(law, folder, ranks).eval(), torch.float32, ranks)
    opt = optimizer(SPECS[law], trainable, RATES.get(law, {"": 1e-2}))
    state, measured, grads = State(trainable, opt), [], []
    begun = load(kept, trainable, opt) if kept else None
    opt.register_step_pre_hook(lambda *_: grads.append(gradients(trainable)))
    for number in range(begun["step"] if begun else 0, UPDATES):
        step = step_of(law, folder, ranks, trainable)
        found = update_once(state, step, LOSSES[law], 1e-2, SPECS[law])
        timed = ("tokens_per_second", "gflops", "tokens", "repeated_tokens")  # ranks cut otherwise
        measured.append({name: value for name, value in found.items() if name not in timed})
        if kept and not begun and number == 0:
            saver = Saver(kept, ranks, beside=False)
            saver.save(snapshot(1, trainable, opt, {"updates": 1, "extra": {}}))
            saver.finish()
    return Found(measured, grads, {name: value.double() for name, value in trainable.full_state()})


def gradients(trainable: Trainable) -> dict[str, Tensor]:
    named = zip(trainable.names, trainable.master_weights, strict=True)
    whole = {name: one.grad for name, one in named if one.grad is not None}
    return {name: (g.full_tensor() if hasattr(g, "full_tensor") else g).double().clone() for name, g in whole.items()}


def apart(found: Found, wanted: Found) -> dict[str, float]:
    """The largest differences, of gradients by the norm of each update's; what lacks is infinitely far."""
    sizes = [math.sqrt(sum(float(g.square().sum()) for g in grads.values())) for grads in wanted.grads]
    metrics = [abs(f.get(k, math.inf) - v) / (1 + abs(v)) for f, w in pairs(found, wanted, 0) for k, v in w.items()]
    grads = [
        float((f[k] - v).abs().max()) / size if k in f else math.inf
        for (f, w), size in zip(pairs(found, wanted, 1), sizes[-len(found.grads) :], strict=True)
        for k, v in w.items()
        if float(v.abs().max())
    ]
    weights = [float((found.weights[k] - v).abs().max()) for k, v in wanted.weights.items()]
    return {"metrics": max(metrics), "grads": max(grads), "weights": max(weights)}


def pairs(found: Found, wanted: Found, part: int) -> list[tuple[Any, Any]]:
    """The updates of both, the last ones where one began later."""
    return list(zip(found[part], wanted[part][-len(found[part]) :], strict=True))


def loaded(folder: Path, ranks: Mesh) -> bool:
    """Whether shares that were read, put together again, are what the folder holds, bit by bit."""
    trainable = Trainable(policy_of(folder, ranks), torch.float32, ranks)
    whole = dict(open_policy(folder).named_parameters())
    return all(torch.equal(value, whole[name]) for name, value in trainable.full_state())


def families(names: list[str], shape: dict[str, int], ranks: Mesh) -> dict[str, str]:
    """How far a small model of each family is from transformers' plain forward pass over each path; why it is not read.

    Transformers freezes the embedding's padding row, which is left out.
    """
    sys.path.insert(0, str(Path(__file__).parents[1] / "models"))
    import test_every_family as law
    from families_table import small_config

    found = {}
    for name in names:
        config = small_config(name)
        try:
            if shape["tensor"] > 1:
                check_split(config, shape["tensor"])
            model = build(config).requires_grad_(True)
            policy = laid_out(copy.deepcopy(model), "auto")
        except SplitError as error:
            found[name] = str(error)
            continue
        if shape["context"] > 1 and (policy.padded or not policy.walks):
            found[name] = "padded or recurrent"
            continue
        wanted = law.gradients(model, logps := law.plain_logps(model))
        trainable = Trainable(policy, torch.float32, ranks)
        own = trainable.module(pack_forest(law.TREES, 4))[0]
        trainable.backward((own * torch.linspace(0.5, 1.5, len(own))).sum())
        grads = {name.removeprefix("model."): value for name, value in gradients(trainable).items()}
        size = math.sqrt(sum(float(g.double().square().sum()) for g in wanted.values()))
        unread = getattr(model.get_input_embeddings(), "padding_idx", None)
        for name_, one in wanted.items():
            if "embed" in name_ and unread is not None and grads[name_].shape == one.shape:
                grads[name_][unread] = one[unread].double()
        gaps = [float((grads[key] - one).abs().max()) / size for key, one in wanted.items()]
        found[name] = f"{max(*gaps, float((own - logps).abs().max())):.1e}"
    return found


def rank(number: int, port: int, job: dict[str, Any], shape: dict[str, int], results: Any) -> None:
    size = math.prod(shape.values())
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    folder, kept, found, law = Path(job["folder"]), job.get("kept"), {}, ""
    try:
        with mesh(Placement(ranks=size, mesh=shape, rank_timeout=120)) as ranks:
            if job.get("families"):
                results.put(families(job["families"], shape, ranks))
                return
            for law in job["laws"]:
                found[law] = run(law, folder, ranks, Path(kept) if kept else None)
            same = loaded(folder, ranks)
        if number == size - 1:
            torch.save(found, job["out"])
        results.put({"loaded": same})
    except BaseException:
        results.put({"error": f"{law}: {traceback.format_exc()[-500:]}"})


def on_mesh(job: dict[str, Any], shape: dict[str, int]) -> tuple[dict[str, Found], list[dict[str, Any]]]:
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    size = math.prod(shape.values())
    running = [context.Process(target=rank, args=(i, port, job, shape, results), daemon=True) for i in range(size)]
    for process in running:
        process.start()
    said = [results.get(timeout=150) for _ in running]
    for process in running:
        process.join()
    if job.get("families"):
        return {}, said
    return {} if any("error" in one for one in said) else torch.load(job["out"], weights_only=False), said


def main(job: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    if job.get("families"):
        for shape in job["meshes"]:
            say(on_mesh(job, dict(zip(AXES, shape, strict=True)))[1][0])
        return
    wanted = {law: run(law, Path(job["folder"]), Mesh()) for law in job["laws"]}
    for shape in job["meshes"]:
        found, said = on_mesh(job, dict(zip(AXES, shape, strict=True)))
        for law in job["laws"]:
            answer = {"mesh": shape, "law": law, "said": said}
            say(answer | (apart(found[law], wanted[law]) if found else {}))
    if job.get("kept"):  # one rank goes on from where the last mesh left off
        own = apart(run("sft", Path(job["folder"]), Mesh(), Path(job["kept"])), wanted["sft"])
        say({"mesh": [1, 1, 1, 1], "law": "sft", "said": [], **own})


def say(answer: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
