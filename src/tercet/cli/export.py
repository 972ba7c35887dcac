"""The verb `export`: a model of the store for other tools, with a card that says where it came from; or results."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tercet.cli.output import emit, say
from tercet.folders import sync_tree
from tercet.journal import to_disk
from tercet.recipe import kinds_of
from tercet.store import Artifact, Store, StoreError, disk_errors

UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
Progress = Callable[[int, int, str], None]


def export(args: argparse.Namespace) -> int:
    """Everything is written beside the target and moved there when it is whole."""
    store, target = Store(args.store), args.folder.absolute()
    if args.form:
        return _export_results(args, store, target)
    artifact = store.open(args.artifact)
    check_options(args, artifact)
    with new_folder(target) as draft:
        found = write_model(args, artifact, store, draft, str(args.folder))
    if args.json:
        return emit({"artifact": str(artifact.path), "folder": str(target), **found})
    say(f"exported {artifact.path.name} to {target} ({found['dtype']}, {found['bytes'] / 1e9:.2f} GB)")
    if args.adapter:
        say(f"it belongs on {found['base']}")
    return 0


def _export_results(args: argparse.Namespace, store: Store, target: Path) -> int:
    """The results of an evaluation, or of a reward model's test, in the files of another tool."""
    from tercet.evals.export import Evaluated, write

    payload = Path(args.artifact)
    if (payload / "results.jsonl").is_file():  # a payload, such as `tercet rescore` writes
        done = Evaluated(payload, payload.absolute().name, payload.absolute().name)
    else:
        artifact = store.open(args.artifact)
        kind = "reward_model" if args.form == "rewardbench" else "eval"
        if artifact.kind != kind:
            raise StoreError(f"{artifact.path.name} is a {artifact.kind} artifact; --as {args.form} takes {kind} ones")
        model = artifact.record["spec"]["model"]
        named = f"{model}-{artifact.inputs[model]}" if kind == "eval" else artifact.path.name
        done = Evaluated(artifact.payload, named, artifact.path.name)
    with new_folder(target) as draft:
        files = write(args.form, done, draft)
    if args.json:
        return emit({"artifact": str(args.artifact), "folder": str(target), "format": args.form, "files": files})
    say(f"exported {done.name} to {target}: {', '.join(files)}")
    return 0


def check_options(args: argparse.Namespace, artifact: Artifact) -> None:
    """StoreError where the options contradict each other or the artifact is no model."""
    _bytes(args.shard_size)
    if (args.dtype != "base") + args.adapter + bool(args.gguf) > 1:
        raise StoreError("--dtype, --adapter and --gguf exclude each other: an adapter is float32, GGUF says its own")
    if artifact.kind not in kinds_of("weights", "reward model"):
        raise StoreError(
            f"{artifact.path.name} is a {artifact.kind} artifact; only models can be exported as they are, "
            f"and results with --as FORMAT"
        )


def write_model(args: argparse.Namespace, artifact: Artifact, store: Store, draft: Path, where: str) -> dict[str, Any]:
    """A model as the options ask for it, with its card, in the new folder `draft`; what was written.

    `where` is the folder or hub id that it will be loaded from.
    """
    with _bar() as progress:
        if args.adapter:
            found = _write_adapter(artifact, draft)
        elif args.gguf:
            found = _write_gguf(artifact, draft, args.gguf, progress)
        else:
            found = _write_folder(artifact, draft, args.dtype, _bytes(args.shard_size), progress)
    kind = "adapter" if "base" in found else "gguf" if "file" in found else "folder"
    from tercet.cli.card import Form, model_card  # its templates are loaded when a card is written

    form = Form(kind, adapted=found.get("base", ""), where=where, file=found.get("file", ""))
    (draft / "README.md").write_text(model_card(artifact, store, form), encoding="utf-8")
    return found


def _write_folder(artifact: Artifact, draft: Path, dtype: str, shard: int, progress: Progress) -> dict[str, Any]:
    """A plain Hugging Face folder."""
    from tercet.models.export.folder import export_folder

    base = _origin(artifact).payload
    done = export_folder(artifact.payload, base, draft, progress, dtype=dtype, shard=shard)
    return {"dtype": done.dtype, "files": done.files, "bytes": done.size}


def _write_gguf(artifact: Artifact, draft: Path, kind: str, progress: Progress) -> dict[str, Any]:
    """A folder with one GGUF file."""
    from tercet.models.export.gguf import export_gguf

    draft.mkdir(parents=True)
    file = draft / f"{artifact.name}-{kind}.gguf"
    size = export_gguf(artifact.payload, file, artifact.name, kind, progress)
    return {"dtype": kind, "file": file.name, "bytes": size}


def _write_adapter(artifact: Artifact, draft: Path) -> dict[str, Any]:
    """A PEFT folder; it names the model that the stage began with."""
    from tercet.models.export.adapter import export_adapter

    name = artifact.record["spec"].get("model")
    if name not in artifact.inputs:
        raise StoreError(f"{artifact.path.name}: no stage trained it, so it has no adapter; export without --adapter")
    start = Artifact.read(artifact.path.parent / f"{name}-{artifact.inputs[name]}")
    spec = start.record["spec"]
    pinned = spec.get("revision", "") if start.kind == "base" and not spec.get("adapter") else ""
    base = spec["model"] if pinned else str(start.payload.absolute())
    return {"dtype": "float32", "base": base, "bytes": export_adapter(artifact.payload, base, pinned, draft)}


def _origin(artifact: Artifact) -> Artifact:
    """The model that the training of this one goes back to; itself where it was not trained."""
    while (name := artifact.record["spec"].get("model")) in artifact.inputs:
        artifact = Artifact.read(artifact.path.parent / f"{name}-{artifact.inputs[name]}")
    return artifact


def _bytes(text: str) -> int:
    """`5GB` as a number of bytes."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([a-z]*)", text.strip(), re.IGNORECASE)
    if not found or found[2].upper() not in UNITS or float(found[1]) <= 0:
        raise StoreError(f"--shard-size {text}: expected a size such as 5GB, 500MB or 2GiB")
    return max(1, int(float(found[1]) * UNITS[found[2].upper()]))


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder beside `target` that becomes it in one move; nothing of a failure is left."""
    if target.exists():
        raise StoreError(f"{target} exists; export into a folder that does not exist yet, or remove it")
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with disk_errors(target):
            yield draft
            sync_tree(draft)
            os.rename(draft, target)
            to_disk(target.parent)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _bar() -> Iterator[Progress]:
    """A bar on a terminal's standard error; nothing elsewhere."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console(stderr=True)
    with Bar(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("writing", total=None)
        yield lambda done, total, note: bar.update(task, completed=done, total=total)
