"""The half of the mathematics verifiers that needs a computer algebra system; called in worker processes only.

The imports are at the top on purpose: a worker pays for them once, outside every time limit.
"""

from __future__ import annotations

import ast
import operator
from functools import lru_cache
from typing import Any

import math_verify
import sympy
from sympy.parsing.latex import LaTeXParsingError, parse_latex

from tercet.verify.math.latex import hendrycks

# A wrong ANTLR runtime is an exception here, at import, instead of a wrong verdict later. This also loads the grammar.
if parse_latex(r"\frac{1}{2}").doit() != sympy.Rational(1, 2):
    raise ImportError("sympy's LaTeX parser does not read a fraction; check sympy and antlr4-python3-runtime")

OPERATORS: dict[type[ast.AST], Any] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.Pow: operator.pow, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


def latex_equal(first: str, second: str) -> bool:
    """Whether two LaTeX expressions differ by zero. What cannot be parsed or subtracted is not equal.

    Each text must be an expression from end to end: read up to the first thing it does not know, as the parser does
    by default, "5,6" would be the number 5 and equal to "5,7".
    """
    try:
        return _vanishes(_latex(first) - _latex(second))
    except Exception:
        return False


def exactly_equal(first: str, second: str) -> bool:
    """`latex_equal` with every decimal read as the fraction that it stands for, so that 0.1 + 0.2 is 0.3."""
    try:
        return _vanishes(_rational(_latex(first)) - _rational(_latex(second)))
    except Exception:
        return False


def plain_equal(answer: str, gold: str) -> bool:
    """Whether expressions such as `2*x**2/3 - sqrt(5)` differ by zero; the answer may also be LaTeX."""
    try:
        return _vanishes((_latex(answer) if "\\" in answer else _plain(answer)) - _plain(gold))
    except Exception:
        return False


def library_equal(gold: str, completion: str) -> bool:
    """The verdict of the math-verify library with its own extraction; not symmetric, so the gold text goes first."""
    return bool(math_verify.verify(list(_library(gold)), list(_library(completion)), timeout_seconds=None))


def _vanishes(difference: Any) -> bool:
    simplified = sympy.simplify(difference)
    return bool(simplified == 0 or simplified.is_zero)  # the float 0.0 is zero and yet does not equal 0


@lru_cache(maxsize=4096)
def _latex(text: str) -> sympy.Expr:
    for form in (text, hendrycks(text)):  # as it stands, else without units and with braces
        try:
            value = parse_latex(form, strict=True)
        except LaTeXParsingError:
            continue
        if isinstance(value, sympy.Expr):
            return value
    raise ValueError(f"not an expression: {text:.80}")


def _rational(value: sympy.Expr) -> sympy.Expr:
    return value.xreplace({one: sympy.Rational(str(one)) for one in value.atoms(sympy.Float)})


@lru_cache(maxsize=4096)
def _library(text: str) -> tuple[Any, ...]:
    return tuple(math_verify.parse(text, parsing_timeout=None))


@lru_cache(maxsize=4096)
def _plain(text: str) -> Any:
    return _evaluate(ast.parse(text.strip().replace("^", "**"), mode="eval").body)


def _evaluate(node: ast.AST) -> Any:
    """A sympy expression from arithmetic alone; the text of a model is never evaluated as Python."""
    if isinstance(node, ast.BinOp):
        return OPERATORS[type(node.op)](_evaluate(node.left), _evaluate(node.right))
    if isinstance(node, ast.UnaryOp):
        return OPERATORS[type(node.op)](_evaluate(node.operand))
    if isinstance(node, ast.Name):
        return sympy.Symbol(node.id)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return sympy.Rational(str(node.value))
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "sqrt" and len(node.args) == 1:
        return sympy.sqrt(_evaluate(node.args[0]))
    raise ValueError(f"not arithmetic: {ast.dump(node):.80}")
