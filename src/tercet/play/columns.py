"""What the columns of the page are: models of a run, other models, and servers elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tercet.evals.run import chat_template
from tercet.recipe import KINDS

LOCAL = "/v1"  # where this server itself answers
MOST = 6  # columns at once: a browser opens so many connections to one server


@dataclass(frozen=True)
class Column:
    """One model. Example: `Column("sft", "sft", "SFT", "runs/sft-3f2a90c1b7de", tokenizer="9b1c…")`.

    `name` is what the page and requests call it, `url` where it is asked. Columns of one `tokenizer` read each other's
    token ids. `chat`: it has a chat template; else it is asked as plain text. `artifact`: its folder in the store,
    where it is an artifact. `remote`: the URL of the server behind `url`, with `model` as its name there.
    """

    name: str
    kind: str
    label: str
    about: str = ""
    chat: bool = True
    tokenizer: str = ""
    artifact: str = ""
    url: str = LOCAL
    remote: str = ""
    model: str = ""

    def to_json(self) -> dict[str, Any]:
        """The column as the page is told of it; where a server stands is no business of who looks at the page."""
        return {key: value for key, value in asdict(self).items() if key != "remote"} | {"server": bool(self.remote)}


def local(name: str, folder: Path, kind: str = "", artifact: str = "") -> Column:
    """The column of a model's folder, the payload of an artifact or another."""
    label = KINDS[kind].label if kind in KINDS and KINDS[kind].label else name
    chat, tokenizer = chat_template(folder) is not None, tokenizer_digest(folder)
    about = {"about": artifact or folder.name, "artifact": artifact, "model": name}
    return Column(name, kind or "folder", label, chat=chat, tokenizer=tokenizer, **about)


def server(name: str, url: str, model: str, number: int) -> Column:
    """The column of a model behind an OpenAI-compatible server, which this server asks for the page."""
    return Column(name, "server", name, f"{model} (a server)", url=f"/play/servers/{number}", remote=url, model=model)


def labelled(columns: Sequence[Column]) -> list[Column]:
    """The columns with labels that differ: the names, where two kinds would look alike."""
    labels = [column.label for column in columns]
    return [
        column if labels.count(column.label) == 1 else Column(**{**asdict(column), "label": column.name})
        for column in columns
    ]


def tokenizer_digest(folder: Path) -> str:
    """A short digest of a model's vocabulary; empty where it is in no file that this reads."""
    file = folder / "tokenizer.json"
    return hashlib.sha256(file.read_bytes()).hexdigest()[:16] if file.is_file() else ""
