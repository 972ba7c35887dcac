"""The two environments that ship: a calculator for word problems, and a number to guess."""

from __future__ import annotations

import pytest

from tercet.environments.calculator import Calculator, compute
from tercet.environments.guess import Guess
from tercet.rows import Message, Row


def problem(reference="84"):
    return Row("p", (Message("user", "12 times 7?"),), reference=reference)


def test_the_calculator_tells_results_and_pays_for_the_right_answer_alone():
    game = Calculator()
    rules, asked = game.reset(problem())
    assert rules.role == "system"
    assert asked == Message("user", "12 times 7?")
    [told], reward, done, _ = game.step("I need a product.\nCALC: 12 * 7\nANSWER: 5")
    assert (told.content, reward, done) == ("RESULT: 84", 0.0, False)
    assert game.step("ANSWER: 84")[1:3] == (1.0, True)
    game.reset(problem())
    assert game.step("ANSWER: $84.00")[1] == 1.0
    for wrong in ("ANSWER: 85", "ANSWER: many"):
        game.reset(problem())
        assert game.step(wrong)[1:3] == (0.0, True)


def test_what_is_neither_call_nor_answer_is_told_so_and_calls_are_bounded():
    game = Calculator(most=2)
    game.reset(problem())
    assert "CALC" in game.step("hello")[0][0].content
    game.step("CALC: 1+1")
    assert not game.step("CALC: 1+2")[2]
    assert game.step("CALC: 1+3")[1:3] == (0.0, True)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2 + 3 * 4", "14"),
        ("(2 + 3) × 4", "20"),
        ("0.1 + 0.2", "0.3"),
        ("10 / 4", "2.5"),
        ("1 / 3", "0.333333"),
        ("-(-5)", "5"),
        ("1 / 0", "division by zero"),
        ("9 ** 9", "not an expression of numbers, brackets and + - * /"),
        ("__import__('os')", "not an expression of numbers, brackets and + - * /"),
        ("True + 1", "not an expression of numbers, brackets and + - * /"),
        ("9" * 30, "not an expression of numbers, brackets and + - * /"),
        ("1+" * 200 + "1", "the expression is longer than 200 characters"),
        ("(" * 199, "not an expression of numbers, brackets and + - * /"),
    ],
)
def test_expressions_are_computed_exactly_and_nothing_else_is(text, value):
    assert compute(text) == value


def test_a_number_is_found_by_what_is_told_and_haste_pays():
    game = Guess(largest=100, most=7, haste=0.5)
    game.reset(problem("37"))
    assert game.step("50")[0][0].content == "Lower."
    assert game.step("maybe 25?")[0][0].content == "Higher."
    assert game.step("no idea")[0][0].content.startswith("That is no number")
    assert game.step("37")[1:3] == (pytest.approx(1.0 + 0.5 * 3 / 6), True)


def test_the_number_follows_from_the_rows_id_where_its_reference_is_none_and_guesses_are_bounded():
    games = [Guess(largest=1000, most=2), Guess(largest=1000, most=2)]
    for game in games:
        game.reset(problem("many"))
    assert games[0].secret == games[1].secret
    games[0].step("0")
    assert games[0].step("0")[1:3] == (0.0, True)
