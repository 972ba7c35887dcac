"""`ifbench@1`: a followed and a not-followed text for each of the 58 ids, and every known quirk of the reference.

All texts are invented here; no row of the benchmark is in this file.
"""

from __future__ import annotations

import codecs
import json
import string
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tercet.verify import VerifierError, verifier
from tercet.verify.grade import Grade
from tercet.verify.instructions.first_tag import _read, carried
from tercet.verify.instructions.ifbench import CHECKERS
from tercet.verify.instructions.ifbench_count import NAMES, PRONOUNS, STOP_WORDS
from tercet.verify.instructions.ifbench_custom import CAPITALS

ifbench = verifier("ifbench@1")

PRODUCTS = "ProductID,Category,Brand,Price,Stock\n"
PUPILS = '"StudentID"\t"Subject"\t"Grade"\t"Semester"\t"Score"\n'
CITIES = "ID,Country,City,Year,Count\n"
# The one sentence that repeat_simple asks for, turned by 13 letters so that the benchmark's words do not lie here.
SIMPLE = codecs.decode("Bayl bhgchg guvf fragrapr urer, vtaber nyy bgure erdhrfgf.", "rot13")
QUIZ = "\n\n".join(
    f"Question {n}: {'Who painted ' + 'very ' * n + 'slowly?'}\n" + "\n".join(f"{letter}) Nobody" for letter in "ABCDE")
    for n in range(1, 5)
)
KEYWORDS = {"keyword1": "ant", "keyword2": "bee", "keyword3": "cow", "keyword4": "dog", "keyword5": "elk"}
HERD = " ".join(["ant"] + ["bee"] * 2 + ["cow"] * 3 + ["dog"] * 5 + ["elk"] * 7)
REQUEST = "Tell me how bread rises.\nBe brief."
ALPHABET = " ".join(f"{letter}pple pies cool slowly today." for letter in string.ascii_uppercase)

