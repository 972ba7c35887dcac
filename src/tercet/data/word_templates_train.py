"""Word problem templates for training; see `tercet.data.word_templates` for the notation."""

from __future__ import annotations

from tercet.data.word_templates import Template

TRAIN: tuple[Template, ...] = (
    # One step.
    Template(
        "picked_together",
        (
            "{name} picked {a} {fruit} and {name2} picked {b}. How many {fruit} did they pick together?",
            (
                "At the farm, {name} filled a basket with {a} {fruit}, and {name2} filled another with {b}. How "
                "many {fruit} are in the two baskets?"
            ),
            "How many {fruit} do {name} and {name2} have together if {name} picked {a} and {name2} picked {b}?",
        ),
        "Together they picked [a + b = total] {fruit}.",
        {"a": range(6, 49), "b": range(5, 40)},
    ),
    Template(
        "collection_grew",
        (
            "{name} collects {toy}. {They} had {a} and found {b} more on {day}. How many {toy} does {name} have now?",
            (
                "There were {a} {toy} in {name}'s collection. On {day} {they} added {b} more. How big is the "
                "collection now?"
            ),
        ),
        "{name} now has [a + b = total] {toy}.",
        {"a": range(12, 71), "b": range(4, 29)},
    ),
    Template(
        "gave_some_away",
        (
            "{name} had {a} {toy} and gave {b} of them to {name2}. How many {toy} does {name} have left?",
            "After giving {name2} {b} of {their} {a} {toy}, how many {toy} does {name} still have?",
            "{name} owned {a} {toy}. {name2} got {b} of them as a present. How many did {name} keep?",
        ),
        "{name} has [a - b = left] {toy} left.",
        {"a": range(14, 71), "b": range(4, 39)},
    ),
    Template(
        "how_many_more",
        (
            "{name} sold {a} raffle tickets and {name2} sold {b}. How many more tickets did {name} sell than {name2}?",
            (
                "In the school raffle, {name2} sold {b} tickets while {name} sold {a}. By how many tickets did "
                "{name} beat {name2}?"
            ),
        ),
        "{name} sold [a - b = more] more tickets than {name2}.",
        {"a": range(18, 76), "b": range(5, 41)},
    ),
    Template(
        "full_boxes",
        (
            "A shop received {a} {box} with {b} {fruit} in each. How many {fruit} did the shop receive?",
            "Each {box_one} holds {b} {fruit}. How many {fruit} are in {a} full {box}?",
        ),
        "There are [a * b = total] {fruit} in all.",
        {"a": range(3, 10), "b": range(4, 13)},
    ),
    Template(
        "shared_equally",
        (
            "{name} has {a} {baked} and shares them equally among {b} friends. How many {baked} does each friend get?",
            (
                "{b} friends split {a} {baked} so that everyone gets the same number. How many {baked} does each "
                "of them get?"
            ),
        ),
        "Each friend gets [a / b = each] {baked}.",
        {"a": range(12, 73), "b": range(2, 10)},
    ),
    Template(
        "cost_of_several",
        (
            "One {good_one} costs ${b}. How much do {a} {good} cost?",
            "{name} buys {a} {good} at {place}. Each one costs ${b}. How many dollars does {they} pay?",
        ),
        "The {good} cost [a * b = cost] dollars.",
        {"a": range(3, 10), "b": range(3, 13)},
    ),
    Template(
        "money_left",
        (
            "{name} had ${a} and spent ${b} on a new {good_one}. How much money is left?",
            (
                "A {good_one} costs ${b}. If {name} goes to {place} with ${a} and buys it, how many dollars does "
                "{they} have afterwards?"
            ),
        ),
        "{name} has [a - b = left] dollars left.",
        {"a": range(20, 91), "b": range(6, 56)},
    ),
    Template(
        "the_others_are",
        (
            "There are {a} {flower} in a garden. {b} of them are red and the others are yellow. How many are yellow?",
            "A bed of {a} {flower} has only red and yellow ones. If {b} are red, how many {flower} are yellow?",
        ),
        "[a - b = rest] of the {flower} are yellow.",
        {"a": range(20, 69), "b": range(7, 46)},
    ),
    Template(
        "times_as_many",
        (
            "{name} has {a} {toy}. {name2} has {b} times as many. How many {toy} does {name2} have?",
            "{name2} owns {b} times as many {toy} as {name}, who owns {a}. How many does {name2} own?",
        ),
        "{name2} has [a * b = many] {toy}.",
        {"a": range(4, 19), "b": range(3, 6)},
    ),
    Template(
        "half_of_them",
        (
            "A bakery made {a} {baked} and sold half of them before noon. How many {baked} were sold before noon?",
            "Half of the {a} {baked} on a tray are for {name}'s class. How many {baked} are for the class?",
        ),
        "Half of the {baked} is [a / 2 = half].",
        {"a": range(8, 91)},
    ),
    Template(
        "packs_needed",
        (
            "{name} needs {a} {supply} for the art room. They come in packs of {b}. How many packs should {they} buy?",
            "How many packs of {b} {supply} does {name} need to get {a} {supply}?",
        ),
        "{name} needs [a / b = packs] packs.",
        {"a": range(18, 97), "b": range(3, 10)},
    ),
    Template(
        "rows_of_chairs",
        (
            (
                "For the school play, {name} set up {a} rows of chairs with {b} chairs in each row. How many "
                "chairs is that?"
            ),
            "A hall has {a} rows with {b} chairs each. How many people can sit in the hall?",
        ),
        "There are [a * b = chairs] chairs.",
        {"a": range(4, 11), "b": range(5, 13)},
    ),
    Template(
        "age_later",
        (
            "{name} is {a} years old today. How old will {they} be in {b} years?",
            "In {b} years, what will be the age of {name}, who is {a} now?",
        ),
        "In {b} years {name} will be [a + b = age] years old.",
        {"a": range(6, 36), "b": range(4, 26)},
    ),
    Template(
        "younger_than",
        (
            "{name} is {a} years old. {name2} is {b} years younger. How old is {name2}?",
            "{name2} was born {b} years after {name}. How old is {name2} when {name} is {a}?",
        ),
        "{name2} is [a - b = age] years old.",
        {"a": range(15, 61), "b": range(3, 14)},
    ),
    Template(
        "same_every_day",
        (
            "{name} walks {a} kilometers every day. How far does {they} walk in {b} days?",
            "How many kilometers does {name} cover in {b} days if {they} walks {a} kilometers each day?",
        ),
        "In {b} days {name} walks [a * b = far] kilometers.",
        {"a": range(3, 13), "b": range(3, 10)},
    ),
    # Two steps.
    Template(
        "gave_to_two_friends",
        (
            "{name} had {a} {toy}. {They} gave {b} to {name2} and {c} to a cousin. How many {toy} are left?",
            (
                "From a box of {a} {toy}, {name} took {b} for {name2} and then {c} for a cousin. How many {toy} "
                "stayed in the box?"
            ),
        ),
        "After the first gift {name} had [a - b = rest] {toy}. After the second, [rest - c = left] {toy} were left.",
        {"a": range(25, 81), "b": range(4, 16), "c": range(3, 16)},
    ),
    Template(
        "spent_then_earned",
        (
            (
                "{name} had ${a}. {They} spent ${b} at {place} and then earned ${c} for mowing a lawn. How many "
                "dollars does {name} have now?"
            ),
            (
                "On {day} {name} left home with ${a}, paid ${b} at {place}, and later got ${c} for mowing a lawn. "
                "How much money does {they} have now?"
            ),
        ),
        "After shopping {name} had [a - b = rest] dollars. With the pay {they} has [rest + c = now] dollars.",
        {"a": range(20, 71), "b": range(5, 31), "c": range(5, 31)},
    ),
    Template(
        "three_days_total",
        (
            "{name} read {a} pages on Monday, {b} on Tuesday and {c} on Wednesday. How many pages is that in all?",
            (
                "How many pages did {name} read in three days if {they} read {a} on the first, {b} on the second "
                "and {c} on the third?"
            ),
        ),
        "In the first two days {name} read [a + b = two] pages. In all {they} read [two + c = all] pages.",
        {"a": range(8, 36), "b": range(6, 31), "c": range(5, 29)},
    ),
    Template(
        "boxes_then_eaten",
        (
            (
                "{name} bought {a} {box} of {fruit} with {b} in each. The family ate {c} of them. How many {fruit} "
                "are left?"
            ),
            "There were {a} {box} with {b} {fruit} each on the table. After {c} {fruit} were eaten, how many remained?",
        ),
        "There were [a * b = all] {fruit} at first. Then [all - c = left] {fruit} were left.",
        {"a": range(3, 9), "b": range(5, 13), "c": range(3, 21)},
    ),
    Template(
        "packs_plus_loose",
        (
            "{name} has {a} packs of {b} {supply} and {c} loose ones. How many {supply} does {they} have in total?",
            (
                "A drawer holds {c} loose {supply} and {a} packs with {b} {supply} each. How many {supply} are in "
                "the drawer?"
            ),
        ),
        "The packs hold [a * b = packed] {supply}. In total there are [packed + c = total] {supply}.",
        {"a": range(3, 10), "b": range(4, 11), "c": range(2, 16)},
    ),
    Template(
        "pooled_then_shared",
        (
            (
                "{name} baked {a} {baked} and {name2} baked {b}. They put them all equally on {c} plates. How many "
                "{baked} are on each plate?"
            ),
            (
                "If {name}'s {a} {baked} and {name2}'s {b} are spread evenly over {c} plates, how many {baked} go "
                "on a plate?"
            ),
        ),
        "Together they have [a + b = all] {baked}. Each plate gets [all / c = each] {baked}.",
        {"a": range(8, 41), "b": range(6, 36), "c": range(2, 9)},
    ),
    Template(
        "kept_some_packed_rest",
        (
            (
                "{name} grew {a} {flower}. {They} kept {b} and tied the rest into bunches of {c}. How many bunches "
                "did {they} make?"
            ),
            (
                "Of {a} {flower}, {name} put {b} in a vase and tied the others into bunches of {c}. How many "
                "bunches are there?"
            ),
        ),
        "After keeping some, {name} had [a - b = rest] {flower}. That makes [rest / c = bunches] bunches.",
        {"a": range(20, 81), "b": range(4, 21), "c": range(3, 10)},
    ),
    Template(
        "change_from_a_note",
        (
            "{name} buys {a} {good} for ${b} each and pays with ${c}. How much change does {they} get?",
            (
                "At {place}, {good} cost ${b} each. {name} takes {a} of them and hands over ${c}. How many dollars "
                "come back?"
            ),
        ),
        "The {good} cost [a * b = cost] dollars. The change is [c - cost = change] dollars.",
        {"a": range(3, 8), "b": range(3, 10), "c": range(20, 61, 10)},
    ),
    Template(
        "one_has_more",
        (
            (
                "{name} scored {a} points and {name2} scored {b} more than {name}. How many points did the two "
                "score together?"
            ),
            "In a quiz {name} got {a} points. {name2} got {b} points more. What was their total?",
        ),
        "{name2} scored [a + b = other] points. Together they scored [a + other = both] points.",
        {"a": range(8, 41), "b": range(4, 19)},
    ),
    Template(
        "one_has_times_more",
        (
            (
                "{name} planted {a} {flower}. {name2} planted {b} times as many. How many {flower} did they plant "
                "altogether?"
            ),
            (
                "If {name} planted {a} {flower} and {name2} planted {b} times that number, how many {flower} are "
                "there in total?"
            ),
        ),
        "{name2} planted [a * b = other] {flower}. Altogether they planted [a + other = both] {flower}.",
        {"a": range(4, 16), "b": range(3, 6)},
    ),
    Template(
        "one_has_fewer",
        (
            (
                "A farmer has {a} {animal} in the first barn and {b} fewer in the second. How many {animal} are in "
                "both barns?"
            ),
            (
                "The first barn holds {a} {animal}, and the second holds {b} fewer than that. How many {animal} "
                "does the farmer have?"
            ),
        ),
        "The second barn has [a - b = second] {animal}. Both barns have [a + second = both] {animal}.",
        {"a": range(14, 49), "b": range(3, 13)},
    ),
    Template(
        "still_short_of_price",
        (
            (
                "{name} wants a bicycle that costs ${a}. {They} saves ${b} a week for {c} weeks. How many more "
                "dollars does {they} need?"
            ),
            "A bicycle costs ${a}. After saving ${b} every week for {c} weeks, how much is {name} still missing?",
        ),
        "{name} saves [b * c = saved] dollars. {They} still needs [a - saved = missing] dollars.",
        {"a": range(40, 96, 5), "b": range(4, 10), "c": range(3, 9)},
    ),
    Template(
        "weeks_to_save",
        (
            (
                "{name} needs ${a} for a school trip and already has ${b}. If {they} saves ${c} each week, how "
                "many weeks will it take?"
            ),
            "A trip costs ${a}. {name} has ${b} and puts aside ${c} a week. In how many weeks can {they} pay for it?",
        ),
        "{name} still needs [a - b = missing] dollars. That takes [missing / c = weeks] weeks.",
        {"a": range(30, 96), "b": range(5, 26), "c": range(3, 11)},
    ),
    Template(
        "sold_half_then_more",
        (
            (
                "{name} took {a} {baked} to a fair. Half were sold in the morning and {b} in the afternoon. How "
                "many were not sold?"
            ),
            "A stall had {a} {baked}. It sold half of them, and then {b} more. How many {baked} were left?",
        ),
        (
            "In the morning [a / 2 = half] {baked} were sold, and as many were left. In the end [half - b = left] "
            "{baked} were left."
        ),
        {"a": range(20, 91), "b": range(4, 21)},
    ),
    Template(
        "pages_so_far",
        (
            (
                "{name} has read {a} pages of a book. {They} reads {b} pages a day for the next {c} days. How many "
                "pages will {they} have read by then?"
            ),
            (
                "By {day} {name} was on page {a} of a novel. {They} then read {b} pages on each of {c} days. What "
                "page did {they} reach?"
            ),
        ),
        "In {c} days {name} reads [b * c = new] pages. That makes [a + new = total] pages.",
        {"a": range(10, 46), "b": range(5, 13), "c": range(3, 9)},
    ),
    Template(
        "bus_stop",
        (
            (
                "A bus carries {a} people. At a stop {b} people get on and {c} get off. How many people are on the "
                "bus now?"
            ),
            (
                "{a} people sat on the bus to {town}. {b} more got on at the station, and {c} got off at the "
                "bridge. How many were still on it?"
            ),
        ),
        "With the new people there were [a + b = full] on the bus. After that, [full - c = now] were on it.",
        {"a": range(15, 46), "b": range(5, 19), "c": range(3, 17)},
    ),
    Template(
        "profit_on_each",
        (
            (
                "{name} buys {good} for ${b} each and sells them for ${a} each. How much profit does {they} make "
                "on {c} of them?"
            ),
            (
                "A {good_one} costs the shop ${b} and sells for ${a}. How many dollars does the shop gain by "
                "selling {c} {good}?"
            ),
        ),
        "The profit on one {good_one} is [a - b = gain] dollars. On {c} it is [gain * c = profit] dollars.",
        {"a": range(5, 16), "b": range(2, 10), "c": range(3, 11)},
    ),
    Template(
        "party_bags",
        (
            "{name} puts {a} {toy} and {b} sweets into every party bag. How many things does {they} need for {c} bags?",
            "Each party bag gets {b} sweets and {a} {toy}. How many things go into {c} party bags altogether?",
        ),
        "Each bag holds [a + b = each] things. For {c} bags {name} needs [each * c = total] things.",
        {"a": range(2, 7), "b": range(2, 7), "c": range(4, 13)},
    ),
    Template(
        "recipe_for_more",
        (
            "{name} uses {a} eggs to bake {b} cakes. How many eggs are needed for {c} cakes?",
            "{b} cakes take {a} eggs. At that rate, how many eggs does {name} need to bake {c} cakes?",
        ),
        "One cake takes [a / b = one] eggs. {c} cakes take [one * c = eggs] eggs.",
        {"a": range(6, 41), "b": range(2, 6), "c": range(3, 10)},
    ),
    Template(
        "packed_again",
        (
            (
                "A grocer opens {a} {box} with {b} {fruit} each and packs them into nets of {c}. How many nets "
                "does the grocer fill?"
            ),
            (
                "{name} takes the {fruit} out of {a} {box}, {b} from each, and puts {c} into every net. How many "
                "nets does {they} fill?"
            ),
        ),
        "There are [a * b = all] {fruit}. They fill [all / c = nets] nets.",
        {"a": range(3, 9), "b": range(4, 13), "c": range(2, 10)},
    ),
    Template(
        "shared_then_got_more",
        (
            (
                "{b} children share {a} {toy} equally. Later {name}, one of them, finds {c} more. How many {toy} "
                "does {name} have now?"
            ),
            (
                "{name} got an equal share when {a} {toy} were split among {b} children, and then found {c} more. "
                "How many {toy} is that for {name}?"
            ),
        ),
        "{name}'s share is [a / b = share] {toy}. With the new ones {they} has [share + c = now] {toy}.",
        {"a": range(12, 73), "b": range(2, 9), "c": range(3, 21)},
    ),
    Template(
        "one_third_gone",
        (
            "A class of children blew up {a} balloons. One third of them popped. How many balloons are left?",
            "One third of {name}'s {a} balloons popped during the party. How many balloons did not pop?",
        ),
        "[a / 3 = popped] balloons popped. [a - popped = left] balloons are left.",
        {"a": range(12, 91)},
    ),
    Template(
        "shelves_in_rooms",
        (
            (
                "A library in {town} has {a} rooms with {b} shelves each, and every shelf holds {c} atlases. How "
                "many atlases are there?"
            ),
            (
                "There are {b} shelves in each of {a} rooms and {c} atlases on every shelf. How many atlases does "
                "the library have?"
            ),
        ),
        "The library has [a * b = shelves] shelves. They hold [shelves * c = all] atlases.",
        {"a": range(2, 6), "b": range(2, 6), "c": range(4, 10)},
    ),
    Template(
        "score_doubled",
        (
            (
                "{name} had {a} points in a game and won {b} more. Then a bonus doubled the score. What was "
                "{name}'s final score?"
            ),
            (
                "In a game {name} won {b} points on top of {their} {a}, and a bonus card then doubled everything. "
                "How many points did {they} end with?"
            ),
        ),
        "Before the bonus {name} had [a + b = score] points. Doubled, that is [score * 2 = final] points.",
        {"a": range(8, 36), "b": range(4, 26)},
    ),
    # Three steps.
    Template(
        "two_kinds_of_tickets",
        (
            "A museum charges ${b} for an adult and ${d} for a child. How much do {a} adults and {c} children pay?",
            (
                "{a} adults and {c} children visit a museum. Adult tickets cost ${b} and child tickets ${d}. How "
                "many dollars do they pay in all?"
            ),
        ),
        (
            "The adults pay [a * b = adults] dollars. The children pay [c * d = children] dollars. In all they pay "
            "[adults + children = total] dollars."
        ),
        {"a": range(2, 7), "b": range(6, 13), "c": range(2, 7), "d": range(3, 8)},
    ),
    Template(
        "change_for_two_things",
        (
            (
                "{name} buys {a} {supply} for ${b} each and a bag for ${c}. {They} pays with ${e}. How much change "
                "does {they} get?"
            ),
            (
                "A bag costs ${c} and {supply} cost ${b} each. {name} pays for one bag and {a} {supply} with ${e}. "
                "How much does {they} get back?"
            ),
        ),
        (
            "The {supply} cost [a * b = cost] dollars. With the bag that is [cost + c = sum] dollars. The change "
            "is [e - sum = change] dollars."
        ),
        {"a": range(2, 7), "b": range(2, 8), "c": range(3, 16), "e": range(40, 81, 10)},
    ),
    Template(
        "collected_then_shared",
        (
            (
                "{name} found {a} {toy} and {name2} found {b}. They lost {c} and shared the rest among {d} "
                "children. How many did each child get?"
            ),
            (
                "{a} {toy} from {name} and {b} from {name2} went into one bag, but {c} fell out. The others were "
                "split equally among {d} children. How many did each get?"
            ),
        ),
        (
            "Together they found [a + b = all] {toy}. After losing some they had [all - c = rest]. Each child got "
            "[rest / d = each]."
        ),
        {"a": range(10, 41), "b": range(8, 36), "c": range(3, 16), "d": range(2, 7)},
    ),
    Template(
        "times_more_then_gave",
        (
            (
                "{name} has {a} {toy}, and {name2} has {b} times as many. They put them together and give {c} to a "
                "school. How many {toy} remain?"
            ),
            (
                "{name2} owns {b} times as many {toy} as {name}, who owns {a}. If the two give away {c} in all, "
                "how many do they have left together?"
            ),
        ),
        (
            "{name2} has [a * b = other] {toy}. Together they have [a + other = both]. After the gift [both - c = "
            "left] remain."
        ),
        {"a": range(5, 17), "b": range(3, 6), "c": range(4, 26)},
    ),
    Template(
        "pay_split_after_costs",
        (
            (
                "A team of {d} friends worked {a} hours and earned ${b} an hour together. They paid ${c} for tools "
                "and split the rest equally. How much did each get?"
            ),
            (
                "{d} friends cleaned a garden for {a} hours, and the group was paid ${b} per hour. After buying "
                "tools for ${c}, they shared the money. How many dollars went to each?"
            ),
        ),
        (
            "They earned [a * b = pay] dollars. After the tools they had [pay - c = rest] dollars. Each got [rest "
            "/ d = each] dollars."
        ),
        {"a": range(4, 11), "b": range(5, 13), "c": range(6, 31), "d": range(2, 5)},
    ),
    Template(
        "machines_with_faults",
        (
            (
                "Each of {a} machines makes {b} toys an hour. After {c} hours, {d} toys turn out to be broken. How "
                "many toys are fine?"
            ),
            (
                "A workshop runs {a} machines for {c} hours, and each makes {b} toys an hour. {d} of the toys are "
                "broken. How many are not?"
            ),
        ),
        (
            "The machines make [a * b = hourly] toys an hour. In {c} hours they make [hourly * c = all] toys. Of "
            "these, [all - d = fine] are fine."
        ),
        {"a": range(2, 7), "b": range(3, 9), "c": range(2, 6), "d": range(3, 21)},
    ),
    Template(
        "half_sold_rest_packed",
        (
            (
                "A farm had {a} pumpkins. Half were sold, {b} went to a school, and the rest were loaded onto {c} "
                "carts equally. How many were on each cart?"
            ),
            (
                "Out of {a} pumpkins, half were sold and {b} were given to a school. The others were put evenly on "
                "{c} carts. How many did each cart carry?"
            ),
        ),
        (
            "After selling half, [a / 2 = half] pumpkins were left. After the gift there were [half - b = rest]. "
            "Each cart carried [rest / c = each]."
        ),
        {"a": range(30, 97), "b": range(4, 19), "c": range(2, 9)},
    ),
    Template(
        "garden_rows_replanted",
        (
            (
                "{name} planted {a} rows of {b} {vegetable}. {c} of the plants died, so {they} planted {d} new "
                "ones. How many plants are in the garden?"
            ),
            (
                "A garden had {a} rows with {b} {vegetable} in each. {c} plants dried out and {d} new ones were "
                "planted. How many plants are there now?"
            ),
        ),
        (
            "At first there were [a * b = first] plants. After some died there were [first - c = alive]. With the "
            "new ones there are [alive + d = now]."
        ),
        {"a": range(4, 10), "b": range(4, 10), "c": range(3, 16), "d": range(4, 19)},
    ),
)
