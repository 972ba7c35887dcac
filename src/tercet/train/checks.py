"""Checks before step 1: the models can do what the recipe asks of them, and they fit together.

The recipe checks what it can see by itself; these checks need the models' folders or the number of rows. Each stops
with one message that says what was expected, what came and what to change.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from transformers import PretrainedConfig

from tercet.device.plans import check_mesh
from tercet.folders import FolderError
from tercet.models.chat import open_chat
from tercet.models.hf_folder import load_config
from tercet.models.opening import context_length
from tercet.recipe import KINDS, Placement, PPOSpec, RLSpec, TrainSpec
from tercet.store import Artifact, endpoint


class CheckError(ValueError):
    """A recipe asks for what its models cannot do; nothing was trained."""


def check_inputs(spec: TrainSpec, inputs: dict[str, Artifact], placement: Placement) -> None:
    """All that the inputs of a training stage show before they are read: context, mesh and critic."""
    model = inputs[spec.model]
    config = load_config(model.payload)
    check_context(config, spec)
    check_mesh(config, placement.shape, adapters=spec.lora is not None)
    if isinstance(spec, PPOSpec):
        check_critic(model.payload, inputs[spec.value].payload)


def check_context(config: PretrainedConfig, spec: TrainSpec) -> None:
    """The longest row (of an RL stage: the longest prompt with the longest completion) fits the model's context."""
    context = context_length(config)
    if isinstance(spec, RLSpec):
        longest = spec.max_length + spec.max_new_tokens
        given = f"max_length = {spec.max_length} (prompt) and max_new_tokens = {spec.max_new_tokens} (response) make"
    else:
        longest, given = spec.max_length, "max_length ="
    if longest > context:
        raise CheckError(
            f"{given} {longest} tokens, beyond the context of the model {spec.model!r}, {context} tokens "
            f"(max_position_embeddings); lower them by {longest - context} or start from a model with a longer context"
        )


def check_schedule(spec: TrainSpec, total: int) -> None:
    """The learning rate reaches its peak before the last of `total` updates, so that warm-up is not the whole run."""
    warm = math.ceil(spec.warmup_ratio * total)
    if warm > 1 and warm >= total:
        raise CheckError(
            f"warmup_ratio = {spec.warmup_ratio:g} of {total} updates is {warm} updates: it would warm up until the "
            f"last one and never train at its peak of {spec.learning_rate:g}; lower it or train for more updates"
        )


def check_critic(policy: Path, value: Path) -> None:
    """The value model scores what the policy writes: same architecture, same vocabulary, same chat template.

    Its size may be another: at every size Tülu 3 trained with a critic from its 8B reward model (paper §6.2).
    """
    ours, theirs = _reader(policy), _reader(value)
    if ours.architecture != theirs.architecture:
        raise CheckError(
            f"the value model {value} is of another architecture than the policy: expected {ours.architecture!r} like "
            f"{policy}, got {theirs.architecture!r}; start it from a model of the policy's family (its size may differ)"
        )
    _check_vocabulary("the value model", ours, theirs)
    _check_templates(f"the value model {value}", ours, theirs)


def check_authors(model: Artifact, pairs: Artifact) -> None:
    """On-policy pairs were written by a model with the chat template of the one that is trained on them.

    `pairs` may mix other stages' pairs: all inputs that are still in the store are checked.
    """
    ours = _reader(model.payload)
    for author, stage in _authors(pairs):
        theirs = _reader(author.payload)
        _check_templates(f"the model {author.name!r}, which wrote the pairs of the stage {stage!r}", ours, theirs)


class _Reader(NamedTuple):
    """How a model reads: `_Reader(folder, "llama", "{% for ...", "<|im_end|>", "<pad>", {"a": 0}, 49152)`."""

    folder: Path
    architecture: str
    template: str
    end: str
    pad: str
    vocabulary: dict[str, int]
    rows: int  # of its embedding


def _reader(folder: Path) -> _Reader:
    config, chat = load_config(folder), open_chat(folder)
    tokenizer, rows = chat.tokenizer, config.get_text_config().vocab_size
    end, pad = str(tokenizer.convert_ids_to_tokens(chat.end_id)), str(tokenizer.pad_token)
    return _Reader(folder, config.model_type, chat.template, end, pad, tokenizer.get_vocab(), rows)


def _check_vocabulary(who: str, ours: _Reader, theirs: _Reader) -> None:
    unread = (ours.pad, theirs.pad)  # a padding token that was added may have any name
    differ = {item for item in ours.vocabulary.items() ^ theirs.vocabulary.items() if item[0] not in unread}
    if differ:
        number, text = min((number, text) for text, number in differ)
        raise CheckError(
            f"{who} {theirs.folder} has another vocabulary than the policy {ours.folder}: {len(theirs.vocabulary)} "
            f"tokens instead of {len(ours.vocabulary)}, the first that differs is {text!r} (id {number}); both must "
            "use one tokenizer"
        )
    highest = max(number for text, number in ours.vocabulary.items() if text not in unread)
    if theirs.rows <= highest:
        raise CheckError(
            f"{who} {theirs.folder} has an embedding of {theirs.rows} rows, but the vocabulary of the policy goes up "
            f"to id {highest}; use a model with {highest + 1} rows or more"
        )


def _check_templates(who: str, ours: _Reader, theirs: _Reader) -> None:
    if (ours.template, ours.end) != (theirs.template, theirs.end):
        raise CheckError(
            f"{who} uses another chat template than {ours.folder}: it closes a turn with {theirs.end!r} instead of "
            f"{ours.end!r} and writes\n{theirs.template:.200}\ninstead of\n{ours.template:.200}\nset the same "
            "`template` for both models"
        )


def _authors(pairs: Artifact) -> list[tuple[Artifact, str]]:
    """The models that wrote the pairs of this stage and of those it mixes, each with the stage it wrote for."""
    found: list[tuple[Artifact, str]] = []
    wanted = pairs.record["spec"].get(KINDS[pairs.kind].author)
    for name, key in pairs.inputs.items():
        folder = pairs.path.parent / f"{name}-{key}"
        try:
            made = Artifact.read(folder)
        except FolderError:  # gone, or damaged
            continue
        if KINDS[made.kind].produces in ("pairs", "unpaired"):
            found += _authors(made)
        elif name == wanted and endpoint(made.payload) is None:
            found.append((made, pairs.name))
    return found
