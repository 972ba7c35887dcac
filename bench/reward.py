"""Reward model, Tercet against TRL: the same pairs, optimiser and batches; tokens of answers a second, peak memory.

python bench/reward.py --data coconot_pref.jsonl.gz
"""

from __future__ import annotations

import peer
from dpo import tokens
from ratios import show

SPEED = 1.5  # times the peer's, at least


def main() -> None:
    """Measure, or do one measurement's work."""
    parser = peer.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=8, help="pairs of one optimiser step")
    parser.add_argument("--max-length", type=int, default=512, help="pairs with a longer side are left out")
    parser.set_defaults(parity=False)
    options = parser.parse_args()
    if options.job:
        from tercet_side import reward

        return reward(options.job)
    job = peer.base_job(options) | {"batch": options.batch, "max_length": options.max_length}
    rows = tokens(options, job["model"])
    sides = [peer.Side("Tercet", peer.ours("reward.py"), job), peer.Side("TRL", peer.theirs("trl_reward.py"), job)]
    peer.compare("reward", sides, rows, rate="trained_per_second", options=options)
    return show("reward", sides, rate="trained_per_second", speed=SPEED)


if __name__ == "__main__":
    main()
