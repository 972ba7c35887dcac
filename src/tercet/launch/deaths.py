"""Why a stage of several ranks ended: which rank, on which machine, by what, and what to try.

When one rank dies, the others fail too, of its silence. So what the first rank reports is rarely the cause.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tercet.launch.beats import Beat, Watch, read
from tercet.launch.shared_store import FOLDER

BY_SIGNAL = re.compile(r"Signal (\d+) \(\w+\)\s+received by PID (\d+)")  # torchrun's words
OF_OTHERS = re.compile(r"gloo|NCCL|ProcessGroup|TCPStore|Connection (reset|closed|refused)|[Tt]imed? ?out", re.DOTALL)
NOBODY = (
    "no rank began: the {} machines did not all meet. Under torchrun each but the first needs `tercet run … --join`; "
    "the address must be one that all can reach (placement.rendezvous)"
)
NO_MEMORY = re.compile(r"out of memory|OutOfMemoryError", re.IGNORECASE)
LESS_MEMORY = "lower placement.micro_tokens, set placement.recompute = true, or take more ranks"
TRY = {
    signal.SIGKILL: "the system ends so whoever takes the last of a machine's memory, and schedulers who is over a "
    f"limit (`dmesg`, the job's report): {LESS_MEMORY}",
    signal.SIGBUS: "often /dev/shm or a disk is full",
    signal.SIGSEGV: "a library crashed: its last words are in the log",
    signal.SIGABRT: "a library ended the process: its last words are in the log",
}


def explain(draft: Path, watch: Watch, log: int) -> dict[str, Any] | None:
    """What `result.json` should say of a stage whose ranks are gone; None where the ranks' own words stand.

    `log` is how long the log was when they began. `death`: none of this is the recipe's or the data's fault, so that
    the stage may be started again.
    """
    beats = read(draft)
    if not beats and watch.nodes > 1:
        return {"code": 1, "message": NOBODY.format(watch.nodes), "keep": True, "clear": False}
    failed = sorted((beat for beat in beats.values() if beat.fault), key=lambda beat: beat.time)
    if own := next((beat for beat in failed if not _of_others(beat)), None):
        return dict(own.fault, message=_own(own, len(beats)))
    for said in (_killed(draft, beats, log), _silent(beats, watch), _waited(beats, failed, watch)):
        if said:
            return {"code": 1, "message": said, "keep": True, "clear": True, "death": True}
    return None


def _of_others(beat: Beat) -> bool:
    """Whether a rank failed because it could not reach another one."""
    return not beat.fault["clear"] and OF_OTHERS.search(beat.fault["message"]) is not None


def _own(beat: Beat, ranks: int) -> str:
    """A fault of a rank's own, with what helps where memory was short."""
    message = str(beat.fault["message"])
    told = f"{beat.who}: {message}" if ranks > 1 and not beat.fault["clear"] else message
    return f"{told}; {LESS_MEMORY}" if NO_MEMORY.search(message) else told


def _killed(draft: Path, beats: dict[int, Beat], log: int) -> str:
    """Of a rank that a signal ended, by what its torchrun says."""
    by_process = {beat.pid: beat for beat in beats.values()}
    for number, process in _signals(draft, log):
        if number == signal.SIGTERM or process not in by_process:
            continue
        name = signal.Signals(number)
        beat, advice = by_process[process], TRY.get(name, "its last words are in the log")
        return f"{beat.who} was killed by {name.name} ({beat.where}); {advice}"
    return ""


def _signals(draft: Path, log: int) -> Iterator[tuple[int, int]]:
    """Signals and the processes they ended: from the log, and the logs of other machines."""
    for file in (draft / "log.txt", *sorted((draft / FOLDER).glob("*.log"))):
        with open(file, "rb") as stream:
            stream.seek(log if file.name == "log.txt" else 0)
            text = stream.read().decode("utf-8", errors="replace")
        yield from ((int(number), int(process)) for number, process in BY_SIGNAL.findall(text))


def _silent(beats: dict[int, Beat], watch: Watch) -> str:
    """Of ranks that no longer say anything, though they did not end."""
    quiet = {rank: seconds for rank, seconds in watch.quiet(beats).items() if seconds >= watch.missed}
    if not quiet or len(quiet) == len(beats):
        return ""
    beat, seconds = beats[max(quiet, key=lambda rank: quiet[rank])], max(quiet.values())
    others = f" (and {len(quiet) - 1} more)" if len(quiet) > 1 else ""
    return (
        f"{beat.who}{others} has shown no sign of life for {seconds:.0f} s ({beat.where}): its process was stopped or "
        "hangs in the system, or its machine is gone; look there before the next start"
    )


def _waited(beats: dict[int, Beat], failed: list[Beat], watch: Watch) -> str:
    """Of ranks that waited too long for others that live."""
    if not failed:
        return ""
    late = [beat for beat in beats.values() if not beat.ended and not beat.waits]
    first = failed[0]
    who = f"for {late[0].who} ({late[0].where})" if late else f"in {first.doing or 'a collective'}"
    return (
        f"{first.who} waited {who} and gave up: {str(first.fault['message']).splitlines()[0][:300]}; ranks wait "
        f"placement.rank_timeout = {watch.timeout:g} s: raise it where a step may take so long, else look at the "
        "network between the machines (NCCL's records of the last collectives are in the draft's `ranks`)"
    )
