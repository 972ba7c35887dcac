"""Texts of drawings: numbers, round values for an axis with texts that differ, and how wide a text is at most."""

from __future__ import annotations

import math
from collections.abc import Sequence

# Widths in ems of the widest font that a system is likely to have (DejaVu Sans, semi-bold); others are narrower.
NARROW, WIDE, CAPITAL, SMALL, FULL = 0.5, 1.12, 0.88, 0.73, 1.05
CHARACTERS = dict.fromkeys("'ijlIJ |/.,:;-f!()[]tr·\"_`*", NARROW) | dict.fromkeys("mwMW%@", WIDE)


def number(value: float, digits: int = 3) -> str:
    """A number as a reader wants it: 3 significant digits, no needless zeros, `5e-06` as `5e-6`, a true minus sign."""
    if not math.isfinite(value):
        return "no number"
    if value < 0:
        return f"−{number(-value, digits)}"
    if value == int(value) and value < 1e5:
        return f"{int(value)}"
    if value >= 1e5 or value < 1e-3:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    text = f"{value:.{max(0, digits - 1 - math.floor(math.log10(value)))}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def distinct(values: Sequence[float], *, percent: bool = False) -> list[str]:
    """The values as texts with as many digits as it takes to tell them apart; with `percent` shares in percent."""
    texts: list[str] = []
    for digits in range(3, 18):
        texts = [f"{number(100 * value, digits)} %" if percent else number(value, digits) for value in values]
        if len(set(texts)) == len(values):
            break
    return texts


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values that span [low, high], about `most` of them, in steps of 1, 2 or 5 times a power of ten."""
    span = high - low
    if not max(1e-290, 1e-13 * max(abs(low), abs(high))) < span < math.inf:
        return [low]
    power = 10.0 ** math.floor(math.log10(span / most))
    step = next(power * s for s in (1, 2, 5, 10, 20) if span / (power * s) <= most)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return list(dict.fromkeys(float(f"{i * step:.15g}") for i in range(first, last + 1))) or [low]


def text_width(text: str, size: float) -> float:
    """How wide a text is at most, in the units of `size`, the height of its letters."""
    return size * math.fsum(_ems(character) for character in text)


def fit(text: str, size: float, most: float) -> str:
    """The text, cut in the middle until it is no wider than `most`."""
    kept = len(text)
    short = text
    while text_width(short, size) > most and kept > 1:
        kept -= 1
        head = kept // 2 + kept % 2
        short = f"{text[:head]}…{text[len(text) - kept // 2 :]}"
    return short


def _ems(character: str) -> float:
    if known := CHARACTERS.get(character):
        return known
    if not character.isascii():
        return FULL
    return SMALL if character.islower() or character.isdigit() else CAPITAL
