"""One stage in its own process: `python -m tercet.stage --draft DIR`.

The pipeline has written `job.json` into the draft and holds its lock; this process imports the module of the stage's
kind, runs it, and commits the draft. It reports how it ended by its exit code, and in `result.json` when it failed:
1 failed, 2 bad input, 3 a gate did not hold, 128 and a signal's number when that signal asked it to end.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from tercet import machine, trackers
from tercet.artifact_json import DamagedArtifactError
from tercet.forecast.recomputation import decided
from tercet.journal import write_json
from tercet.launch import shared_store
from tercet.launch.beats import Heart, every
from tercet.launch.commands import Started
from tercet.launch.ending import DISK_FULL
from tercet.launch.environment import JOINED, environment
from tercet.launch.start import parent, ranks
from tercet.machine import RANKS
from tercet.recipe import Placement, Recipe, SourceSpec
from tercet.rows import Row
from tercet.stats import GateError
from tercet.stop import Stop, Stopped, named
from tercet.store import NO_SPACE, Artifact, Context, Draft, Identity, Store, disk_full, endpoint
from tercet.track import Tracker
from tercet.verify.pins import code_of
from tercet.verify.plugins import ChangedCodeError

BRIEF, LONG = 3.0, 60.0  # seconds that other trackers get to send what is left: of a stage that was stopped, of others


@dataclass(frozen=True)
class StageJob:
    """What `job.json` says: call `run(spec, inputs, out, ctx)` of `module`, for this recipe and these inputs."""

    name: str
    module: str
    kinds: list[str]  # modules that define the kinds of the recipe's stages
    identity: Identity
    recipe: dict[str, Any]
    inputs: dict[str, str]  # stage name -> artifact folder
    mirror: dict[str, str]

    @classmethod
    def of(
        cls, recipe: Recipe, name: str, identity: Identity, inputs: dict[str, str], mirror: dict[str, str]
    ) -> StageJob:
        """The job of one stage."""
        kinds = sorted({type(spec).__module__ for spec in recipe.stage.values()})
        return cls(name, recipe.spec(name).module, kinds, identity, recipe.model_dump(mode="json"), inputs, mirror)

    def write(self, draft: Draft) -> None:
        """Write the job into the draft."""
        write_json(draft.path / "job.json", asdict(self))

    @classmethod
    def read(cls, folder: Path) -> StageJob:
        """The job in a draft."""
        plain = json.loads((folder / "job.json").read_text(encoding="utf-8"))
        return cls(**plain | {"identity": Identity(**plain["identity"])})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job of a draft, in this process or as one of several ranks."""
    parser = argparse.ArgumentParser(prog="python -m tercet.stage", description=__doc__)
    parser.add_argument("--draft", type=Path, required=True, help="the draft folder that holds job.json")
    parser.add_argument("--rank", action="store_true", help="be one of the stage's ranks: the one that RANK names")
    args = parser.parse_args(argv)
    folder = args.draft.absolute()
    # No orphan may go on or keep the lock. A rank is killed: torchrun gives it a session of its own, and one that
    # waits for its peers handles no SIGTERM.
    machine.die_with_parent(signal.SIGKILL if args.rank else signal.SIGTERM, parent())
    machine.keep_heap()
    job = StageJob.read(folder)
    for module in job.kinds:
        importlib.import_module(module)
    recipe = Recipe.model_validate(job.recipe)
    placement, parallel = recipe.placement, recipe.spec(job.name).parallel
    os.environ.update(environment(placement, parallel=parallel, records=folder / shared_store.FOLDER))
    if not args.rank:
        if parallel and placement.ranks > 1:
            return ranks(placement, Started(folder, job.identity.key, parallel, joined=JOINED in os.environ))
        for name in RANKS:  # of somebody else's ranks
            os.environ.pop(name, None)
    number = int(os.environ.get("RANK", "0"))
    draft, stop = Draft(folder.parent, job.name, job.identity.key), Stop()
    stop.listen(partial(_stopped, stop, draft, number == 0, "there was no time to write a checkpoint"))
    track = _tracker(job, recipe, draft, number == 0)
    heart = Heart(folder, number, every(placement), lambda: track.done) if args.rank else None
    return _made(job, recipe, draft, track, stop, heart)


def _made(job: StageJob, recipe: Recipe, draft: Draft, track: Tracker, stop: Stop, heart: Heart | None) -> int:
    """Run a job to its end, however it ends; the exit code."""
    first, final, fault, code = heart is None or heart.first, None, {}, 0
    try:
        if heart:
            heart.join(recipe.placement)
        final = _run(job, recipe, draft, track, stop)
    except Stopped:
        code = _end_early(stop, draft, first)
    except Exception as error:
        fault = _report(error, draft, first)
        code = fault["code"]
    if heart:
        heart.end(fault)
    if not track.close(final, within=BRIEF if stop.number else LONG):
        os._exit(code)  # the artifact, or what was kept of it, is whole; a library's last words could take for ever
    return code


def _tracker(job: StageJob, recipe: Recipe, draft: Draft, first: bool) -> Tracker:
    """What the stage reports with; of several ranks the first one reports. Other trackers are told of training."""
    others = recipe.placement.report_to if recipe.spec(job.name).parallel else ()
    if not first or not others:
        return Tracker(draft.path if first else None)
    return Tracker(draft.path, partial(trackers.start, draft, recipe, list(job.inputs.values()), dict.fromkeys(others)))


