"""`constraints@1`: seeded instruction rows with one to three verifiable constraints.

Each row asks for something everyday about a topic, states its constraints in varied plain words, and answers it from
the topic's facts. The answer is drawn freely and kept only if `tulu_if@1` passes it, so no row fails its own verifier.
The reference answer holds every constraint with its sentence, so that `drop_one` can remove exactly that sentence.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any, Literal

from tercet.data import tables
from tercet.data.generators.phrases import phrases, topics
from tercet.rows import Message, Row
from tercet.verify import verifier

Split = Literal["train", "test"]
Arguments = dict[str, Any]

VERIFIER = "tulu_if@1"
TRIES = 40


@dataclass(frozen=True)
class Scene:
    """The content of one row: its topic and facts, the request, the person whom the answer greets, or its choice."""

    split: Split
    topic: str
    facts: tuple[str, ...]
    request: str
    person: str = ""
    fits: bool = True

    @property
    def words(self) -> list[str]:
        """Content words of the facts that the request does not give away."""
        found = re.findall(r"\b[a-z]{5,}\b", " ".join(self.facts))
        given = {*phrases().stop_words, *re.findall(r"\w+", self.request.lower())}
        return [word for word in dict.fromkeys(found) if word not in given]


@dataclass(frozen=True)
class ConstraintKind:
    """One kind of constraint: its function, how arguments are drawn, and the kinds that exclude it."""

    func_name: str
    draw: Callable[[Random, Scene], Arguments]
    clashes: str = ""


def generate(num_rows: int, split: Split, seed: int) -> list[Row]:
    """`num_rows` distinct rows of one split; the same arguments give the same rows. Topics differ between splits."""
    rng = Random(f"constraints@1/{tables.SEEDS[split]}/{seed}")
    rows: list[Row] = []
    prompts: set[str] = set()
    deck: list[str] = []
    while len(rows) < num_rows:
        deck = deck or rng.sample(sorted(KINDS), len(KINDS))
        row = _row(rng, split, deck.pop(), f"constraints-{tables.SEEDS[split]}-{len(rows)}")
        if row.user_turns[0] not in prompts:
            prompts.add(row.user_turns[0])
            rows.append(row)
    return rows


def drop_one(row: Row, index: int) -> Row | None:
    """The prompt of `row` without constraint `index` (the persona-IF preference method of Tülu 3, section 5.3).

    The answer is left out, and without any constraint left there is no verifier. None when the row has no such
    constraint, or not its sentence.
    """
    if row.verifier != VERIFIER:
        return None
    constraints = json.loads(row.reference)
    if not isinstance(constraints, list) or not 0 <= index < len(constraints):
        return None
    sentence = constraints.pop(index).get("text")
    turn = row.prompt[-1]
    if not sentence or turn.content.count(sentence) != 1:
        return None
    before, after = turn.content.split(sentence)
    content = before.rstrip() + after if before else after.lstrip()
    name, turns = f"{row.id}-drop{index}", (*row.prompt[:-1], Message(turn.role, content))
    if not constraints:
        return replace(row, id=name, messages=turns, verifier="", reference="")
    return replace(row, id=name, messages=turns, reference=json.dumps(constraints))


def _row(rng: Random, split: Split, first: str, row_id: str) -> Row:
    """Draw until the answer passes the verifier; `first` stays, so that all kinds are equally frequent."""
    grade = verifier(VERIFIER)
    while True:
        kinds = draw_kinds(rng, first)
        scene = _scene(rng, split, kinds)
        asked = {kind: KINDS[kind].draw(rng, scene) for kind in kinds}
        sentences = {kind: sentence_of(rng, kind, arguments, split) for kind, arguments in asked.items()}
        reference = json.dumps(
            [{"func_name": KINDS[kind].func_name, **asked[kind], "text": sentences[kind]} for kind in kinds]
        )
        for _ in range(TRIES):
            answer = _compose(rng, scene, asked)
            if grade(answer, reference).score == 1:
                turns = (Message("user", _prompt(rng, scene, list(sentences.values()))), Message("assistant", answer))
                return Row(row_id, turns, "constraints@1", "constraints", VERIFIER, reference, scene.topic)


def draw_kinds(rng: Random, first: str) -> list[str]:
    """`first` and up to two more kinds that clash with none before."""
    kinds = [first]
    wanted = rng.choices((1, 2, 3), (45, 40, 15))[0]
    for kind in rng.sample(sorted(KINDS), len(KINDS)):
        if len(kinds) < wanted and not any(_clash(kind, other) for other in kinds):
            kinds.append(kind)
    rng.shuffle(kinds)
    return kinds


def _clash(one: str, other: str) -> bool:
    both_layout = one in LAYOUTS and other in LAYOUTS
    return one == other or both_layout or one in KINDS[other].clashes.split() or other in KINDS[one].clashes.split()


def _scene(rng: Random, split: Split, kinds: list[str]) -> Scene:
    say, known = phrases(), topics(split)
    topic = rng.choice(sorted(known))
    if "choice" in kinds:
        fits = rng.random() < 0.5
        other = topic if fits else rng.choice([name for name in sorted(known) if name != topic])
        request = rng.choice(say.statements[split]).format(fact=rng.choice(known[other]), topic=topic)
        return Scene(split, topic, known[topic], request, fits=fits)
    if rng.random() < 0.25 and not LAYOUTS & set(kinds):
        person = rng.choice(say.people[split])
        request = rng.choice(say.letters[split]).format(topic=topic, person=person)
        return Scene(split, topic, known[topic], request, person)
    return Scene(split, topic, known[topic], rng.choice(say.requests[split]).format(topic=topic))


def sentence_of(rng: Random, kind: str, arguments: Arguments, split: Split) -> str:
    """The constraint in words: one of the kind's wordings for this split, with its arguments filled in."""
    say = phrases()
    words = arguments.get("keyword_list") or arguments.get("forbidden_words") or []
    number = arguments.get("N", 0)
    fills = {
        **arguments,
        "words": " and ".join(f'"{word}"' for word in words),
        "either": " or ".join(f'"{word}"' for word in words),
        "s": "s" if len(words) > 1 or number > 1 else "",
        "number": say.numbers[number] if number < len(say.numbers) else str(number),
        "choices": " or ".join(f'"{option}"' for option in arguments.get("options", [])),
        "place": "first" if arguments.get("i") == 1 else "second",
    }
    return rng.choice(say.wordings[kind].of(split)).format(**fills)