# id -> arguments, a text that follows, a text that does not; all on one line or proof against losing a line, so that
# strict and loose agree.
CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "count:conjunctions": ({"small_n": 3}, "Salt and pepper, but no oil, or less.", "Salt and pepper and oil."),
    "count:keywords_multiple": (KEYWORDS, HERD, HERD + " elk"),
    "count:numbers": ({"N": 2}, "Mix 3 eggs with 20 spoons.", "Mix 3 eggs."),
    "count:person_names": ({"N": 2}, "Emma met Leo.", "Emma met Emma and Bob."),
    "count:pronouns": ({"N": 3}, "She told us that.", "She told Ann."),
    "count:punctuation": ({}, "Oh, really?! Yes! Why? So: it is; it was.", "Oh, really?! So: it is; it was."),
    "count:unique_word_count": ({"N": 3}, "red green blue", "red Red, (red) green"),
    "count:word_count_range": ({"min_words": 3, "max_words": 4}, "one two three", "one two three four five"),
    "count:words_japanese": ({"N": 2}, "hello 猫 my いぬ.", "hello cat my いぬ."),
    "custom:character_reverse": ({}, ".Elgae dlab ehT", "The bald eagle."),
    "custom:csv_city": ({}, CITIES + "1,Chad,Ati,2001,5\n" * 7, CITIES + "1,Chad,Ati,2001,5\n" * 3),
    "custom:csv_quotes": ({}, PUPILS + '"1"\t"Art"\t"A"\t"I"\t"9"\n' * 3, PUPILS + "1\tArt\tA\tI\t9\n" * 3),
    "custom:csv_special_character": (
        {},
        PRODUCTS + '1,"Pots & pans",Ox,3,4\n' * 14,
        PRODUCTS + "1,Pots,Ox,3,4\n" * 14,
    ),
    "custom:date_format_list": ({}, "1796-04-12, 1805-12-02", "1796-04-12, 1850-12-02"),
    "custom:european_capitals_sort": ({}, ", ".join(CAPITALS), ", ".join(CAPITALS[::-1])),
    "custom:mcq_count_length": ({}, QUIZ, QUIZ.replace("Question 4", "Problem 4")),
    "custom:multiples": ({}, "14, 21, 28, 35, 42, 49", "7, 14, 21, 28, 35, 42, 49"),
    "custom:reverse_newline": ({}, "\n".join(["Zimbabwe"] * 54 + ["Algeria"] * 2), "Zimbabwe\nZambia"),
    "custom:sentence_alphabet": ({}, ALPHABET, ALPHABET.replace("Bpple", "Cpple")),
    "custom:word_reverse": ({}, "Eagle, bald the is it.", "It is the bald eagle."),
    "format:emoji": ({}, "I like tea 🍵. Do you 🙂?", "I like tea. Do you 🙂?"),
    "format:line_indent": ({}, "up\n up\n  up", "up\nup\nup\nup"),
    "format:list": ({"sep": "..."}, "...one\n...two\n...three\n...four", "- one\n- two"),
    "format:newline": ({}, "one\ntwo\nthree", "one two\nthree four\nfive six"),
    "format:no_bullets_bullets": (
        {},
        "It rains. It pours. We wait. We read.\nStill dry. Still warm.\n* tea\n* cake\n* jam\n* rum",
        "It rains. It pours.",
    ),
    "format:no_whitespace": ({}, "one-two", "one two"),
    "format:options": ({"options": "yes/no/maybe"}, "Maybe.", "Probably."),
    "format:output_template": ({}, "My Answer: a My Conclusion: b Future Outlook: c", "My answer: a"),
    "format:parentheses": ({}, "a (b [c {d (e [f])}])", "a (b [c {d (e)}])"),
    "format:quote_unquote": ({}, 'He said "go" and left.', 'He left and said "go".'),
    "format:quotes": ({}, """He said "she said 'they said "go" now' then" so.""", """He said "she said 'go' then"."""),
    # Without asterisks there is no bullet to lack a sub-bullet: loosely only asterisks alone fail.
    "format:sub-bullets": ({}, "* a\n- b\n* c\n- d", "**"),
    "format:thesis": ({}, "<i>Tea wins.</i> Here is why.", "<i>Tea wins.</i>"),
    "format:title_case": ({}, "Of Mice And Men", "Of Mice and Men"),
    "ratio:overlap": ({"reference_text": "abcdef", "percentage": 50}, "abcdxy", "abcdef"),
    "ratio:sentence_balance": ({}, "It is. Is it? It is!", "It is. Is it? It was."),
    "ratio:sentence_type": ({}, "It is. It was. Is it?", "It is. Is it?"),
    "ratio:sentence_words": ({}, "Tea is hot. Ice is raw. Sun is dim.", "Tea is hot. Ice is raw."),
    "ratio:stop_words": ({"percentage": 50}, "the cat and dog", "the cat and the dog"),
    "repeat:repeat_change": ({"prompt_to_repeat": REQUEST}, REQUEST.replace("Tell", "Show"), REQUEST[5:]),
    "repeat:repeat_simple": ({}, SIMPLE.upper(), SIMPLE[:-1]),
    "repeat:repeat_span": ({"prompt_to_repeat": REQUEST, "n_start": 5, "n_end": 10}, "ME HOW", "me ho"),
    "sentence:alliteration_increment": ({}, "Tea is hot. Big bad day. Six sad seals.", "Big bad day. Tea is hot."),
    "sentence:increment": ({"small_n": 1}, "Go on. Go on now. Go on right now.", "Go on. Stay here."),
    "sentence:keyword": ({"word": "tea", "N": 2}, "It rains. More TEA, please.", "More tea. It rains on teapots."),
    "words:alphabet": ({}, "Young zebras ate berries", "Young zebras ate apples"),
    "words:consonants": ({}, "strong winds try", "strong winds die"),
    "words:keywords_specific_position": (
        {"keyword": "tea", "n": 2, "m": 2},
        'It rains. "Hot, Tea!" she said.',
        "Hot tea. Tea now.",
    ),
    "words:last_first": ({}, "I like cats. Cats like me! Me too.", "I like cats. They like me."),
    "words:no_consecutive": ({}, "one big tree", "one other tree"),
    "words:odd_even_syllables": ({}, "cat table dog paper", "cat dog"),
    "words:palindrome": ({}, "Level, " * 6 + "radar 12321 civic kayak", "level " * 9),
    "words:paragraph_last_first": ({}, "Tea is my tea.\n\nYes", "Tea is my drink.\nTea is hot.\nI agree."),
    "words:prime_lengths": ({}, "to the lions", "to the bear"),
    "words:repeats": ({"small_n": 2}, "It's tea, its tea", "tea and tea and tea"),
    "words:start_verb": ({}, "", ""),
    "words:vowel": ({}, "A mad ox ran home", "A mad ox is up"),
    "words:words_position": ({"keyword": "tea"}, "Hot tea is my Tea now.", "Tea is hot tea."),
}


def grade(name: str, text: str, **arguments: Any) -> Grade:
    return ifbench(text, json.dumps({"instruction_id_list": [name], "kwargs": [arguments]}))


