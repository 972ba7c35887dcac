"""Similarity of two texts by an encoder such as RoBERTa-large; HREF compares some answers that way."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from tercet.device import place
from tercet.models.headers import BaseError
from tercet.models.hf_folder import load_config, one_line, quiet
from tercet.models.tokenizer_checks import check_settings

BATCH_TOKENS = 8192  # padding included


@dataclass
class Embedder:
    """An encoder and its tokenizer. A text's vector is the mean of its last hidden states."""

    model: PreTrainedModel
    tokenizer: Any
    max_tokens: int

    @classmethod
    def open(cls, folder_or_model: str | os.PathLike[str]) -> Embedder:
        """The encoder in a Hugging Face folder, or the one with this hub id, in fp32 on this process's device."""
        name = os.fspath(folder_or_model)
        reader: Any = AutoModel
        safe: dict[str, Any] = {"trust_remote_code": False}
        try:
            if os.path.isdir(name):
                check_settings(Path(name))
                safe |= {"config": load_config(Path(name)), "local_files_only": True}
            with quiet():
                model, report = reader.from_pretrained(
                    name, dtype=torch.float32, output_loading_info=True, use_safetensors=True, **safe
                )
                tokenizer = AutoTokenizer.from_pretrained(name, **safe)
        except (OSError, ValueError) as error:
            raise BaseError(
                f"{name}: no encoder could be read ({one_line(error):.200}); expected a Hugging Face "
                "folder or a hub id such as FacebookAI/roberta-large"
            ) from error
        lost = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))  # not used here
        if lost:
            raise BaseError(f"{name}: its weights lack {len(lost)} tensors of {type(model).__name__}, e.g. {lost[0]}")
        if tokenizer.pad_token_id is None:
            raise BaseError(f"{name}: its tokenizer has no padding token; expected an encoder such as RoBERTa")
        return cls(model.to(place.device()).eval(), tokenizer, _max_tokens(model, tokenizer))

    def similarity(self, a: Sequence[str], b: Sequence[str]) -> list[float]:
        """Cosine of the vectors of each pair, in [-1, 1]; texts beyond the encoder's length are cut at the end."""
        if len(a) != len(b):
            raise ValueError(f"similarity compares pairs; got {len(a)} texts and {len(b)} others")
        if not a:
            return []
        rows = {text: row for row, text in enumerate(dict.fromkeys([*a, *b]))}
        vectors = self.vectors(list(rows))
        cosines = cosine_similarity(vectors[[rows[text] for text in a]], vectors[[rows[text] for text in b]])
        return [min(1.0, max(-1.0, cosine)) for cosine in cosines.tolist()]

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> Tensor:
        """One row per text, fp32 on the CPU: (texts, hidden size). Special tokens count as tokens of the text."""
        ids = [self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"] for text in texts]
        vectors = torch.zeros(len(texts), self.model.config.hidden_size)
        for rows in _batches([len(row) for row in ids]):
            padded = self.tokenizer.pad({"input_ids": [ids[row] for row in rows]}, return_tensors="pt")
            inputs = {key: padded[key].to(self.model.device) for key in ("input_ids", "attention_mask")}
            states = self.model(**inputs).last_hidden_state
            mask = inputs["attention_mask"][..., None]
            vectors[rows] = ((states * mask).sum(1) / mask.sum(1)).float().cpu()
        return vectors


def _max_tokens(model: PreTrainedModel, tokenizer: Any) -> int:
    """Tokens the encoder can read. RoBERTa and its kin number positions from the padding id + 1."""
    places = int(model.config.max_position_embeddings)
    offset = getattr(getattr(model, "embeddings", None), "padding_idx", None)
    return min(places - (offset + 1 if offset is not None else 0), int(tokenizer.model_max_length))


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Row numbers in batches of like length, longest first; a text without a single token is in none."""
    rows: list[int] = []
    for row in sorted((n for n, length in enumerate(lengths) if length), key=lambda n: -lengths[n]):
        if rows and (len(rows) + 1) * lengths[rows[0]] > BATCH_TOKENS:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows
