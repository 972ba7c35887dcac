"""Chat templates from outside, compiled so that none fills the memory or runs for hours: what it writes stays the same.

A template is a program. Its loops end by a clock on the processor's time that a thread reads, so that a step costs
nothing; what one operation could make large (`'a' * 10**10`, a width, a power) is measured before it is made. Texts
that are kept and grow (`x ~ x` in a loop) are measured where they are kept.
"""

from __future__ import annotations

import ctypes
import os
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from types import BuiltinMethodType, FunctionType
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.exceptions import SecurityError
from jinja2.visitor import NodeTransformer
from transformers.utils import chat_template_utils

from tercet import machine

TEMPLATE_CHARS = 1 << 18  # of a template; the longest in use have about 30,000
MOST_CHARS = 16 << 20  # that a template writes, or keeps in a variable
MOST_DIGITS = 4096  # bits of a whole number
SECONDS = 3.0  # of the processor's time for one conversation, or to compile
WIDTH = 10_000  # of a field, an indentation, a column
CHAIN = 8  # texts that are joined before their length is looked at
_GROWS = (nodes.Add, nodes.Concat, nodes.Mul, nodes.Mod, nodes.List, nodes.Tuple, nodes.Dict)
_PERCENT = re.compile(r"%[^a-zA-Z%]*(?:\d{5}|\*)")  # a field of 10,000 characters, or of a width that is given
_BRACES = re.compile(r"\{[^{}]*(?:\d{5}|:[^{}]*\{)")


class TemplateTimeout(BaseException):
    """A template ran too long. No `Exception`, which Jinja would swallow in some places."""


def within(function: Callable[[Any], Any], argument: Any) -> Any:
    """What `function` returns; TemplateTimeout after about `SECONDS` of the processor in this thread."""
    try:
        mine = _OWN.watched
    except AttributeError:
        mine = _watch()
    mine.run = run = [True]
    try:
        value = function(argument)
    except TemplateTimeout:
        raise
    except BaseException:
        _finish(run)
        raise
    _finish(run)
    return value


def compiled(text: str) -> Callable[..., str] | None:
    """The function that writes a conversation; None where this version of transformers hides its environment."""
    if len(text) > TEMPLATE_CHARS:
        raise TemplateError(f"it has {len(text):,} characters, more than {TEMPLATE_CHARS:,}")
    return within(_compiled, text)


@lru_cache(maxsize=64)
def _compiled(text: str) -> Callable[..., str] | None:
    make = getattr(chat_template_utils, "_compile_jinja_template", None)
    if make is None:
        return None
    limited = _limited(make("").environment)
    tree = _Measured().visit(limited.parse(text)).set_environment(limited)
    template = Template.from_code(limited, limited.compile(tree), limited.make_globals(None), None)
    template.root_render_func.__globals__["concat"] = _joined  # of macros and blocks
    return template.render


def _limited(found: Any) -> Any:
    """Transformers' environment with measured operations, filters, calls and output."""
    env: Any = found.overlay()
    env.globals = {name: value for name, value in found.globals.items() if name != "lipsum"}
    unused = ("urlize", "wordwrap", "striptags", "pprint", "random")  # no template has them, and some take long
    env.filters = {name: value for name, value in found.filters.items() if name not in unused}
    for name, measure in _FILTERS.items():
        env.filters[name] = _measured(env.filters[name], measure)
    env.filters |= {"=": _fits, "*": _times, "**": _power, "%": _formatted}
    env.concat, env.call = _joined, _call
    return env


