"""The 25 training constraints: each with an answer that follows it and a spoiled one, and the documented traps."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tercet.verify import Grade, VerifierError, verifier
from tercet.verify.instructions.tulu_if import FUNCTIONS

tulu_if = verifier("tulu_if@1")

FRENCH = "Les chats dorment presque toute la journée et chassent la nuit dans le jardin."
EXAMPLES: list[tuple[str, dict[str, Any], str, str]] = [
    ("verify_keywords", {"keyword_list": ["sun", "Rain"]}, "Sunny and rainy.", "Sunny and dry."),
    ("verify_keyword_frequency", {"word": "Cat", "N": 2}, "A cat is a cat, not cats.", "A cat, a cat and a cat."),
    ("validate_forbidden_words", {"forbidden_words": ["cat"]}, "A dog.", "Concatenate."),
    ("verify_letter_frequency", {"letter": "a", "N": 2}, "A nap at noon.", "banana"),
    ("validate_response_language", {"language": "fr"}, FRENCH, "Cats sleep for most of the day."),
    ("verify_paragraph_count", {"N": 2}, "One.\n* * *\nTwo.", "One.\n* * *\n"),
    ("validate_word_constraint", {"N": 3, "quantifier": "at least"}, "one two-three four", "one two"),
    ("verify_sentence_constraint", {"N": 2, "quantifier": "at most"}, "One! Two?", "One! Two? Three."),
    ("validate_paragraphs", {"N": 2, "first_word": "Then", "i": 2}, "A.\n\nThen b.", "Then a.\n\nB."),
    ("verify_postscript", {"postscript_marker": "P.S."}, "Hello.\n\nP.S. Bye.", "Hello.\n\nP.S."),
    ("validate_placeholders", {"N": 2}, "Dear [name], see [place].", "Dear [name]."),
    ("verify_bullet_points", {"N": 2}, "List:\n* a\n  - b", "* a\n* b\n* c"),
    ("validate_title", {}, "<<Cats>>\nThey sleep.", "<Cats>\nThey sleep."),
    ("validate_choice", {"options": ["yes", "no"]}, "My answer is yes.", "Maybe."),
    ("validate_highlighted_sections", {"N": 2}, "A *big* and *old* cat.", "A *big* cat."),
    ("validate_sections", {"N": 2, "section_splitter": "Part"}, "Part 1\na\nPart 2\nb", "Intro\nPart 1\na\nPart 2\nb"),
    ("validate_json_format", {}, '{"a": [1, 2]}', '```json\n{"a": 1}\n```'),
    ("validate_repeat_prompt", {"original_prompt": "Say hi."}, "Say hi. Hi!", "say hi. Hi!"),
    ("validate_two_responses", {}, "One.\n******\nTwo.", "One.\n******\nOne."),
    ("validate_uppercase", {}, "ALL BIG 1!", "ALL BIg"),
    ("validate_lowercase", {}, "all small 1!", "all Small"),
    ("validate_frequency_capital_words", {"N": 2, "quantifier": "at least"}, "The BIG CAT.", "The BIG cat."),
    ("validate_end", {"end_phrase": "The end."}, "So it was. The end.", "The end. Or not"),
    ("validate_quotation", {}, '"All of it."', '"Half" of it.'),
    ("validate_no_commas", {}, "No pause at all.", "Well, yes."),
]


def reference(func_name: str, **arguments: Any) -> str:
    return json.dumps({"func_name": func_name, **arguments})


def holds(text: str, func_name: str, **arguments: Any) -> bool:
    return tulu_if(text, json.dumps({"func_name": func_name, **arguments})).score == 1.0


def test_the_examples_cover_all_25_functions() -> None:
    assert sorted(name for name, *_ in EXAMPLES) == sorted(FUNCTIONS)
    assert len(FUNCTIONS) == 25


@pytest.mark.parametrize(("name", "arguments", "gold", "spoiled"), EXAMPLES, ids=[name for name, *_ in EXAMPLES])
def test_gold_passes_and_spoiled_fails(name: str, arguments: dict[str, Any], gold: str, spoiled: str) -> None:
    assert tulu_if(gold, reference(name, **arguments)) == Grade(1.0)
    assert tulu_if(spoiled, reference(name, **arguments)) == Grade(0.0, detail=f"failed: {name}")


def test_letters_are_counted_by_case_and_words_are_not() -> None:
    assert holds("Aa", "verify_letter_frequency", letter="a", N=1)
    assert holds("Cat CAT", "verify_keyword_frequency", word="cat", N=2)


def test_counts_mean_exactly() -> None:
    assert not holds("cat cat cat", "verify_keyword_frequency", word="cat", N=2)
    assert not holds("aaa", "verify_letter_frequency", letter="a", N=2)
    assert not holds("a\n* * *\nb\n* * *\nc", "verify_paragraph_count", N=2)


def test_keywords_are_substrings_and_frequencies_are_whole_words() -> None:
    assert holds("concatenate", "verify_keywords", keyword_list=["CAT"])
    assert holds("concatenate", "verify_keyword_frequency", word="cat", N=0)


def test_a_placeholder_count_is_really_counted() -> None:
    assert not holds("nothing here", "validate_placeholders", N=1)
    assert not holds("[one\ntwo]", "validate_placeholders", N=1)


def test_a_choice_stands_in_the_response_and_not_the_response_in_a_choice() -> None:
    assert holds("I say: option one, of course", "validate_choice", options=["option one"])
    assert not holds("one", "validate_choice", options=["option one"])


def test_an_exclamation_mark_ends_a_sentence() -> None:
    assert holds("Stop! Go! Run!", "verify_sentence_constraint", N=3, quantifier="at least")


def test_abbreviations_do_not_end_a_sentence() -> None:
    assert holds("See e.g. Mr. Fox. He ran.", "verify_sentence_constraint", N=2, quantifier="at most")
    assert not holds("He ran. She ran.", "verify_sentence_constraint", N=1, quantifier="at most")


@pytest.mark.parametrize(("count", "followed"), [(1, False), (2, True), (3, True), (4, True), (5, False)])
def test_around_means_one_more_or_less_for_sentences(count: int, followed: bool) -> None:
    assert holds(" ".join(["Goes."] * count), "verify_sentence_constraint", N=3, quantifier="around") is followed


@pytest.mark.parametrize(("count", "followed"), [(26, False), (27, True), (33, True), (34, False)])
@pytest.mark.parametrize("name", ["validate_word_constraint", "validate_frequency_capital_words"])
def test_around_means_a_tenth_for_words(name: str, count: int, followed: bool) -> None:
    assert holds(" ".join(["GO"] * count), name, N=30, quantifier="around") is followed


def test_around_leaves_at_least_one_word_of_room() -> None:
    assert holds("a b", "validate_word_constraint", N=3, quantifier="around")
    assert not holds("a", "validate_word_constraint", N=3, quantifier="around")


def test_one_divider_makes_two_responses() -> None:
    assert not holds("a ****** b ****** c", "validate_two_responses")


def test_an_index_beyond_the_paragraphs_fails() -> None:
    assert not holds("a\n\nb", "validate_paragraphs", N=2, first_word="b", i=3)


def test_role_markers_and_outer_blanks_are_removed_first() -> None:
    assert tulu_if('<|assistant|>\n "quoted" \n', reference("validate_quotation")).score == 1


def test_null_arguments_and_the_sentence_of_a_constraint_are_ignored() -> None:
    row = reference("validate_no_commas", N=None, quantifier=None, keyword_list=None, text="Use no commas.")
    assert tulu_if("fine", row).score == 1


def test_all_constraints_of_a_list_must_hold() -> None:
    both = json.dumps([{"func_name": "validate_lowercase"}, {"func_name": "validate_no_commas"}])
    assert tulu_if("a b", both) == Grade(1.0)
    assert tulu_if("A b", both) == Grade(0.0, detail="failed: validate_lowercase")
    assert tulu_if("A, b", both) == Grade(0.0, detail="failed: validate_lowercase, validate_no_commas")


def test_an_empty_completion_follows_nothing() -> None:
    grade = tulu_if("<|assistant|> \n", reference("validate_no_commas"))
    assert (grade.score, grade.outcome) == (0.0, "unparsed")


def test_an_exception_in_a_checker_is_an_error_and_not_a_failure() -> None:
    grade = tulu_if("12345", reference("validate_response_language", language="en"))
    assert (grade.score, grade.outcome) == (0.0, "error")
    assert grade.detail.startswith("validate_response_language: LangDetectException")


def test_language_detection_is_repeatable() -> None:
    grades = {
        tulu_if("Die Katze is on the table", reference("validate_response_language", language="de")) for _ in range(9)
    }
    assert len(grades) == 1


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("no json", "expects a reference answer in JSON"),
        ("[]", "expects as reference answer"),
        ("3", "expects as reference answer"),
        ('["validate_title"]', "expects as reference answer"),
        ('{"N": 3}', "knows no instruction None; expected one of validate_choice"),
        ('{"func_name": "validate_titles"}', "knows no instruction 'validate_titles'"),
        ('{"func_name": "validate_placeholders"}', "validate_placeholders expects the arguments ['N']; got []"),
        ('{"func_name": "validate_title", "N": 2}', "validate_title expects the arguments []; got ['N']"),
        ('{"func_name": "validate_placeholders", "N": "2"}', "expects N to be a whole number from 0; got '2'"),
        ('{"func_name": "validate_placeholders", "N": true}', "expects N to be a whole number from 0"),
        ('{"func_name": "validate_word_constraint", "N": 2, "quantifier": "exactly"}', "at least, at most, around"),
        ('{"func_name": "verify_letter_frequency", "letter": "ab", "N": 1}', "letter to be a single character"),
        ('{"func_name": "validate_choice", "options": "yes"}', "options to be a list of texts"),
        ('{"func_name": "validate_end", "end_phrase": ""}', "end_phrase to be a text"),
    ],
)
@pytest.mark.parametrize("completion", ["text", ""])
def test_a_malformed_reference_is_refused(completion: str, bad: str, message: str) -> None:
    with pytest.raises(VerifierError) as caught:
        tulu_if(completion, bad)
    assert message in str(caught.value)
