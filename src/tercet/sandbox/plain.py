"""Plain values between two processes of which one does not trust the other: a closed set of types, written as JSON.

`encode` makes JSON of a value and `decode` a value of JSON: None, bool, int, float, str, complex, bytes, the containers
of Python, numpy's arrays and numbers, and the few classes of the library that MADE names, all by their exact types.
What arrives is built from the receiver's own types, so it has no method that the sender wrote. Everything else is
`other`'s affair: each side says there how it names what cannot travel.
"""

from __future__ import annotations

import builtins
import os
import sys
from _json import encode_basestring_ascii, make_encoder, make_scanner  # json itself costs 10 ms more to import

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

MESSAGE = 16 << 20  # bytes of the longest message
WHOLE = 1 << 62  # whole numbers from here on travel in hexadecimal, which no limit of digits concerns
ATOMS = {type(None), bool, str, float}
NAMED = (type, type(len), type(...))  # of these, what is a builtin travels by its name
ARRAYS = set("biufcSUmM")  # kinds of numpy's types that are plain bytes
SPECIAL = {"NaN": float("nan"), "Infinity": float("inf"), "-Infinity": float("-inf")}

# What is sent of a value of the other builtin types; TAGS makes it one again.
SENT: dict[Any, Callable[[Any], Any]] = {
    tuple: list,
    set: list,
    frozenset: list,
    dict: lambda items: [[*items], [*items.values()]],
    bytes: bytes.hex,
    bytearray: bytearray.hex,
    complex: lambda number: [number.real, number.imag],
    range: lambda numbers: [numbers.start, numbers.stop, numbers.step],
    slice: lambda places: [places.start, places.stop, places.step],
}

# Classes of the library: module, what is sent of a value, and the value that the receiver makes of it.
MADE: dict[str, tuple[str, Callable[[Any], Any], Callable[[Any, Any], Any]]] = {
    "Decimal": ("decimal", str, lambda kind, text: kind(text)),
    "Fraction": ("fractions", str, lambda kind, text: kind(text)),
    "date": ("datetime", lambda day: day.isoformat(), lambda kind, text: kind.fromisoformat(text)),
    "time": ("datetime", lambda time: time.isoformat(), lambda kind, text: kind.fromisoformat(text)),
    "datetime": ("datetime", lambda time: time.isoformat(), lambda kind, text: kind.fromisoformat(text)),
    "timedelta": ("datetime", lambda span: [span.days, span.seconds, span.microseconds], lambda kind, p: kind(*p)),
    "PosixPath": ("pathlib", str, lambda kind, text: kind(text)),
    "UUID": ("uuid", str, lambda kind, text: kind(text)),
    "deque": ("collections", lambda queue: [[*queue], queue.maxlen], lambda kind, parts: kind(*parts)),
    "Counter": ("collections", lambda counts: [*counts.items()], lambda kind, items: kind(dict(items))),
    "OrderedDict": ("collections", lambda items: [*items.items()], lambda kind, items: kind(items)),
    "defaultdict": ("collections", lambda items: [*items.items()], lambda kind, items: kind(None, items)),
}


class _Reading:
    """What the C half of the library's JSON asks of its reader."""

    strict, object_hook, object_pairs_hook, parse_float, parse_int = True, None, None, float, int
    parse_constant = SPECIAL.__getitem__


def _refuse(value: object) -> object:
    raise TypeError(f"no plain value: {type(value).__name__}")


_scan = make_scanner(_Reading)  # type: ignore[arg-type]  # any object with these attributes
_spell = make_encoder(None, _refuse, encode_basestring_ascii, None, ":", ",", False, False, True)


def spell(data: Any) -> bytes:
    """JSON as bytes."""
    return "".join(_spell(data, 0)).encode("ascii")


def scan(text: bytes) -> Any:
    """The data of JSON; ValueError where it is none."""
    try:
        data, end = _scan(text.decode("ascii"), 0)
    except StopIteration:
        raise ValueError("no JSON") from None
    if end != len(text):
        raise ValueError("more than JSON")
    return data


def encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """Data for `spell`; `other` says what stands for a value that is not plain."""
    kind = type(value)
    if kind in ATOMS:
        return value
    if kind is int:
        return value if -WHOLE < value < WHOLE else {"int": hex(value)}
    if kind is list:
        return value if _flat(value) else [encode(part, other) for part in value]
    module, send, _ = MADE.get(kind.__name__, ("", None, None))
    if kind is getattr(sys.modules.get(module, builtins), kind.__name__, None) and (send := SENT.get(kind, send)):
        return {kind.__name__: encode(send(value), other)}
    if kind.__module__ == "numpy" and getattr(getattr(value, "dtype", None), "kind", "") in ARRAYS:
        shape = [*value.shape] if kind.__name__ == "ndarray" else None
        return {"numpy": [value.dtype.str, shape, value.tobytes().hex()]}
    if kind in NAMED and vars(builtins).get(name := getattr(value, "__name__", "Ellipsis")) is value:
        return {"builtin": name}
    return other(value)


def _flat(values: list[Any]) -> bool:
    kinds = set(map(type, values))
    if int not in kinds:
        return kinds <= ATOMS
    return kinds <= {int, bool} and min(values) > -WHOLE and max(values) < WHOLE


def decode(data: Any, other: Callable[[str, Any], Any]) -> Any:
    """The value of data that `scan` has read; `other` makes what is not plain, of its tag and body.

    Raises ValueError, TypeError and their like where the data does not describe a value.
    """
    kind = type(data)
    if kind is list:
        return data if ATOMS.union((int,)).issuperset(map(type, data)) else [decode(part, other) for part in data]
    if kind is not dict:
        return data
    ((tag, body),) = data.items()
    if tag in TAGS:
        return TAGS[tag](decode(body, other))
    if tag in MADE:
        module, _, make = MADE[tag]
        return make(getattr(__import__(module), tag), decode(body, other))
    return other(tag, body)


def _builtin(name: str) -> Any:
    if str.startswith(name, "_"):
        raise ValueError("no builtin")
    return vars(builtins)[name]


def _array(parts: list[Any]) -> Any:
    import numpy

    name, shape, content = parts
    kind = numpy.dtype(name)
    if kind.kind not in ARRAYS:
        raise ValueError("no plain array")
    array = numpy.frombuffer(bytes.fromhex(content), kind).reshape(shape or ()).copy()
    return array[()] if shape is None else array


TAGS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "dict": lambda parts: dict(zip(*parts, strict=True)),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
    "slice": lambda parts: slice(*parts),
    "numpy": _array,
    "builtin": _builtin,
}


class Peer:
    """One end of the line between the two processes: questions, and questions back while an answer is awaited.

    `ends`: the descriptor to read from and the one to write to; `serve` answers a question with data; `lost` is called
    where the other end is gone or sends what is no message, and does not return.
    """

    def __init__(self, ends: tuple[int, int], serve: Callable[[Any], Any], lost: Callable[[str], NoReturn]) -> None:
        self.ends, self.serve, self.lost = ends, serve, lost

    def ask(self, question: Any) -> Any:
        """The other end's answer, as data."""
        self._send(["question", question])
        return self.listen()

    def listen(self) -> Any:
        """The next answer; the questions that come before it are served."""
        while True:
            message = self._receive()
            if type(message) is not list or len(message) != 2 or message[0] not in ("question", "answer"):
                self.lost("what it sent is no message")
            if message[0] == "answer":
                return message[1]
            self._send(["answer", self.serve(message[1])])

    def tell(self, data: Any) -> None:
        """Send an answer that nobody has asked for."""
        self._send(["answer", data])

    def _send(self, message: Any) -> None:
        text = spell(message)
        if len(text) > MESSAGE:
            text = spell([message[0], {"error": ["ValueError"], "text": f"a value of more than {MESSAGE >> 20} MB"}])
        view = memoryview(len(text).to_bytes(4, "big") + text)
        try:
            while view:
                view = view[os.write(self.ends[1], view) :]
        except OSError:
            self.lost("it has closed its connection")

    def _receive(self) -> Any:
        size = int.from_bytes(self._read(4), "big")
        if size > MESSAGE:
            self.lost("what it sent is no message")
        try:
            return scan(self._read(size))
        except (ValueError, RecursionError, MemoryError):
            self.lost("what it sent is no message")

    def _read(self, size: int) -> bytes:
        parts = bytearray()
        while len(parts) < size:
            part = os.read(self.ends[0], min(size - len(parts), 1 << 20))
            if not part:
                self.lost("it has closed its connection")
            parts += part
        return bytes(parts)