def _prompt(rng: Random, scene: Scene, sentences: list[str]) -> str:
    """Request and constraints, in one paragraph or line by line; an unfinished sentence is closed by a line break."""
    form = rng.random()
    pieces = [*sentences, scene.request] if form < 0.15 else [scene.request, *sentences]
    text = pieces[0]
    for piece in pieces[1:]:
        finished = re.search(r'[.?!)]"?$', text) and form < 0.8
        text += (" " if finished else "\n") + piece
    return text


def _compose(rng: Random, scene: Scene, asked: dict[str, Arguments]) -> str:
    """One candidate answer, written from the inside out: sentences, layout, frame, letter case, wrapping."""
    if "choice" in asked:
        text = asked["choice"]["options"][0 if scene.fits else 1]
        if rng.random() < 0.5 and text.endswith("."):
            text += f" The sentence is {'' if scene.fits else 'not '}about {scene.topic}."
    else:
        sentences = _emphasise(rng, scene, _sentences(rng, scene, asked), asked)
        text = _layout(rng, scene, sentences, asked)
    text = _frame(rng, scene, text, asked)
    if "lowercase" in asked:
        text = text.lower()
    if "uppercase" in asked:
        text = text.upper()
    if "json" in asked:
        text = json.dumps({"topic": scene.topic, "text": text})
        text = text.lower() if "lowercase" in asked else text
    return f'"{text}"' if "quotation" in asked else text


