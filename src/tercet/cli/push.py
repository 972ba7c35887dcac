"""The verb `push`: a model, a data set, a report or a page of models of the store to the Hub, each with its card.

huggingface_hub speaks to the Hub: it finds the token, repeats what fails for a moment, and leaves out what is there
already, so that a push that was cut short goes on by the same command. No message holds a token or a signed address.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from tercet.cli import space
from tercet.cli.export import check_options, new_folder, write_model
from tercet.cli.output import emit, say
from tercet.outside import printable
from tercet.recipe import kinds_of
from tercet.store import Artifact, Store, StoreError

TRIES, WAIT = 3, 2.0  # of a whole upload, and seconds before the second one
TABLES = ("rows.parquet", "pairs.parquet", "unpaired.parquet")
PAGES = ("index.html", "rollouts.html")
Found = TypeVar("Found")


class PushError(OSError):
    """The Hub did not take it; the message says what to do."""


class Pushed(NamedTuple):
    """Where it is, and the commit: `Pushed("https://huggingface.co/me/mine", "https://…/commit/3f2a…", "3f2a…")`."""

    url: str
    commit: str
    oid: str


class Parcel(NamedTuple):
    """What is uploaded: its name, what the Hub calls such a repository, a Space's SDK, and what writes the folder."""

    name: str
    kind: str
    sdk: str | None
    write: Callable[[Path], object]
    model: Artifact | None = None  # which others can load from there


def push(args: argparse.Namespace) -> int:
    """Write the folder first, then upload it; with `--dry-run` the folder is all."""
    store = Store(args.store)
    parcel = _space(args) if args.space else _parcel(args, store)
    _check_repository(args.repository)
    if args.dry_run:
        target = args.dry_run.absolute()
        with new_folder(target) as draft:
            parcel.write(draft)
        return _say(args, parcel, target, None)
    api = _api()
    with tempfile.TemporaryDirectory(prefix=".push-", dir=store.root) as scratch:
        folder = Path(scratch) / "folder"
        parcel.write(folder)
        pushed = _patiently(lambda: _upload(api, args, parcel, folder))
        if parcel.model is not None:
            space.note(store, parcel.model, args.repository, pushed.oid)
        return _say(args, parcel, folder, pushed)


def _parcel(args: argparse.Namespace, store: Store) -> Parcel:
    """An artifact of the store."""
    artifact = store.open(args.artifact)
    kind = _kind_of(artifact)
    if args.wheel is not None:
        raise StoreError("--wheel is for --space alone")
    if kind == "model":
        check_options(args, artifact)
    elif args.dtype != "base" or args.adapter or args.gguf:
        raise StoreError(f"{artifact.path.name} is no model: --dtype, --adapter and --gguf do not fit it")
    whole = artifact if kind == "model" and not args.adapter and not args.gguf else None
    sdk = "static" if kind == "space" else None
    return Parcel(artifact.path.name, kind, sdk, partial(_write, args, artifact, store), whole)


def _space(args: argparse.Namespace) -> Parcel:
    """A page on which a run's models, pushed before, answer side by side."""
    if args.dtype != "base" or args.adapter or args.gguf:
        raise StoreError("--space: --dtype, --adapter and --gguf are of the push of a model")
    space.check_wheel(args.wheel)
    found = space.space_of(args)
    if found.left:
        sys.stderr.write(printable(f"not on the page, as it was not pushed: {', '.join(found.left)}\n"))
    return Parcel(found.title, "space", "docker", lambda folder: space.write_space(found, folder, args.wheel))


def _kind_of(artifact: Artifact) -> str:
    """What the Hub calls a repository of such artifacts."""
    kinds = {"model": ("weights", "reward model"), "dataset": ("rows", "pairs", "unpaired"), "space": ("page",)}
    for kind, produced in kinds.items():
        if artifact.kind in kinds_of(*produced):
            return kind
    raise StoreError(
        f"{artifact.path.name} is a {artifact.kind} artifact; models, data and reports are pushed. "
        "An evaluation travels in the card of its model"
    )