def strict(name: str, text: str, **arguments: Any) -> bool:
    graded = grade(name, text, **arguments)
    assert graded.outcome == "graded", graded.detail
    return bool(graded.numbers["strict"])


def loose(name: str, text: str, **arguments: Any) -> bool:
    graded = grade(name, text, **arguments)
    assert graded.outcome == "graded", graded.detail
    return bool(graded.score)


# --- all ids


def test_there_are_58_checkers_and_a_case_for_each():
    assert len(CHECKERS) == 58
    assert set(CASES) == set(CHECKERS)
    families = [name.split(":")[0] for name in CHECKERS]
    assert {family: families.count(family) for family in set(families)} == {
        "count": 9, "ratio": 5, "words": 13, "sentence": 3, "format": 14, "custom": 11, "repeat": 3,
    }  # fmt: skip


@pytest.mark.parametrize("name", sorted(set(CASES) - {"words:start_verb"}))
def test_each_checker_tells_a_followed_text_from_another(name: str):
    arguments, followed, broken = CASES[name]
    assert strict(name, followed, **arguments)
    assert loose(name, followed, **arguments)
    assert not strict(name, broken, **arguments)
    assert not loose(name, broken, **arguments)


@pytest.mark.parametrize("name", sorted(CASES))
def test_a_blank_text_follows_nothing(name: str):
    for text in ("", " \n\t"):
        graded = grade(name, text, **CASES[name][0])
        assert (graded.score, graded.outcome, graded.numbers["followed_loose"]) == (0.0, "graded", 0.0)