def _sentences(rng: Random, scene: Scene, asked: dict[str, Arguments]) -> list[str]:
    """A selection of the facts in their order, with links between some where commas are allowed."""
    banned = asked.get("forbidden", {}).get("forbidden_words", [])
    needed = asked.get("keywords", {}).get("keyword_list", [])
    facts = [fact for fact in scene.facts if not any(word in fact.lower() for word in banned)]
    count = max(1, _count(rng, asked) - ("placeholders" in asked))
    chosen = {fact for fact in facts if any(word in fact.lower() for word in needed)}
    if rng.random() < 0.9:
        chosen.add(facts[0])
    rest = [fact for fact in facts if fact not in chosen]
    chosen.update(rng.sample(rest, min(len(rest), max(0, count - len(chosen)))))
    sentences = [fact for fact in facts if fact in chosen]
    if sentences[0].startswith(phrases().pronouns):
        sentences[0] = facts[0]
    if "no_commas" not in asked and not LAYOUTS & set(asked):
        for place in range(1, len(sentences)):
            if rng.random() < 0.3:
                sentences[place] = rng.choice(phrases().links) + _lower_first(sentences[place], scene)
    if "placeholders" in asked:
        sentences.append(rng.choice(phrases().blanks[asked["placeholders"]["N"] - 1]))
    return sentences


def _count(rng: Random, asked: dict[str, Arguments]) -> int:
    """How many sentences to try for."""
    if "bullets" in asked:
        return asked["bullets"]["N"]
    for kind in ("paragraphs", "sections", "first_word"):
        if kind in asked:
            return asked[kind]["N"] + rng.randrange(3)
    if "two_responses" in asked:
        return rng.choice((2, 4))
    if "uppercase" in asked:
        return rng.choice((1, 2))
    return rng.choice((3, 3, 4, 4)) if "words" not in asked and "sentences" not in asked else rng.randint(1, 6)


def _emphasise(rng: Random, scene: Scene, sentences: list[str], asked: dict[str, Arguments]) -> list[str]:
    """Set words apart: *stars* for highlights, capitals for capital words; never the same word twice."""
    present = [word for word in scene.words if any(re.search(rf"\b{word}\b", text) for text in sentences)]
    present.sort(key=lambda word: len(word) + 2 * rng.random())  # long words are rarely empty ones
    for kind, style in (("highlights", "*{}*".format), ("capitals", str.upper)):
        for _ in range(asked.get(kind, {}).get("N", 0)):
            if present:
                word = present.pop()
                place = next(i for i, text in enumerate(sentences) if re.search(rf"\b{word}\b", text))
                sentences[place] = re.sub(rf"\b{word}\b", style(word), sentences[place], count=1)
    return sentences


def _layout(rng: Random, scene: Scene, sentences: list[str], asked: dict[str, Arguments]) -> str:
    if "bullets" in asked:
        return "\n".join(f"* {text}" for text in sentences)
    if "paragraphs" in asked:
        return "\n\n* * *\n\n".join(_cut(sentences, asked["paragraphs"]["N"]))
    if "two_responses" in asked:
        return "\n\n******\n\n".join(_cut(sentences, 2))
    if "sections" in asked:
        name = asked["sections"]["section_splitter"]
        parts = _cut(sentences, asked["sections"]["N"])
        return "\n\n".join(f"{name} {number}\n{part}" for number, part in enumerate(parts, 1))
    if "first_word" in asked:
        parts = _cut(sentences, asked["first_word"]["N"])
        place = asked["first_word"]["i"] - 1
        word = asked["first_word"]["first_word"]
        return "\n\n".join(f"{phrases().openers[word]} {part}" if i == place else part for i, part in enumerate(parts))
    text = " ".join(sentences)
    if "repeat" in asked:
        return f"{scene.request}\n\n{text}"
    if scene.person:
        closing = [] if "end" in asked or rng.random() < 0.4 else [rng.choice(phrases().closings)]
        return " ".join([rng.choice(phrases().greetings).format(person=scene.person), text, *closing])
    return text


