"""The class that a configuration's architecture names: one of transformers, or a classifier made like those."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForSequenceClassification

from tercet.models.headers import BaseError

ENDING = "ForSequenceClassification"


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """The class of the model that `config` describes."""
    names = config.architectures or [""]
    kind = getattr(transformers, names[0], None) if names[0].isidentifier() else None
    if isinstance(kind, type) and issubclass(kind, PreTrainedModel):
        return kind
    if names[0].endswith(ENDING) and (own := classifier_class(config)).__name__ == names[0]:
        return own
    raise BaseError(f"config.json: expected 'architectures' to name a class of transformers, got {names}")


def backbone_name(model: PreTrainedModel) -> str:
    """Under which name a model holds the transformer below its head; a few classes do not keep to their prefix."""
    parts = (name for name, part in model.named_children() if isinstance(part, PreTrainedModel))
    return model.base_model_prefix if hasattr(model, model.base_model_prefix) else next(parts)


def classifier_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """transformers' classifier for this kind of model, or one of the same making where it has none."""
    classifiers: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING
    if type(config) in classifiers:
        return classifiers[type(config)]
    decoders: Any = MODEL_FOR_CAUSAL_LM_MAPPING
    language = decoders[type(config)]
    above = (one for one in language.__mro__[1:] if issubclass(one, PreTrainedModel) and one is not PreTrainedModel)
    family = next(one for one in above if one.__name__.endswith("PreTrainedModel"))
    name = language.__name__.removesuffix("ForCausalLM") + ENDING
    return type(name, (GenericForSequenceClassification, family), {"base_model_prefix": language.base_model_prefix})
