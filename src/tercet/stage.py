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
import runpy
import signal
import subprocess
import sys
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import tercet
from tercet import machine, trackers
from tercet.argv import Outside, command
from tercet.artifact_json import DamagedArtifactError
from tercet.journal import write_json
from tercet.recipe import Placement, Recipe, SourceSpec
from tercet.rows import Row
from tercet.stats import GateError
from tercet.stop import PARENT, WITHIN, Stop, Stopped, named
from tercet.store import NO_SPACE, Artifact, Context, Draft, Identity, Store, disk_full, endpoint
from tercet.track import Tracker, forget_progress
from tercet.verify.pins import code_of
from tercet.verify.plugins import ChangedCodeError

DISK_FULL = os.EX_IOERR  # a full disk may not hold result.json; the exit code says it too
GRACE = WITHIN + 2.0  # seconds a stage gets to end by itself
BRIEF, LONG = 3.0, 60.0  # seconds that other trackers get to send what is left: of a stage that was stopped, of others
RANKS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
"""What torchrun tells the ranks of a stage. Clusters set it for whatever they start, where it is not about stages."""


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


class StageError(RuntimeError):
    """A stage did not become an artifact; `code` is the exit code it ended with."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job of a draft, in this process or as one of several ranks."""
    parser = argparse.ArgumentParser(prog="python -m tercet.stage", description=__doc__)
    parser.add_argument("--draft", type=Path, required=True, help="the draft folder that holds job.json")
    folder = parser.parse_args(argv).draft.absolute()
    # No orphan may go on or keep the lock. A rank is killed: torchrun gives it a session of its own, and one that
    # waits for its peers handles no SIGTERM.
    machine.die_with_parent(signal.SIGKILL if "RANK" in os.environ else signal.SIGTERM, _parent())
    machine.keep_heap()
    job = StageJob.read(folder)
    for module in job.kinds:
        importlib.import_module(module)
    recipe = Recipe.model_validate(job.recipe)
    parallel = recipe.spec(job.name).parallel
    os.environ.update(environment(recipe.placement, parallel=parallel))
    ranks = recipe.placement.ranks if parallel else 1
    if ranks > 1 and "RANK" not in os.environ:
        return _launch(ranks, folder)
    first = os.environ.get("RANK", "0") == "0"
    draft, stop = Draft(folder.parent, job.name, job.identity.key), Stop()
    stop.listen(partial(_stopped, stop, draft, first, "there was no time to write a checkpoint"))
    track, final, code = _tracker(job, recipe, draft, first), None, 0
    try:
        final = _run(job, recipe, draft, track, stop)
    except Stopped:
        code = _end_early(stop, draft, first)
    except Exception as error:
        code = _report(error, draft, first)
    if not track.close(final, within=BRIEF if stop.number else LONG):
        os._exit(code)  # the artifact, or what was kept of it, is whole; a library's last words could take for ever
    return code


def _parent() -> int | None:
    """The process that started this one, where it told."""
    return int(told) if (told := os.environ.get(PARENT)) else None


def _launch(ranks: int, folder: Path) -> int:
    """Let torchrun run this very module in every rank, from this process, so that it still ends with its parent.

    torchrun hands signals to the ranks. A kill of the parent kills it, and so all ranks: they could not agree in time.
    """
    machine.die_with_parent(signal.SIGKILL, _parent())
    os.environ[PARENT] = str(os.getpid())
    words = ("--standalone", "--nproc-per-node", Outside(ranks), "-m", "tercet.stage", "--draft", Outside(folder))
    sys.argv[1:] = command(*words)
    try:
        runpy.run_module("torch.distributed.run", run_name="__main__", alter_sys=True)
    except Exception as error:
        if number := getattr(error, "sigval", 0):  # of torchrun's SignalException
            return 128 + int(number)
        raise
    return 0


