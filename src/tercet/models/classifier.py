"""A transformer with one score as its output: transformers' own class of the family, or one made like those."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from tercet.models.classes import classifier_class
from tercet.models.forest import NAME, register
from tercet.models.headers import BaseError
from tercet.models.hf_folder import SAFE, load_config, one_line, quiet


def load_classifier(folder: Path, *, padded: bool, labels: int = 0) -> Any:
    """The classifier of a folder in fp32; a folder of a causal language model gets a fresh head, of `labels` scores."""
    config = load_config(folder)
    kind: Any = classifier_class(config)
    if labels:
        config.num_labels = labels
    options: dict[str, Any] = {"config": config, **SAFE}
    register()
    if not padded:
        options["attn_implementation"] = NAME
    try:
        with quiet():  # transformers would warn that a head is new
            model = kind.from_pretrained(str(folder), dtype=torch.float32, **options)
    except Exception as error:  # safetensors, transformers and torch each raise their own kinds for a damaged file
        raise BaseError(f"{folder}: the weights cannot be read ({one_line(error)}); make the folder again") from error
    if not hasattr(model, "score"):
        raise BaseError(f"{folder}: {kind.__name__} has no scalar head (score); start the reward model from a decoder")
    return model