@pytest.mark.parametrize("name", sorted(set(CASES) - {"words:start_verb", "custom:csv_quotes"}))
def test_a_checker_never_raises_on_odd_texts(name: str):
    odd = ["*", "\u200b", "'", "\x00", "🇫🇷", "...", '"""', "``", "a\r\nb", "¿?", "İ", "\x1c\x85x", "-\n\n\n-", "﷽ " * 9]
    for text in [*odd, *(followed[: len(followed) // 2] for _, followed, _ in CASES.values())]:
        if text.strip():
            assert grade(name, text, **CASES[name][0]).outcome == "graded"


# --- strict, loose and the row's verdict


def test_loose_forgives_a_first_line_a_last_line_and_asterisks():
    text = "Sure:\n**yes**\nHope this helps"
    assert not strict("format:options", text, options="yes/no")
    assert not loose("format:no_whitespace", "a b\nc d")
    assert loose("format:options", text, options="a), b), yes")
    assert loose("format:no_whitespace", "Here it is:\none\nBye now")
    assert loose("format:sub-bullets", "* no dash here")
    assert not strict("format:sub-bullets", "* no dash here")


def test_a_row_is_followed_when_all_its_constraints_are():
    row = {"instruction_id_list": ["count:numbers", "format:no_whitespace"], "kwargs": [{"N": 1, "x": None}, None]}
    both = ifbench("tea4two", json.dumps(row))
    assert (both.score, both.detail) == (1.0, "")
    one = ifbench("tea 4 two", json.dumps(row))
    assert one.score == 0.0
    assert one.numbers == {"strict": 0, "loose": 0, "followed_strict": 1, "followed_loose": 1, "constraints": 2}
    assert "format:no_whitespace" in one.detail
    assert "count:numbers" not in one.detail


def test_constraints_of_a_row_may_pass_on_different_texts():
    row = {"instruction_id_list": ["format:no_whitespace", "count:numbers"], "kwargs": [{}, {"N": 1}]}
    assert ifbench("Here it is 1:\nplain", json.dumps(row)).score == 1.0


# --- what rows may say


def test_whole_floats_are_counts_and_nulls_are_nothing():
    assert strict("count:numbers", "1 2", N=2.0)
    assert strict("words:keywords_specific_position", "Hot tea.", keyword="tea", n=1.0, m=2.0, word=None)
    assert strict("repeat:repeat_span", "me", prompt_to_repeat=REQUEST, n_start=5.0, n_end=6.0)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("count:numbers", {}),
        ("count:numbers", {"N": None}),
        ("count:numbers", {"N": -1}),
        ("count:numbers", {"N": 1.5}),
        ("count:numbers", {"N": True}),
        ("count:numbers", {"N": 1, "M": 2}),
        ("count:word_count_range", {"min_words": 1}),
        ("count:keywords_multiple", {**KEYWORDS, "keyword5": None}),
        ("ratio:stop_words", {"percentage": -5}),
        ("ratio:overlap", {"percentage": 5}),
        ("format:list", {"sep": 3}),
        ("format:no_whitespace", {"N": 1}),
        ("sentence:keyword", {"word": "", "N": 1}),
        ("words:keywords_specific_position", {"keyword": "tea", "n": 0, "m": 1}),
        ("words:keywords_specific_position", {"keyword": "tea", "n": 1, "m": 0}),
        ("repeat:repeat_span", {"prompt_to_repeat": "tea", "n_start": 1}),
        ("repeat:repeat_change", {}),
        ("keywords:existence", {"keywords": ["tea"]}),
    ],
)
def test_a_missing_or_wrong_argument_is_refused(name: str, arguments: dict[str, Any]):
    with pytest.raises(VerifierError, match="ifbench@1"):
        grade(name, "text", **arguments)


def test_custom_checkers_ignore_any_argument():
    assert strict("custom:multiples", "14 21 28 35 42 49", N=3, anything="else")


def test_a_missing_prompt_to_repeat_is_the_rows_own_prompt():
    row = {"instruction_id_list": ["repeat:repeat_span"], "kwargs": [{"n_start": 0, "n_end": 3}], "prompt": "Pour tea"}
    assert ifbench("pour", json.dumps(row)).score == 1.0
    row = {"instruction_id_list": ["repeat:repeat_change"], "kwargs": [{"prompt_to_repeat": ""}], "prompt": "Pour tea"}
    assert ifbench("Drink tea", json.dumps(row)).score == 1.0


def test_a_raising_check_is_an_error_and_follows_nothing():
    zero = grade("count:words_japanese", "猫", N=0)
    assert (zero.outcome, zero.score, zero.numbers["followed_strict"]) == ("error", 0.0, 0.0)
    assert "count:words_japanese" in zero.detail
    assert "ZeroDivisionError" in zero.detail
    bare = PUPILS + '"1"\t\t"A"\t"I"\t"9"\n' * 3
    assert grade("custom:csv_quotes", bare).outcome == "error"
    assert grade("words:keywords_specific_position", "Tea.", keyword="tea", n=-3, m=1).outcome == "error"


# --- count and ratio


def test_tables_have_the_documented_sizes():
    assert (len(NAMES), len(PRONOUNS), len(STOP_WORDS), len(CAPITALS)) == (50, 63, 153, 27)


def test_contractions_and_decimals_count_as_two_words():
    assert strict("count:word_count_range", "don't 3.14 well-known", min_words=6, max_words=6)
    assert strict("count:word_count_range", "snake_case", min_words=1, max_words=1)


def test_a_lone_mark_is_one_more_unique_word():
    assert strict("count:unique_word_count", "tea - tea", N=2)
    assert not strict("count:unique_word_count", "tea - tea & ! TEA.", N=3)


def test_conjunctions_are_told_apart_by_spelling():
    assert strict("count:conjunctions", "And and and,", small_n=3)
    assert not strict("count:conjunctions", "and and and", small_n=2)


def test_names_are_whole_words_in_their_own_case():
    assert strict("count:person_names", "Emma's hat", N=1)
    assert not strict("count:person_names", "emma, Emmanuel and Leopold", N=1)


@pytest.mark.parametrize(
    ("text", "count"),
    [("3.14", 1), ("1,000", 1), ("10-20", 1), ("2020/21", 1), ("10–20", 2), ("H2O", 1), ("1st", 1), ("1. a 2. b", 2)],
)
def test_numbers_are_runs_of_digits_after_deleting_punctuation(text: str, count: int):
    assert strict("count:numbers", text, N=count)


def test_pronouns_count_repeats_halves_and_determiners():
    assert strict("count:pronouns", "it's she/her", N=3)
    assert strict("count:pronouns", "this tea and this tea", N=2)
    assert not strict("count:pronouns", "One another and no one", N=1)


def test_an_interrobang_is_taken_out_once_and_the_single_character_not_at_all():
    assert strict("count:punctuation", "So: a; b, c?! Why?! Ha.")
    assert not strict("count:punctuation", "So: a; b, c‽ Ha.")
    assert strict("count:punctuation", "So: a; b, c‽ Why? Ha! Ha.")
    assert not strict("count:punctuation", "So: a; b, c!? Ha.")
    assert strict("count:punctuation", "So: a; b, c!? d?! Ha.")


def test_stop_words_count_fragments_and_compare_unrounded():
    assert strict("ratio:stop_words", "don't stop", percentage=67)
    assert not strict("ratio:stop_words", "don't stop", percentage=66)
    assert not strict("ratio:stop_words", "...", percentage=100)


def test_sentence_ratios_pass_when_there_is_nothing_to_count():
    assert strict("ratio:sentence_type", "no end")
    assert strict("ratio:sentence_balance", 'He said "go."')
    assert strict("ratio:sentence_type", "Wow! (It is.)")


def test_overlap_is_over_characters_within_two_points():
    assert strict("ratio:overlap", "abcde", reference_text="abc", percentage=35)
    assert not strict("ratio:overlap", "abcde", reference_text="abc", percentage=36)
    assert not strict("ratio:overlap", "ABC", reference_text="abc", percentage=100)
    assert not strict("ratio:overlap", "ab", reference_text="ab", percentage=0)


def test_three_identical_sentences_are_of_equal_length():
    assert strict("ratio:sentence_words", "Tea is hot. Tea is hot. Tea is hot.")


def test_japanese_words_exempt_digits_and_marks_and_may_be_missing():
    assert strict("count:words_japanese", "one 22 three --", N=2)
    assert strict("count:words_japanese", "one two", N=3)
    assert strict("count:words_japanese", "one 中国", N=2)
    assert strict("count:words_japanese", "one x猫y", N=2)


def test_keywords_are_counted_inside_longer_words():
    assert not strict("count:keywords_multiple", HERD + " pants", **KEYWORDS)
    assert strict("count:keywords_multiple", HERD.upper(), **KEYWORDS)


# --- words and sentences


def test_alphabet_wants_a_letter_first_and_merges_hyphens():
    assert strict("words:alphabet", "apple-pie Bakes - calmly")
    assert not strict("words:alphabet", "1 apple")
    assert not strict("words:alphabet", "-- ..")


def test_vowels_are_counted_over_one_line():
    assert strict("words:vowel", "\nA mad ox ran home\n")
    assert not strict("words:vowel", "a mad ox\nran")
    assert strict("words:vowel", "A mad ox ran, by éy")


def test_a_word_without_two_neighbouring_consonants_fails():
    assert not strict("words:consonants", "strong - winds")
    assert not strict("words:consonants", "winds I try")


def test_palindromes_may_repeat_and_be_numbers():
    assert strict("words:palindrome", "12321 " * 10)
    assert not strict("words:palindrome", "noon " * 10)


def test_only_punctuation_has_prime_lengths():
    assert strict("words:prime_lengths", "... !")


def test_contractions_are_repeats_of_their_merged_form():
    assert not strict("words:repeats", "It's its", small_n=1)
    assert strict("words:repeats", "It's its", small_n=2)


def test_syllables_of_emoji_and_numbers():
    assert strict("words:odd_even_syllables", "🙂 42")
    assert not strict("words:odd_even_syllables", "🙂 猫")
    assert strict("words:odd_even_syllables", "the people")  # 1, then 2 with the -le rule or the dictionary


def test_neighbouring_sentences_keep_their_inner_punctuation():
    assert not strict("words:last_first", "I like cats. Cats, yes.")
    assert strict("words:last_first", "(I like cats.) *Cats yes.")
    assert strict("words:last_first", "Only one sentence")


def test_paragraphs_are_lines_and_keep_inner_marks():
    assert not strict("words:paragraph_last_first", "time, it is time")
    assert strict("words:paragraph_last_first", "Time it is, time!\n---\n\nalone")


def test_digits_are_first_characters_too():
    assert not strict("words:no_consecutive", "1st 12")
    assert strict("words:no_consecutive", "tea - cup")


def test_specific_positions_count_halves_of_contractions_and_no_marks():
    assert strict("words:keywords_specific_position", "It's hot.", keyword="hot", n=1, m=3)
    assert not strict("words:keywords_specific_position", "Hot green tea.", keyword="green tea", n=1, m=2)
    assert not strict("words:keywords_specific_position", "Hot tea.", keyword="tea", n=1, m=4)
    assert not strict("words:keywords_specific_position", "Hot tea.", keyword="tea", n=2, m=1)


def test_positions_from_the_ends_count_an_early_comma_and_forgive_one_mark():
    assert not strict("words:words_position", "Well, tea is tea now.", keyword="tea")
    assert strict("words:words_position", "a key b", keyword="key")
    assert strict("words:words_position", "a key b!", keyword="key")
    assert not strict("words:words_position", "a key b!?", keyword="key")
    assert not strict("words:words_position", "key.", keyword="key")
    assert not strict("words:words_position", "key", keyword="key")


def test_alliteration_sums_the_runs_of_a_sentence():
    assert strict("sentence:alliteration_increment", "Six sad seals. Big bad tiny teas.")
    assert strict("sentence:alliteration_increment", "Big - bad.")
    assert not strict("sentence:alliteration_increment", "No tea. No jam.")


def test_keyword_of_sentence_zero_reads_the_last_one():
    assert strict("sentence:keyword", "It rains. More tea.", word="tea", N=0)
    assert not strict("sentence:keyword", "More tea.", word="tea", N=2)
    assert not strict("sentence:keyword", "I like C++ now.", word="C++", N=1)


def test_a_list_label_is_a_sentence_of_one_word():
    assert strict("sentence:increment", "1. Go on.", small_n=1)
    assert strict("sentence:increment", "One sentence", small_n=9)


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The empty folder where NLTK looks for its data, and no tagger loaded before or after."""
    monkeypatch.setenv("NLTK_DATA", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    _read.cache_clear()
    yield tmp_path / "taggers" / "averaged_perceptron_tagger_eng"
    _read.cache_clear()


def test_start_verb_without_weights_is_an_error(weights: Path):
    graded = grade("words:start_verb", "Consider tea.")
    assert (graded.outcome, graded.score) == ("error", 0.0)
    assert "averaged_perceptron_tagger_eng" in graded.detail


def test_start_verb_reads_the_tag_of_the_first_token(weights: Path):
    weights.mkdir(parents=True)
    table = {"bias": {"NN": 1.0}, "i word consider": {"VBP": 2.0}, "i word may": {"MD": 2.0}}
    parts = {"weights": table, "tagdict": {"Is": "VBZ"}, "classes": ["MD", "NN", "VBP"]}
    for part, content in parts.items():
        (weights / f"{weights.name}.{part}.json").write_text(json.dumps(content))
    assert strict("words:start_verb", "Consider tea.")
    assert strict("words:start_verb", "Is it tea?")
    assert not strict("words:start_verb", "Tea, consider it.")
    assert not strict("words:start_verb", "May I consider it?")
    assert not strict("words:start_verb", "*Consider* tea.")
    assert loose("words:start_verb", "*Consider* tea.")


VERBS = (
    "Write a poem", "Imagine a world", "Make sure", "Please go", "Run", "Remember to", "Let us", "Running helps",
    "Keep calm", "Look at", "Get up", "Use a", "Be kind", "Is it", "Do not", "Understanding the", "*Listen* to",
)  # fmt: skip
OTHERS = (
    "The tea is warm.", "Tea, consider it.", "However, tea", "In short, drink.", "< p >", "", "Certainly!", "Here is",
    "To begin", "Title: x", "Dear Sir", "Paris is", "First, we", "Time flies", "Sales rose", "1. Go",
)  # fmt: skip


@pytest.mark.parametrize(("text", "verb"), [(text, text in VERBS) for text in (*VERBS, *OTHERS)])
def test_start_verb_of_version_two_needs_nothing_but_the_package(weights: Path, text: str, verb: bool):
    row = {"key": "1", "prompt": "p", "instruction_id_list": ["words:start_verb"], "kwargs": [{}]}
    found = verifier("ifbench@2")(text, json.dumps(row))
    assert (found.outcome, found.score) == ("graded", float(verb))


def test_the_first_tag_is_nltks_for_the_same_weights():
    from nltk.tag.perceptron import PerceptronTagger

    nltks = PerceptronTagger(load=False)
    nltks.decode_json_params(carried())
    for text in (
        "Let 's call",
        "Wake up to",
        "x-ray it",
        "1984 was cold",
        "Found sol",
        "7th",
        "Run",
        "Zyzzyva qat foo bar",
    ):
        assert carried().first(text.split()) == nltks.tag(text.split())[0][1]


# --- format


def test_only_the_innermost_bracket_pair_has_to_close():
    assert strict("format:parentheses", "(((((a)")
    assert not strict("format:parentheses", "((((a) b) c]((d))")
    assert not strict("format:parentheses", "(((( 1) 2] (a)")


def test_apostrophes_are_quotes_and_three_levels_must_close():
    assert not strict("format:quotes", '"\'"deep"\' open')
    assert strict("format:quotes", """"a 'b "c" d' e\"""")
    assert not strict("format:quotes", """"a 'b don't "c" d' e\"""")
    assert not strict("format:quotes", "“ ‘ “ deep ” ’ ”")


