"""SFT, Tercet against TRL: the same tokens, optimiser and batches; trained tokens per second and peak memory.

python bench/sft.py --data train.jsonl.gz            speed against TRL padded and TRL packed
python bench/sft.py --data train.jsonl.gz --parity   20 steps in fp32: the two loss curves agree
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import peer

MAX_LENGTH = 1024  # tokens of a row


def main() -> None:
    """Measure, or do one measurement's work."""
    parser = peer.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=16, help="rows of one optimiser step")
    parser.add_argument("--parity", action="store_true", help="compare loss curves instead of speed")
    options = parser.parse_args()
    if options.job:
        from tercet_side import sft

        return sft(options.job)
    job = peer.base_job(options) | {"batch": options.batch, "max_length": MAX_LENGTH}
    rows = tokens(options, job["model"])
    return parity(job, rows) if options.parity else speed(options, job, rows)


def speed(options: argparse.Namespace, job: peer.Job, rows: list[dict[str, Any]]) -> None:
    """The table."""
    sides = [
        peer.Side("Tercet", peer.ours("sft.py"), job),
        peer.Side("TRL padded", peer.theirs("trl_sft.py"), job | {"variant": "padded"}),
        peer.Side("TRL packed", peer.theirs("trl_sft.py"), job | {"variant": "packed"}),
    ]
    peer.compare("sft", sides, rows, rate="trained_per_second", options=options)


def parity(job: peer.Job, rows: list[dict[str, Any]]) -> None:
    """Two curves of token-mean losses."""
    job |= {"dtype": "float32", "steps": 20, "batch": 4, "variant": "padded"}
    sides = [peer.Side("Tercet", peer.ours("sft.py"), job), peer.Side("TRL", peer.theirs("trl_sft.py"), job)]
    peer.compare_losses("sft-parity", sides, rows)


def tokens(options: argparse.Namespace, model: str) -> list[dict[str, Any]]:
    """GSM8K rows as token ids and mask, enough for every step, none over the limit."""
    from tercet.data import sources
    from tercet.models.chat import Chat
    from tercet.models.hf_folder import load_tokenizer
    from tercet.recipe import SourceSpec
    from tercet.train.batch import answered

    chat = Chat(load_tokenizer(Path(model)))
    rows = list(sources.load(SourceSpec(path=str(options.data), adapter="gsm8k"), {}, {}, sources.Reading()))
    needed = max(options.steps * options.batch, 80 if options.parity else 0)
    drawn = sources.draw(rows, needed, seed=options.seed, key=lambda row: row.id)
    leaves = [answered(chat.encode(row.messages, row.id)).leaves[0] for row in drawn]
    return [{"token_ids": list(leaf.token_ids), "mask": list(leaf.mask)} for leaf in leaves]


if __name__ == "__main__":
    main()
