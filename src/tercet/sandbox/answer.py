"""The untrusted half of a tested program: it holds the answer, and does what the tests ask of it (tester.py).

Nothing here is a secret, and nothing here decides anything: whatever this process says is what the answer returned.
"""

from __future__ import annotations

import io
import os
import sys

from tercet.sandbox.plain import Peer, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

BASES = (list, tuple, dict, set, frozenset)
SCALARS = (str, int, float, complex, bytes)

# What the tests may have done with an object of the answer.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "call": lambda function, *args, **kwargs: function(*args, **kwargs),
    "getattr": getattr,
    "setattr": setattr,
    "delattr": delattr,
    "getitem": lambda owner, key: owner[key],
    "setitem": lambda owner, key, value: owner.__setitem__(key, value),
    "delitem": lambda owner, key: owner.__delitem__(key),
    "enter": lambda owner: type(owner).__enter__(owner),
    "exit": lambda owner, *error: type(owner).__exit__(owner, *error),
    **{kind.__name__: kind for kind in (len, iter, next, bool, str, repr, isinstance, hash)},
    "plain": lambda owner: next(_content(owner, base) for base in BASES if isinstance(owner, base)),
}


class AnswerProcess:
    """The names of an answer, and the objects of its own that the tests hold."""

    def __init__(self, space: dict[str, Any], ends: tuple[int, int], *, capture: bool) -> None:
        self.space, self.capture = space, capture
        self.objects: list[Any] = []
        self.handles: dict[int, int] = {}
        self.peer = Peer(ends, self._do, _leave)

    def serve(self, failure: str) -> NoReturn:
        """Say how the answer's own code ended, then do what is asked until the tests end."""
        self.peer.tell({"failed": failure} if failure else {"names": [*self.space]})
        if not failure:
            self.peer.listen()
        _leave("")

    def _do(self, question: Any) -> Any:
        """One question: `[function, arguments, keywords]`, all as data."""
        printed = io.StringIO()
        if self.capture:
            sys.stdout = printed
        try:
            name, args, kwargs = question
            values, named = self._decoded(args), self._decoded(kwargs)
            result = self.space[values[0]] if name == "global" else FUNCTIONS[name](*values, **named)
            reply = {"value": self._encoded(result)}
            if name in ("call", "setitem") and (now := self._encoded(values)) != args:
                reply["args"] = now  # the function has changed what it was given
        except BaseException as error:
            reply = told(error, self._encoded)
        if self.capture:
            sys.stdout = sys.__stdout__
            reply["printed"] = printed.getvalue()
        return reply

    def _encoded(self, value: Any) -> Any:
        return encode(value, self._name)

    def _decoded(self, data: Any) -> Any:
        return decode(data, self._resolve)

    def _name(self, value: Any) -> Any:
        kind = type(value)
        if kind in (_Callback, _Iterated):
            return {"theirs": value.number}
        if kind is type(sys):
            return {"module": value.__name__}
        if isinstance(value, type) and issubclass(value, BaseException):
            return {"exception": ancestry(value)}
        for base in SCALARS:
            if isinstance(value, base):
                return encode(_content(value, base), self._name)
        if id(value) not in self.handles:
            self.handles[id(value)] = len(self.objects)
            self.objects.append(value)
        held = next((base.__name__ for base in BASES if isinstance(value, base)), None)
        return {"own": [self.handles[id(value)], kind.__qualname__, held]}

    def _resolve(self, tag: str, body: Any) -> Any:
        if tag == "own":
            return self.objects[body]
        if tag == "exception":
            return exception(body)
        return {"callback": _Callback, "iterator": _Iterated}[tag](body, self._ask)

    def _ask(self, number: int, args: Any, kwargs: Any) -> Any:
        """Call a function of the tests."""
        reply = self.peer.ask([number, self._encoded(args), self._encoded(kwargs)])
        if "error" in reply:
            raise rebuilt(reply, self._decoded)
        return self._decoded(reply["value"])


class _Callback:
    """A function that the tests have passed."""

    def __init__(self, number: int, ask: Callable[..., Any]) -> None:
        self.number, self.ask = number, ask

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.ask(self.number, [*args], kwargs)


class _Iterated(_Callback):
    """An iterator that the tests have passed."""

    def __iter__(self) -> _Iterated:
        return self

    def __next__(self) -> Any:
        return self()


def _content(value: Any, base: Any) -> Any:
    """What an object of a class below a builtin one holds as an object of that one."""
    if base is dict:
        return dict(zip(dict.__iter__(value), dict.values(value), strict=True))
    return base(base.__iter__(value)) if base in BASES else base.__add__(value, base())


def told(error: BaseException, encoded: Callable[[Any], Any]) -> dict[str, Any]:
    """An exception as data: the names of its classes down to a builtin one, its arguments, and its text."""
    try:
        text = str(error)[:2000]
        args = encoded([*error.args])
    except BaseException:
        text, args = "(its text cannot be read)", None
    return {"error": ancestry(type(error)), "args": args, "text": text}


def ancestry(kind: type[BaseException]) -> list[str]:
    """The names of an exception's class and of those above it, as far as the first builtin one."""
    names = []
    for base in type.mro(kind):
        names.append(base.__name__)
        if base.__module__ == "builtins":
            break
    return names


KINDS: dict[tuple[str, ...], type[BaseException]] = {}


def exception(names: list[str]) -> type[BaseException]:
    """The class of these names: a builtin one, or one made here that stands below it."""
    import builtins

    *own, root = names
    kind = getattr(builtins, root, None)
    if not isinstance(kind, type) or not issubclass(kind, BaseException):
        raise ValueError("no exception")
    for place in range(len(own) - 1, -1, -1):
        key = tuple(names[place:])
        kind = KINDS.setdefault(key, type(str(own[place]), (kind,), {}))
    return kind


def rebuilt(reply: dict[str, Any], decoded: Callable[[Any], Any]) -> BaseException:
    """The exception that `told` has described."""
    kind = exception(reply["error"])
    try:
        return kind(*decoded(reply.get("args")))
    except (TypeError, ValueError):
        return kind(str(reply["text"]))


def _leave(_: str) -> NoReturn:
    try:
        sys.stdout.flush()
    finally:
        os._exit(0)