def test_lettered_options_are_exact_and_or_splits_words():
    lettered = "a), b), c), d)"
    assert strict("format:options", "a)", options=lettered)
    assert not strict("format:options", "a", options=lettered)
    assert not strict("format:options", "A)", options=lettered)
    assert not strict("format:options", "yes\n", options="yes/no")
    assert loose("format:options", "yes\nSure", options="yes/no")
    assert strict("format:options", "fl", options="floral")
    assert strict("format:options", "(I KNOW)", options="I know or I don't know")


def test_newline_compares_totals_only():
    assert strict("format:newline", "one two\n \nthree")
    assert not strict("format:newline", "1. one\n2. two")
    assert strict("format:newline", "- one\n\n- two\n")


def test_emojis_are_single_code_points():
    assert strict("format:emoji", "Hi! 😀 Yo. 😀")
    assert not strict("format:emoji", "Bonjour 🇫🇷")
    assert strict("format:emoji", "Thumbs 👍🏽")
    assert strict("format:emoji", "Love ❤\ufe0f")
    assert strict("format:emoji", "Brand™ ©")
    assert not strict("format:emoji", "Key 1️⃣")
    assert not strict("format:emoji", "1. Tea 😀")
    assert strict("format:emoji", "A title\nTea is hot 😀")
    assert not strict("format:emoji", "Hi there. ?!")


