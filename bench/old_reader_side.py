"""The old reader's side of `old_reader.py`, run by its own interpreter: load every folder, compare, print JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from safetensors.torch import load_file

CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "wörld"}]


def main() -> None:
    """A line per folder."""
    transformers.logging.set_verbosity_error()
    found = {folder.name: _read(folder) for folder in sorted(Path(sys.argv[1]).iterdir())}
    print(json.dumps({"transformers": transformers.__version__, "families": found}))


def _read(folder: Path) -> str:
    wanted, reader = load_file(folder / "wanted.safetensors"), cast(Any, transformers.AutoModelForCausalLM)
    try:
        model, report = reader.from_pretrained(folder / "out", dtype=torch.float32, output_loading_info=True)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "out")
        ids = tokenizer.apply_chat_template(CHAT)
        with torch.no_grad():
            logits = model.eval()(wanted["ids"]).logits
    except Exception as error:  # whatever it is, it is the result
        return f"not read: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
    faults = {key: report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys") if report[key]}
    if faults:
        return (
            f"{', '.join(f'{len(names)} {key}' for key, names in faults.items())}, e.g. {next(iter(faults.values()))}"
        )
    if list(ids) != wanted["chat"].tolist():
        return "other token ids of a conversation"
    gap, spread = (logits - wanted["logits"]).abs().max().item(), wanted["logits"].std().item()
    word = "equal" if gap < 1e-4 * spread else "DIFFERENT"
    return f"{word}: largest gap {gap:.1e} of logits with a spread of {spread:.2f}, nothing missing or unexpected"


if __name__ == "__main__":
    main()
