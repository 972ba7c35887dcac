"""One artifact: its lock, its draft, the process that fills it, and what is said of its end."""

from __future__ import annotations

from contextlib import suppress

from tercet.launch.ending import ending, failure
from tercet.launch.schedule import StageTurn
from tercet.launch.supervise import supervise
from tercet.recipe import Recipe
from tercet.stage import StageJob
from tercet.stop import Interrupted
from tercet.store import Artifact, Store
from tercet.track import Board, read_notes, read_progress


def make_one(job: StageJob, recipe: Recipe, store: Store, view: Board, turn: StageTurn) -> Artifact:
    """Make one artifact, or wait for the process that is making it."""
    name, key = job.name, job.identity.key

    def waiting(who: str) -> None:
        view.note(f"{name}-{key} is being made by process {who}; waiting for it (Ctrl-C leaves)")

    with store.lock(name, key, waiting) as lock:
        found, draft, before = store.find(name, key), store.draft(name, key), ""
        if found is None:
            said, before = store.clear(name, key)
            for text in said:
                view.note(text)
            continued = draft.path.is_dir()
            draft.open()
            found = draft.seal() if draft.is_sealed() else None
        if found is not None:
            view.exists(name, dict(found.metrics))
            return found
        job.write(draft)
        view.start(name, "continues where it stopped" if continued else "")

        def tick() -> None:
            turn.go_on()
            view.update(name, read_progress(draft.path))

        try:
            code = supervise(draft, recipe, lock, tick, say=view.note, variables=turn.variables)
        except Interrupted as stop:
            text, stop.whole = ending(draft)
            with suppress(OSError):  # the terminal may be gone
                view.note(text)
            raise
        if (artifact := store.find(name, key)) is None:
            view.failed(name)
            raise failure(draft, code)
        view.done(name, dict(artifact.metrics), float(artifact.record["seconds"]))
        for text in read_notes(artifact.path):
            view.note(text)
        if before not in ("", artifact.record["digest"]):
            view.note(
                f"{name}-{key} has another digest than the damaged one; `tercet check` names what was made from it"
            )
        return artifact