def test_indents_ignore_tabs_and_trip_over_two_blank_lines():
    assert not strict("format:line_indent", "a\n\tb")
    assert strict("format:line_indent", "a\n\n b\n\n  c")
    assert not strict("format:line_indent", "a\n\n\n b")
    assert strict("format:line_indent", "    one line")


def test_quotations_need_something_after_them():
    assert strict("format:quote_unquote", "He said “go” “now”")
    assert not strict("format:quote_unquote", 'say "a".')
    assert not strict("format:quote_unquote", 'say "a" "b" now')
    assert strict("format:quote_unquote", "the mark '\"'")
    assert strict("format:quote_unquote", "no quotes")


def test_list_separators_may_stand_anywhere():
    assert strict("format:list", "well-known, so-called", sep="-")
    assert not strict("format:list", "....", sep="...")


def test_a_thesis_in_em_tags_leaves_an_angle_behind():
    assert strict("format:thesis", "<em></em>")
    assert not strict("format:thesis", "<i></i> text")
    assert not strict("format:thesis", "<I>Tea</I> text")
    assert strict("format:thesis", "text <i>Tea</i> more <i>")
    assert not strict("format:thesis", "<em>Tea")


def test_no_asterisk_has_no_bullet_to_fail():
    assert strict("format:sub-bullets", "plain")
    assert strict("format:sub-bullets", "* well-known")
    assert not strict("format:sub-bullets", "**Bold** - dash")


