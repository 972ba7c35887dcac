"""The adapter that a stage trained, as a PEFT folder that names the model it belongs on."""

from __future__ import annotations

import json
from pathlib import Path

from tercet.journal import replace, write_json
from tercet.models.adapter import CONFIG, KEPT, WEIGHTS
from tercet.models.headers import BaseError
from tercet.models.hf_folder import copy_tokenizer


def export_adapter(source: Path, base: str, revision: str, out: Path) -> int:
    """Write the adapter of the artifact's folder `source` into the new folder `out`; returns the bytes of its weights.

    `base` is what peft loads the model from: a hub id at a revision, or a folder.
    """
    kept = source / KEPT
    if not (kept / CONFIG).is_file():
        raise BaseError(
            f"{source}: it holds no adapter; only stages with `lora` leave one. Export the model, without --adapter"
        )
    out.mkdir(parents=True)
    config = json.loads((kept / CONFIG).read_text("utf-8"))
    config |= {"base_model_name_or_path": base, "revision": revision or None}
    write_json(out / CONFIG, config, sort_keys=True)
    data = (kept / WEIGHTS).read_bytes()
    replace(out / WEIGHTS, data)
    copy_tokenizer(source, out)
    return len(data)
