"""A simulated device: tensors on it compute on the CPU, but cannot be combined with those of the CPU, as on a card.

Whatever is made for `DEVICE` or moved to it is marked, and so is what is computed from it. An operation on tensors of
both kinds is refused where a card would refuse it: numbers, copies between devices and places to look at may come from
the CPU. So a forgotten `device=` fails here as it would on a card, with the very values of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("mps", 0)  # a name that torch has for a device that no machine of the tests has
CROSSING = {"to", "copy_", "cpu", "__getitem__", "_has_compatible_shallow_copy_type", "__set__", "as_subclass"}


class Away(Tensor):
    """A tensor on `DEVICE`."""


@contextmanager
def elsewhere() -> Iterator[None]:
    """Inside, tensors may be on `DEVICE`, and modules may be moved to it."""
    with _Elsewhere():
        yield


class _Elsewhere(TorchFunctionMode):
    def __torch_function__(
        self, func: Callable[..., Any], _types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            if getattr(func, "__self__", None) is Tensor.device and name == "__get__":
                return DEVICE if isinstance(args[0], Away) else func(*args)
            if name in ("_parse_to", "backward"):  # reads the arguments of Module.to; gradients are not looked at
                return func(*args, **kwargs)
            given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
            far = [one for one in given if isinstance(one, Away)]
            near = [one for one in given if not isinstance(one, Away) and one.dim()]
            _check(name, args, far, near)
            target = _target(name, args, kwargs)
            args, kwargs = tree_map(_here, (args, kwargs))
            found = func(*args, **kwargs)
            if name == "__set__" and far:  # `parameter.data = ...`, as Module.to does
                args[0].__class__, args[0]._is_param = Away, isinstance(args[0], torch.nn.Parameter)
            away = target == DEVICE if target is not None else bool(far)
            return tree_map(lambda one: _marked(one, away, [] if target else given), found)


def _check(name: str, args: tuple[Any, ...], far: list[Tensor], near: list[Tensor]) -> None:
    """Refuse what a card refuses."""
    if name in ("numpy", "__array__") and far:
        raise TypeError("can't convert a tensor of another device to numpy")
    looked_up = name in ("__getitem__", "__setitem__") and isinstance(args[0], Away)
    value = args[2] if name == "__setitem__" and isinstance(args[2], Tensor) else None
    misplaced = value is not None and value.dim() and isinstance(value, Away) != isinstance(args[0], Away)
    indexed = any(isinstance(one, Tensor) for one in tree_leaves(args[1])) if name == "__setitem__" else False
    if (looked_up and not (misplaced and indexed)) or name in CROSSING - {"__getitem__"}:
        return
    if far and near:
        raise RuntimeError(
            f"{name}: tensors on two devices, {tuple(far[0].shape)} there and {tuple(near[0].shape)} here"
        )


def _target(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> torch.device | None:
    """The device that a call names, if it names one."""
    given = (kwargs.get("device"), *(args if name == "to" else ()))
    named = [torch.device(one) for one in given if isinstance(one, torch.device | str)]
    if name == "cpu":
        return torch.device("cpu")
    if name == "to" and len(args) > 1 and isinstance(args[1], Tensor):
        return DEVICE if isinstance(args[1], Away) else torch.device("cpu")
    return named[0] if named else None


def _here(one: Any) -> Any:
    return torch.device("cpu") if isinstance(one, torch.device) and one == DEVICE else one


def _marked(one: Any, away: bool, given: list[Tensor]) -> Any:
    """A result with its mark; what was changed in place keeps its own."""
    if not isinstance(one, Tensor) or isinstance(one, Away) == away or any(one is other for other in given):
        return one
    return one.as_subclass(Away) if away else one.as_subclass(Tensor).clone()