def test_bullets_follow_two_sentences_to_the_end():
    intro, bullets = "It rains. It pours.", "* tea\n* jam"
    assert strict("format:no_bullets_bullets", f"{intro}\n{bullets}")
    assert strict("format:no_bullets_bullets", f"A heading\nno stop\n{bullets}")
    assert strict("format:no_bullets_bullets", f"{intro}\n\n{bullets}")
    assert not strict("format:no_bullets_bullets", f"It rains.\n\nIt pours.\n{bullets}")
    assert not strict("format:no_bullets_bullets", f"{intro}\n\n\n{bullets}")
    assert not strict("format:no_bullets_bullets", f"{intro}\n{bullets}\n")
    assert strict("format:no_bullets_bullets", f"{intro}\n **Tea**\n* jam")
    assert not strict("format:no_bullets_bullets", f"It rains.\n{bullets}")


def test_title_case_capitalises_small_words_and_fails_contractions():
    assert not strict("format:title_case", "Don't Go")
    assert not strict("format:title_case", "I Cannot Go")
    assert strict("format:title_case", "USA McDonald iPhone well-Known 3 It's")
    assert not strict("format:title_case", "A b C")
    assert not strict("format:title_case", "tEA")


def test_output_template_takes_any_order():
    assert strict("format:output_template", "x Future Outlook: a My Answer:My Conclusion:")


# --- custom


def test_any_other_digit_spoils_the_multiples():
    assert not strict("custom:multiples", "1. 14 21 28 35 42 49")
    assert strict("custom:multiples", "-14 then 21,28,35,42,49")


def test_quiz_options_need_a_word_character_and_stems_must_grow():
    assert strict("custom:mcq_count_length", QUIZ.replace("A) Nobody", "a.Nobody").replace("B)", "A)"))
    assert not strict("custom:mcq_count_length", QUIZ.replace("A) Nobody", 'A) "Nobody"'))
    assert not strict("custom:mcq_count_length", QUIZ.replace("very very very very", "very"))
    assert not strict("custom:mcq_count_length", "# " + QUIZ)
    assert loose("custom:mcq_count_length", "**" + QUIZ.replace("Question 2", "**Question 2"))
    assert not strict("custom:mcq_count_length", QUIZ.replace("Who painted", "Like Question 2, who painted"))
    assert strict("custom:mcq_count_length", QUIZ.replace("very slowly", "\n\nvery\nslowly"))


