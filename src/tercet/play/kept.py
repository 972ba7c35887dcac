"""What people decide on the page, kept for training: pairs, marked answers and edited answers, in our own layouts.

Three journals lie beside the artifacts of a store, and each is a source of a stage in one line:

    play/pairs.jsonl   { path = "runs/play/pairs.jsonl" } of a `pair_mix`: one answer is better than another
    play/marks.jsonl   { path = "runs/play/marks.jsonl" } of an `unpaired_mix`: thumbs up and down
    play/rows.jsonl    { path = "runs/play/rows.jsonl" } of a `mix`: answers that somebody has mended
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from tercet import journal
from tercet.outside import mended

SOURCE = "play"
MOST_BYTES = 256 << 20  # of one journal
MOST_RECORD = 1 << 20
Text = Annotated[str, StringConstraints(max_length=MOST_RECORD)]
Name = Annotated[str, StringConstraints(max_length=200)]


class KeptError(ValueError):
    """Something cannot be kept; the message says why."""


class KeptTurn(BaseModel):
    """A turn of a prompt."""

    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "user", "assistant"]
    content: Text


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    prompt: list[KeptTurn] = Field(min_length=1, max_length=256)
    settings: dict[Name, Any] = Field(max_length=32)  # how the answers were drawn, the seed among them

    @property
    def turns(self) -> list[dict[str, str]]:
        """The prompt as it is stored."""
        return [turn.model_dump() for turn in self.prompt]


class KeptPair(_Record):
    """One answer is better than another to the same prompt."""

    kind: Literal["pair"]
    chosen: Text
    rejected: Text
    chosen_model: Name
    rejected_model: Name
    how: Literal["better", "thumbs", "edit"] = "better"

    @model_validator(mode="after")
    def _differ(self) -> KeptPair:
        if not self.chosen.strip() or self.chosen == self.rejected:
            raise ValueError("the better answer is empty, or the two are equal; nothing can be learnt from them")
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """The models that answered."""
        return self.chosen_model, self.rejected_model

    def record(self, about: dict[str, Any]) -> dict[str, Any]:
        """A pair in our own layout."""
        sides = {
            side: [*self.turns, {"role": "assistant", "content": text}]
            for side, text in (("chosen", self.chosen), ("rejected", self.rejected))
        }
        models = {"chosen_model": self.chosen_model, "rejected_model": self.rejected_model}
        return {**sides, "source": SOURCE, "skill": "", **models, "provenance": json.dumps({"how": self.how, **about})}


class KeptMark(_Record):
    """An answer with a thumb up or down."""

    kind: Literal["mark"]
    answer: Text
    model: Name
    good: bool

    @property
    def named(self) -> tuple[str, ...]:
        """The model that answered."""
        return (self.model,)

    def record(self, about: dict[str, Any]) -> dict[str, Any]:
        """A conversation with a label, as KTO reads it."""
        turns = [*self.turns, {"role": "assistant", "content": self.answer}]
        return {"messages": turns, "label": self.good, "source": SOURCE, **_told(about, self.model)}


class KeptRow(_Record):
    """An answer as somebody has mended it."""

    kind: Literal["row"]
    answer: Text
    model: Name
    before: Text = ""

    @model_validator(mode="after")
    def _says_something(self) -> KeptRow:
        if not self.answer.strip():
            raise ValueError("the answer is empty")
        return self

    @property
    def named(self) -> tuple[str, ...]:
        """The model that answered."""
        return (self.model,)

    def record(self, about: dict[str, Any]) -> dict[str, Any]:
        """A conversation to imitate."""
        turns = [*self.turns, {"role": "assistant", "content": self.answer}]
        return {"messages": turns, "source": SOURCE, **_told(about, self.model, before=self.before)}


KINDS: dict[str, type[KeptPair] | type[KeptMark] | type[KeptRow]] = {
    "pair": KeptPair,
    "mark": KeptMark,
    "row": KeptRow,
}
STAGES = {"pair": "pair_mix", "mark": "unpaired_mix", "row": "mix"}


def _told(about: dict[str, Any], model: str, **more: str) -> dict[str, str]:
    return {"provenance": json.dumps({"model": model, **more, **about})}


class Kept:
    """The journals of one store. `models` says of each column which weights answered."""

    def __init__(self, folder: Path, models: dict[str, str]) -> None:
        self.folder, self.models = folder, models
        self._lock = threading.Lock()

    def file(self, kind: str) -> Path:
        """The journal of a kind of records."""
        return self.folder / f"{kind}s.jsonl"

    def keep(self, value: Any) -> dict[str, Any]:
        """Check and append one record; returns where it is and how many there are."""
        value = mended(value)
        made = KINDS.get(str(value.get("kind"))) if isinstance(value, dict) else None
        if made is None:
            raise KeptError(f"expected an object whose kind is one of {', '.join(KINDS)}")
        given = made.model_validate(value)
        weights = {name: self.models[name] for name in given.named if name in self.models}
        about = {"weights": weights, "settings": given.settings, "at": round(time.time())}
        record = given.record(about)
        name = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
        path = self.file(given.kind)
        with self._lock:
            if len(json.dumps(record)) > MOST_RECORD:
                raise KeptError(f"the record is larger than {MOST_RECORD:,} bytes")
            if path.is_file() and path.stat().st_size > MOST_BYTES:
                raise KeptError(f"{path.name} has {MOST_BYTES:,} bytes, the most that is kept; move it away")
            journal.append(path, {"id": f"play-{name}", **record})
        return {"id": f"play-{name}", "source": self.source(given.kind), "kept": self.count(given.kind)}

    def source(self, kind: str) -> str:
        """The line by which a stage reads the records."""
        return f'kind = "{STAGES[kind]}", sources = [{{ path = {json.dumps(str(self.file(kind)))} }}]'

    def count(self, kind: str) -> int:
        """How many records there are."""
        return sum(1 for _ in journal.read(self.file(kind)))