class _Measured(NodeTransformer):  # methods are found by the names of nodes
    """Puts measures where something grows; names that are no identifiers are filters of ours."""

    def _binary(self, node: nodes.BinExpr) -> nodes.Node:
        self.generic_visit(node)
        if isinstance(node, nodes.Add) and _length(node) % CHAIN == 0:
            return _filter("=", node)
        if isinstance(node, nodes.Mod) and _is_index(node.left):
            return node
        return _filter(node.operator, node.left, node.right) if node.operator in ("*", "**", "%") else node

    visit_Add = visit_Mul = visit_Pow = visit_Mod = _binary

    def _concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        while len(node.nodes) > CHAIN:
            joined = nodes.Concat(node.nodes[:CHAIN], lineno=node.lineno)
            node = nodes.Concat([_filter("=", joined), *node.nodes[CHAIN:]], lineno=node.lineno)
        return node

    visit_Concat = _concat

    def _kept(self, node: nodes.Node) -> nodes.Node:
        """A node whose values are kept, or handed on: each that may have grown is measured."""
        self.generic_visit(node)
        for name in ("node", "args", "kwargs", "dyn_args", "dyn_kwargs", "iter", "values", "defaults"):
            part = getattr(node, name, None)
            if isinstance(part, list):
                setattr(node, name, [self._checked(one) for one in part])
            elif isinstance(part, nodes.Expr) and not (isinstance(node, nodes.Call) and name == "node"):
                setattr(node, name, self._checked(part))
        return node

    visit_Assign = visit_Call = visit_For = visit_With = visit_Macro = visit_CallBlock = _kept

    def _filter_node(self, node: nodes.Filter) -> nodes.Node:
        self.generic_visit(node)
        if node.node is not None and node.name not in ("=", "*", "**", "%"):
            node.node = self._checked(node.node)
        return node

    visit_Filter = _filter_node

    def _checked(self, node: Any) -> Any:
        if isinstance(node, nodes.Keyword):
            node.value = self._checked(node.value)
            return node
        grown = isinstance(node, _GROWS) or any(True for _ in node.find_all(_GROWS))
        return _filter("=", node) if grown and isinstance(node, nodes.Expr) else node


def _filter(name: str, node: nodes.Expr, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _length(node: nodes.Node) -> int:
    """How many sums stand on the left of each other."""
    count = 0
    while isinstance(node, nodes.Add):
        node, count = node.left, count + 1
    return count


def _is_index(node: nodes.Node) -> bool:
    """Whether a node is a loop's own number, as in `loop.index0 % 2`."""
    return isinstance(node, nodes.Getattr) and isinstance(node.node, nodes.Name) and node.node.name == "loop"


def _refuse(what: str) -> None:
    raise TemplateError(f"it makes {what}, more than a chat template may ({MOST_CHARS:,} characters)")


def _fits(value: Any) -> Any:
    """The value, unless it is larger than a template may keep."""
    if type(value) is str:
        if len(value) > MOST_CHARS:
            _refuse(f"a text of {len(value):,} characters")
        return value
    left, waiting = MOST_CHARS, [value]
    while waiting and left > 0:
        one = waiting.pop()
        left -= len(one) if isinstance(one, str) else 8
        if isinstance(one, list | tuple):
            waiting += one
        elif isinstance(one, dict):
            waiting += one.values()
    if left <= 0:
        _refuse("a list or table without end")
    return value


def _joined(parts: Iterable[str]) -> str:
    """What a template, a macro or a block writes, as one text."""
    texts = list(parts)
    if (length := sum(map(len, texts))) > MOST_CHARS:
        _refuse(f"a text of {length:,} characters")
    return "".join(texts)


def _times(left: Any, right: Any) -> Any:
    for many, one in ((left, right), (right, left)):
        if isinstance(one, str | list | tuple) and isinstance(many, int):
            _fits(one)
            if len(one) * many > MOST_CHARS or sum(map(_size, one)) * many > MOST_CHARS:
                _refuse(f"{many:,.0f} repetitions" if many < 1e15 else "repetitions without end")
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > MOST_DIGITS:
        _refuse("a number without end")
    return left * right


def _size(one: Any) -> int:
    return len(one) if isinstance(one, str | list | tuple | dict) else 1


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > MOST_DIGITS:
        _refuse("a number without end")
    return left**right


def _formatted(left: Any, right: Any) -> Any:
    if isinstance(left, str) and _PERCENT.search(left):
        _refuse("a field without end")
    return left % right


def _narrow(_value: Any, *numbers: Any, **named: Any) -> None:
    """Widths, counts and precisions are small; so are texts of indentation."""
    for number in (*numbers, *named.values()):
        if (isinstance(number, int | float) and abs(number) > WIDTH) or (
            isinstance(number, str) and len(number) > WIDTH
        ):
            _refuse("a field without end")


def _wider(text: Any, width: Any = 8, *_rest: Any, **_named: Any) -> None:
    columns = len(width) if isinstance(width, str) else width
    if (str(text).count("\n") + str(text).count("\t") + 1) * columns > MOST_CHARS:
        _refuse("a text without end")


def _replaced(text: Any, old: Any = "", new: Any = "", *_rest: Any, **_named: Any) -> None:
    if (count := str(text).count(str(old))) * len(str(new)) > MOST_CHARS:
        _refuse(f"{count:,} replacements")


def _united(separator: Any, parts: Any = ()) -> None:
    texts = [part for part in parts if isinstance(part, str)] if isinstance(parts, list | tuple | dict) else []
    if sum(map(len, texts)) + len(str(separator)) * _size(parts) > MOST_CHARS:
        _refuse("a text without end")


def _listed(parts: Any, d: Any = "", *_rest: Any, **_named: Any) -> None:
    _united(d, parts)


def _percent(text: Any, *_args: Any, **_named: Any) -> None:
    if _PERCENT.search(str(text)):
        _refuse("a field without end")


def _braces(text: Any, *_args: Any, **_named: Any) -> None:
    if _BRACES.search(str(text)):
        _refuse("a field without end")


def _never(_value: Any, *_args: Any, **_named: Any) -> None:
    _refuse("a table of characters")


_FILTERS: Mapping[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "batch", "slice", "round", "tojson"), _narrow),
    "indent": _wider,
    "replace": _replaced,
    "join": _listed,
    "format": _percent,
}
_METHODS: Mapping[str, Callable[..., None]] = {
    **dict.fromkeys(("center", "ljust", "rjust", "zfill", "to_bytes"), _narrow),
    "expandtabs": _wider,
    **dict.fromkeys(("translate", "maketrans"), _never),
    "replace": _replaced,
    "join": _united,
    "format": _braces,
    "format_map": _braces,
}