def environment(placement: Placement, *, parallel: bool = False) -> dict[str, str]:
    """Variables of a stage's process: threads, one hash seed, no progress bars in the log."""
    ranks = placement.ranks if parallel else 1
    threads = str(placement.threads or max(1, machine.cores() // ranks))
    pools = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    return {
        **{f"{pool}_NUM_THREADS": threads for pool in pools},
        "GOMP_SPINCOUNT": "10000",  # with long spins threads crawl as soon as another program wants a core
        "PYTHONHASHSEED": "0",
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",  # a tracker tells its own server, and nobody else
        "WANDB_ERROR_REPORTING": "false",
        "PYTHONUNBUFFERED": "1",
        **(_allocator() if parallel else {}),
    }


def _allocator() -> dict[str, str]:
    """Let a trainer's memory on a card grow in place, unless the user set something else.

    Batches of changing lengths would leave holes in it.
    """
    own = {"PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF"} & set(os.environ)
    return {"PYTORCH_ALLOC_CONF": "expandable_segments:True"} if not own else {}


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
    made = run(recipe.spec(job.name), inputs, draft.payload, context)
    metrics = {name: float(value) for name, value in made.items()}
    if first:
        artifact = draft.commit(job.identity, metrics, track.seconds, read)
        for text in trackers.link(artifact, recipe.placement.report_to):
            track.note(text)
    return metrics


def _open_model(placement: Placement, folder: Path, dtype: str, engine: str = "local") -> Any:
    """The generator of a model folder: our own, vLLM, or the server that an endpoint's folder names."""
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
    if engine == "vllm":
        from tercet.models.vllm.generator import VllmGenerator

        return VllmGenerator.open(folder, dtype)
    from tercet.models.generate import LocalGenerator

    rows, tokens = placement.gen_rows, placement.gen_tokens
    return LocalGenerator.open(folder, dtype, rows=rows, tokens=tokens, layout=placement.layout)


def _load_rows(mirror: dict[str, str], source: SourceSpec, inputs: dict[str, Artifact]) -> tuple[list[Row], Any]:
    """The rows of a source, for a package that may not read sources itself, with the counts of the reading."""
    from tercet.data.sources import Reading, load

    reading = Reading()
    return list(load(source, inputs, mirror, reading)), asdict(reading)


def _report(error: Exception, draft: Draft, first: bool) -> int:
    """Report how it ended: traceback to the log (standard error), message to the pipeline. Returns the exit code."""
    code, message = _exit(error, draft.path)
    ours = type(error).__module__.startswith("tercet.")
    # Neither a library's ValueError nor a damaged input, which the next run makes again, may cost finished work.
    keep = code != 2 or isinstance(error, DamagedArtifactError) or (not ours and any(draft.work.iterdir()))
    with suppress(OSError):
        traceback.print_exc(limit=-12)
        sys.stderr.write(f"\ntercet: {message}\n")
        if first or not (draft.path / "result.json").exists():
            write_json(draft.path / "result.json", {"code": code, "message": message, "keep": keep, "clear": ours})
    return code


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


def supervise(
    draft: Draft, recipe: Recipe, lock: int, tick: Callable[[], None], say: Callable[[str], None] = lambda text: None
) -> int:
    """The pipeline's side: run the process of a draft to its end, calling `tick` meanwhile; returns its exit code.

    Where this process is asked to end, it asks the stage, and tells the user by `say` that it waits.
    """
    (draft.path / "result.json").unlink(missing_ok=True)
    forget_progress(draft.path)
    package = str(Path(tercet.__file__).parents[1])
    paths = [package, *(os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(":") if path)]
    with open(draft.path / "log.txt", "ab") as log:
        child = subprocess.Popen(
            command(sys.executable, "-m", "tercet.stage", "--draft", Outside(draft.path)),
            cwd=recipe.folder,
            env={name: value for name, value in os.environ.items() if name not in RANKS}
            | environment(recipe.placement)
            | {"PYTHONPATH": ":".join(dict.fromkeys(paths)), PARENT: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            pass_fds=(lock,),
        )
    try:
        while child.poll() is None:
            tick()
            with suppress(subprocess.TimeoutExpired):
                child.wait(0.1)
    except BaseException as error:
        _ask(child, getattr(error, "number", signal.SIGTERM), lambda: say(f"stage {draft.name!r} {WAITING}"))
        raise
    finally:
        forced = child.poll() is None
        with suppress(ProcessLookupError, PermissionError):  # the group has ended; of zombies macOS says the second
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        if forced:
            write_json(draft.path / "result.json", {"message": "was ended by force", "clear": False})
    return child.returncode


WAITING = f"is asked to end, and keeps what it has finished: at most {GRACE:g} s; again ends it at once"


def _ask(child: subprocess.Popen[bytes], number: int, say: Callable[[], None]) -> None:
    """Let the stage end by itself; its helpers end with it."""
    child.send_signal(number)
    for seconds, then in ((1.0, say), (GRACE - 1.0, lambda: None)):
        try:
            child.wait(seconds)
            return
        except subprocess.TimeoutExpired:
            then()


def ending(draft: Draft) -> tuple[str, bool]:
    """How a stage ended that was asked to, and whether all that it had finished was kept."""
    file = draft.path / "result.json"
    if not file.is_file():
        return f"stage {draft.name!r} {'had not begun' if draft.path.is_dir() else 'is made'}", True
    result = json.loads(file.read_text(encoding="utf-8"))
    return f"stage {draft.name!r} {result['message']}", bool(result["clear"])


def failure(draft: Draft, code: int) -> StageError:
    """Why there is no artifact. Bad input removes the draft; anything else keeps it, to continue from or to read."""
    message, keep, clear = f"its process {_cause(code)}", True, False
    if (draft.path / "result.json").is_file():
        result = json.loads((draft.path / "result.json").read_text(encoding="utf-8"))
        code, message, keep, clear = int(result["code"]), str(result["message"]), bool(result["keep"]), result["clear"]
    message = f"stage {draft.name!r}: {disk_full(draft.path) if code == DISK_FULL else message}"
    if not keep:
        draft.remove()
        return StageError(message, code)
    unclear = code < 0 or (code == 1 and not clear)  # an error of ours says where and what to do; others need the log
    tail = "".join(f"\n  | {line}" for line in _tail(draft.path / "log.txt")) if unclear else ""
    kept = f"the log and what was done so far are in {draft.path}; the same command continues from there"
    return StageError(f"{message}{tail}\n{kept}", code if code in (2, 3) else 1)


def _cause(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    return f"was killed by {signal.Signals(-code).name}{' (out of memory?)' if code == -signal.SIGKILL else ''}"


def _tail(log: Path, most: int = 12) -> Iterator[str]:
    with open(log, encoding="utf-8", errors="replace") as stream:
        yield from (line.rstrip() for line in deque(stream, most) if line.strip())


if __name__ == "__main__":
    sys.exit(main())
