"""`calculator@1`: word problems with a tool that computes.

The model writes `CALC: 12 * (3 + 4)` and is told the result, as often as it likes; `ANSWER: 84` ends the episode, with
reward 1 where the number is the row's reference answer. What is neither is told so.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable
from fractions import Fraction
from typing import Any

from tercet.rows import Message, Messages, Row
from tercet.verify.numbers import read_number

ASKS = (
    "Solve the problem. To compute, write one line `CALC: expression`, and the result follows. "
    "When you know the result, write one line `ANSWER: number`."
)
LINE = re.compile(r"^\s*(CALC|ANSWER):\s*(.+?)\s*$", re.MULTILINE)
LONGEST = 200  # characters of an expression
LARGEST = 10**15  # of a number on the way
OPERATORS: dict[type[ast.AST], Callable[..., Fraction]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}


class Calculator:
    """One problem; `most` results are told, then the model has to answer."""

    def __init__(self, most: int = 8) -> None:
        self.most, self.told, self.reference = most, 0, ""

    def reset(self, row: Row) -> Messages:
        """The row's prompt, below the rules."""
        self.reference, self.told = row.reference, 0
        return (Message("system", ASKS), *(turn for turn in row.prompt if turn.role != "system"))

    def step(self, action: str) -> tuple[list[Message], float, bool, dict[str, Any]]:
        """The first line of the action that is a call or an answer counts."""
        found = LINE.search(action)
        if found is None:
            return [Message("user", "Write `CALC: expression` or `ANSWER: number`.")], 0.0, False, {}
        kind, text = found.groups()
        if kind == "ANSWER":
            given, wanted = read_number(text), read_number(self.reference)
            right = given is not None and given == wanted
            return [], float(right), True, {"answer": text, "calls": self.told}
        self.told += 1
        if self.told > self.most:
            return [], 0.0, True, {"answer": "", "calls": self.told}
        return [Message("user", f"RESULT: {compute(text)}")], 0.0, False, {}


def compute(text: str) -> str:
    """The value of an expression of numbers, brackets and + - * /, exact; or what is wrong with it."""
    if len(text) > LONGEST:
        return f"the expression is longer than {LONGEST} characters"
    try:
        return _shown(_value(ast.parse(text.replace("×", "*").replace("÷", "/"), mode="eval").body))
    except ZeroDivisionError:
        return "division by zero"
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "not an expression of numbers, brackets and + - * /"


def _value(node: ast.AST) -> Fraction:
    match node:
        case ast.Constant(value=int() | float() as plain) if not isinstance(plain, bool):
            found = Fraction(str(plain))
        case ast.UnaryOp(op=op, operand=operand) if type(op) in OPERATORS:
            found = OPERATORS[type(op)](_value(operand))
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            found = OPERATORS[type(op)](_value(left), _value(right))
        case _:
            raise ValueError("no expression")
    if max(abs(found.numerator), found.denominator) > LARGEST:
        raise ValueError("too large")
    return found


def _shown(value: Fraction) -> str:
    """A whole number as such, others with at most six digits behind the point."""
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.6f}".rstrip("0").rstrip(".")