def _measured(function: Callable[..., Any], measure: Callable[..., None]) -> Callable[..., Any]:
    """A filter that is measured first; what Jinja hands it besides stays its first argument."""
    passed = int(hasattr(function, "jinja_pass_arg"))

    def filtered(*args: Any, **named: Any) -> Any:
        value = list(args[passed]) if hasattr(args[passed], "__next__") else args[passed]
        measure(value, *args[passed + 1 :], **named)
        return function(*args[:passed], value, *args[passed + 1 :], **named)

    if passed:
        filtered.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return filtered


def _call(context: Any, function: Any, *args: Any, **named: Any) -> Any:
    """A call in a template, as the sandbox makes it; what can make something large is measured first."""
    kind = type(function)
    if (kind is BuiltinMethodType or kind is FunctionType) and (measure := _METHODS.get(function.__name__)) is not None:
        measure(getattr(getattr(function, "__wrapped__", function), "__self__", ""), *args, **named)
    if kind is not BuiltinMethodType and (
        getattr(function, "unsafe_callable", False) or getattr(function, "alters_data", False)
    ):
        raise SecurityError(f"{function!r} is not safely callable")
    return context.call(function, *args, **named)


class _Watched:
    """A thread that renders. `run` holds a token: who takes it, the end of a call or the guard, has the last word."""

    def __init__(self) -> None:
        self.thread, self.task = threading.get_ident(), threading.get_native_id()
        self.run: list[bool] = []
        self.seen, self.began = self.run, 0.0

    def look(self) -> None:
        """End the call that has used up its time since it was first seen."""
        run = self.run
        used = machine.thread_seconds(self.task) if run else 0.0
        if run is not self.seen:
            self.seen, self.began = run, used
        elif used - self.began > SECONDS:
            with suppress(IndexError):  # it has just ended
                run.pop()
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(self.thread), ctypes.py_object(TemplateTimeout)
                )


def _finish(run: list[bool]) -> None:
    """End the watch. Where the guard was quicker, its exception is on the way: wait for it here."""
    try:
        run.pop()
    except IndexError:
        time.sleep(1.0)  # ends early, unless the exception came before and became another one
        raise TemplateTimeout from None


_OWN = threading.local()
_WATCHED: list[_Watched] = []
_LOCK = threading.Lock()
_EVERY = 0.25  # seconds between looks


def _watch() -> _Watched:
    """Register this thread; the first one starts the guard. A forked child begins anew."""
    with _LOCK:
        _OWN.watched = _Watched()
        _WATCHED.append(_OWN.watched)
        if len(_WATCHED) == 1:
            threading.Thread(target=_look, name="chat templates", daemon=True).start()
            os.register_at_fork(after_in_child=_forget)
    return _OWN.watched


def _forget() -> None:
    global _OWN, _LOCK
    _OWN, _LOCK = threading.local(), threading.Lock()
    _WATCHED.clear()


def _look() -> None:
    while True:
        time.sleep(_EVERY)
        for watched in list(_WATCHED):
            try:
                watched.look()
            except OSError:  # the thread has ended
                _WATCHED.remove(watched)
