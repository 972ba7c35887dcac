"""The checkers of `ifbench@1` that know their one task's answer: ids `custom:*`."""

from __future__ import annotations

import csv
import io
import re
import string
import unicodedata
from itertools import pairwise

from tercet.verify.instructions.english import sentences
from tercet.verify.instructions.ifbench_count import ENDS, WORDS, bare_words

CAPITALS = WORDS["capitals"]
QUESTION = re.compile(r"Question \d+[.):;|]?")
OPTION = re.compile(r"[A-Ea-e][.)|]\s*\w")
CITY_HEADER = ["ID", "Country", "City", "Year", "Count"]
PRODUCT_HEADER = ("ProductID", "Category", "Brand", "Price", "Stock")
STUDENT_HEADER = ("StudentID", "Subject", "Grade", "Semester", "Score")
SPECIAL_FIELD = re.compile(r'".*[^\w\s].*"')
DATE = re.compile(r"(\d{4})-(\d{2})-(\d{2})")
SHORT_MONTHS = {2: 29, 4: 30, 6: 30, 9: 30, 11: 30}


def multiples(text: str) -> bool:
    """The numbers of the text are exactly the multiples of 7 between 10 and 50."""
    return re.findall(r"\d+", text) == ["14", "21", "28", "35", "42", "49"]


def mcq_count_length(text: str) -> bool:
    """Four questions of five options each, every question longer than the one before."""
    if not text.startswith("Question"):
        return False
    blocks = [block.strip().split("\n") for block in QUESTION.split(text) if block.strip()]
    if len(blocks) != 4:
        return False
    marks = [[OPTION.match(line.strip()) is not None for line in block] for block in blocks]
    if any(sum(mark) != 5 for mark in marks):
        return False
    stems = [block[: mark.index(True)] for block, mark in zip(blocks, marks, strict=True)]
    return all(a < b for a, b in pairwise(len(" ".join(line.strip() for line in stem).strip()) for stem in stems))


def reverse_newline(text: str) -> bool:
    """From the first line with Zimbabwe on: at least 52 lines in descending order; the names are not checked."""
    lines = [line.strip(ENDS) for line in text.split("\n")]
    lines = [line for line in lines if line]
    first = next((place for place, line in enumerate(lines) if "Zimbabwe" in line), len(lines))
    names = [_ascii(line) for line in lines[first:]]
    return len(names) >= 52 and all(a >= b for a, b in pairwise(names))


def _ascii(text: str) -> str:
    return unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()


def word_reverse(text: str) -> bool:
    """The words `eagle bald` stand side by side, whatever the punctuation: the answer with its words reversed."""
    return "bald eagle" in " ".join(reversed(bare_words(text.lower())))


def character_reverse(text: str) -> bool:
    """The answer spelled backwards occurs."""
    return "elgae dlab" in text.lower()


def sentence_alphabet(text: str) -> bool:
    """Twenty-six sentences that start with A to Z in order."""
    initials = [sentence.lstrip().lower()[:1] for sentence in sentences(text)]
    return "".join(initials) == string.ascii_lowercase and len(initials) == 26


def european_capitals_sort(text: str) -> bool:
    """The 27 capitals from north to south, separated by commas."""
    return [item.strip() for item in _ascii(text).split(",") if item.strip()] == CAPITALS


def csv_city(text: str) -> bool:
    """A header and seven rows of five fields; blank lines are rows."""
    rows = list(csv.reader(io.StringIO(text)))
    return len(rows) == 8 and rows[0] == CITY_HEADER and all(len(row) == 5 for row in rows[1:])


def csv_special_character(text: str) -> bool:
    """A header and fourteen rows of five fields, down to the first row with a special character in quotes."""
    if not _has_header(text, PRODUCT_HEADER, r",[ \t]*"):
        return False
    rows = _rows(text, ",")
    if len(rows) != 15:
        return False
    for row in rows[1:]:
        if len(row) != 5:
            return False
        if any(SPECIAL_FIELD.match(field) for field in row):
            return True
    return False


def _has_header(text: str, names: tuple[str, ...], separator: str) -> bool:
    """Whether the first line holds the names, each bare or in double quotes, with the separator pattern between."""
    pattern = separator.join(rf'(?:{name}|"{name}")' for name in names)
    return re.fullmatch(pattern, text.split("\n")[0].strip()) is not None


def _rows(text: str, delimiter: str) -> list[list[str]]:
    """The rows of a CSV text whose quotes survive, because each is tripled before it is read."""
    return list(csv.reader(io.StringIO(text.replace('"', '"""')), delimiter=delimiter))


def csv_quotes(text: str) -> bool:
    """A header and three rows of five fields, tabs between them and double quotes around every one.

    A bare empty field raises IndexError, as in the reference.
    """
    if not _has_header(text, STUDENT_HEADER, r"\t *"):
        return False
    rows = _rows(text, "\t")
    return len(rows) == 4 and all(len(row) == 5 and all(_quoted(field.strip()) for field in row) for row in rows)


def _quoted(field: str) -> bool:
    return field[0] == field[-1] == '"'


def date_format_list(text: str) -> bool:
    """Dates as YYYY-MM-DD in a line with commas, from 1769 to 1821; leap years and zeros are not looked at."""
    return all(_napoleonic(item.strip()) for item in text.strip().split(","))


def _napoleonic(item: str) -> bool:
    date = DATE.fullmatch(item)
    if not date:
        return False
    year, month, day = (int(part) for part in date.groups())
    return 1769 <= year <= 1821 and month <= 12 and day <= (31 if month else 99) and day <= SHORT_MONTHS.get(month, 99)