def _check_repository(name: str) -> None:
    from huggingface_hub.utils import validate_repo_id

    if name.count("/") != 1:
        raise StoreError(f"{name}: expected OWNER/NAME, such as {os.environ.get('USER', 'me')}/my-model")
    validate_repo_id(name)


def _write(args: argparse.Namespace, artifact: Artifact, store: Store, folder: Path) -> None:
    """Everything that is uploaded, in the new folder `folder`."""
    kind = _kind_of(artifact)
    if kind == "model":
        write_model(args, artifact, store, folder, args.repository)
        return
    folder.mkdir(parents=True)
    files = [file for name in (TABLES if kind == "dataset" else PAGES) if (file := artifact.payload / name).is_file()]
    if not files:
        raise StoreError(f"{artifact.path.name} holds none of {', '.join(TABLES if kind == 'dataset' else PAGES)}")
    for file in files:
        shutil.copyfile(file, folder / file.name)
    title = str(artifact.record["spec"].get("title") or args.repository.rpartition("/")[2])
    from tercet.cli.card import data_card, space_card

    card = data_card(artifact, files[0], args.repository) if kind == "dataset" else space_card(artifact, title)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _api() -> Any:
    """The Hub, for somebody it knows: asked before anything is written."""
    from huggingface_hub import HfApi, get_token

    if not get_token():
        raise PushError("the Hub needs to know you: run `hf auth login`, or set HF_TOKEN to a token that may write")
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"))
    _patiently(api.whoami)
    return api


def _upload(api: Any, args: argparse.Namespace, parcel: Parcel, folder: Path) -> Pushed:
    """Make the repository where it is missing, and commit the folder to it."""
    made = api.create_repo(
        args.repository,
        repo_type=parcel.kind,
        private=True if args.private else None,
        space_sdk=parcel.sdk,
        exist_ok=True,
    )
    done = api.upload_folder(
        repo_id=args.repository, repo_type=parcel.kind, folder_path=folder, commit_message=f"Tercet: {parcel.name}"
    )
    return Pushed(str(made), str(done.commit_url), str(done.oid))


def _patiently(work: Callable[[], Found]) -> Found:
    """The work, again where network or Hub fail for a while; PushError where that does not help."""
    for number in range(TRIES):
        try:
            return work()
        except Exception as error:  # of several libraries, none of which promises its classes
            status = next((found for one in _causes(error) if (found := _status(one))), 0)
            passing = status == 429 or status >= 500 or (not status and not isinstance(error, ValueError | TypeError))
            if not passing or number == TRIES - 1:
                raise PushError(_told(error, status)) from None
            time.sleep(WAIT * 4**number)
    raise AssertionError("the last try returns or raises")


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _status(error: BaseException) -> int:
    return int(getattr(getattr(error, "response", None), "status_code", 0) or 0)


def _told(error: BaseException, status: int) -> str:
    """What happened, without what a signed address or a header may hold, and what to do."""
    texts = " ".join(" ".join(str(one).split()) for one in _causes(error))
    said = re.sub(r"\bhf_\w+", "[hidden]", re.sub(r"\?[^\s'\")]+", "?[hidden]", texts))[:600]
    advice = {
        401: "the token is not known: run `hf auth login`, or set HF_TOKEN",
        403: "the token may not write there: give it the right, or push to a name of your own",
        404: "no such repository or owner: look at the name",
    }.get(status, "the same command goes on where this one ended")
    return f"the Hub did not take it ({said}); {advice}"


def _say(args: argparse.Namespace, parcel: Parcel, folder: Path, pushed: Pushed | None) -> int:
    """What was written or uploaded."""
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    size = sum(file.stat().st_size for file in files)
    if args.json:
        names = [str(file.relative_to(folder)) for file in files]
        found = {"artifact": parcel.name, "kind": parcel.kind, "repository": args.repository, "files": names}
        place = {"folder": str(folder)} if pushed is None else {"url": pushed.url, "commit": pushed.commit}
        return emit({**found, "bytes": size, **place})
    what = f"{parcel.name} ({parcel.kind}, {len(files)} files, {size / 1e6:,.1f} MB)"
    say(f"{what} is written to {folder}; nothing was uploaded" if pushed is None else f"pushed {what} to {pushed.url}")
    return 0
