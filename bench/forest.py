"""Forest against repeated prompts: the same completions with their prompt computed once, or once for each of them.

Forward and backward of the policy's log-probs through the trainer's own batches and master weights, one group of G
completions in a pass, at prompt:completion 1:1 and 4:1. Useful tokens are the completions'; memory is the peak of the
process.

python bench/forest.py
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path
from typing import Any

import peer
from ratios import keep

LAYOUTS = ("forest", "repeated")


def main() -> None:
    """Measure, or do one measurement's work."""
    parser = peer.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--groups", type=int, nargs="+", default=[2, 8, 16], help="completions of one prompt")
    parser.add_argument("--shares", type=int, nargs="+", default=[1, 4], help="prompt tokens for each of a completion")
    parser.add_argument("--completion", type=int, default=128, help="tokens of one completion")
    parser.set_defaults(steps=4, rounds=1, micro_tokens=1 << 20)
    options = parser.parse_args()
    if options.job:
        return work(options.job)
    sides = {
        (share, group): [side(options, share, group, layout) for layout in LAYOUTS]
        for share in options.shares
        for group in options.groups
    }
    for cell in sides.values():
        peer.measure(cell, [], options.rounds)
    every = [side for cell in sides.values() for side in cell]
    print(f"\n{table(sides)}")
    peer.save(
        "forest",
        [{"name": s.name, "job": peer.public(s.job), "median": peer.medians(s), "rounds": s.rounds} for s in every],
    )
    return keep(
        "forest", {"ratios": {f"{share}:1 G={group}": peer.compared(cell) for (share, group), cell in sides.items()}}
    )


def side(options: argparse.Namespace, share: int, group: int, layout: str) -> peer.Side:
    """One way to lay out a group."""
    shape = {"group": group, "prompt": share * options.completion, "completion": options.completion, "layout": layout}
    return peer.Side(f"{share}:1 G={group} {layout}", peer.ours("forest.py"), peer.base_job(options) | shape)


def work(file: Path) -> None:
    """Passes over random tokens; the first one is not counted by who reads the figures."""
    import torch

    from tercet.device.mesh import mesh
    from tercet.device.shard import Trainable
    from tercet.models.hf_folder import load_config
    from tercet.train.batch import batches
    from tercet.train.export import open_policy
    from tercet.train.packing import Budget

    job = json.loads(file.read_text())
    torch.set_num_threads(job["threads"])
    figures: dict[str, list[float]] = {"seconds": [], "trained": [], "tokens": [], "losses": []}
    with mesh() as ranks:
        trainable = Trainable(open_policy(Path(job["model"])).eval(), getattr(torch, job["dtype"]), ranks)
        budget = Budget(job["micro_tokens"], share=False)  # one tree of each completion stays that
        vocabulary = int(load_config(Path(job["model"])).vocab_size)
        for step in range(job["steps"]):
            began, useful, tokens, loss = time.perf_counter(), 0, 0, 0.0
            for batch in batches(trees(job, step, vocabulary), budget, ranks):
                logps, _ = trainable.module(batch.forest)
                trainable.backward(-logps.sum())
                useful, tokens, loss = useful + len(logps), tokens + batch.num_tokens, loss - float(logps.sum())
            trainable.scale_grads(0.0)  # the gradients stay where they are, as in a step of several batches
            found = (time.perf_counter() - began, useful, tokens, loss / useful)
            for name, value in zip(figures, found, strict=True):
                figures[name].append(value)
    Path(job["out"]).write_text(json.dumps(figures))


def trees(job: dict[str, Any], step: int, vocabulary: int) -> list[Any]:
    """One group as one tree, or as one tree for each completion."""
    from tercet.models.forest import Leaf, Tree

    source = random.Random(f"{job['seed']} {step}")

    def draw(length: int) -> list[int]:
        return [source.randrange(vocabulary) for _ in range(length)]

    prompt = draw(job["prompt"])
    leaves = [Leaf(draw(job["completion"]), [True] * job["completion"]) for _ in range(job["group"])]
    return [Tree(prompt, leaves)] if job["layout"] == "forest" else [Tree(prompt, [leaf]) for leaf in leaves]


def table(sides: dict[tuple[int, int], list[peer.Side]]) -> str:
    """One line for each shape."""
    lines = [
        "| prompt:completion | G | forest tokens/s | repeated tokens/s | speed | forest MiB | repeated MiB | memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for (share, group), cell in sides.items():
        (forest, repeated), found = map(peer.medians, cell), peer.compared(cell)
        speeds = f"{forest['trained_per_second']:.1f} | {repeated['trained_per_second']:.1f} | {found['speed']:.2f}x"
        memory = f"{forest['peak_mib']:.0f} | {repeated['peak_mib']:.0f} | {found['memory']:.2f}x"
        lines.append(f"| {share}:1 | {group} | {speeds} | {memory} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
