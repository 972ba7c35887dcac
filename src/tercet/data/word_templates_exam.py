"""Word problem templates that only the exam uses: other stories, the same arithmetic."""

from __future__ import annotations

from tercet.data.word_templates import Template

EXAM: tuple[Template, ...] = (
    # One step.
    Template(
        "before_lending",
        (
            (
                "After lending {b} comic books to {name2}, {name} has {a} comic books at home. How many comic "
                "books does {name} own?"
            ),
            "{name} lent {name2} {b} comic books and still has {a} on the shelf. How many were on the shelf before?",
        ),
        "Before lending them, {name} had [a + b = before] comic books.",
        {"a": range(6, 46), "b": range(5, 36)},
    ),
    Template(
        "what_was_added",
        (
            (
                "A jar held {a} beans. {name} poured in some more, and now it holds {b}. How many beans did {name} "
                "pour in?"
            ),
            (
                "There were {a} beans in a jar in the morning and {b} in the evening. How many beans were added "
                "during the day?"
            ),
        ),
        "[b - a = added] beans were added.",
        {"a": range(5, 36), "b": range(20, 81)},
    ),
    Template(
        "price_of_one",
        (
            "{name} paid ${a} for {b} identical {good}. What was the price of one {good_one}?",
            "{b} {good} of the same kind cost ${a} together. How many dollars does a single {good_one} cost?",
        ),
        "One {good_one} costs [a / b = price] dollars.",
        {"a": range(10, 97), "b": range(2, 10)},
    ),
    Template(
        "wheels_on_tricycles",
        (
            "A tricycle has 3 wheels. How many wheels do {a} tricycles have?",
            "{name} repairs tricycles, which have 3 wheels each. How many wheels are there on {a} of them?",
        ),
        "The tricycles have [a * 3 = wheels] wheels.",
        {"a": range(4, 21)},
    ),
    Template(
        "floor_tiles",
        (
            "A kitchen floor is {a} tiles long and {b} tiles wide. How many tiles cover the floor?",
            "{name} tiles a floor that measures {a} tiles by {b} tiles. How many tiles does {they} lay?",
        ),
        "The floor takes [a * b = tiles] tiles.",
        {"a": range(4, 13), "b": range(3, 11)},
    ),
    Template(
        "temperature_fell",
        (
            (
                "At noon it was {a} degrees in {town}. By night the temperature had fallen by {b} degrees. What "
                "was it then?"
            ),
            (
                "The thermometer in {town} showed {a} degrees at noon and dropped {b} degrees by midnight. What "
                "did it show at midnight?"
            ),
        ),
        "At night it was [a - b = night] degrees.",
        {"a": range(18, 39), "b": range(3, 17)},
    ),
    Template(
        "trip_in_two_parts",
        (
            (
                "{name} travels to {town}: {a} minutes by train and {b} minutes on foot. How many minutes does the "
                "trip take?"
            ),
            (
                "The train ride to {town} lasts {a} minutes, and the walk after it lasts {b} minutes. How long is "
                "the whole trip in minutes?"
            ),
        ),
        "The trip takes [a + b = minutes] minutes.",
        {"a": range(10, 56), "b": range(8, 41)},
    ),
    # Two steps.
    Template(
        "barrel_before_leak",
        (
            (
                "A barrel lost {b} liters of water on {day}, lost {c} more the next day, and then held {a}. How "
                "many liters did it hold at first?"
            ),
            (
                "After leaking {b} liters and then {c} liters, a barrel still has {a} liters in it. How many "
                "liters were in it before the leak?"
            ),
        ),
        "The barrel lost [b + c = lost] liters. At first it held [a + lost = first] liters.",
        {"a": range(5, 31), "b": range(6, 26), "c": range(4, 21)},
    ),
    Template(
        "fence_around_yard",
        (
            (
                "{name} builds a fence around a yard that is {a} meters long and {b} meters wide. How many meters "
                "of fence does {they} need?"
            ),
            (
                "A rectangular yard measures {a} meters by {b} meters. How long is the fence that goes all the way "
                "around it, in meters?"
            ),
        ),
        "One long and one short side are [a + b = sides] meters. All around it is [sides * 2 = fence] meters.",
        {"a": range(6, 31), "b": range(4, 21)},
    ),
    Template(
        "gap_within_a_total",
        (
            (
                "{name} and {name2} caught {a} fish together. {name} caught {b} of them. How many more fish did "
                "{name} catch than {name2}?"
            ),
            "Of the {a} fish that {name} and {name2} caught, {b} were {name}'s. How many fewer fish did {name2} catch?",
        ),
        "{name2} caught [a - b = other] fish. The difference is [b - other = gap] fish.",
        {"a": range(30, 71), "b": range(20, 49)},
    ),
    Template(
        "tap_and_drain",
        (
            (
                "A tap adds {a} liters to a tub each minute while {b} liters drain out. How many liters are in the "
                "tub after {c} minutes?"
            ),
            (
                "Each minute {a} liters run into an empty tub and {b} liters run out. How much water is in it "
                "after {c} minutes?"
            ),
        ),
        "Each minute the tub gains [a - b = gain] liters. After {c} minutes it holds [gain * c = water] liters.",
        {"a": range(6, 16), "b": range(2, 8), "c": range(4, 13)},
    ),
    Template(
        "third_cyclist",
        (
            (
                "Three cyclists cover {a} kilometers in a relay. The first rides {b} and the second {c}. How many "
                "kilometers does the third ride?"
            ),
            (
                "A bicycle relay is {a} kilometers long. {name} rides {b} kilometers, {name2} rides {c}, and a "
                "third cyclist does the rest. How far does the third one ride?"
            ),
        ),
        "The first two ride [b + c = two] kilometers. The third rides [a - two = third] kilometers.",
        {"a": range(40, 96), "b": range(9, 31), "c": range(8, 31)},
    ),
    Template(
        "boats_still_needed",
        (
            (
                "{a} campers want to cross a lake. A boat takes {b} of them, and {c} boats are ready. How many "
                "more boats are needed?"
            ),
            "Every boat seats {b} campers. There are {a} campers but only {c} boats. How many boats are missing?",
        ),
        "The campers need [a / b = boats] boats. So [boats - c = missing] more boats are needed.",
        {"a": range(24, 81), "b": range(3, 9), "c": range(2, 7)},
    ),
    Template(
        "halls_then_teams",
        (
            (
                "A camp divides {a} children equally into {b} halls, and each hall into {c} equal teams. How many "
                "children are on a team?"
            ),
            (
                "{a} children go to {b} halls in equal numbers. In every hall they form {c} teams of the same "
                "size. How big is one team?"
            ),
        ),
        "Each hall gets [a / b = hall] children. Each team has [hall / c = team] children.",
        {"a": range(24, 121), "b": range(2, 6), "c": range(2, 7)},
    ),
    Template(
        "heights_added",
        (
            (
                "A pine is {a} meters tall, which is {b} times as tall as an oak. How many meters do the two "
                "heights add up to?"
            ),
            (
                "The pine by the school is {b} times as tall as the oak. The pine measures {a} meters. What is the "
                "sum of the two heights in meters?"
            ),
        ),
        "The oak is [a / b = oak] meters tall. The sum is [a + oak = sum] meters.",
        {"a": range(12, 76), "b": range(3, 6)},
    ),
    Template(
        "feed_lasts",
        (
            "{b} dogs eat {c} cups of food each per day. How many days will {a} cups last?",
            (
                "A shelter has {a} cups of food for {b} dogs. If every dog eats {c} cups a day, for how many days "
                "is there enough?"
            ),
        ),
        "The dogs eat [b * c = daily] cups a day. The food lasts [a / daily = days] days.",
        {"a": range(24, 121), "b": range(2, 7), "c": range(2, 6)},
    ),
    Template(
        "delivery_and_lamps",
        (
            (
                "A bill of ${a} includes ${b} for delivery. The rest is for {c} lamps of equal price. How much is "
                "one lamp?"
            ),
            "{name} ordered {c} equal lamps and paid ${a}, of which ${b} was for delivery. What did one lamp cost?",
        ),
        "Without delivery the bill is [a - b = lamps] dollars. One lamp costs [lamps / c = price] dollars.",
        {"a": range(25, 96), "b": range(5, 16), "c": range(2, 9)},
    ),
    # Three steps.
    Template(
        "two_writers_gap",
        (
            (
                "{name} writes {a} letters a day for {b} days. {name2} writes {c} letters a day for {d} days. How "
                "many more letters does {name} write?"
            ),
            (
                "Working {b} days, {name} writes {a} letters each day. {name2} works {d} days and writes {c} each "
                "day. By how many letters is {name} ahead?"
            ),
        ),
        (
            "{name} writes [a * b = first] letters. {name2} writes [c * d = second] letters. The difference is "
            "[first - second = gap] letters."
        ),
        {"a": range(6, 13), "b": range(5, 10), "c": range(2, 6), "d": range(3, 7)},
    ),
    Template(
        "charity_goal",
        (
            (
                "A club wants to raise ${a}. It washes {b} cars for ${c} each and sells badges for ${d}. How many "
                "badges must it sell to reach the goal?"
            ),
            (
                "To reach ${a}, a club washes {b} cars at ${c} per car and earns the rest with ${d} badges. How "
                "many badges does it have to sell?"
            ),
        ),
        (
            "The cars bring in [b * c = cars] dollars. The club still needs [a - cars = rest] dollars. That is "
            "[rest / d = badges] badges."
        ),
        {"a": range(60, 121, 10), "b": range(5, 11), "c": range(3, 9), "d": range(2, 7)},
    ),
    Template(
        "empty_seats",
        (
            (
                "A café has {a} tables with {b} seats each and {c} stools. {d} guests are sitting down. How many "
                "places are free?"
            ),
            (
                "There are {c} stools and {a} tables with {b} seats in a café. If {d} guests each take a place, "
                "how many places stay empty?"
            ),
        ),
        (
            "The tables have [a * b = seats] seats. With the stools there are [seats + c = places] places. [places "
            "- d = free] places are free."
        ),
        {"a": range(4, 11), "b": range(4, 9), "c": range(3, 13), "d": range(20, 71)},
    ),
)
