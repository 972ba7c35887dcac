"""A store with two models and their evaluations, small and made without a model: what the page's Python parts read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

from tercet.evals.results import regraded, write_scores
from tercet.records import Result, Sample, TaskCard
from tercet.rows import Message, Sampling
from tercet.store import Artifact, Identity, Store

WORDS = TaskCard("words@1", verifier="gsm8k@2", sampling=Sampling(160, stop=("END",)), num_items=4)
RULES = TaskCard("constraints@1", verifier="tulu_if@1", sampling=Sampling(96), num_items=1)
CHOICE = TaskCard("facts@1", metric="choice", num_items=1)
RULE = json.dumps(
    [
        {"func_name": "validate_lowercase", "text": "Write in lower case."},
        {"func_name": "validate_word_constraint", "N": 3, "quantifier": "at most"},
    ]
)
ANSWERS = {  # model -> its answer to each item
    "base": ["It is 5.", "It is 4.", "No idea.", "The answer is 9.", "LOUD words here"],
    "sft": ["It is 4.", "It is 4.", "The answer is 9.", "No idea.", "quiet words"],
}


def write_run(root: Path, model: Path) -> Store:
    """The artifacts `base`, `sft`, `eval-base` and `eval-sft`; both models have the files of `model`."""
    store = Store(root)
    base = _commit(store, "base", "base", {}, model)
    sft = _commit(store, "sft", "sft", {"base": base.key}, model)
    for artifact in (base, sft):
        draft = store.draft(f"eval-{artifact.name}", "0" * 12)
        identity = Identity("eval", 1, {"kind": "eval", "model": artifact.name}, {artifact.name: artifact.key})
        draft = store.draft(f"eval-{artifact.name}", identity.key)
        draft.open()
        write_scores(draft.payload, [WORDS, RULES, CHOICE], list(_results(artifact.name)))
        draft.commit(identity, {}, 1.0)
    return store


def _results(model: str) -> list[Result]:
    *words, rules = ANSWERS[model]
    found = [_result(f"w{i}", "How many?", "4" if i < 3 else "9", WORDS, text) for i, text in enumerate(words)]
    found.append(_result("c0", "Say something quiet.", RULE, RULES, rules))
    options = Result(task="facts@1", item="f0", metric="choice", options=["a", "b"], gold=0, logps=[-1.0, -2.0])
    return [*found, replace(options, score=1.0, outcome="graded", raw=1.0)]


def _result(item: str, prompt: str, reference: str, card: TaskCard, text: str) -> Result:
    shots = (Message("user", "1 + 1?"), Message("assistant", "2")) if card is WORDS else ()
    asked = Result(task=card.name, item=item, messages=(*shots, Message("user", prompt)), reference=reference)
    return regraded(replace(asked, samples=[Sample(text, 5, "eos")]), card.verifier, card)


def _commit(store: Store, name: str, kind: str, inputs: dict[str, str], model: Path) -> Artifact:
    identity = Identity(kind, 1, {"kind": kind}, inputs)
    draft = store.draft(name, identity.key)
    draft.open()
    shutil.copytree(model, draft.payload, dirs_exist_ok=True)
    return draft.commit(identity, {}, 1.0)
