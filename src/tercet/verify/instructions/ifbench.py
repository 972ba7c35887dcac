"""`ifbench@1` and `ifbench@2`: the 58 unseen constraints of IFBench (Pyatkin et al. 2025, arXiv:2507.02833).

Every checker decides as the public reference does at its commit db69a6f, bug for bug, because the published numbers
include the bugs: `sub_bullets` is free in loose grading, `conjunctions` counts spellings, `overlap` compares
characters. Verdicts also hang on data: sentences and tokens as NLTK 3.9 cuts them (3.10 treats curly quotes and dashes
in another way), its list of 198 stop words, the code points of `emoji`, the syllables of syllapy. `words:start_verb`
needs the weights of NLTK's tagger, which no package carries: without them `ifbench@1` has an error there, never a
verdict. `ifbench@2` differs in this one check, which it decides by a tagger that travels with this package.

The reference draws a missing argument at random; here a row with one missing is refused. Only the prompt to repeat is
replaced, by the row's own. Where a checker of the reference raises, and would end the run, the grade is an error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from inspect import signature
from typing import Any

from tercet.verify.grade import Grade, is_number, is_text
from tercet.verify.instructions import ifbench_count as count
from tercet.verify.instructions import ifbench_custom as custom
from tercet.verify.instructions import ifbench_format as layout
from tercet.verify.instructions import ifbench_words as order
from tercet.verify.instructions import language as shared
from tercet.verify.instructions.language import Argument, Check, Checker, bind, is_whole


def ifbench(completion: str, reference: str) -> Grade:
    """`ifbench@1`: 1 if the completion follows every constraint of the row loosely (prompt-level loose accuracy).

    The reference answer is a row of the public data as JSON: `{"key": "1", "prompt": "...", "instruction_id_list":
    ["count:numbers"], "kwargs": [{"N": 3}]}`. `numbers` gives strict and loose, and how many of how many constraints
    were followed; `detail` names what failed strictly. A check that raises follows nothing: outcome "error".
    """
    return _graded(completion, reference, "ifbench@1", CHECKERS)


def ifbench_carried(completion: str, reference: str) -> Grade:
    """`ifbench@2`: as `ifbench@1`, but `words:start_verb` asks the tagger that this package carries."""
    return _graded(completion, reference, "ifbench@2", CHECKERS | {"words:start_verb": order.start_verb_carried})


def _graded(completion: str, reference: str, verifier: str, checkers: Mapping[str, Checker]) -> Grade:
    instructions, row = shared.read_instructions(reference, verifier)
    checks = [(name, _bind(name, given, row, verifier, checkers)) for name, given in instructions]
    return shared.grade_instructions(completion, checks)


def _bind(
    name: str, given: dict[str, Any], row: dict[str, Any], verifier: str, checkers: Mapping[str, Checker]
) -> Check:
    """The check of one constraint as a function of the text."""
    if name.startswith("custom:"):
        given = {}  # the reference takes and ignores anything here
    needs_prompt = name in CHECKERS and "prompt_to_repeat" in signature(CHECKERS[name]).parameters
    if needs_prompt and not given.get("prompt_to_repeat"):
        given = given | {"prompt_to_repeat": row.get("prompt")}
    return bind(name, given, verifier, checkers, (ARGUMENTS, (lambda value: isinstance(value, str), "a text")))


ARGUMENTS: dict[str, Argument] = {
    **dict.fromkeys(("N", "small_n", "min_words", "max_words"), (is_whole, "a whole number from 0")),
    "percentage": (lambda value: is_number(value) and value >= 0, "a number from 0"),
    **dict.fromkeys(("n", "m"), (lambda value: is_whole(value, -math.inf) and value != 0, "a whole number, not 0")),
    **dict.fromkeys(("n_start", "n_end"), (lambda value: is_whole(value, -math.inf), "a whole number")),
    **dict.fromkeys(("keyword", "word", "prompt_to_repeat"), (is_text, "a text that is not empty")),
}


def _family(family: str, *checkers: Checker) -> dict[str, Checker]:
    """Checkers under the ids that they have in the public rows: the family's name and their own."""
    return {f"{family}:{checker.__name__}": checker for checker in checkers}


CHECKERS: dict[str, Checker] = {
    **_family(
        "count",
        count.conjunctions, count.keywords_multiple, count.numbers, count.person_names, count.pronouns,
        count.punctuation, count.unique_word_count, count.word_count_range, count.words_japanese,
    ),
    **_family(
        "custom",
        custom.character_reverse, custom.csv_city, custom.csv_quotes, custom.csv_special_character,
        custom.date_format_list, custom.european_capitals_sort, custom.mcq_count_length, custom.multiples,
        custom.reverse_newline, custom.sentence_alphabet, custom.word_reverse,
    ),
    **_family(
        "format",
        layout.line_indent, layout.newline, layout.no_bullets_bullets, layout.no_whitespace, layout.options,
        layout.output_template, layout.parentheses, layout.quote_unquote, layout.quotes, layout.thesis,
        layout.title_case,
    ),
    **_family(
        "ratio",
        count.overlap, count.sentence_balance, count.sentence_type, count.sentence_words, count.stop_words,
    ),
    **_family("repeat", order.repeat_change, order.repeat_simple, order.repeat_span),
    **_family(
        "words",
        order.alphabet, order.consonants, order.keywords_specific_position, order.last_first, order.no_consecutive,
        order.odd_even_syllables, order.palindrome, order.paragraph_last_first, order.prime_lengths, order.repeats,
        order.start_verb, order.vowel, order.words_position,
    ),
    "format:emoji": layout.emojis,
    "format:list": layout.separated_list,
    "format:sub-bullets": layout.sub_bullets,
    "sentence:alliteration_increment": order.alliteration_increment,
    "sentence:increment": order.sentence_increment,
    "sentence:keyword": order.sentence_keyword,
}  # fmt: skip
