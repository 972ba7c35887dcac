"""The codec between answer and tests: exact types there and back, and nothing else."""

from __future__ import annotations

import collections
import datetime
import decimal
import fractions
import math
import pathlib
import uuid
from typing import Any, NoReturn

import numpy
import pytest

from tercet.sandbox.plain import decode, encode, scan, spell


def refuse(*what: Any) -> NoReturn:
    raise LookupError(str(what))


def there_and_back(value: Any) -> Any:
    return decode(scan(spell(encode(value, refuse))), refuse)


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -1, 1 << 62, -(1 << 5000), 0.1, -0.0, math.inf, "", "é\ud800\0\U0001f600", b"\0\xff",
        bytearray(b"x"), 1j, [], [1, True, "x", None, 2.5], [1 << 70, 1], [[1], [2, [3]]], (), (1, [2]), {"a"}, {1, 2},
        frozenset({(1, 2)}), {}, {1: "a", (2, 3): [4]}, {"int": "0x1"}, range(1, 9, 2), slice(None, 3), ..., int, len,
        ValueError, decimal.Decimal("1.50"), fractions.Fraction(1, 3), datetime.date(2026, 1, 2),
        datetime.datetime(2026, 1, 2, 3, tzinfo=datetime.UTC), datetime.time(1, 2, 3), datetime.timedelta(1, 2, 3),
        collections.deque([1, 2], 3), collections.Counter("aab"), collections.OrderedDict([(2, 1), (1, 2)]),
        collections.defaultdict(None, {1: [2]}), pathlib.PosixPath("a/b"), uuid.UUID(int=5), numpy.float32(0.1),
        numpy.int64(4), numpy.bool_(True),
    ],
    ids=repr,
)  # fmt: skip
def test_a_plain_value_comes_back_with_its_type(value: Any) -> None:
    back = there_and_back(value)
    assert type(back) is type(value)
    assert back == value
    assert repr(back) == repr(value)


def test_not_a_number_and_arrays_come_back() -> None:
    assert math.isnan(there_and_back(math.nan))
    for array in (numpy.arange(6.0).reshape(2, 3), numpy.array(["ab", "c"]), numpy.zeros((0, 3), bool)):
        back = there_and_back(array)
        assert (back.dtype, back.shape, back.flags.writeable) == (array.dtype, array.shape, True)
        assert (back == array).all()


@pytest.mark.parametrize(
    "value",
    [
        object(), lambda: 0, type("I", (int,), {})(1), type("L", (list,), {})(), type("S", (str,), {})("x"),
        NotImplemented, numpy.array([None]), collections.UserDict(), [object()], {1: {2: object()}}, __builtins__,
        type("Counter", (dict,), {})(), type("tuple", (tuple,), {})(), type("len", (), {})(),
    ],
    ids=lambda value: type(value).__name__,
)  # fmt: skip
def test_what_is_not_plain_is_the_others_affair(value: Any) -> None:
    with pytest.raises(LookupError):
        encode(value, refuse)


@pytest.mark.parametrize(
    "text",
    [
        b'{"eval":"1"}', b'{"builtin":"__import__"}', b'{"builtin":"nothing"}', b'{"builtin":1}', b'{"int":5}', b"{}",
        b'{"int":"0x1","tuple":[]}', b'{"bytes":"zz"}', b'{"dict":[[1],[]]}', b'{"dict":[[[]],[1]]}', b'{"set":[[]]}',
        b'{"numpy":["O",[1],"00"]}', b'{"numpy":["i4,O",[1],"00"]}', b'{"numpy":["i8",[9],"00"]}', b'{"Decimal":"x"}',
        b'{"date":"x"}', b'{"deque":[1]}', b'{"__class__":1}', b'{"range":["a"]}', b"[1", b"1 2", b"", b"\xff", b"nul",
    ],
)  # fmt: skip
def test_what_describes_no_value_is_refused(text: bytes) -> None:
    with pytest.raises((ValueError, TypeError, LookupError, ArithmeticError)):
        decode(scan(text), refuse)
