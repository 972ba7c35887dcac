"""How near every kind of work comes to this machine's own matrix products: one table, no peer.

Efficiency is the FLOPs of the work (its matrix products, as `tercet.models.flops` counts them) over seconds x the rate
of plain products of the model's shapes, measured at the head of the same run. One process a measurement.

python bench/efficiency.py --data train.jsonl.gz --pairs coconot_pref.jsonl.gz
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peer

TRAINING = ("sft", "dpo", "reward", "grpo")
DECODED = (1, 16, 32, 64, 128)  # rows written at once
STEPS = 4  # of a training measurement; the first is not counted
NEW_TOKENS = 128


def main() -> None:
    """Measure every kind in every precision, or do one measurement's work."""
    options = arguments()
    if options.job:
        work(options.job)
    else:
        compare(options)


def compare(options: argparse.Namespace) -> None:
    """The table."""
    rows = {"sft": texts(options), "pairs": pairs(options), "prompts": prompts(options)}
    lines, heads = [], {}
    for dtype in options.dtypes or automatic():
        job = base(options) | {"dtype": dtype}
        heads[dtype] = peer.yardstick(job)
        for side, name in sides(job, options.only):
            peer.measure([side], rows[name], options.rounds)
            lines.append(line(side, dtype))
            print(row(lines[-1]), flush=True)
    print("\n| work | precision | tokens/s | GFLOP/s | efficiency | peak MiB |\n|---|---|--:|--:|--:|--:|")
    print("\n".join(row(found) for found in lines))
    if not options.only:
        peer.save("efficiency", lines, heads)


def arguments() -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, help="GSM8K rows")
    parser.add_argument("--pairs", type=Path, help="preference pairs: CoCoNot, or those of LLaMA-Factory's demo")
    parser.add_argument("--model", type=Path, help="Hugging Face folder; SmolLM2-135M-Instruct when absent")
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], help="default: what has hardware here")
    parser.add_argument("--rounds", type=int, default=1, help="measurements of each kind; the median counts")
    parser.add_argument("--threads", type=int, default=peer.machine.cores())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", metavar="KIND", help="sft dpo reward grpo prefill decode")
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def automatic() -> list[str]:
    """float32, and bfloat16 where it has hardware."""
    from tercet.precision import software_bf16

    return ["float32"] if software_bf16() else ["float32", "bfloat16"]


def base(options: argparse.Namespace) -> peer.Job:
    """The part of a job that all measurements share."""
    fixed = {"steps": STEPS, "micro_tokens": 2048, "learning_rate": 1e-5, "max_length": 1024, "beta": 0.1}
    fixed |= {"num_generations": 8, "max_new_tokens": NEW_TOKENS, "kl_beta": 0.01}
    return fixed | {
        "model": str(peer.model_folder(options)),
        "threads": options.threads,
        "seed": options.seed,
        "placement": {"gen_rows": max(DECODED)},
    }


def sides(job: peer.Job, only: list[str] | None) -> list[tuple[peer.Side, str]]:
    """Every measurement and the rows it reads."""
    batch = {"sft": 12, "dpo": 8, "reward": 8, "grpo": 4}
    rows = {"sft": "sft", "dpo": "pairs", "reward": "pairs", "grpo": "prompts"}
    made = [(kind, {"kind": kind, "batch": batch[kind]}, rows[kind]) for kind in TRAINING]
    made.append(("prefill", {"kind": "prefill"}, "prompts"))
    made += [(f"decode, {n} rows", {"kind": "decode", "rows_at_once": n}, "prompts") for n in DECODED]
    command = peer.ours("efficiency.py")
    return [
        (peer.Side(name, command, job | more), rows) for name, more, rows in made if not only or more["kind"] in only
    ]


def line(side: peer.Side, dtype: str) -> dict[str, Any]:
    """The medians of a measurement's rounds."""

    def middle(read: Callable[[dict[str, Any]], float]) -> float:
        return statistics.median(map(read, side.rounds))

    rate, efficiency = middle(lambda one: one["tokens_per_second"]), middle(lambda one: one["efficiency"])
    return {
        "name": side.name,
        "dtype": dtype,
        "tokens_per_second": rate,
        "gflops": middle(lambda one: one["gflops"]),
        "efficiency": efficiency,
        "peak_mib": middle(lambda one: one["peak_mib"]),
    }


def row(found: dict[str, Any]) -> str:
    """One row of the table."""
    cells = (f"{found['tokens_per_second']:,.0f}", f"{found['gflops']:,.0f}", f"{found['efficiency']:.0%}")
    return f"| {found['name']} | {found['dtype']} | {' | '.join(cells)} | {found['peak_mib']:,.0f} |"


def texts(options: argparse.Namespace) -> list[dict[str, Any]]:
    """GSM8K rows as tokens."""
    import sft

    options.steps, options.batch, options.parity = STEPS, 12, False
    return sft.tokens(options, str(peer.model_folder(options)))


def pairs(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Preference pairs as tokens."""
    import dpo

    how = argparse.Namespace(**vars(options) | {"data": options.pairs, "steps": STEPS, "batch": 8, "parity": False})
    how.max_length = 512
    return dpo.tokens(how, str(peer.model_folder(options)))


def prompts(options: argparse.Namespace) -> list[dict[str, Any]]:
    """GSM8K questions with their reference answers."""
    import grpo

    how = argparse.Namespace(**vars(options) | {"steps": max(DECODED) // 4, "batch": 4})
    return grpo.prompts(how)


def work(file: Path) -> None:
    """One measurement: a stage's own steps, or the generator's."""
    import tercet_side

    kind = json.loads(file.read_text())["kind"]
    (getattr(tercet_side, kind) if kind in TRAINING else tercet_side.generate)(file)


if __name__ == "__main__":
    main()
