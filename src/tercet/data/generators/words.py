"""`words@1`: grade-school word problems with worked solutions, made from templates.

Training and benchmark use different templates, so the benchmark's stories never occur in training. A template is text:
`{a}` is a number and `{name}` or `{fruit}` a word of the pools in `words.toml`; in a solution, `[a + b = total]` is a
step: it is computed, written as "5 + 7 = 12", and gives later steps the number `total`. The last step is the answer.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from typing import Literal

from pydantic.dataclasses import dataclass

from tercet.data import tables
from tercet.rows import Message, Row, RowError

STEP = re.compile(r"\[(\w+) ([-+*/]) (\w+) = (\w+)\]")
LOW, HIGH = 2, 200  # every result is a whole number in this range: small sums, and plurals always fit
MAX_DRAWS = 200  # draws without a new problem after which a template counts as used up


@dataclass(frozen=True, config=tables.STRICT)
class Template:
    """One kind of problem: phrasings of the question, the worked solution, and the numbers' first, last and step.

    Example: `Template("gave", ("{name} had {a} {toy} and gave away {b}. How many are left?",),
    "{name} has [a - b = left] {toy} left.", {"a": (14, 69), "b": (4, 29)})`.
    """

    name: str
    asks: tuple[str, ...]
    solution: str
    numbers: dict[str, tuple[int, int] | tuple[int, int, int]]


@dataclass(frozen=True, config=tables.STRICT)
class Pools:
    """The words that fill the templates: people, words and phrases, and things with their plurals."""

    women: tuple[str, ...]
    men: tuple[str, ...]
    phrases: dict[str, tuple[str, ...]]
    things: dict[str, dict[str, str]]


def templates(split: str) -> tuple[Template, ...]:
    """The templates of one split."""
    return tables.entries(f"words_{split}.jsonl", Template)


def pools() -> Pools:
    """The words of all templates."""
    return tables.document("words.toml", Pools)


def generate(num_rows: int, split: Literal["train", "test"], seed: int) -> list[Row]:
    """Make `num_rows` distinct word problems of one split, spread evenly over its templates."""
    rows: list[Row] = []
    for template, question, solution, answer in _problems(split, seed):
        if len(rows) == num_rows:
            break
        name = f"words-{tables.SEEDS[split]}-{len(rows)}"
        turns = (Message("user", question), Message("assistant", f"{solution} The answer is {answer}."))
        rows.append(Row(name, turns, "words@1", "words", "gsm8k@2", str(answer), template.name))
    if len(rows) < num_rows:
        raise RowError(f"words@1 ({split}) was asked for {num_rows} rows and can make {len(rows)}; ask for fewer")
    return rows


def solve(template: Template, numbers: dict[str, int]) -> dict[str, int] | None:
    """Work through the steps of the solution; None when a result is not a whole number from LOW to HIGH.

    Example: `{"a": 7, "b": 5}` becomes `{"a": 7, "b": 5, "total": 12}` for the step `[a + b = total]`.
    """
    values = dict(numbers)
    for left, sign, right, target in STEP.findall(template.solution):
        result = _compute(_value(left, values), sign, _value(right, values))
        if result is None or not LOW <= result <= HIGH:
            return None
        values[target] = result
    return values


def _problems(split: str, seed: int) -> Iterator[tuple[Template, str, str, int]]:
    """Distinct (template, question, solution, answer), one per template and round, until all are used up."""
    rng = random.Random(f"words@1/{tables.SEEDS[split]}/{seed}")
    left, seen = list(templates(split)), set[str]()
    while left:
        rng.shuffle(left)
        for template in tuple(left):
            for _ in range(MAX_DRAWS):
                question, solution, answer = _problem(template, rng)
                if question not in seen:
                    seen.add(question)
                    yield template, question, solution, answer
                    break
            else:
                left.remove(template)


def _problem(template: Template, rng: random.Random) -> tuple[str, str, int]:
    """Fill a template: draw numbers until every step works out, then draw the words."""
    values = None
    while values is None:
        drawn = {name: rng.randrange(low, high + 1, *step) for name, (low, high, *step) in template.numbers.items()}
        values = solve(template, drawn)
    slots = _words(rng) | {name: str(value) for name, value in values.items()}
    question = rng.choice(template.asks).format_map(slots)
    steps = STEP.findall(template.solution)
    solution = STEP.sub(lambda step: _equation(step, values), template.solution).format_map(slots)
    return question, solution, values[steps[-1][-1]]


def _words(rng: random.Random) -> dict[str, str]:
    """One draw from every pool: two different people, one kind of thing from each pool, a place, a day, a town."""
    drawn = pools()
    people = [(name, "she", "her") for name in drawn.women] + [(name, "he", "his") for name in drawn.men]
    (name, she, her), (other, _, _) = rng.sample(people, 2)
    slots = {"name": name, "they": she, "They": she.capitalize(), "their": her, "name2": other}
    for pool, things in drawn.things.items():
        slots[f"{pool}_one"], slots[pool] = rng.choice(list(things.items()))
    for pool, phrases in drawn.phrases.items():
        slots[pool] = rng.choice(phrases)
    return slots


def _equation(step: re.Match[str], values: dict[str, int]) -> str:
    left, sign, right, target = step.groups()
    return f"{_value(left, values)} {sign} {_value(right, values)} = {values[target]}"


def _value(operand: str, values: dict[str, int]) -> int:
    return int(operand) if operand.isdigit() else values[operand]


def _compute(left: int, sign: str, right: int) -> int | None:
    if sign == "/":
        return left // right if left % right == 0 else None
    return {"+": left + right, "-": left - right, "*": left * right}[sign]
