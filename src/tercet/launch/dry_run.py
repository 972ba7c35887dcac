"""What `tercet run --dry-run` says: the command of every stage that is missing, as the run would start it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tercet.launch.commands import SLURM_NODES, Started, argv
from tercet.launch.environment import environment
from tercet.launch.joining import others_join
from tercet.launch.shared_store import FOLDER
from tercet.recipe import Recipe
from tercet.store import Identity, Store

HEAD = "$HEAD_NODE"  # stands for the first machine of an allocation that does not exist yet
TOLD = ("OMP_NUM_THREADS", "PYTORCH_ALLOC_CONF", "TORCH_FR_BUFFER_SIZE", "TORCH_FR_DUMP_TEMP_FILE")


@dataclass(frozen=True)
class StageCommand:
    """How a missing stage would be started: its draft, its inputs' folders, and the variables its processes set."""

    stage: str
    kind: str
    key: str
    draft: str
    inputs: dict[str, str]
    nodes: int
    ranks: int
    argv: list[str]
    environment: dict[str, str]

    @property
    def plain(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def lines(self) -> Iterator[str]:
        """A comment, and a line to copy."""
        where = f"{self.ranks} ranks on {self.nodes} machines" if self.nodes > 1 else f"{self.ranks} ranks"
        yield f"# {self.stage} ({self.kind}){': ' + where if self.ranks > 1 else ''}"
        for name, path in self.inputs.items():
            yield f"#   reads {name}: {path}"
        yield f"#   sets {' '.join(f'{name}={self.environment[name]}' for name in TOLD if name in self.environment)}"
        yield " ".join(f'"{word}"' if word.startswith(HEAD) else shlex.quote(word) for word in self.argv)


def commands(recipe: Recipe, store: Store, nodes: Mapping[str, Identity]) -> list[StageCommand]:
    """Every stage of `nodes` that has no artifact yet, in the order of a run."""
    place, found = recipe.placement, []
    head = "" if os.environ.get(SLURM_NODES) or place.launch != "slurm" else HEAD
    for name, node in nodes.items():
        if store.find(name, node.key) is not None:
            continue
        draft, spec = store.draft(name, node.key), recipe.spec(name)
        started = Started(draft.path, node.key, spec.parallel)
        found.append(
            StageCommand(
                name,
                node.kind,
                node.key,
                str(draft.path),
                {need: str(store.root / f"{need}-{key}") for need, key in node.inputs.items()},
                nodes=place.nodes if spec.parallel else 1,
                ranks=place.ranks if spec.parallel else 1,
                argv=argv(place, started, head),
                environment=environment(place, parallel=spec.parallel, records=draft.path / FOLDER),
            )
        )
    return found


def text(found: Sequence[StageCommand], recipe: Recipe) -> Iterator[str]:
    """The commands as a script with comments."""
    yield f"# {recipe.name}: what `tercet run` would start, in this order; nothing was. Each works in the folder"
    yield f"# {recipe.folder.absolute()},"
    yield "# on a draft that the run opens before it, and that a stage leaves behind which did not end."
    if others_join(recipe.placement):
        yield "# On every other machine `tercet run … --join`, with the same recipe and store, starts its part."
    if any(word.startswith(HEAD) for one in found for word in one.argv):
        yield "HEAD_NODE=$(scontrol show hostnames | head -n 1)"
    for one in found:
        yield ""
        yield from one.lines()
    if not found:
        yield "# nothing to do: all stages exist"
