"""Tests in the answer's interpreter that ask the expected value: what calls itself equal to everything is not it.

Only for classes of tests that cannot run in a process of their own (programs.py says which).

`answer == 4` asks the answer first, and `4 == answer` asks it too, because the number does not know it. So every `==`,
`in` and `assertEqual` of a test goes through `__same__` and its like (programs.toml), which trust a value of the
program's own class only where the plain value that it is compared with agrees.

It cannot be asked where the test compares with an object of the program's own classes, where it calculates first
(`abs(answer - 4) < 1e-6`), or where it only asks whether there is something (`assert f(4)`). And answer and test share
an interpreter: a program written against these very functions can replace them.
"""

from __future__ import annotations

import ast
import re

ASKED = re.compile(r"assert(?!Not|Almost)\w*Equal")


def asking(tests: str) -> str:
    """The tests with their comparisons through the functions above; a text that is not Python as it is."""
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return tests
    return ast.unparse(ast.fix_missing_locations(_Asking().visit(tree)))


class _Asking(ast.NodeTransformer):
    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        name = {ast.Eq: "__same__", ast.In: "__among__"}.get(type(node.ops[0]))
        if len(node.ops) > 1 or name is None:
            return node
        return ast.Call(ast.Name(name, ast.Load()), [node.left, *node.comparators], [])

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        plain = len(node.args) > 1 and not any(isinstance(value, ast.Starred) for value in node.args[:2])
        if plain and isinstance(node.func, ast.Attribute) and ASKED.fullmatch(node.func.attr):
            pair = ast.Call(ast.Name("__told__", ast.Load()), node.args[:2], [])
            node.args = [ast.Starred(pair, ast.Load()), *node.args[2:]]
        return node
