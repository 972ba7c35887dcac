"""GRPO, Tercet against TRL: the same prompts, group size and lengths; speed, peak memory, time of each phase of a step.

Both sides write exactly `--max-new-tokens` for every completion, with their own local generators.

python bench/grpo.py --data train.jsonl.gz
"""

from __future__ import annotations

import argparse
from typing import Any

import peer
from ratios import keep, phases, show

SPEED = 2.5  # times the peer's, at least
MAX_PROMPT = 1024  # tokens


def main() -> None:
    """Measure, or do one measurement's work."""
    parser = peer.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=4, help="prompts of one optimiser step")
    parser.add_argument("--num-generations", type=int, default=8, help="completions of one prompt")
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--kl-beta", type=float, default=0.01, help="weight of the KL to the starting model")
    options = parser.parse_args()
    if options.job:
        from tercet_side import grpo

        return grpo(options.job)
    names = ("batch", "num_generations", "max_new_tokens", "kl_beta")
    job = peer.base_job(options) | {name: getattr(options, name) for name in names} | {"max_length": MAX_PROMPT}
    sides = [peer.Side("Tercet", peer.ours("grpo.py"), job), peer.Side("TRL", peer.theirs("trl_grpo.py"), job)]
    peer.compare("grpo", sides, prompts(options), rate="trained_per_second", options=options)
    check_lengths(sides, job)
    show("grpo", sides, rate="trained_per_second", speed=SPEED)
    found = phases(sides)
    return keep("grpo", {"phases": found}) if options.only is None else None


def check_lengths(sides: list[peer.Side], job: peer.Job) -> None:
    """Every step of every side must have trained on the same number of tokens."""
    expected = job["batch"] * job["num_generations"] * job["max_new_tokens"]
    for side in sides:
        if wrong := [n for figures in side.rounds for n in figures["trained"] if round(n) != expected]:
            raise SystemExit(f"{side.name} trained on {wrong[0]:g} tokens in a step; {expected} were to be written")


def prompts(options: argparse.Namespace) -> list[dict[str, Any]]:
    """GSM8K questions with their reference answers, as many as the steps need."""
    from tercet.data import sources
    from tercet.recipe import SourceSpec

    rows = list(sources.load(SourceSpec(path=str(options.data), adapter="gsm8k"), {}, {}, sources.Reading()))
    drawn = sources.draw(rows, (options.steps + 1) * options.batch, seed=options.seed, key=lambda row: row.id)
    plain = [{"prompt": [{"role": turn.role, "content": turn.content} for turn in row.prompt]} for row in drawn]
    return [turns | {"reference": row.reference} for turns, row in zip(plain, drawn, strict=True)]


if __name__ == "__main__":
    main()
