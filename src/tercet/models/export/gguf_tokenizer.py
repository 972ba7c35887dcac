"""A fast tokenizer in the terms of GGUF: byte-level BPE (`gpt2`) or SentencePiece-like BPE (`llama`).

llama.cpp knows how text is cut before merges by a name only. The name is found by what a tokenizer does: its cuts of a
text full of corner cases are compared with those of each way that llama.cpp has.
"""

from __future__ import annotations

import json
from typing import Any

from gguf import GGUFWriter, TokenType
from tokenizers import Regex, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tercet.models.headers import BaseError

SPACE = "▁"
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
UPPER, LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{UPPER}*{LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{UPPER}+{LOWER}*"
MARKED = r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CUTS: dict[tuple[str, bool], list[str]] = {
    ("gpt-2", False): [GPT2],
    ("smollm", False): [r"\p{N}", GPT2],
    ("qwen2", False): [rf"{SHORT}|{WORDS}|\p{{N}}|{REST}"],
    ("qwen35", False): [rf"{SHORT}|{MARKED}"],
    ("dbrx", False): [rf"{SHORT}|{WORDS}|\p{{N}}{{1,3}}|{REST}"],
    ("llama-bpe", True): [rf"{SHORT}|{WORDS}|\p{{N}}{{1,3}}|{REST}"],
    ("tekken", True): [rf"{CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"],
}
"""llama.cpp's name of a way to cut text, and whether whole words are looked up before any merge; its expressions."""

PROBE = (
    "Hello world, it's IT'S don'T we'll\n\n  two\t tabs \r\n x1234567 12 a1b2 ½ ²³ ١٢٣ naïve "
    "e\u0301le\u0301ve हिन्दी 漢字かな 한국어 HTMLParser camelCase "
    "foo_bar!!! ...?! $%^&* 'quoted' (a)/b\n/c  \n\n\n end   of line \u00a0 nbsp 🙂🙂 ’s   "
)


def add_tokenizer(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, rows: int, ends: list[int]) -> None:
    """Put tokens, merges or scores, special ids and the chat template into a GGUF file of `rows` vocabulary rows."""
    settings = json.loads(tokenizer.backend_tokenizer.to_str())
    model = settings["model"]
    if model["type"] != "BPE":
        raise BaseError(f"a GGUF file holds a BPE tokenizer, and this one is {model['type']}; export a folder")
    tokens, types = _tokens(tokenizer, model, rows)
    if _pieces(settings):
        writer.add_tokenizer_model("llama")
        writer.add_tokenizer_pre("default")
        writer.add_token_list(tokens)
        writer.add_token_scores(_scores(tokens, model))
        writer.add_add_space_prefix(_first(tokenizer, "a").startswith(SPACE))
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(cut_of(tokenizer, model))
        writer.add_token_list(tokens)
        writer.add_token_merges([" ".join(_pair(merge)) for merge in model["merges"]])
    writer.add_token_types(types)
    _add_special(writer, tokenizer, ends)
    template = tokenizer.chat_template
    if isinstance(template, str):
        writer.add_chat_template(template)


def cut_of(tokenizer: PreTrainedTokenizerFast, model: dict[str, Any]) -> str:
    """llama.cpp's name of how the tokenizer cuts text."""
    if not model["merges"]:
        return "gpt-2"  # every byte is a token: it does not matter
    cuts = tokenizer.backend_tokenizer.pre_tokenizer
    whole = bool(model.get("ignore_merges", False))
    wanted = [place for _, place in cuts.pre_tokenize_str(PROBE)] if cuts is not None else None
    for (name, looked_up), expressions in CUTS.items():
        splits = [pre_tokenizers.Split(Regex(expression), "isolated") for expression in expressions]
        ours = pre_tokenizers.Sequence([*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        if looked_up == whole and [place for _, place in ours.pre_tokenize_str(PROBE)] == wanted:
            return name
    known = ", ".join(name for name, _ in CUTS)
    raise BaseError(
        f"llama.cpp cuts text in ways that it knows by name ({known}), and this tokenizer cuts it in none of them; "
        "export a folder, and convert it with llama.cpp's own script"
    )


def _pieces(settings: dict[str, Any]) -> bool:
    """Whether spaces are `▁` and unknown characters bytes such as `<0x0A>`, as SentencePiece has it."""
    return bool(settings["model"].get("byte_fallback")) and "<0x0A>" in settings["model"]["vocab"]


def _tokens(tokenizer: PreTrainedTokenizerFast, model: dict[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Texts and types by id; rows beyond the vocabulary are unused ones."""
    tokens = [f"[PAD{i}]" for i in range(rows)]
    types = [int(TokenType.UNUSED)] * rows
    for text, token_id in tokenizer.get_vocab().items():
        if token_id >= rows:
            raise BaseError(f"the token {text!r} has the id {token_id}, beyond the {rows} rows of the embedding")
        tokens[token_id] = text
        byte = bool(model.get("byte_fallback")) and len(text) == 6 and text.startswith("<0x")
        types[token_id] = int(TokenType.BYTE if byte else TokenType.NORMAL)
    for token_id, token in tokenizer.added_tokens_decoder.items():
        types[token_id] = int(TokenType.CONTROL if token.special else TokenType.USER_DEFINED)
    if (unknown := tokenizer.unk_token_id) is not None and model.get("byte_fallback"):
        types[unknown] = int(TokenType.UNKNOWN)
    return tokens, types


def _scores(tokens: list[str], model: dict[str, Any]) -> list[float]:
    """A higher score for what is merged earlier, which is all that llama.cpp asks of scores."""
    first: dict[str, int] = {}
    for rank, merge in enumerate(model["merges"]):
        first.setdefault("".join(_pair(merge)), rank)
    return [-float(first.get(token, len(first))) for token in tokens]


def _pair(merge: str | list[str]) -> list[str]:
    """The two sides of a merge; older files write them as one text."""
    return merge.split(" ") if isinstance(merge, str) else merge


def _first(tokenizer: PreTrainedTokenizerFast, text: str) -> str:
    return str(tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids[0]))


def _add_special(writer: GGUFWriter, tokenizer: PreTrainedTokenizerFast, ends: list[int]) -> None:
    """Begin, end, padding and unknown; a second token that ends generation ends a turn."""
    ids = tokenizer("a").input_ids
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is not None:
        writer.add_bos_token_id(begin)
    end = end if end is not None else next(iter(ends), None)
    if end is not None:
        writer.add_eos_token_id(end)
    if turn := [one for one in ends if one != end]:
        writer.add_eot_token_id(turn[0])
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(begin is not None and ids[0] == begin)
    writer.add_add_eos_token(end is not None and len(ids) > 1 and ids[-1] == end)
