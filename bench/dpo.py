"""DPO, Tercet against TRL: the same pairs, optimiser and batches; pairs and trained tokens per second, peak memory.

python bench/dpo.py --data dpo_en_demo.json.gz            speed against TRL's concatenated forward
python bench/dpo.py --data dpo_en_demo.json.gz --parity   20 steps in fp32: the two loss curves agree
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import peer
from ratios import show

SPEED = 2.2  # times the peer's, at least
SPEAKERS = {"human": "user", "gpt": "assistant", "system": "system"}


def main() -> None:
    """Measure, or do one measurement's work."""
    parser = peer.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=8, help="pairs of one optimiser step")
    parser.add_argument("--max-length", type=int, default=512, help="pairs with a longer side are left out")
    parser.add_argument("--parity", action="store_true", help="compare loss curves instead of speed")
    options = parser.parse_args()
    if options.job:
        from tercet_side import dpo

        return dpo(options.job)
    job = peer.base_job(options) | {"batch": options.batch, "max_length": options.max_length, "beta": 0.1}
    rows = tokens(options, job["model"])
    return parity(job, rows) if options.parity else speed(options, job, rows)


def speed(options: argparse.Namespace, job: peer.Job, rows: list[dict[str, Any]]) -> None:
    """The table. TRL computes the reference in every step, or once before the first (cached), as Tercet does."""
    sides = [
        peer.Side("Tercet", peer.ours("dpo.py"), job),
        peer.Side("TRL", peer.theirs("trl_dpo.py"), job | {"variant": "concatenated"}),
        peer.Side("TRL, reference cached", peer.theirs("trl_dpo.py"), job | {"variant": "cached"}),
    ]
    peer.compare("dpo", sides, rows, rate="trained_per_second", options=options)
    show("dpo", sides, rate="trained_per_second", speed=SPEED)


def parity(job: peer.Job, rows: list[dict[str, Any]]) -> None:
    """Two curves of DPO losses."""
    job |= {"dtype": "float32", "steps": 20, "batch": 2, "variant": "concatenated"}
    sides = [peer.Side("Tercet", peer.ours("dpo.py"), job), peer.Side("TRL", peer.theirs("trl_dpo.py"), job)]
    peer.compare_losses("dpo-parity", sides, rows)


def tokens(options: argparse.Namespace, model: str) -> list[dict[str, Any]]:
    """Pairs as token ids; the prompt ends where the first answer token is trained."""
    from tercet.models.chat import Chat
    from tercet.models.hf_folder import load_tokenizer
    from tercet.rows import Message

    chat = Chat(load_tokenizer(Path(model)))
    found = []
    for raw in peer.read(options.data):
        turns, chosen, rejected = conversation(raw)
        prompt = [Message(role, content) for role, content in turns]
        prompt_ids, chosen_ids = chat.pair(prompt, chosen)
        _, rejected_ids = chat.pair(prompt, rejected)
        if len(prompt_ids) + max(len(chosen_ids), len(rejected_ids)) <= options.max_length:
            found.append({"prompt_ids": prompt_ids, "chosen_ids": chosen_ids, "rejected_ids": rejected_ids})
    needed = max(options.steps * options.batch, 40 if options.parity else 0)
    if len(found) < needed:
        raise SystemExit(
            f"{options.data} has {len(found)} pairs within {options.max_length} tokens; {needed} are needed"
        )
    return found[:needed]


def conversation(raw: dict[str, Any]) -> tuple[list[tuple[str, str]], str, str]:
    """Turns, chosen and rejected of two public layouts: `conversations` of speakers, or a plain `prompt`."""
    if "conversations" in raw:
        turns = [(SPEAKERS[turn["from"]], turn["value"]) for turn in raw["conversations"]]
        return turns, raw["chosen"]["value"], raw["rejected"]["value"]
    return [("user", raw["prompt"])], raw["chosen"], raw["rejected"]


if __name__ == "__main__":
    main()
