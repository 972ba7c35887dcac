"""What is known of a recipe's models and rows before anything runs: from folders, caches and the heads of files."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from tercet.hub.downloads import cache_folder
from tercet.models.headers import CONTEXT, BaseError, read_json, stored_tensors
from tercet.recipe import BASE, URL, ModelSource, Recipe
from tercet.recipe.wheel import PREFIX, read_wheel

TINY: dict[str, Any] = {"max_position_embeddings": 2048, "model_type": "llama"}
TINY |= {"num_attention_heads": 4, "num_key_value_heads": 2}  # the model that is made on the fly; its tokens are bytes


class Obstacle(NamedTuple):
    """One thing that would stop a stage: where it stands in the recipe, and in a sentence what to do."""

    stage: str
    key: str
    what: str

    def __str__(self) -> str:
        table = f"[{BASE}]" if self.stage == BASE else f"[stage.{self.stage}]"
        return f"{table} {self.key}: {self.what}"


class ModelFacts(NamedTuple):
    """A model as far as files tell: `folder` is None where nothing of it is on this machine."""

    name: str  # the stage of the recipe that it comes from
    folder: Path | None
    config: Mapping[str, Any]

    @property
    def context(self) -> float:
        """The most tokens that it reads; infinity where that is unknown."""
        text = self.config.get("text_config")
        text = text if isinstance(text, dict) else self.config
        return next((text[key] for key in CONTEXT if isinstance(text.get(key), int) and text[key] > 0), math.inf)

    @property
    def parameters(self) -> int:
        """Weights in its files, by their headers; 0 where there are none."""
        return sum(map(_parameters, sorted(self.folder.glob("*.safetensors")))) if self.folder else 0

    def counter(self) -> Callable[[str], int]:
        """Counts the tokens of a text; without a tokenizer at hand, so few that a text has more for sure."""
        if self.config is TINY:
            return lambda text: len(text.encode())
        file = self.folder / "tokenizer.json" if self.folder else None
        if file is None or not file.is_file():
            return lambda text: len(text) // 8
        from tokenizers import Tokenizer

        try:
            read = Tokenizer.from_file(str(file))
        except Exception:  # the stage says what is wrong with it; the Rust tokenizer raises bare exceptions
            return lambda text: len(text) // 8
        return lambda text: len(read.encode(text, add_special_tokens=False).ids)


@dataclass
class Facts:
    """A recipe with the payloads of the stages that exist."""

    recipe: Recipe
    made: Mapping[str, Path]
    mirror: Mapping[str, str]
    _models: dict[str, ModelFacts] = field(default_factory=dict)
    _origins: dict[str, str] = field(default_factory=dict)

    def source_of(self, name: str) -> ModelSource:
        """The model that a stage's weights go back to."""
        spec = self.recipe.spec(self.origin(name))
        assert isinstance(spec, ModelSource)
        return spec

    def origin(self, name: str) -> str:
        """The stage that `source_of` belongs to; kept for all on the way there, as chains may be long."""
        passed = []
        while name not in self._origins and not isinstance(spec := self.recipe.spec(name), ModelSource):
            passed.append(name)
            name = getattr(spec, "model", BASE)
        found = self._origins.get(name, name)
        self._origins.update(dict.fromkeys(passed, found))
        return found

    def served(self, name: str) -> bool:
        """Whether a model is behind a URL."""
        return self.source_of(name).model.startswith(URL)

    def model(self, name: str) -> ModelFacts:
        """What is known of the model that a stage makes: its shape is that of the model it goes back to."""
        if name not in self._models:
            origin = self.origin(name)
            folder = next((self.made[one] for one in (name, origin) if one in self.made), None)
            self._models[name] = _facts(origin, self.source_of(name), folder or self._folder(origin))
        return self._models[name]

    def _folder(self, origin: str) -> Path | None:
        """The folder of a model that is on this machine: the user's own, or one in a cache."""
        spec = self.source_of(origin)
        own = self.recipe.folder / Path(self.mirror.get(spec.model, spec.model)).expanduser()
        if own.is_dir():
            return own
        if spec.model.startswith(PREFIX):
            package = read_wheel(spec.model, spec.sha256)
            return next(iter(sorted(cache_folder().glob(f"{package.name}-{package.version}-*"))), None)
        return _cached(spec) if spec.model.count("/") == 1 and not spec.model.startswith(("tiny:", *URL)) else None


def template_of(spec: ModelSource, folder: Path) -> tuple[str, str, str]:
    """The chat template of a model as its process is told: name or file, arguments, date."""
    name = str(folder / Path(spec.template).expanduser()) if spec.template.endswith(".jinja") else spec.template
    return name, json.dumps(spec.template_args), spec.date


def _cached(spec: ModelSource) -> Path | None:
    """A hub model's folder in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(spec.model, "config.json", revision=spec.revision or None)
    except ValueError:  # no name that the hub knows
        return None
    return Path(found).parent if isinstance(found, str) else None


def _facts(origin: str, spec: ModelSource, folder: Path | None) -> ModelFacts:
    if folder is None and spec.model.startswith("tiny:"):
        return ModelFacts(origin, None, TINY)
    file = folder / "config.json" if folder else None
    try:
        config = read_json(file) if file and file.is_file() else {}
    except BaseError:  # the stage says so, with the file's name
        config = {}
    return ModelFacts(origin, folder, config)


def _parameters(file: Path) -> int:
    try:
        return sum(math.prod(shape) for _, shape in stored_tensors(file).values())
    except BaseError:  # the stage says so, with the file's name
        return 0
