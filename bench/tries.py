"""Prefix tries against today's trees: what rows begin with alike is computed once, or once for each row.

Forward and backward through the trainer's own batches and master weights, on GSM8K: prompts with eight worked examples
and 1 or 16 completions, and conversations of six questions that are one row for each answer. `beyond` is the case of 16
completions under a budget that one prompt exceeds: the tree as one batch, or branch by branch below its trunk.

python bench/tries.py --data train.jsonl.gz
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peer

SHOTS, TURNS = 8, 6
CASES = {  # prompts of one step, completions of each
    "shots-1": (12, 1),
    "shots-16": (2, 16),
    "turns": (2, TURNS),
    "beyond": (1, 16),
}
BEYOND = 2048  # tokens of the budget that one prompt with its completions exceeds


def main() -> None:
    """Measure, or do one measurement's work."""
    parser = peer.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--json", action="store_true", help="print the ratios as JSON, nothing else behind them")
    parser.set_defaults(steps=2, rounds=1, micro_tokens=8192)
    options = parser.parse_args()
    if options.job:
        work(options.job)
        return
    found = {}
    for case in options.cases:
        rows = list(prepared(options, case))
        sides = [side(options, case, feature) for feature in (True, False)]
        peer.measure(sides, rows, options.rounds)
        found[case] = ratios(sides)
        if not options.json:
            print(f"\n{peer.table(sides, 'trained_per_second')}\n")
    print(json.dumps(found, indent=None if options.json else 1))


def side(options: argparse.Namespace, case: str, feature: bool) -> peer.Side:
    """One way to lay out a case: with the feature or without."""
    job = peer.base_job(options) | {"case": case, "share": feature, "depth_first": False}
    if case == "beyond":
        job |= {"micro_tokens": BEYOND, "share": True, "depth_first": feature}
    names = ("branch by branch", "one batch") if case == "beyond" else ("trie", "trees")
    return peer.Side(f"{case} {names[not feature]}", peer.ours("tries.py"), job)


def prepared(options: argparse.Namespace, case: str) -> Iterator[dict[str, Any]]:
    """Prompts and their completions as token ids, enough for every step."""
    from tercet.models.chat import Chat
    from tercet.models.hf_folder import load_tokenizer
    from tercet.rows import Message

    chat = Chat(load_tokenizer(peer.model_folder(options)))
    records = [(row["question"], row["answer"]) for row in peer.read(options.data)]
    examples = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in records[:SHOTS])
    rest = records[SHOTS:]
    prompts, completions = CASES[case]

    def written(answer: str) -> list[int]:
        return [*chat.tokenizer(answer, add_special_tokens=False)["input_ids"], chat.end_id]

    for number in range(options.steps * prompts):
        if case == "turns":
            talk: list[Message] = []
            for question, answer in rest[number * TURNS : (number + 1) * TURNS]:
                talk.append(Message("user", question))
                yield {"trunk": chat.prompt_ids(talk), "leaves": [written(answer)]}
                talk.append(Message("assistant", answer))
            continue
        question = rest[number][0]
        # Other problems' solutions stand in for a policy's completions: they have the right lengths.
        answers = [answer for _, answer in rest[number * completions : (number + 1) * completions]]
        asked = [Message("user", f"{examples}Question: {question}\nAnswer:")]
        yield {"trunk": chat.prompt_ids(asked), "leaves": list(map(written, answers))}


def work(file: Path) -> None:
    """Passes over the rows; the first step is not counted by who reads the figures."""
    import torch

    from tercet.device.mesh import mesh
    from tercet.device.shard import Trainable
    from tercet.models.forest import Leaf, Tree
    from tercet.train.batch import batches
    from tercet.train.branches import branches
    from tercet.train.export import open_policy
    from tercet.train.packing import Budget

    job = json.loads(file.read_text())
    torch.set_num_threads(job["threads"])
    rows = [json.loads(line) for line in Path(job["rows"]).read_text().split("\n") if line]
    trees = [Tree(row["trunk"], [Leaf(ids, [True] * len(ids)) for ids in row["leaves"]]) for row in rows]
    size = len(trees) // job["steps"]
    budget = Budget(job["micro_tokens"], job["share"], job["depth_first"])
    figures: dict[str, list[float]] = {"seconds": [], "trained": [], "tokens": [], "losses": []}
    with mesh() as ranks:
        trainable = Trainable(open_policy(Path(job["model"])).eval(), getattr(torch, job["dtype"]), ranks)
        for step in range(job["steps"]):
            began, useful, tokens, loss = time.perf_counter(), 0, 0, 0.0
            for batch in batches(trees[step * size : (step + 1) * size], budget, ranks):
                for part in branches(trainable.module, batch, trainable.backward_from):
                    logps, _ = trainable.module(part.forest)
                    trainable.backward(-logps.sum())
                    useful, loss = useful + len(logps), loss - float(logps.detach().sum())
                tokens += batch.num_tokens
            trainable.scale_grads(0.0)  # the gradients stay where they are, as in a step of several batches
            found = (time.perf_counter() - began, useful, tokens, loss / useful)
            for name, value in zip(figures, found, strict=True):
                figures[name].append(value)
    Path(job["out"]).write_text(json.dumps(figures))


def ratios(sides: list[peer.Side]) -> dict[str, float]:
    """What the first way makes of the second, its speed in tokens/s too, and its share of the tokens computed."""
    computed = [sum(one.rounds[0]["tokens"]) for one in sides]
    return {
        "trained_per_second": peer.medians(sides[0])["trained_per_second"],
        "computed_tokens": computed[0] / computed[1],
        **peer.compared(sides),
    }


if __name__ == "__main__":
    main()
