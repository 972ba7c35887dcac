"""Whether a folder's tokenizer is data, and of a sane size. Nothing is executed."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedTokenizerBase

from tercet.models.headers import BaseError, read_json

TOKENIZER_BYTES = 512 << 20  # of tokenizer.json; the largest published ones have 40 MB
HIGHEST = 1 << 24  # token ids, and twice the number of tokens: ids beyond would make an embedding of holes
SPARE = 1024
CODE = ("gguf_file", "init_inputs", "tokenizer_object", "post_processor", "_spm_precompiled_charsmap")
CLASS = re.compile(r"\w*(Tokenizer|TokenizerFast|Backend)")
FILE = re.compile(r"[\w.-]+\.json")


def check_settings(folder: Path) -> None:
    """Refuse a tokenizer_config.json that names other files or what is no tokenizer of transformers."""
    path = folder / "tokenizer_config.json"
    values = read_json(path) if path.is_file() else {}
    if odd := [key for key in CODE if values.get(key)]:
        raise BaseError(
            f"{path}: {odd[0]} is no setting of a tokenizer that is read from tokenizer.json; remove the key"
        )
    others = values.get("fast_tokenizer_files") or []
    if not isinstance(others, list) or not all(isinstance(name, str) and FILE.fullmatch(name) for name in others):
        raise BaseError(f"{path}: fast_tokenizer_files = {others!r:.80}, expected names of files of its folder")
    name = values.get("tokenizer_class") or ""
    if not isinstance(name, str) or (name and not _is_tokenizer(name)):
        raise BaseError(f"{path}: tokenizer_class = {name!r:.80}, expected a tokenizer of transformers, or no such key")
    file = folder / "tokenizer.json"
    if file.is_file() and file.stat().st_size > TOKENIZER_BYTES:
        raise BaseError(f"{file}: expected at most {TOKENIZER_BYTES:,} bytes; take the model's own file")


def check_tokens(folder: Path) -> None:
    """Refuse a tokenizer.json whose added tokens collide, or whose ids lie far beyond the number of its tokens."""
    path = folder / "tokenizer.json"
    values = read_json(path, TOKENIZER_BYTES)
    added, model = values.get("added_tokens") or [], values.get("model")
    if not isinstance(model, dict) or not isinstance(added, list) or not all(map(_is_token, added)):
        raise BaseError(f"{path}: expected a model and added_tokens, each with content and id; copy the file again")
    for key in ("id", "content"):
        value, times = Counter(one[key] for one in added).most_common(1)[0] if added else ("", 1)
        if times > 1:
            raise BaseError(f"{path}: {times} added tokens have the {key} {value!r:.80}; each must have its own")
    vocabulary = model.get("vocab")
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary or ()))
    if odd := [one for one in ids if type(one) is not int or not 0 <= one < HIGHEST]:
        raise BaseError(f"{path}: a token has the id {odd[0]!r:.40}, expected whole numbers below {HIGHEST:,}")
    highest, count = max((*ids, *(one["id"] for one in added)), default=0), len(ids) + len(added)
    if highest > 2 * count + SPARE:
        raise BaseError(f"{path}: the highest token id is {highest:,}, of {count:,} tokens; copy the file again")


def _is_token(one: Any) -> bool:
    if not isinstance(one, dict) or not isinstance(one.get("content"), str) or not one["content"]:
        return False
    return type(one.get("id")) is int and 0 <= one["id"] < HIGHEST


def _is_tokenizer(name: str) -> bool:
    """Whether a class is a tokenizer; one that transformers does not know is replaced by its plain one."""
    if not CLASS.fullmatch(name):
        return False
    found = getattr(transformers, name, None)
    if found is None or "dummy" in getattr(found, "__module__", ""):
        return True
    return isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)
