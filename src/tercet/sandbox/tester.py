"""The trusted half of a tested program: it runs the tests, and asks the answer's process (answer.py) for every value.

A test works with plain values: of the builtin types and a few of the library (plain.py), built here. An object of a
class that the answer has made stays in its process, and here stands a Remote for it: its attributes, methods, items,
length, iteration and texts are asked for over there. It is equal to itself alone; a subclass of a builtin container is
equal to what it holds. Anything else that an answer's object would have to decide (`==` with another value, an order, a
sum) is an error, because an answer could decide it as it likes.
"""

from __future__ import annotations

import builtins
import os
import sys
from types import CodeType, ModuleType

from tercet.sandbox.answer import KINDS, ancestry, exception, rebuilt, told
from tercet.sandbox.plain import Peer, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any, NoReturn

GONE = 70  # the exit code of a tester whose answer's process has ended before its reply
ALIASES = {"np": "numpy", "pd": "pandas", "plt": "matplotlib.pyplot"}
BASES: dict[str, type] = {kind.__name__: kind for kind in (list, tuple, dict, set, frozenset)}


TEXTS = ("__name__", "__qualname__", "__doc__", "__module__", "__dict__")


class NotPlainError(TypeError):
    """An object of the answer's own class stands where only a plain value can be judged."""


class AnswerFailedError(Exception):
    """The answer's own code did not reach its end; the text says why."""


class Questions:
    """The tests' end of the line: what they know of the answer, and the functions that they have passed to it."""

    def __init__(self, ends: tuple[int, int], broken: Callable[[str], NoReturn]) -> None:
        self.broken = broken
        self.peer = Peer(ends, self._serve, self._lost)
        self.remotes: dict[int, Remote] = {}
        self.given: list[Callable[..., Any]] = []
        self.asked = 0

    def names(self) -> set[str]:
        """The names that the answer defines, once its code has run."""
        said = self.peer.listen()
        if not isinstance(said, dict) or not isinstance(said.get("names"), list):
            raise AnswerFailedError(str(said.get("failed", ""))[:600] if isinstance(said, dict) else "")
        return {name for name in said["names"] if type(name) is str}

    def ask(self, function: str, *args: Any, **kwargs: Any) -> Any:
        """The value that the answer's process returns; the exceptions that it raises are raised here."""
        self.asked += function != "plain"
        reply = self.peer.ask([function, self._encoded([*args]), self._encoded(kwargs)])
        try:
            printed = reply.get("printed")
            error = rebuilt(reply, self._decoded) if "error" in reply else None
            value = None if error else self._decoded(reply["value"])
            changed = self._decoded(reply["args"]) if "args" in reply and not error else []
        except Exception:
            self.broken("the answer's process sent what is no plain value")
        if type(printed) is str:
            sys.stdout.write(printed)
        for old, new in zip(args, changed, strict=False):
            _renew(old, new)
        if error:
            raise error
        return value

    def _encoded(self, value: Any) -> Any:
        return encode(value, self._name)

    def _decoded(self, data: Any) -> Any:
        return decode(data, self._resolve)

    def _name(self, value: Any) -> Any:
        kind = type(value)
        if kind is Remote:
            return {"own": _far(value)[1]}
        if isinstance(value, type) and issubclass(value, BaseException):
            KINDS.setdefault(tuple(names := ancestry(value)), value)
            return {"exception": names}
        if callable(value):
            self.given.append(value)
            return {"callback": len(self.given) - 1}
        if hasattr(kind, "__next__"):
            self.given.append(value.__next__)
            return {"iterator": len(self.given) - 1}
        raise NotPlainError(f"the tests pass an object of type {kind.__name__}, which cannot leave their process")

    def _resolve(self, tag: str, body: Any) -> Any:
        if tag == "own":
            handle, name, base = body
            if type(handle) is not int or type(name) is not str:
                raise ValueError("no handle")
            return self.remotes.setdefault(handle, Remote(self, handle, name[:80], BASES.get(base)))
        if tag == "theirs" and body >= 0:
            return self.given[body]
        if tag == "exception":
            return exception(body)
        if tag == "module":
            return _Module(body)
        raise ValueError(f"no value: {tag}")

    def _serve(self, question: Any) -> Any:
        """The answer calls a function that the tests have passed to it."""
        try:
            number, args, kwargs = question
            function = self.given[number] if number >= 0 else None
            values, named = self._decoded(args), self._decoded(kwargs)
        except Exception:
            self.broken("the answer's process asked what is no question")
        try:
            return {"value": self._encoded(function(*values, **named))}  # type: ignore[misc]
        except BaseException as error:
            KINDS.setdefault(tuple(ancestry(type(error))), type(error))
            return told(error, self._encoded)

    def _lost(self, why: str) -> NoReturn:
        if why == "it has closed its connection":
            os._exit(GONE)
        self.broken(f"the answer's process broke the rules: {why}")


