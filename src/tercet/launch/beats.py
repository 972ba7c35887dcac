"""Signs of life: every rank says each second in a small file of the draft how far it is and what it does.

The thread that writes needs nothing of the stage but its stack, so no loop carries a line for it. A rank that is
stopped, or whose machine is gone, writes no more; one that waits for another goes on saying in which collective.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from tercet.launch.shared_store import FOLDER, check, log_there
from tercet.recipe import Placement
from tercet.store import StoreError

SIZE = 2_000  # bytes of a file, always the same: it is written over, never made anew
END = "end"  # a file that asks all ranks to end at once, on whatever machine
FORCED = 137  # the exit code of a rank that did


@dataclass(frozen=True)
class Beat:
    """What a rank last said of itself."""

    rank: int
    host: str
    pid: int
    count: int = 0  # of what it has said: two equal ones are no sign of life
    time: float = 0.0
    step: int = 0
    doing: str = ""
    waits: bool = False  # in a collective
    ended: bool = False
    fault: dict[str, Any] = field(default_factory=dict)  # how it failed, as result.json has it

    @property
    def who(self) -> str:
        """`rank 3 on n017 (process 4711)`."""
        return f"rank {self.rank} on {self.host} (process {self.pid})"

    @property
    def where(self) -> str:
        """How far it was: `step 12, in all_reduce (train.loop.Loop.step)`."""
        return f"step {self.step}, in {self.doing}" if self.doing else f"step {self.step}"


def every(placement: Placement) -> float:
    """Seconds between two signs: one; more where hundreds of ranks share a file system."""
    return min(max(1.0, placement.ranks / 64), placement.rank_timeout / 4)


class Heart:
    """Writes the signs of this rank, from a thread."""

    def __init__(self, draft: Path, rank: int, seconds: float, step: Callable[[], int]) -> None:
        self._folder, self._seconds, self._step = draft / FOLDER, seconds, step
        self._beat = Beat(rank, socket.gethostname(), os.getpid())
        self._lock, self._over = threading.Lock(), threading.Event()

    @property
    def first(self) -> bool:
        """Whether this is rank 0."""
        return self._beat.rank == 0

    def join(self, placement: Placement) -> None:
        """Become one of the ranks, if this machine sees the stage's own draft; rank 0 waits for the others' signs."""
        draft = self._folder.parent
        check(draft, placement)
        if self.first and placement.nodes > 1:
            log_there(draft)
        self.start()
        if self.first:
            all_here(draft, placement)

    def start(self) -> None:
        """Say the first sign, and the others until `end`."""
        self._write()
        threading.Thread(target=self._go_on, name="heart", daemon=True).start()

    def end(self, fault: dict[str, Any] | None = None) -> None:
        """The last sign: how the rank ended."""
        self._over.set()
        with suppress(OSError):  # the draft is an artifact by now, or its disk is full
            self._write(ended=True, fault=fault or {})

    def _go_on(self) -> None:
        while not self._over.wait(self._seconds):
            with suppress(OSError):  # a full disk, or a server of files that is away for a while
                self._write()
            if (self._folder / END).exists():
                os._exit(FORCED)

    def _write(self, **last: Any) -> None:
        with self._lock:
            if self._beat.ended:
                return
            doing, waits = now_in(sys._current_frames().get(threading.main_thread().ident or 0))
            news = {"count": self._beat.count + 1, "time": time.time(), "step": self._step()}
            self._beat = Beat(**asdict(self._beat) | news | {"doing": doing, "waits": waits} | last)
            text = json.dumps(asdict(self._beat))
            if len(text) >= SIZE and self._beat.fault:  # a library's message may be long
                kept = dict(self._beat.fault, message=str(self._beat.fault["message"])[: SIZE // 4])
                text = json.dumps(asdict(self._beat) | {"fault": kept})
            # Opened each time: other machines see a file of NFS as it was when it was last closed.
            file = os.open(self._folder / f"{self._beat.rank}.json", os.O_WRONLY | os.O_CREAT, 0o644)
            try:
                os.write(file, text.encode().ljust(SIZE))
            finally:
                os.close(file)


def now_in(frame: FrameType | None) -> tuple[str, bool]:
    """Which function of this package a stack is in, and of torch.distributed below it; whether there is such a one."""
    ours, collective = "", ""
    while frame is not None:
        module, name = str(frame.f_globals.get("__name__", "")), frame.f_code.co_qualname
        if not ours and not collective and module.startswith("torch.distributed.") and name != "wrapper":
            collective = name.rpartition(".")[2]
        if module.startswith("tercet.") and not module.startswith("tercet.launch."):
            ours = f"{module.removeprefix('tercet.')}.{name}"
            break
        frame = frame.f_back
    return f"{collective} ({ours})" if collective else ours, bool(collective)


def read(draft: Path) -> dict[int, Beat]:
    """What every rank of a draft last said; one that is being written stays away."""
    found = {}
    for file in (draft / FOLDER).glob("*.json"):
        with suppress(OSError, ValueError, TypeError):
            beat = Beat(**json.loads(file.read_text(encoding="utf-8")))
            found[beat.rank] = beat
    return dict(sorted(found.items()))


def all_here(draft: Path, placement: Placement, within: float = 120.0) -> None:
    """On several machines the first rank waits until it sees the signs of all others in the store."""
    if placement.nodes == 1:
        return
    end = time.monotonic() + min(within, placement.rank_timeout)
    while away := sorted(set(range(placement.ranks)) - read(draft).keys()):
        if time.monotonic() > end:
            raise StoreError(
                f"rank {', '.join(map(str, away[:8]))}{' and more' * (len(away) > 8)} left no sign in {draft / FOLDER} "
                f"within {min(within, placement.rank_timeout):g} s: its machine does not run, or sees another store "
                "than this one; all need the same shared folder under the same path"
            )
        time.sleep(0.2)


class Watch:
    """The run's eye on the ranks of a stage: who shows no sign of life, or has failed and keeps the others waiting."""

    PATIENCE = 10.0  # seconds that a stage may go on in which a rank has failed

    def __init__(self, draft: Path, placement: Placement, clock: Callable[[], float] = time.monotonic) -> None:
        self._draft, self._clock, self._every = draft, clock, every(placement)
        self.timeout, self.nodes = placement.rank_timeout, placement.nodes
        # So long is no sign only late; well below the timeout, at which the others give up.
        self.missed = min(3 * self._every + 1.0, self.timeout / 2)
        self._looked, self._failed = clock(), 0.0
        self._seen: dict[int, tuple[int, float]] = {}  # of each rank its last sign, and when it was seen

    def over(self) -> bool:
        """Whether the stage can only be ended; looks into the files once in a while."""
        if self._clock() - self._looked < self._every:
            return False
        beats = read(self._draft)
        if any(seconds >= self.timeout for seconds in self.quiet(beats).values()):
            return True
        if any(beat.fault for beat in beats.values()):
            self._failed = self._failed or self._looked
        return bool(self._failed) and self._looked - self._failed > self.PATIENCE

    def quiet(self, beats: Mapping[int, Beat]) -> dict[int, float]:
        """For how many seconds each rank that has not ended said nothing new, by this machine's clock alone."""
        self._looked = now = self._clock()
        for rank, beat in beats.items():
            if self._seen.get(rank, (0, 0.0))[0] != beat.count:
                self._seen[rank] = beat.count, now
        return {rank: now - self._seen[rank][1] for rank, beat in beats.items() if not beat.ended}
