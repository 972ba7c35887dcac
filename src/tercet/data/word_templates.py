"""The notation of the word problem templates and the words that fill them.

A template is text. `{a}` is a number and `{name}` or `{fruit}` a word of the pools below; in a solution,
`[a + b = total]` is a step: it is computed, written as "5 + 7 = 12", and gives later steps the number `total`.
The last step is the answer. The templates themselves are in `word_templates_train` and `word_templates_exam`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Template:
    """One kind of problem: phrasings of the question, the worked solution, and where the numbers come from.

    Example: `Template("gave", ("{name} had {a} {toy} and gave away {b}. How many are left?",),
    "{name} has [a - b = left] {toy} left.", {"a": range(14, 70), "b": range(4, 30)})`.
    """

    name: str
    asks: tuple[str, ...]
    solution: str
    numbers: Mapping[str, range]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(","))


def _things(text: str) -> tuple[tuple[str, str], ...]:
    """Read "box:boxes, bag:bags" as pairs of singular and plural."""
    return tuple((one, many) for one, _, many in (item.partition(":") for item in _listed(text)))


# People with the words for "she" and "her" that the templates write as `{they}` and `{their}`.
WOMEN = _listed(
    "Maya, Lena, Aisha, Chloe, Rosa, Mei, Nora, Priya, Ines, Hana, "
    "Zoe, Amara, Julia, Fatima, Elsa, Leila, Grace, Sofia, Ruth, Yuki"
)
MEN = _listed(
    "Omar, Liam, Kofi, Diego, Noah, Ravi, Jonas, Ben, Hugo, Tariq, "
    "Felix, Mateo, Ivan, Samuel, Paul, Kenji, Arthur, Leo, Nils, Marco"
)
PEOPLE = (*((name, "she", "her") for name in WOMEN), *((name, "he", "his") for name in MEN))

# Pools of things: a slot `{fruit}` is the plural, `{fruit_one}` the singular, which always begins with a consonant
# where a template writes "a" before it.
THINGS = {
    "fruit": _things(
        "apple:apples, pear:pears, orange:oranges, peach:peaches, plum:plums, lemon:lemons, mango:mangoes, "
        "apricot:apricots, fig:figs, lime:limes"
    ),
    "toy": _things(
        "marble:marbles, sticker:stickers, stamp:stamps, seashell:seashells, button:buttons, postcard:postcards, "
        "badge:badges, trading card:trading cards, pebble:pebbles, bead:beads"
    ),
    "baked": _things(
        "muffin:muffins, cookie:cookies, scone:scones, cupcake:cupcakes, bagel:bagels, waffle:waffles, "
        "bread roll:bread rolls, brownie:brownies"
    ),
    "supply": _things(
        "pencil:pencils, marker:markers, notebook:notebooks, brush:brushes, ruler:rulers, folder:folders, "
        "pen:pens, glue stick:glue sticks"
    ),
    "good": _things(
        "T-shirt:T-shirts, cap:caps, mug:mugs, puzzle:puzzles, kite:kites, scarf:scarves, book:books, "
        "candle:candles, poster:posters, vase:vases"
    ),
    "box": _things("box:boxes, bag:bags, basket:baskets, crate:crates, tray:trays"),
    "flower": _things(
        "tulip:tulips, rose:roses, daisy:daisies, lily:lilies, dahlia:dahlias, poppy:poppies, "
        "carnation:carnations, pansy:pansies"
    ),
    "animal": _things("hen:hens, goat:goats, cow:cows, duck:ducks, pig:pigs, horse:horses"),
    "vegetable": _things(
        "carrot:carrots, cabbage:cabbages, leek:leeks, pepper:peppers, turnip:turnips, tomato:tomatoes, "
        "lettuce:lettuces, radish:radishes"
    ),
}

# Pools of single words or phrases.
PHRASES = {
    "place": _listed("the market, the school shop, the village fair, the corner store, a yard sale, the museum shop"),
    "day": _listed("Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday"),
    "town": _listed("Riverton, Oakdale, Millbrook, Lakeside, Ashford, Greenfield, Stonebridge, Fairview"),
}
