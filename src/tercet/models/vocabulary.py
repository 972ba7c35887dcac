"""A folder's tokenizer and its embedding fit together: padding has a token of its own, and every token has a row."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer
from transformers import PretrainedConfig, PreTrainedTokenizerFast

from tercet.journal import replace, write_json
from tercet.models.base_layout import BaseLayout
from tercet.models.chat import Chat
from tercet.models.headers import BaseError
from tercet.models.hf_folder import load_model, parameters_of, replace_weights, save_config, tensors_of, weight_files
from tercet.models.tokenizer_checks import SPARE
from tercet.models.weights import DTYPES, each_tensor, note_widened


def ensure_pad(folder: Path, tokenizer: PreTrainedTokenizerFast, chat: Chat) -> int:
    """The id of a padding token that is not the end of a turn: the present one, an unused special one, or a new one.

    An unused special token needs no new embedding; only where there is none does `<pad>` get a row.
    """
    ends = {tokenizer.eos_token_id, *chat.closing_ids}
    if tokenizer.pad_token_id is not None and tokenizer.pad_token_id not in ends:
        return int(tokenizer.pad_token_id)
    taken = {tokenizer.bos_token_id, tokenizer.unk_token_id, *ends, *chat.stops}
    unused = {
        token_id: token.content
        for token_id, token in sorted(tokenizer.added_tokens_decoder.items())
        if token.special and token_id not in taken and token.content not in chat.template
    }
    named = [token_id for token_id, text in unused.items() if "pad" in text.lower()]
    pad_id = (named or [*unused][-1:] or [len(tokenizer)])[-1]
    _set_pad(folder, unused.get(pad_id, "<pad>"))
    return pad_id


def _set_pad(folder: Path, text: str) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if tokenizer.token_to_id(text) is None:
        tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True)])
        replace(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (folder / name).is_file():
            values = json.loads((folder / name).read_text("utf-8"))
            write_json(folder / name, values | {"pad_token": text}, sort_keys=True)


def fit_embedding(folder: Path, config: PretrainedConfig, highest: int) -> None:
    """Give the embedding a row for every token up to `highest`, where it has fewer; that is said."""
    text = config.get_text_config()
    rows = text.vocab_size
    if highest < rows:
        return
    if highest > 2 * rows + SPARE:
        raise BaseError(
            f"{folder}: the tokenizer's highest id is {highest:,}, and the embedding has {rows:,} rows; tokenizer and "
            "weights must belong to the same model"
        )
    more = -(-(highest + 1) // 8) * 8
    sys.stderr.write(f"tercet: {folder.name}: token {highest} is beyond the embedding of {rows} rows; it gets {more}\n")
    text.vocab_size, text.pad_token_id = more, None  # the old one may lie beyond
    _grow(folder, config)


def _grow(folder: Path, config: PretrainedConfig) -> None:
    """Rewrite the weights with the rows that `config` has; new rows are the mean of the old ones."""
    shapes = BaseLayout(config).shapes
    have = tensors_of(folder)

    def tensors() -> Iterator[tuple[str, torch.Tensor]]:
        for name, stored in chain.from_iterable(map(each_tensor, weight_files(folder))):
            weight = stored.float()
            more = shapes[name][0] - weight.shape[0] if name in shapes and weight.dim() else 0
            mean = weight.mean(0, keepdim=True) if more else weight
            yield name, torch.cat([weight, mean.expand(more, *weight.shape[1:])]) if more else weight

    save_config(folder, config)
    dtypes = {name: DTYPES.get(code, torch.float32) for name, (code, _) in have.items()}
    wider = [name for name, dtype in dtypes.items() if dtype != torch.float32 and have[name][1] != shapes.get(name)]
    dtypes |= dict.fromkeys(wider, torch.float32)  # a mean is not rounded
    replace_weights(folder, shapes, tensors(), dtypes)
    note_widened(folder, wider)


def rewrite(folder: Path) -> None:
    """Write the weights under the names that transformers gives them now, of the language model alone.

    Older folders have other names; those of a multimodal model hold more than what reads text.
    """
    codes = Counter(code for code, _ in tensors_of(folder).values())
    dtype = DTYPES.get(codes.most_common(1)[0][0], torch.float32)
    model = load_model(folder, dtype)
    model.config.architectures = [type(model).__name__]
    layout = BaseLayout(model.config)
    sys.stderr.write(f"tercet: {folder.name}: written as {type(model).__name__}\n")
    save_config(folder, model.config)
    tensors = layout.stored(parameters_of(model).items())
    replace_weights(folder, layout.shapes, tensors, dict.fromkeys(layout.shapes, dtype))
