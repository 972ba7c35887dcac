"""A transformer with one score as its output: transformers' own class of the family, or one made like those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tercet.models.backbone import hand_on
from tercet.models.classes import classifier_class
from tercet.models.forest import NAME, register
from tercet.models.headers import BaseError
from tercet.models.hf_folder import SAFE, load_config, one_line, quiet
from tercet.models.policy import Policy
from tercet.models.unread import unread

HEAD = "score.weight"


def load_classifier(folder: Path, *, like: Policy | None = None, labels: int = 0) -> Any:
    """The classifier of a folder in fp32, with a fresh head of `labels` scores where that is not 0.

    It is read as the policy that it is `like`; where that one's numbers are still on the disk, its own stay there too.
    """
    config = load_config(folder)
    kind: Any = classifier_class(config)
    if labels:
        config.num_labels = labels
    register()
    attention = {} if like is not None and like.padded else {"attn_implementation": NAME}
    left = like is not None and any(parameter.is_meta for parameter in like.parameters())
    model: Any = unread(kind, config, folder, fresh=HEAD if labels else "") if left else None
    model = model or _read(kind, folder, {"config": config, **SAFE, **attention})
    if not hasattr(model, "score"):
        raise BaseError(f"{folder}: {kind.__name__} has no scalar head (score); start the reward model from a decoder")
    if left and attention:
        with quiet():
            model.set_attn_implementation(NAME)
    if like is not None and left and like.handed_on:
        hand_on(model)
    return model


def _read(kind: Any, folder: Path, options: dict[str, Any]) -> Any:
    try:
        with quiet():  # transformers would warn that a head is new
            return kind.from_pretrained(str(folder), dtype=torch.float32, **options)
    except Exception as error:  # safetensors, transformers and torch each raise their own kinds for a damaged file
        raise BaseError(f"{folder}: the weights cannot be read ({one_line(error)}); make the folder again") from error
