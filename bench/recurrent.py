"""Hybrid models in a forest against one path a row: a GRPO group whose branches start from their parent's state.

Small models of random weights, one of each kind of recurrent layer: the gated delta rule (Qwen3.5), Mamba-2
(Granite 4), gated short convolutions (LFM2). Forward and backward of the policy's log-probs, one prompt with G
completions in a pass. Useful tokens are the completions'; memory is the peak of the process.

python bench/recurrent.py
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import peer
from forest import trees
from ratios import keep

LAYOUTS = ("forest", "padded")
KINDS = ["full_attention" if layer % 4 == 3 else "linear_attention" for layer in range(8)]
LAYERS = {"num_hidden_layers": 8, "layer_types": KINDS}
WIDTHS = {"vocab_size": 8192, "hidden_size": 512, "num_attention_heads": 8, "num_key_value_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {
        "intermediate_size": 1408,
        "head_dim": 64,
        "linear_key_head_dim": 64,
        "linear_value_head_dim": 64,
        "linear_num_key_heads": 8,
        "linear_num_value_heads": 8,
    },
    "granitemoehybrid": {
        "intermediate_size": 1408,
        "shared_intermediate_size": 1408,
        "num_local_experts": 0,
        "mamba_n_heads": 16,
        "mamba_d_head": 64,
        "mamba_d_state": 64,
    },
    "lfm2": {
        "intermediate_size": 1408,
        "block_auto_adjust_ff_dim": False,
        "layer_types": [kind.replace("linear_attention", "conv") for kind in KINDS],
    },
}


def main() -> None:
    """Measure, or do one measurement's work."""
    parser = peer.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--group", type=int, default=16, help="completions of one prompt")
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt")
    parser.add_argument("--completion", type=int, default=128, help="tokens of one completion")
    parser.set_defaults(steps=3, rounds=1, model=Path(), dtype="float32")
    options = parser.parse_args()
    if options.job:
        return work(options.job)
    sides = {name: [side(options, name, layout) for layout in LAYOUTS] for name in options.models}
    for pair in sides.values():
        peer.measure(pair, [], options.rounds)
    print(f"\n{table(sides)}")
    every = [side for pair in sides.values() for side in pair]
    peer.save(
        "recurrent",
        [{"name": s.name, "job": peer.public(s.job), "median": peer.medians(s), "rounds": s.rounds} for s in every],
    )
    return keep("recurrent", {"ratios": {name: peer.compared(pair) for name, pair in sides.items()}})


def side(options: argparse.Namespace, name: str, layout: str) -> peer.Side:
    """One model in one layout."""
    shape = {"kind": name, "layout": layout, **{key: vars(options)[key] for key in ("group", "prompt", "completion")}}
    return peer.Side(f"{name} {layout}", peer.ours("recurrent.py"), peer.base_job(options) | shape)


def work(file: Path) -> None:
    """Passes over random tokens; the first one is not counted by who reads the figures."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from tercet.models.forest import NAME, pack_forest, register
    from tercet.models.policy import Policy

    job = json.loads(file.read_text())
    torch.set_num_threads(job["threads"])
    torch.manual_seed(job["seed"])
    register()
    forest = job["layout"] == "forest"
    config = AutoConfig.for_model(job["kind"], **(WIDTHS | LAYERS | MODELS[job["kind"]]))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=NAME if forest else "sdpa")
    policy = Policy(model.eval(), padded=not forest)
    figures: dict[str, list[float]] = {"seconds": [], "trained": [], "tokens": [], "losses": []}
    for step in range(job["steps"]):
        began = time.perf_counter()
        batch = pack_forest(trees(job | {"layout": "forest"}, step, config.vocab_size), 64)
        logps, _ = policy(batch)
        policy.zero_grad()
        (-logps.sum()).backward()
        found = (time.perf_counter() - began, len(logps), batch.num_tokens, -float(logps.mean()))
        for name, value in zip(figures, found, strict=True):
            figures[name].append(value)
    Path(job["out"]).write_text(json.dumps(figures))


def table(sides: dict[str, list[peer.Side]]) -> str:
    """One line for each model."""
    lines = [
        "| model | forest tokens/s | padded tokens/s | speed | forest MiB | padded MiB | memory | loss |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, pair in sides.items():
        (forest, padded), found = map(peer.medians, pair), peer.compared(pair)
        speeds = f"{forest['trained_per_second']:.1f} | {padded['trained_per_second']:.1f} | {found['speed']:.2f}x"
        memory = f"{forest['peak_mib']:.0f} | {padded['peak_mib']:.0f} | {found['memory']:.2f}x"
        lines.append(f"| {name} | {speeds} | {memory} | {found['loss']:.0e} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