def _run(job: StageJob, recipe: Recipe, draft: Draft, track: Tracker, stop: Stop | None = None) -> dict[str, float]:
    """Import the module, run it, commit; returns the stage's metrics."""
    first = track.folder is not None
    context = Context(
        name=job.name,
        seed=recipe.seed_of(job.name),
        recipe=recipe,
        work=draft.work,
        track=track,
        mirror=job.mirror,
        open_model=partial(_open_model, recipe.placement),
        load_rows=partial(_load_rows, job.mirror),
        stop=stop or Stop(),
    )
    store = Store(draft.root)
    opened = store.intact if first else Artifact.read  # one rank looks whether they are what was committed
    inputs = {name: opened(Path(path)) for name, path in job.inputs.items()}
    read = {name: str(artifact.record["digest"]) for name, artifact in inputs.items()}
    if code_of(recipe, job.name, store.cache) != job.identity.spec.get(
        "code", {}
    ):  # hours may lie between plan and stage
        names = ", ".join(job.identity.spec.get("code", {}))
        raise ChangedCodeError(f"{names}: changed since the run began; run the same command again, under its new key")
    run = importlib.import_module(job.module).run
    settled, said = decided(recipe, job.name, {name: one.payload for name, one in inputs.items()}, _card_bytes)
    context = replace(context, recipe=settled)
    if said:
        track.note(said)
    made = run(recipe.spec(job.name), inputs, draft.payload, context)
    metrics = {name: float(value) for name, value in made.items()}
    if first:
        artifact = draft.commit(job.identity, metrics, track.seconds, read)
        for text in trackers.link(artifact, recipe.placement.report_to):
            track.note(text)
    return metrics


def _card_bytes() -> float:
    from tercet.device.place import card_bytes

    return card_bytes()


def _open_model(placement: Placement, folder: Path, dtype: str, engine: str = "local") -> Any:
    """The generator of a model folder: our own, an engine, or the server that an endpoint's folder names."""
    if (named := endpoint(folder)) is not None:
        from tercet.models.openai.endpoint import EndpointGenerator

        return EndpointGenerator.open(
            named["url"],
            named["model"],
            concurrency=placement.requests,
            requests_per_minute=placement.requests_per_minute,
            tokens_per_minute=placement.tokens_per_minute,
            price=placement.price,
            extra=named.get("extra"),
        )
    if engine != "local":
        from tercet.models.engines.opening import opened

        return opened(folder, dtype, placement.engine, engine)
    from tercet.models.generate import LocalGenerator

    rows, tokens = placement.gen_rows, placement.gen_tokens
    return LocalGenerator.open(folder, dtype, rows=rows, tokens=tokens, layout=placement.layout)


def _load_rows(mirror: dict[str, str], source: SourceSpec, inputs: dict[str, Artifact]) -> tuple[list[Row], Any]:
    """The rows of a source, for a package that may not read sources itself, with the counts of the reading."""
    from tercet.data.sources import Reading, load

    reading = Reading()
    return list(load(source, inputs, mirror, reading)), asdict(reading)


def _report(error: Exception, draft: Draft, first: bool) -> dict[str, Any]:
    """Report how it ended: traceback to the log (standard error), message to the pipeline, which is returned too."""
    code, message = _exit(error, draft.path)
    ours = type(error).__module__.startswith("tercet.")
    # Neither a library's ValueError nor a damaged input, which the next run makes again, may cost finished work.
    keep = code != 2 or isinstance(error, DamagedArtifactError) or (not ours and any(draft.work.iterdir()))
    result = {"code": code, "message": message, "keep": keep, "clear": ours}
    with suppress(OSError):
        traceback.print_exc(limit=-12)
        sys.stderr.write(f"\ntercet: {message}\n")
        if first or not (draft.path / "result.json").exists():
            write_json(draft.path / "result.json", result)
    return result


def _exit(error: Exception, folder: Path) -> tuple[int, str]:
    """Exit code and message of a failed stage."""
    if isinstance(error, GateError):
        return 3, str(error)
    if _no_space(error):
        return DISK_FULL, disk_full(folder)
    if isinstance(error, ValueError):
        return 2, str(error)
    return 1, str(error) if type(error).__module__.startswith("tercet.") else f"{type(error).__name__}: {error}"


def _no_space(error: BaseException | None) -> bool:
    """Whether a full disk caused an error; libraries say so in the text, or wrap the error."""
    if error is None:
        return False
    code = error.errno if isinstance(error, OSError) else None
    full = code in NO_SPACE or "No space left on device" in str(error)
    return full or _no_space(error.__cause__ or error.__context__)


def _end_early(stop: Stop, draft: Draft, first: bool) -> int:
    """Keep what was finished, report it, return the exit code."""
    try:
        stop.keep()
        failed = ""
    except Exception as error:
        traceback.print_exc(limit=-12)
        failed = f"its checkpoint could not be written ({_exit(error, draft.path)[1]})"
    _stopped(stop, draft, first, failed)
    return 128 + stop.number


def _stopped(stop: Stop, draft: Draft, first: bool, failed: str) -> None:
    """Report (by the first rank) a stop, what went wrong with it if anything did, and what the next run begins with."""
    steps = sorted(draft.work.glob("checkpoints/step-*"))
    last = f"step {int(steps[-1].name.removeprefix('step-'))}" if steps else "no step"
    message = f"was stopped by {named(stop.number)}"
    if failed:
        message += f"; {failed}; the last checkpoint holds {last}"
    elif steps:
        message += f"; its checkpoint holds {last}"
    if first:
        sys.stderr.write(f"tercet: {message}\n")
        code = 128 + stop.number
        write_json(draft.path / "result.json", {"code": code, "message": message, "keep": True, "clear": not failed})


if __name__ == "__main__":
    sys.exit(main())
