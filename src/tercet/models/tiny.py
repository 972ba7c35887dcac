"""A two-layer Llama with a byte-level tokenizer, made on the fly: the model of `recipes/tiny.toml` and of the tests."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig

from tercet.journal import replace, write_json
from tercet.models.hf_folder import parameter_shapes, save_config
from tercet.models.weights import write_weights

PAD, START, END = "<|pad|>", "<|im_start|>", "<|im_end|>"

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def build(folder: Path, seed: int) -> None:
    """Write the model with random weights drawn from `seed`; same seed, same bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    config = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=259,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=257,
        eos_token_id=258,
        pad_token_id=256,
    )
    save_config(folder, config)
    shapes = parameter_shapes(config)
    generator = torch.Generator().manual_seed(seed)
    weights = [(name, _draw(shapes[name], generator)) for name in sorted(shapes)]
    write_weights(folder / "model.safetensors", shapes, weights)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with one token per byte (ids 0 to 255) and three special ones, with a ChatML template."""
    alphabet = byte_alphabet()
    tokenizer = Tokenizer(models.BPE(vocab={character: byte for byte, character in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in (PAD, START, END)])
    replace(folder / "tokenizer.json", tokenizer.to_str(pretty=True))
    values = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": START,
        "eos_token": END,
        "pad_token": PAD,
        "model_max_length": 2048,
        "clean_up_tokenization_spaces": False,
    }
    write_json(folder / "tokenizer_config.json", values, sort_keys=True)
    write_json(folder / "generation_config.json", {"bos_token_id": 257, "eos_token_id": 258, "pad_token_id": 256})
    replace(folder / "chat_template.jinja", CHATML)


def byte_alphabet() -> list[str]:
    """The printable stand-in of each byte in byte-level BPE: itself where printable, else 256 and up in order."""
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def _draw(shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:  # norms start as the identity
        return torch.ones(shape)
    return torch.randn(shape, generator=generator) * 0.02
