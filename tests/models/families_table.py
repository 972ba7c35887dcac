"""The families of transformers' causal language models, how each is read, and which are not and why.

`python tests/models/families_table.py` writes docs/families.md: it reads a small model of every family.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tercet.models.miniature import build, miniature
from tercet.models.opening import laid_out

FILE = Path(__file__).parents[2] / "docs" / "families.md"
KINDS: dict[str, str] = dict(sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items()))
ENCODER = "an encoder, which sees what comes later (transformers can make it a decoder, but no such model is published)"
ENCODERS = """
bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta roberta-prelayernorm
roc_bert roformer xlm-roberta xlm-roberta-xl xmod
"""
SIZES = "no small model of it could be made, as its layers have sizes of their own"
LATER = "sees what comes later"
HEAD_OF_ITS_OWN = "more layers stand between its hidden states and its output projection"
SOUND = "writes codes of sound, several at once"
EXCEPTIONS: dict[str, str] = {
    **dict.fromkeys(ENCODERS.split(), ENCODER),
    "blt": "reads bytes in patches that a second model cuts",
    "cpmant": LATER,
    "dots3_note": SIZES,
    "dots3_note_text": SIZES,
    "gemma3n": "its vision tower needs the packages timm and pillow; `gemma3n_text` is read",
    "gemma4_assistant": "a draft model, which reads another model's keys and values",
    "gemma4_unified_assistant": "a draft model, which reads another model's keys and values",
    "modernbert-decoder": HEAD_OF_ITS_OWN,
    "musicgen": SOUND,
    "musicgen_melody": SOUND,
    "prophetnet": "predicts several tokens at each place",
    "qwen4_exp": "its default configuration is not complete; `qwen4_exp_text` is read",
    "reformer": "attends by random hashes",
    "xlm": LATER,
    "xlnet": LATER,
    "zamba2": SIZES,
}
DENSE = {"head_dim": 8, "num_key_value_heads": 2}
CHANGES: dict[str, dict[str, Any]] = {  # what the defaults of transformers leave open, though folders say it
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_theta": 1e4, "rope_type": "default"}}},
    "dbrx": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_routed_experts": 4, "moe_intermediate_size": 16},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "hunyuan_v1_dense": DENSE,
    "hunyuan_v1_moe": DENSE,
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_hidden_layers": 2},
    "ministral": DENSE,
    "nemotron": DENSE,
    "qwen4_exp_text": {
        "indexer_budget": 4,
        "indexer_compress_ratio": 2,
        "indexer_head_dim": 8,
        "indexer_kv_heads": 1,
        "indexer_n_heads": 4,
    },
    "xmod": {"default_language": "en_XX"},
}
HEAD = """\
# Model families

<!-- Written by tests/models/families_table.py; the laws in tests/models/test_every_family.py hold it to the code. -->

Every causal language model that transformers {version} has, as Tercet reads it. *Forest*: what the answers to a prompt
share is computed once. *Padded*: one path a row with the model's own attention, recurrence and cache; losses and
numbers are the same, but every answer computes its prompt again. For each family a small model with random weights is
compared with transformers' plain forward pass over each path alone: log-probabilities, gradients and greedy answers.
A model's layout is found out by trying, so a family that is not listed may work as well.

| model type | class | layout | why |
|---|---|---|---|
"""
ROW = re.compile(r"^\| `([\w.-]+)` \| `\w+` \| (\w+) \|", re.MULTILINE)


def small_config(kind: str) -> PretrainedConfig:
    """A family's default configuration, made small."""
    return miniature(CONFIG_MAPPING[kind](), **CHANGES.get(kind, {}))


def read(kind: str) -> tuple[str, str]:
    """How a family is read, and why not in a forest or not at all."""
    if kind in EXCEPTIONS:
        return "refused", EXCEPTIONS[kind]
    try:
        policy = laid_out(build(small_config(kind)), "auto")
    except Exception as error:
        raise RuntimeError(f"{kind} is not among the exceptions, and cannot be read") from error
    return ("padded", policy.why_padded.replace("|", "/")) if policy.padded else ("forest", "")


def render() -> str:
    """The whole page."""
    import transformers

    rows = [f"| `{kind}` | `{name}` | {' | '.join(read(kind))} |" for kind, name in KINDS.items()]
    return HEAD.format(version=transformers.__version__) + "\n".join(rows) + "\n"


PAGE: dict[str, str] = dict(ROW.findall(FILE.read_text(encoding="utf-8"))) if FILE.is_file() else {}

if __name__ == "__main__":
    FILE.write_text(render(), encoding="utf-8")
    sys.stdout.write(f"wrote {FILE}\n")