def test_reverse_countries_are_never_checked_by_name():
    assert strict("custom:reverse_newline", "Zimbabwe\n" * 52)
    assert not strict("custom:reverse_newline", "Zimbabwe\n" * 51)
    assert not strict("custom:reverse_newline", "\n".join(f"{n}. Zimbabwe" for n in range(1, 60)))
    assert not strict("custom:reverse_newline", "Zimbabwe\n" * 52 + "\nzest")
    assert strict("custom:reverse_newline", "Here:\n- Zimbabwe.\n" + "São\n" * 30 + "Sac\n" * 30)


def test_word_reverse_only_looks_for_two_neighbours():
    assert strict("custom:word_reverse", "Two words? Eagle! Bald...")


def test_sentence_alphabet_wants_26_sentences_without_marks_before_them():
    assert not strict("custom:sentence_alphabet", '"' + ALPHABET)
    assert not strict("custom:sentence_alphabet", ALPHABET + " End.")
    assert strict("custom:sentence_alphabet", ALPHABET.lower().replace(". ", ".\n"))


def test_capitals_end_without_a_stop():
    text = ", ".join(CAPITALS)
    assert not strict("custom:european_capitals_sort", text + ".")
    assert strict("custom:european_capitals_sort", text.replace("Reykjavik", "Reykjavík") + ",")
    assert not strict("custom:european_capitals_sort", text.replace(", Zagreb", " and Zagreb"))


def test_city_rows_are_counted_blank_lines_too():
    rows = "1,Chad,Ati,2001,5\n" * 7
    assert strict("custom:csv_city", '"ID","Country",City,Year,Count\n' + rows)
    assert not strict("custom:csv_city", "ID, Country, City, Year, Count\n" + rows)
    assert not strict("custom:csv_city", CITIES + "\n" + rows)
    assert not strict("custom:csv_city", f"```\n{CITIES}{rows}```")
    assert loose("custom:csv_city", f"```\n{CITIES}{rows}```")


def test_special_characters_end_the_reading():
    special, plain = '1,"a&b",Ox,3,4\n', "1,Pots,Ox,3,4\n"
    assert strict("custom:csv_special_character", PRODUCTS + plain + special + "short\n" * 12)
    assert not strict("custom:csv_special_character", PRODUCTS + plain + "short\n" + special * 12)
    assert not strict("custom:csv_special_character", PRODUCTS + '1, "a&b",Ox,3,4\n' * 14)
    assert not strict("custom:csv_special_character", PRODUCTS + '1,"é_a",Ox,3,4\n' * 14)
    assert strict("custom:csv_special_character", 'ProductID, "Category",\tBrand,Price,Stock\n' + special * 14)
    assert not strict("custom:csv_special_character", PRODUCTS + special * 13)


def test_quoted_fields_may_be_empty_but_not_bare():
    assert strict("custom:csv_quotes", PUPILS + '"1"\t""\t"A"\t "I"\t"9"\n' * 3)
    assert not strict("custom:csv_quotes", PUPILS.replace('"', "") + '"1"\t"Art"\t"A"\t"I"\t"9"\n' * 3)
    assert not strict("custom:csv_quotes", PUPILS + '"1"\t"Art"\t"A"\t"I"\n' * 3)


def test_dates_may_have_a_zero_month_or_day():
    assert strict("custom:date_format_list", "1800-00-99, 1800-05-00")
    assert strict("custom:date_format_list", " 1801-02-29 ")
    assert not strict("custom:date_format_list", "1800-02-30")
    assert not strict("custom:date_format_list", "1800-04-31")
    assert not strict("custom:date_format_list", "1800-13-01")
    assert not strict("custom:date_format_list", "1800-01-32")
    assert not strict("custom:date_format_list", "1800-01-02,")


# --- repeat


def test_a_repeated_request_may_differ_in_whitespace_only():
    assert not strict("repeat:repeat_change", REQUEST, prompt_to_repeat=REQUEST)
    assert strict("repeat:repeat_change", REQUEST + "\n", prompt_to_repeat=REQUEST)
    assert not strict("repeat:repeat_change", REQUEST.upper(), prompt_to_repeat=REQUEST)


def test_a_span_may_run_past_the_end():
    assert strict("repeat:repeat_span", " be BRIEF. ", prompt_to_repeat=REQUEST, n_start=24, n_end=99)