class _Module(str):
    """The name of a module that the answer has imported."""

    __slots__ = ()


class Remote:
    """An object that stays in the answer's process."""

    __slots__ = ("__far", "__plain")

    def __init__(self, tests: Questions, handle: int, name: str, base: type | None) -> None:
        object.__setattr__(self, "_Remote__far", (tests, handle, name, base))
        object.__setattr__(self, "_Remote__plain", (-1, None))

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # what isinstance asks for
        return _far(self)[3] or Remote

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it over there."""
        return _ask("call", self, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in TEXTS:  # the library asks objects by such names how to treat them
            raise AttributeError(name)
        return _ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        _ask("delattr", self, name)

    def __getitem__(self, key: Any) -> Any:
        return _ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        _ask("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        _ask("delitem", self, key)

    def __len__(self) -> int:
        return _ask("len", self)

    def __iter__(self) -> Iterator[Any]:
        return _ask("iter", self)

    def __next__(self) -> Any:
        return _ask("next", self)

    def __bool__(self) -> bool:
        return _ask("bool", self) is True

    def __str__(self) -> str:
        return _ask("str", self)

    def __repr__(self) -> str:
        return _ask("repr", self)

    def __enter__(self) -> Any:
        return _ask("enter", self)

    def __exit__(self, *error: Any) -> Any:
        return _ask("exit", self, *(None for _ in error))

    def __instancecheck__(self, value: Any) -> bool:
        return _ask("isinstance", value, self) is True

    def __contains__(self, value: Any) -> bool:
        return any(part is value or part == value for part in (_plain(self) if _far(self)[3] else self))

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __eq__(self, other: object) -> Any:
        if self is other or other is None:
            return self is other
        return _plain(self) == other

    def __lt__(self, other: Any) -> Any:
        return _plain(self) < other

    def __le__(self, other: Any) -> Any:
        return _plain(self) <= other

    def __gt__(self, other: Any) -> Any:
        return _plain(self) > other

    def __ge__(self, other: Any) -> Any:
        return _plain(self) >= other


def _far(remote: Remote) -> tuple[Questions, int, str, type | None]:
    return object.__getattribute__(remote, "_Remote__far")


def _ask(function: str, *args: Any, **kwargs: Any) -> Any:
    tests = next(_far(value)[0] for value in args if type(value) is Remote)
    return tests.ask(function, *args, **kwargs)


def _plain(remote: Remote) -> Any:
    """What an object of a subclass of a builtin container holds; asked for once until something else is asked."""
    tests, _, name, base = _far(remote)
    if base is None:
        raise NotPlainError(f"the answer returned an object of type {name}, which cannot be compared outside it")
    asked, value = object.__getattribute__(remote, "_Remote__plain")
    if asked != tests.asked:
        value = tests.ask("plain", remote)
        if type(value) is not base:
            tests.broken("the answer's process sent what is no plain value")
        object.__setattr__(remote, "_Remote__plain", (tests.asked, value))
    return value


def _renew(old: Any, new: Any) -> None:
    """Bring what a function did to its arguments over to the tests' own lists, dicts and sets."""
    if type(old) is not type(new):
        return
    if type(old) in (list, tuple) and len(old) == len(new):
        for place, (one, other) in enumerate(zip(old, new, strict=True)):
            if type(one) is type(other) and type(one) in (list, dict, set, bytearray):
                _renew(one, other)
            elif type(old) is list:
                old[place] = other
    elif type(old) in (list, bytearray):
        old[:] = new
    elif type(old) in (dict, set):
        old.clear()
        old.update(new)


def connect(tests: Questions, codes: Iterable[CodeType], space: dict[str, Any]) -> None:
    """Give the tests the names of the answer that they use, as far as neither Python nor they themselves define them.

    A module is imported here, under its own name or a usual alias: what a test asks of `math` is not for the answer to
    say. Everything else is the answer's.
    """
    known = tests.names()
    used = {name for code in codes for name in _used(code)} - vars(builtins).keys()
    for name in sorted(known & used):
        if name.startswith("__"):
            continue
        value = tests.ask("global", name)
        if type(value) is _Module:
            value = _imported(name, value)
        if value is not None:
            space[name] = value


def _imported(name: str, module: str) -> ModuleType | None:
    if module not in (name, ALIASES.get(name)):
        return None
    try:
        __import__(module)
    except ImportError:
        return None
    return sys.modules[module]


def _used(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if type(constant) is CodeType:
            yield from _used(constant)
