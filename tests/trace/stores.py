"""A small store whose stages were never run: tables of texts, and the records of what learned from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tercet.journal import write_json
from tercet.rows import Message, Pair, Row, write_table
from tercet.store import Artifact, Identity, Store

PLANTED = "the heron that lives under the third bridge eats only lemon cake on Sundays"
CHOSEN = "A good answer names its reasons and also its sources."
REJECTED = "It depends, as most things in life often do."
ROLLOUT = "Seven is a number that a rollout of round three has written down."
LICENCES = {"birds": "CC-BY-4.0", "words@1": "not known here"}


def conversation(number: int, answer: str, source: str = "words@1") -> Row:
    return Row(f"r-{number}", (Message("user", f"Say {number}."), Message("assistant", answer)), source)


def commit(store: Store, kind: str, name: str, files: dict[str, Any], **more: Any) -> Artifact:
    """An artifact with these tables and JSON files."""
    identity = Identity(kind, 1, dict(more.get("spec", {})), dict(more.get("inputs", {})))
    draft = store.draft(name, identity.key)
    draft.open()
    for file, content in files.items():
        target = draft.payload / file
        target.parent.mkdir(parents=True, exist_ok=True)
        (write_table if file.endswith(".parquet") else write_json)(target, content)
    return draft.commit(identity, {}, 1.0)


def run_of(root: Path) -> tuple[Store, Artifact]:
    """A store with base, SFT, DPO and GRPO, and its last stage."""
    store = Store(root)
    base = commit(store, "base", "base", {"config.json": {}}, spec={"model": "tiny:"})
    rows = [conversation(n, f"Number {n} is written with the digits of {n}.") for n in range(40)]
    rows[7] = conversation(7, f"You may know that {PLANTED}, and nothing else.", "birds")
    sheet = [{"part": part, "source": "all", "licence": words} for part, words in LICENCES.items()]
    data = commit(store, "mix", "sft-data", {"rows.parquet": rows, "summary.json": {"sheet": sheet}})
    sft = commit(store, "sft", "sft", {"config.json": {}}, spec={"rows": "sft-data"}, inputs=keys(base, data))
    asked = (Message("user", "Which is better?"),)
    said = [Message("assistant", text) for text in (CHOSEN, REJECTED)]
    pair = Pair("p-0", (*asked, said[0]), (*asked, said[1]), "birds")
    pairs = commit(store, "pair_mix", "choices", {"pairs.parquet": [pair]}, inputs=keys(data))
    dpo = commit(store, "dpo", "dpo", {"config.json": {}}, spec={"pairs": "choices"}, inputs=keys(sft, pairs))
    written = {"prompt_id": "r-7", "prompt": "Say 7.", "verifier": "gsm8k@1", "step": 3}
    rollouts = [written | {"text": ROLLOUT}]
    files = {"tercet/rollouts.parquet": rollouts}
    last = commit(store, "grpo", "rlvr", files, spec={"prompts": "sft-data"}, inputs=keys(dpo, data))
    return store, last


def keys(*artifacts: Artifact) -> dict[str, str]:
    return {one.name: one.key for one in artifacts}
