"""Which stages are made when: one after another, or several at once where one needs nothing of the other."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from tercet.launch.joining import others_join
from tercet.recipe import Placement, Recipe
from tercet.stop import Interrupted

VISIBLE = "CUDA_VISIBLE_DEVICES"
GOING = "which goes on to its end; no other stage begins (Ctrl-C ends it)"


@dataclass
class StageTurn:
    """A stage that may be made now: the variables of its cards, and `go_on`, which its maker calls again and again."""

    name: str
    variables: dict[str, str] = field(default_factory=dict)
    go_on: Callable[[], None] = lambda: None


class SharedCards:
    """What stages share that are made at once: the cards of this machine, and the machines beyond it."""

    def __init__(self, placement: Placement, cards: Sequence[str]) -> None:
        self._placement, self._free = placement, list(cards)
        self._all, self._spread = len(cards), others_join(placement) or placement.nodes > 1
        self._taken: dict[str, list[str]] = {}
        self._elsewhere = ""  # the stage that the other machines work on: one at a time

    def take(self, name: str, *, parallel: bool, model: bool) -> dict[str, str] | None:
        """Variables of the cards that a stage gets; None where it has to wait. A stage without a model needs none."""
        spread = self._spread and parallel
        wanted = min(self._all, self._placement.per_node if parallel else int(model))
        if wanted > len(self._free) or (spread and self._elsewhere):
            return None
        self._taken[name], self._free = self._free[:wanted], self._free[wanted:]
        self._elsewhere = name if spread else self._elsewhere
        return {VISIBLE: ",".join(self._taken[name])} if wanted else {}

    def give_back(self, name: str) -> None:
        """The stage has ended."""
        self._free = sorted([*self._free, *self._taken.pop(name)])
        self._elsewhere = "" if self._elsewhere == name else self._elsewhere


def cards_here() -> list[str]:
    """The cards that stages may share, by the names that CUDA_VISIBLE_DEVICES has for them; none on a CPU."""
    from tercet.preflight.machine import cards  # which asks a program of NVIDIA's

    if os.environ.get("TERCET_DEVICE", "cuda") != "cuda":
        return []
    if named := os.environ.get(VISIBLE, ""):
        return [one.strip() for one in named.split(",")] if cards() else []
    return [str(number) for number in range(cards())]


def make_all(
    recipe: Recipe,
    needs: Mapping[str, Collection[str]],
    make: Callable[[StageTurn], None],
    say: Callable[[str], None] = lambda text: None,
) -> None:
    """Make every stage of `needs` after what it needs, `placement.at_once` at most at a time.

    Where one fails, those at work go on to their end, and none begins; then its error is raised.
    """
    if recipe.placement.at_once == 1:
        for name in needs:
            make(StageTurn(name))
        return
    Several(recipe, needs, make, say).run()


class Several:
    """Stages that are made at once, each by a thread that watches its process."""

    def __init__(
        self,
        recipe: Recipe,
        needs: Mapping[str, Collection[str]],
        make: Callable[[StageTurn], None],
        say: Callable[[str], None],
    ) -> None:
        self._recipe, self._needs, self._make, self._say = recipe, needs, make, say
        self._cards = SharedCards(recipe.placement, cards_here())
        self._waiting, self._running = list(needs), dict[str, threading.Thread]()
        self._ended: queue.Queue[tuple[str, BaseException | None]] = queue.Queue()
        self._errors: list[BaseException] = []
        self._asked = 0  # the signal that asked this run to end

    def run(self) -> None:
        """Make all; raises what the first stage raised that failed, or Interrupted."""
        try:
            while self._waiting or self._running:
                if not self._errors:
                    self._begin()
                if not self._running:
                    break
                self._end(*self._ended.get())
        except Interrupted as stop:
            self._asked = stop.number
            while self._running:
                self._end(*self._ended.get())
            stop.whole = all(getattr(error, "whole", True) for error in self._errors)
            raise
        if self._errors:
            raise self._errors[0]

    def _begin(self) -> None:
        """Start what is ready, in the order of the recipe."""
        for name in list(self._waiting):
            if len(self._running) == self._recipe.placement.at_once:
                return
            if any(need in self._waiting or need in self._running for need in self._needs[name]):
                continue
            spec = self._recipe.spec(name)
            variables = self._cards.take(name, parallel=spec.parallel, model=bool(spec.precision))
            if variables is None:
                continue
            self._waiting.remove(name)
            self._running[name] = threading.Thread(
                target=self._thread, args=(StageTurn(name, variables, self._go_on),), name=name, daemon=True
            )
            self._running[name].start()

    def _thread(self, turn: StageTurn) -> None:
        error: BaseException | None = None
        try:
            self._make(turn)
        except BaseException as raised:
            error = raised
        self._ended.put((turn.name, error))

    def _end(self, name: str, error: BaseException | None) -> None:
        self._running.pop(name).join()
        self._cards.give_back(name)
        if error is None:
            return
        if self._errors and not isinstance(error, Interrupted):
            self._say(str(error))  # beside the one that is raised
        self._errors.append(error)
        if self._running and not self._asked:
            self._say(f"stage {name!r} failed beside {', '.join(map(repr, self._running))}, {GOING}")

    def _go_on(self) -> None:
        """What a stage's thread calls while it waits: it raises where the run was asked to end."""
        if self._asked:
            raise Interrupted(self._asked)
