"""Exports read by transformers 4: random models of many families, nothing missing, nothing unexpected, equal logits.

    python bench/old_reader.py [--json FILE]

The peer's environment is made on first use (a minute): transformers 4.57, with the torch of this environment.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file

from tercet.models import tiny
from tercet.models.base_layout import save_model
from tercet.models.export.folder import export_folder
from tercet.models.hf_folder import load_config, load_tokenizer, quiet

HERE = Path(__file__).parent
PEER = HERE / ".old.peer-venv"
REQUIREMENTS = ("transformers==4.57.*", "safetensors")
IDS = [[257, 72, 101, 108, 108, 111, 258, 257, 1, 2, 3, 4, 5, 6, 7, 8]]

SIZES: dict[str, Any] = {
    "vocab_size": 264,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": 257,
    "eos_token_id": 258,
    "pad_token_id": 256,
}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2, "head_dim": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "rope_theta": 15e4, "factor": 4.0, "original_max_position_embeddings": 64}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {"rope_parameters": LLAMA3},
    "Qwen2": {},
    "Qwen3": {"head_dim": 16},
    "Qwen3Moe": EXPERTS,
    "Mixtral": {"num_local_experts": 4},
    "GptOss": {"num_local_experts": 4, "head_dim": 16, "sliding_window": 8, "rope_parameters": YARN},
    "Olmo2": {},
    "Olmo3": {"sliding_window": 8},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "Gemma2": {"head_dim": 16, "sliding_window": 8},
    "Gemma3": {"head_dim": 16, "sliding_window": 8},
    "GPTNeoX": {"rotary_pct": 0.5, "rotary_emb_base": 5e4},
    "Phi3": {},
    "Cohere2": {"head_dim": 16, "sliding_window": 8},
    "Granite": {"embedding_multiplier": 3.0, "logits_scaling": 2.0},
    "StableLm": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}},
    "DeepseekV3": {
        "moe_intermediate_size": 32,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 16,
        "q_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 16,
        "num_key_value_heads": 4,
    },
}


def main() -> None:
    """Make, export, read, compare; exit 1 where a family is read otherwise."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found")
    parser.add_argument("--families", default=",".join(FAMILIES), help="some of them")
    args = parser.parse_args()
    python = _peer()
    with tempfile.TemporaryDirectory() as scratch:
        for family in args.families.split(","):
            _export(family, Path(scratch, family))
        side = [python, str(HERE / "old_reader_side.py"), scratch]
        done = subprocess.run(side, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    for family, line in found["families"].items():
        print(f"{family:12} {line}")
    print(f"read by transformers {found['transformers']}, written by {transformers.__version__}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=2) + "\n")
    sys.exit(any("equal" not in line for line in found["families"].values()))


def _peer() -> str:
    """The interpreter of the old environment; torch is found behind its own packages, which are looked at first."""
    python, ready = PEER / "bin" / "python", PEER / ".ready"
    if not ready.is_file():
        print(f"making {PEER} with {', '.join(REQUIREMENTS)}", flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(PEER)], check=True)
        install = [str(python), "-m", "pip", "--quiet", "--disable-pip-version-check", "install", *REQUIREMENTS]
        subprocess.run(install, check=True)
        place = subprocess.run(
            [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
        ).stdout.strip()
        Path(place, "torch_of_this.pth").write_text(sysconfig.get_path("purelib") + "\n")
        ready.touch()
    return str(python)


def _export(family: str, folder: Path) -> None:
    """An exported folder in bfloat16, as its base, and what transformers 5 computes with it in fp32."""
    torch.manual_seed(0)
    kind = "Gemma3Text" if family == "Gemma3" else family
    settings = {**SIZES, **FAMILIES[family]}
    with quiet(), torch.no_grad():
        model = getattr(transformers, f"{family}ForCausalLM")(getattr(transformers, f"{kind}Config")(**settings))
        for parameter in model.parameters():  # larger than at a start, so that every part shows in the logits
            parameter.add_(torch.randn_like(parameter) * 0.05)
        model.to(torch.bfloat16).save_pretrained(folder / "base")
    tiny.write_tokenizer(folder / "base")
    load_tokenizer(folder / "base").save_pretrained(folder / "base")  # as transformers 5 writes it
    config = load_config(folder / "base")
    save_model(folder / "stage", config, model.state_dict(), source=folder / "base")
    export_folder(folder / "stage", folder / "base", folder / "out", lambda done, total, note: None)
    with quiet(), torch.no_grad():
        read = transformers.AutoModelForCausalLM.from_pretrained(folder / "out", dtype=torch.float32)
        logits = read.eval()(torch.tensor(IDS)).logits
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "wörld"}]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "out")
    ids = tokenizer.apply_chat_template(chat, return_dict=False)
    save_file({"ids": torch.tensor(IDS), "logits": logits, "chat": torch.tensor(ids)}, folder / "wanted.safetensors")


if __name__ == "__main__":
    main()
