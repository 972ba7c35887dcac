"""IFEval: each constraint with a text that follows it and a spoiled one, every public constraint, and the traps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tercet.verify import VerifierError, verifier
from tercet.verify.instructions.ifeval import CHECKERS, QUIRKS, REFERENCE

ifeval = verifier("ifeval@1")
by_reference = verifier("ifeval_reference@1")

ENGLISH = "The cat sleeps on the warm stone wall for most of the day and wakes when the birds come back."
LANGUAGES = {
    "ar": "تنام القطة على الجدار الحجري الدافئ معظم اليوم وتستيقظ عندما تعود الطيور.",
    "bg": "Котката спи на топлата каменна стена през по-голямата част от деня. Вечер излиза да ловува мишки.",
    "bn": "বিড়ালটি দিনের বেশিরভাগ সময় গরম পাথরের দেয়ালে ঘুমায় এবং পাখিরা ফিরে এলে জেগে ওঠে।",
    "de": "Die Katze schläft fast den ganzen Tag auf der warmen Mauer und wacht auf, wenn die Vögel zurückkommen.",
    "fa": "گربه بیشتر روز را روی دیوار سنگی گرم می‌خوابد و وقتی پرندگان برمی‌گردند بیدار می‌شود.",
    "fi": "Kissa nukkuu lämpimällä kivimuurilla suurimman osan päivästä ja herää, kun linnut palaavat takaisin.",
    "gu": "બિલાડી દિવસનો મોટાભાગનો સમય ગરમ પથ્થરની દીવાલ પર સૂવે છે અને પક્ષીઓ પાછા આવે ત્યારે જાગે છે.",
    "hi": "बिल्ली दिन का अधिकांश समय गर्म पत्थर की दीवार पर सोती है और जब पक्षी वापस आते हैं तो जाग जाती है।",
    "it": "Il gatto dorme sul muro di pietra calda per quasi tutto il giorno e si sveglia quando tornano gli uccelli.",
    "kn": "ಬೆಕ್ಕು ದಿನದ ಹೆಚ್ಚಿನ ಸಮಯ ಬೆಚ್ಚಗಿನ ಕಲ್ಲಿನ ಗೋಡೆಯ ಮೇಲೆ ಮಲಗುತ್ತದೆ ಮತ್ತು ಹಕ್ಕಿಗಳು ಮರಳಿದಾಗ ಎಚ್ಚರಗೊಳ್ಳುತ್ತದೆ.",
    "ko": "고양이는 하루의 대부분을 따뜻한 돌담 위에서 자고 새들이 돌아오면 깨어난다.",
    "mr": "मांजर दिवसाचा बहुतेक वेळ उबदार दगडी भिंतीवर झोपते आणि पक्षी परत आले की जागी होते.",
    "ne": "बिरालो दिनको धेरैजसो समय न्यानो ढुङ्गाको पर्खालमा सुत्छ र चराहरू फर्केर आएपछि ब्यूँझन्छ।",
    "pa": "ਬਿੱਲੀ ਦਿਨ ਦਾ ਜ਼ਿਆਦਾਤਰ ਸਮਾਂ ਨਿੱਘੀ ਪੱਥਰ ਦੀ ਕੰਧ ਉੱਤੇ ਸੌਂਦੀ ਹੈ ਅਤੇ ਪੰਛੀਆਂ ਦੇ ਵਾਪਸ ਆਉਣ ਤੇ ਜਾਗਦੀ ਹੈ।",
    "pt": "O gato dorme no muro de pedra quente durante quase todo o dia e acorda quando os pássaros voltam.",
    "ru": "Кошка спит на тёплой каменной стене почти весь день и просыпается, когда возвращаются птицы.",
    "sw": "Paka hulala juu ya ukuta wa mawe wenye joto kwa muda mwingi wa siku na huamka ndege wanaporudi.",
    "ta": "பூனை நாளின் பெரும்பகுதியை சூடான கல் சுவரில் தூங்கிக் கழிக்கிறது, பறவைகள் திரும்பும்போது விழிக்கிறது.",
    "te": "పిల్లి రోజులో ఎక్కువ సమయం వెచ్చని రాతి గోడపై నిద్రపోతుంది మరియు పక్షులు తిరిగి వచ్చినప్పుడు మేల్కొంటుంది.",
    "th": "แมวนอนบนกำแพงหินอุ่นเกือบทั้งวันและตื่นเมื่อนกกลับมา",
    "ur": "بلی دن کا زیادہ تر وقت گرم پتھر کی دیوار پر سوتی ہے اور جب پرندے واپس آتے ہیں تو جاگ جاتی ہے",
    "vi": "Con mèo ngủ trên bức tường đá ấm áp gần như cả ngày và thức dậy khi những con chim quay trở lại.",
}


def reference(*constraints: tuple[str, dict[str, Any]]) -> str:
    ids, kwargs = zip(*constraints, strict=True)
    return json.dumps({"key": 1, "prompt": "Do.", "instruction_id_list": ids, "kwargs": kwargs})


def follows(text: str, name: str, verify: Any = ifeval, **kwargs: Any) -> bool:
    return verify(text, reference((name, kwargs))).numbers["strict"] == 1.0


def counted(unit: str, count: int, relation: str, opening: str = "0 ") -> tuple[str, str]:
    """`unit` as often as "at least" or "less than" `count` allows, and then once too few or too many."""
    enough, fewer = opening + f"{unit} " * count, opening + f"{unit} " * (count - 1)
    return (enough, fewer) if relation == "at least" else (fewer, enough)


# Constraint -> from its arguments, a text that follows it and one that does not follow it even loosely.
WITNESSES: dict[str, Callable[..., tuple[str, str]]] = {
    "change_case:capital_word_frequency": lambda capital_frequency, capital_relation: counted(
        "CAT", capital_frequency, capital_relation, "A1a "
    ),
    "change_case:english_capital": lambda: (ENGLISH.upper(), ENGLISH.upper() + " a"),
    "change_case:english_lowercase": lambda: (ENGLISH.lower(), ENGLISH),
    "combination:repeat_prompt": lambda prompt_to_repeat: (
        f" {prompt_to_repeat.upper()} Yes.",
        f"Q: {prompt_to_repeat}",
    ),
    "combination:two_responses": lambda: ("One.\n******\nTwo.", "One.\nTwo.\n******\n******\nThree.\nFour."),
    "detectable_content:number_placeholders": lambda num_placeholders: counted("[x y]", num_placeholders, "at least"),
    "detectable_content:postscript": lambda postscript_marker: (f"Bye.\n{postscript_marker} Hi.", "Bye.\nPS Hi."),
    "detectable_format:constrained_response": lambda: ("So: My answer is maybe.", "My answer is Yes"),
    "detectable_format:json_format": lambda: ('```json\n{"a": [1, null]}\n```', "{'a': 1}"),
    "detectable_format:multiple_sections": lambda section_spliter, num_sections: counted(
        f"{section_spliter} 1", num_sections, "at least"
    ),
    "detectable_format:number_bullet_lists": lambda num_bullets: (
        "0\n" + "  - a\n" * num_bullets,
        "0\n" + "- a\n" * (num_bullets + 1) + "0",
    ),
    "detectable_format:number_highlighted_sections": lambda num_highlights: counted(
        "*a* 1", num_highlights, "at least"
    ),
    "detectable_format:title": lambda: ("<<Cats>>\nThey sleep.", "<< >>\nThey sleep."),
    "keywords:existence": lambda keywords: (" ".join(keywords).upper(), "0 0"),
    "keywords:forbidden_words": lambda forbidden_words: (
        " ".join(f"0{word}0" for word in forbidden_words),
        f"See ({forbidden_words[-1].upper()}).",
    ),
    "keywords:frequency": lambda keyword, frequency, relation: counted(keyword.upper(), frequency, relation),
    "keywords:letter_frequency": lambda letter, let_frequency, let_relation: counted(
        letter.upper(), let_frequency, let_relation
    ),
    "language:response_language": lambda language: (LANGUAGES[language], ENGLISH),
    "length_constraints:nth_paragraph_first_word": lambda num_paragraphs, nth_paragraph, first_word: (
        "\n\n".join(
            ["Text."] * (nth_paragraph - 1)
            + [f"'{first_word.title()}, so."]
            + ["Text."] * (num_paragraphs - nth_paragraph)
        ),
        "\n\n".join(["Text."] * (num_paragraphs + 3)),
    ),
    "length_constraints:number_paragraphs": lambda num_paragraphs: (
        "\n***\n".join(["Text."] * num_paragraphs),
        " *** ".join(["Text."] * (num_paragraphs + 1)),
    ),
    "length_constraints:number_sentences": lambda num_sentences, relation: counted(
        "This is Dr. Smith.", num_sentences, relation, ""
    ),
    "length_constraints:number_words": lambda num_words, relation: counted("word", num_words, relation, ""),
    "punctuation:no_comma": lambda: ("No pause.", "Well, yes."),
    "startend:end_checker": lambda end_phrase: (f'"So it was. {end_phrase.upper()}"\n', f"{end_phrase} Or not."),
    "startend:quotation": lambda: (' "All of it."\n', '"Half" of it.'),
}


def constraints_of(shared_data: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    for line in (shared_data / "eval/ifeval/input_data.jsonl").read_text(encoding="utf-8").rstrip("\n").split("\n"):
        row = json.loads(line)
        for name, kwargs in zip(row["instruction_id_list"], row["kwargs"], strict=True):
            yield row["key"], name, {key: value for key, value in kwargs.items() if value is not None}


def test_each_of_the_834_public_constraints_has_a_text_that_follows_it_alone_and_a_spoiled_one(
    shared_data: Path,
) -> None:
    total = 0
    for key, name, kwargs in constraints_of(shared_data):
        total += 1
        gold, spoiled = WITNESSES[name](**kwargs)
        for verify in (ifeval, by_reference):
            good, bad = verify(gold, reference((name, kwargs))), verify(spoiled, reference((name, kwargs)))
            assert (good.score, good.numbers["strict"], good.outcome) == (1.0, 1.0, "graded"), (key, name, kwargs, gold)
            assert (bad.score, bad.outcome) == (0.0, "graded"), (key, name, kwargs, spoiled)
    assert total == 834


def test_the_witnesses_cover_all_25_constraints_and_the_quirks_are_among_them() -> None:
    assert sorted(WITNESSES) == sorted(CHECKERS) == sorted(REFERENCE)
    assert len(CHECKERS) == 25
    assert set(QUIRKS) < set(CHECKERS)


# Constraint, arguments, text, whether the text follows it as it is.
AT_LEAST = {"relation": "at least"}
CASES: list[tuple[str, dict[str, Any], str, bool]] = [
    ("keywords:existence", {"keywords": ["cat", "DOG"]}, "Concatenate the dogma.", True),
    ("keywords:existence", {"keywords": ["cat", "dog"]}, "A cat.", False),
    ("keywords:frequency", {"keyword": " cat ", "frequency": 2, "relation": "at least"}, "Cats concatenate.", True),
    ("keywords:frequency", {"keyword": "cat", "frequency": 2, "relation": "less than"}, "Cats concatenate.", False),
    ("keywords:frequency", {"keyword": "cat", "frequency": 0, "relation": "at least"}, "No dogs.", True),
    ("keywords:forbidden_words", {"forbidden_words": ["cat"]}, "Cats concatenate, cat_food.", True),
    ("keywords:forbidden_words", {"forbidden_words": ["cat", "dog"]}, "A hot-DOG.", False),
    ("keywords:letter_frequency", {"letter": "A", "let_frequency": 3, "let_relation": "at least"}, "A banAna", True),
    ("keywords:letter_frequency", {"letter": "#", "let_frequency": 2, "let_relation": "at least"}, "## Title", True),
    ("keywords:letter_frequency", {"letter": "!", "let_frequency": 2, "let_relation": "less than"}, "Hi! Ho!", False),
    ("language:response_language", {"language": "de"}, LANGUAGES["de"], True),
    ("language:response_language", {"language": "de"}, ENGLISH, False),
    ("language:response_language", {"language": "de"}, "1, 2, 3 ...", True),  # nothing to tell it by
    ("length_constraints:number_sentences", {"num_sentences": 2, **AT_LEAST}, "Dr. No has 1.5 cats. Ok?", True),
    ("length_constraints:number_sentences", {"num_sentences": 2, **AT_LEAST}, "A title\n\nThe only sentence.", False),
    ("length_constraints:number_words", {"num_words": 4, **AT_LEAST}, "It's well-known", True),
    ("length_constraints:number_words", {"num_words": 3, **AT_LEAST}, "snake_case well", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "***\nOne\n***\nTwo\n***\n", True),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n***\n \n***\nTwo", False),
    ("length_constraints:number_paragraphs", {"num_paragraphs": 2}, "One\n* * *\nTwo", False),
    ("detectable_content:number_placeholders", {"num_placeholders": 2}, "[a] [] and [[b]]", True),
    ("detectable_content:number_placeholders", {"num_placeholders": 1}, "[a\nb]", False),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "p. p. s: hi", True),
    ("detectable_content:postscript", {"postscript_marker": "P.P.S"}, "P.S. hi", False),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "Bye. p. s. hi", True),
    ("detectable_content:postscript", {"postscript_marker": "P.S."}, "P.S hi", False),
    ("detectable_content:postscript", {"postscript_marker": "Note:"}, "NOTE: hi", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 3}, "* a\n  - b\n**bold**\n---", True),
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "*\n* a", True),  # a lone star takes the next line
    ("detectable_format:number_bullet_lists", {"num_bullets": 1}, "* a\n* b", False),
    ("detectable_format:number_bullet_lists", {"num_bullets": 2}, "\u2022 a\n1. b", False),
    ("detectable_format:constrained_response", {}, "Well: My answer is no. So there.", True),
    ("detectable_format:constrained_response", {}, "my answer is no.", False),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "*a* and **b**", True),
    ("detectable_format:number_highlighted_sections", {"num_highlights": 2}, "**a** and ** **", False),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}, "Part 1\nPart2", True),
    ("detectable_format:multiple_sections", {"section_spliter": "Part", "num_sections": 2}, "Part 1\nPART 2", False),
    ("detectable_format:json_format", {}, '```JSON\n{"a": NaN}\n```', True),
    ("detectable_format:json_format", {}, 'Here:\n{"a": 1}', False),
    ("detectable_format:json_format", {}, "[" * 100_000, False),
    ("detectable_format:title", {}, "<< >> and <<Cats>>", True),
    ("detectable_format:title", {}, "<<\nCats\n>>", False),
    ("combination:two_responses", {}, "******\nOne\n******\nTwo\n******", True),
    ("combination:two_responses", {}, "One\n******\n One", False),
    ("combination:two_responses", {}, "One\n******\n******\nTwo", False),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi. "}, "\nsay HI. Hi!", True),
    ("combination:repeat_prompt", {"prompt_to_repeat": "Say hi."}, '"Say hi." Hi!', False),
    ("startend:end_checker", {"end_phrase": " The end."}, '"It was THE END."" ', True),
    ("startend:end_checker", {"end_phrase": "The end."}, "The end.*", False),
    ("startend:quotation", {}, '""', True),
    ("startend:quotation", {}, '"', False),
    ("startend:quotation", {}, "\u201cAll of it.\u201d", False),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "I, CATS 3", True),
    ("change_case:capital_word_frequency", {"capital_frequency": 2, "capital_relation": "at least"}, "The CATs", False),
    ("change_case:english_capital", {}, ENGLISH.upper(), True),
    ("change_case:english_capital", {}, LANGUAGES["de"].upper(), False),
    ("change_case:english_lowercase", {}, ENGLISH.lower(), True),
    ("change_case:english_lowercase", {}, LANGUAGES["hi"], False),  # no case at all
    ("punctuation:no_comma", {}, "One\uff0c two; three.", True),
    ("punctuation:no_comma", {}, "1,000", False),
]  # fmt: skip


@pytest.mark.parametrize(("name", "kwargs", "text", "expected"), CASES)
def test_a_constraint_is_read_as_the_reference_reads_it(name: str, kwargs: Any, text: str, expected: bool) -> None:
    assert follows(text, name, **kwargs) == follows(text, name, by_reference, **kwargs) == expected


NTH = "length_constraints:nth_paragraph_first_word"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One.\n\n'\"Cats, dogs.", True),
        ("One.\n\nCATS' dogs.", True),
        ("One.\n\nCatsup.", False),
        ("One.\nTwo.\n\n\n cats", True),
        ("One.\n\nCats.\n\nThree.", False),
        ("Cats.\n\nTwo.", False),
    ],
)
def test_the_nth_paragraph_starts_with_the_word(text: str, expected: bool) -> None:
    arguments = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "cats"}
    assert follows(text, NTH, **arguments) == follows(text, NTH, by_reference, **arguments) == expected


def test_blank_paragraphs_are_skipped_where_the_reference_counts_around_them_and_then_indexes_them() -> None:
    arguments = {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "cats"}
    text = "One.\n\n\n\nCats."
    assert follows(text, NTH, **arguments)
    assert not follows(text, NTH, by_reference, **arguments)


@pytest.mark.parametrize(
    ("name", "kwargs", "text", "literal"),
    [
        ("keywords:existence", {"keywords": ["a.c"]}, "abc", False),
        ("keywords:frequency", {"keyword": "(c|d)og", "frequency": 1, "relation": "at least"}, "dog", False),
        ("keywords:forbidden_words", {"forbidden_words": ["a.c"]}, "abc", True),
        ("detectable_format:multiple_sections", {"section_spliter": "Part|Day", "num_sections": 1}, "Day 1", False),
        ("detectable_content:postscript", {"postscript_marker": "PS."}, "Caps: so", False),
    ],
)
def test_words_are_literal_in_ours_and_patterns_in_the_reference(
    name: str, kwargs: Any, text: str, literal: bool
) -> None:
    assert follows(text, name, **kwargs) == literal
    assert follows(text, name, by_reference, **kwargs) != literal


def test_loose_forgives_an_opening_line_a_closing_line_and_asterisks() -> None:
    spec = reference(("startend:quotation", {}), ("punctuation:no_comma", {}))
    text = 'Sure, here it is:\n**"It is so."**\nDone, as asked.'
    grade = ifeval(text, spec)
    assert grade.score == 1.0
    assert grade.numbers == {
        "strict": 0.0, "loose": 1.0, "followed_strict": 0.0, "followed_loose": 2.0, "constraints": 2.0,
    }  # fmt: skip
    assert grade.detail == "failed: startend:quotation, punctuation:no_comma"


def test_two_constraints_may_hold_on_different_forms_of_the_text() -> None:
    spec = reference(("detectable_format:title", {}), ("punctuation:no_comma", {}))
    assert ifeval("<<Oh, cats>>\nThey sleep.", spec).numbers["followed_loose"] == 2.0


@pytest.mark.parametrize("text", ["", " \n\t", "\u2028"])
def test_a_blank_response_follows_nothing(text: str) -> None:
    grade = ifeval(text, reference(("punctuation:no_comma", {})))
    assert (grade.score, grade.numbers["followed_strict"], grade.outcome) == (0.0, 0.0, "graded")


def test_an_exception_is_an_error_of_that_constraint_and_the_others_are_still_counted() -> None:
    spec = reference(("keywords:existence", {"keywords": ["(cat"]}), ("punctuation:no_comma", {}))
    grade = by_reference("A (cat", spec)
    assert (grade.score, grade.outcome, grade.numbers["followed_strict"]) == (0.0, "error", 1.0)
    assert "keywords:existence: error: missing )" in grade.detail
    assert ifeval("A (cat", spec).score == 1.0


def test_null_and_empty_arguments_are_unset_and_whole_floats_are_counts() -> None:
    assert follows(
        "* a", "detectable_format:number_bullet_lists", num_bullets=1.0, keyword=None, keywords=[], letter=""
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("no json", "expects a JSON row"),
        ("[]", "expects a JSON row"),
        ('{"instruction_id_list": ["punctuation:no_comma"], "kwargs": []}', "lists of one length"),
        ('{"instruction_id_list": [], "kwargs": []}', "at least one instruction"),
        (reference(("count:pronouns", {})), "knows no instruction 'count:pronouns'"),
        (reference(("punctuation:no_comma", {"n": 1})), r"expects the arguments \[\]; got \['n'\]"),
        (reference(("detectable_format:number_bullet_lists", {})), r"expects the arguments \['num_bullets'\]"),
        (reference(("detectable_format:number_bullet_lists", {"num_bullets": 1.5})), "a whole number from 0; got 1.5"),
        (reference(("length_constraints:number_paragraphs", {"num_paragraphs": 0})), "a whole number from 1; got 0"),
        (reference(("keywords:existence", {"keywords": "cat"})), "keywords to be a list of texts"),
        (
            reference(("length_constraints:number_words", {"num_words": 1, "relation": "more"})),
            "'less than' or 'at least'",
        ),
        (
            reference(("keywords:letter_frequency", {"letter": "ab", "let_frequency": 1, "let_relation": "at least"})),
            "single",
        ),
        (reference(("startend:end_checker", {"end_phrase": " "})), "a text that is not blank"),
    ],
)
def test_a_reference_that_cannot_be_read_is_refused(spec: str, message: str) -> None:
    for verify in (ifeval, by_reference):
        with pytest.raises(VerifierError, match=message):
            verify("A text.", spec)


SIMPLE = [(name, kwargs) for name, kwargs, _, _ in CASES if name not in QUIRKS and "language" not in name]


@given(
    st.lists(st.sampled_from(['"', "*", "\n", "A", "b ", ", ", "- ", "<<T>>", "[x]", "P.S. ", "1", "***"])).map(
        "".join
    ),
    st.lists(st.sampled_from(SIMPLE), min_size=1, max_size=4),
)
def test_loose_is_never_below_strict_and_the_two_verifiers_agree_off_the_quirks(text: str, constraints: Any) -> None:
    grade = ifeval(text, reference(*constraints))
    numbers = grade.numbers
    assert numbers["followed_strict"] <= numbers["followed_loose"] <= numbers["constraints"] == len(constraints)
    assert numbers["strict"] <= numbers["loose"] == grade.score
    assert by_reference(text, reference(*constraints)) == grade