def _frame(rng: Random, scene: Scene, text: str, asked: dict[str, Arguments]) -> str:
    """A title above, a postscript and the end phrase below."""
    if "title" in asked:
        title = " ".join(word[0].upper() + word[1:] for word in scene.topic.split())
        text = f"<<{rng.choice(phrases().titles).format(topic=title)}>>\n{text}"
    if "postscript" in asked:
        text = f"{text}\n\n{asked['postscript']['postscript_marker']} {rng.choice(phrases().postscripts)}"
    if "end" in asked:
        text = f"{text}{chr(10) if 'bullets' in asked else ' '}{asked['end']['end_phrase']}"
    return text


def _cut(sentences: list[str], parts: int) -> list[str]:
    """Consecutive groups of near-equal size, joined; fewer groups when there are too few sentences."""
    bounds = [round(i * len(sentences) / parts) for i in range(parts + 1)]
    groups = [" ".join(sentences[a:b]) for a, b in pairwise(bounds)]
    return [group for group in groups if group]


def _lower_first(sentence: str, scene: Scene) -> str:
    """The sentence as it stands in mid-sentence; a name that is part of the topic keeps its capital."""
    if sentence.split()[0] in scene.topic.split():
        return sentence
    return sentence[0].lower() + sentence[1:]


def _n(*numbers: int, **fixed: Any) -> Callable[[Random, Scene], Arguments]:
    return lambda rng, scene: {"N": rng.choice(numbers), **fixed}


def _some_words(key: str) -> Callable[[Random, Scene], Arguments]:
    return lambda rng, scene: {key: rng.sample(scene.words, rng.choice((1, 2)))}


def _bound(lows: tuple[int, ...], highs: tuple[int, ...]) -> Callable[[Random, Scene], Arguments]:
    def draw(rng: Random, scene: Scene) -> Arguments:
        quantifier = rng.choice(("at least", "at most"))
        return {"N": rng.choice(lows if quantifier == "at least" else highs), "quantifier": quantifier}

    return draw


LAYOUTS = {"bullets", "choice", "first_word", "json", "paragraphs", "repeat", "sections", "two_responses"}
_DRAWS: dict[str, Callable[[Random, Scene], Arguments]] = {  # how the arguments of a kind are drawn, where it has any
    "end": lambda rng, scene: {"end_phrase": rng.choice(phrases().end_phrases[scene.split])},
    "bullets": _n(2, 3, 4),
    "postscript": lambda rng, scene: {"postscript_marker": rng.choice(("P.S.", "P.S.", "P.P.S."))},
    "placeholders": _n(1, 2, 3),
    "highlights": _n(1, 2, 3),
    "keywords": _some_words("keyword_list"),
    "forbidden": _some_words("forbidden_words"),
    "paragraphs": _n(2, 3),
    "first_word": lambda rng, scene: (
        {"N": 2, "first_word": rng.choice(sorted(phrases().openers)), "i": rng.choice((1, 2))}
    ),
    "sentences": _bound((3, 4), (1, 2, 3)),
    "words": _bound((20, 25, 30, 35, 40), (12, 15, 20, 25, 30)),
    "choice": lambda rng, scene: {"options": list(rng.choice(phrases().choices))},
    "repeat": lambda rng, scene: {"original_prompt": scene.request},
    "sections": lambda rng, scene: (
        {"N": rng.choice((2, 3)), "section_splitter": rng.choice(phrases().splitters[scene.split])}
    ),
    "capitals": _n(1, 2, 3, quantifier="at least"),
}
_TABLE = tomllib.loads(Path(__file__).with_name("constraints.toml").read_text(encoding="utf-8"))
KINDS = {name: ConstraintKind(**about, draw=_DRAWS.get(name, lambda rng, scene: {})) for name, about in _TABLE.items()}
