"""The checkers of `ifbench@1` that look at layout: ids `format:*`."""

from __future__ import annotations

import re
import string
from itertools import pairwise

import emoji

from tercet.verify.instructions.english import sentences, words
from tercet.verify.instructions.ifbench_count import DELETE_P, ENDS, P, bare_words

CLOSES = {")": "(", "]": "[", "}": "{"}
LETTERED = re.compile(r"\W*[aA]\W*[bB]\W*[cC]")
BESIDE_QUOTES = string.digits + P.replace('"', "")


def parentheses(text: str) -> bool:
    """Brackets nest five deep and the innermost pair closes; a wrong closer starts the count anew."""
    stack: list[str] = []
    deepest = 0
    for char in text:
        if char in "([{":
            stack.append(char)
            deepest = max(deepest, len(stack))
        elif char in CLOSES:
            if stack and stack.pop() == CLOSES[char]:
                if deepest >= 5:
                    return True
            else:
                stack, deepest = [], 0
    return False


def quotes(text: str) -> bool:
    """Straight quotes, apostrophes among them, open and close until three levels are closed again."""
    stack: list[str] = []
    deepest = 0
    for char in text:
        if char not in "\"'":
            continue
        if stack and stack[-1] == char:
            stack.pop()
        else:
            stack.append(char)
        deepest = max(deepest, len(stack))
        if deepest - len(stack) >= 3:
            return True
    return False


def options(text: str, options: str) -> bool:
    """The response is one of the options; to the letter if they are lettered a, b, c, else in any case."""
    separator = "/" if "/" in options else "or" if "or" in options else ","
    parts = [part.strip() for part in options.split(separator)]
    if LETTERED.match(options):
        return text in parts
    return text.strip(ENDS).lower() in [part.strip(ENDS).lower() for part in parts]


def newline(text: str) -> bool:
    """As many lines as words; a line of two words and a line of spaces cancel."""
    lines = [line for line in text.translate(DELETE_P).strip().split("\n") if line]
    return len(lines) == len(bare_words(text))


def emojis(text: str) -> bool:
    """Each sentence ends in an emoji, which the splitter may have given to the next one; single code points count."""
    found = [sentence.translate(DELETE_P).strip() for sentence in sentences(text)]
    for place, sentence in enumerate(found):
        if not sentence:
            return False
        if any(emoji.is_emoji(char) for char in sentence[-2:]):
            continue
        following = found[place + 1] if place + 1 < len(found) else ""
        if not following or not emoji.is_emoji(following[0]):
            return False
    return True


def line_indent(text: str) -> bool:
    """Each line has more leading spaces than the one before.

    The reference drops blank lines from the list it is walking, and so misses the one after each.
    """
    lines = text.split("\n")
    place = 0
    while place < len(lines):
        if not lines[place].strip():
            lines.remove(lines[place])
        place += 1
    return all(a < b for a, b in pairwise(len(line) - len(line.lstrip(" ")) for line in lines))


def quote_unquote(text: str) -> bool:
    """No straight double quote follows another, and none ends the text: something is said after each quotation."""
    bare = "".join(text.replace("'\"'", "").split())
    return '""' not in bare and not bare.strip(BESIDE_QUOTES).endswith('"')


def separated_list(text: str, sep: str) -> bool:
    """The separator occurs at least twice, anywhere."""
    return text.count(sep) >= 2


def thesis(text: str) -> bool:
    """Something in italics, and something after it; with `<em>` a leftover `>` counts as something."""
    opening = text.find("<i>") if "<i>" in text else text.find("<em>")
    if opening < 0:
        return False
    body = text[opening:]
    closing = body.find("</i>") if "</i>" in body else body.find("</em>")
    return closing >= 0 and bool(body[3:closing].strip()) and bool(body[closing + 4 :].strip())


def sub_bullets(text: str) -> bool:
    """A `-` follows each `*` before the next; no `*` at all passes."""
    return all("-" in piece for piece in text.split("*")[1:])


def no_bullets_bullets(text: str) -> bool:
    """At least two sentences, then at least two lines that start with `*`, and nothing after them.

    Sentences are counted line by line; a blank line may stand only before the first bullet.
    """
    lines = text.split("\n")
    marks = [line.strip().startswith("*") for line in lines]
    if True not in marks:
        return False
    first = marks.index(True)
    spoken = [len(sentences(line.strip())) for line in lines[:first]]
    return sum(spoken) >= 2 and 0 not in spoken[:-1] and sum(marks) >= 2 and all(marks[first:])


def title_case(text: str) -> bool:
    """No token starts small, be it `of` or the `n't` of a contraction; mixed ones such as `iPhone` pass."""
    return not any(_uncapitalised(token) for token in words(text) if token[0].isalpha())


def _uncapitalised(token: str) -> bool:
    rest = token[1:]
    return token[0].islower() and (not rest or rest.isupper() or rest.islower())


def output_template(text: str) -> bool:
    """The three headings occur, in any order."""
    return all(heading in text for heading in ("My Answer:", "My Conclusion:", "Future Outlook:"))


def no_whitespace(text: str) -> bool:
    """No character is whitespace."""
    return not any(char.isspace() for char in text)
