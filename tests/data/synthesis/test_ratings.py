"""Ratings are read for what they say, and become pairs by rules that can be recounted."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from tercet.data.synthesis import ratings as ratings_module
from tercet.data.synthesis.ratings import ASPECTS, CandidateAnswer, Rating, RatingCounts, RatingPlan
from tercet.rows import Completion, Message, Messages, Row, Sampling


class FirmJudge:
    """Rates every text by its own number of exclamation marks, whatever stands beside it; garbles on request."""

    def __init__(self, garbled: str = "") -> None:
        self.garbled = garbled
        self.asked: list[Messages] = []

    def complete(self, prompts: Sequence[Messages], sampling: Sampling, done: object = None) -> list[list[Completion]]:
        self.asked += prompts
        return [[Completion(self.reply(prompt[-1].content), (), (), "eos")] for prompt in prompts]

    def likelihood(self, prompts: object, options: object, *, close: bool = False) -> list[list[object]]:
        raise AssertionError("a judge writes")

    def reply(self, asked: str) -> str:
        texts = asked.split("## Texts")[1].split("## Your reply")[0]
        blocks = re.findall(r"### Text (\d+)\n(.*?)(?=\n\n### Text|\s*$)", texts, re.DOTALL)
        return "\n\n".join(
            f"### Text {number}\n"
            + (self.garbled if self.garbled and "?" in text else f"Rating: {text.count('!') + 1}")
            + "\nRationale: so it is."
            for number, text in blocks
        )


def prompt(name: str = "r1") -> Row:
    return Row(name, (Message("user", f"Greet me ({name})."),), "pool", "chat")


def run(judge: FirmJudge, texts: Sequence[str], **plan: object) -> tuple[list, RatingCounts]:
    counts = RatingCounts()
    answers = [CandidateAnswer(f"m{i}", text) for i, text in enumerate(texts)]
    pairs = list(ratings_module.judge([(prompt(), answers)], judge, 3, plan=RatingPlan("firm", **plan), counts=counts))
    assert counts.kept + counts.dropped.total() == counts.read == 1
    return pairs, counts


def test_the_best_mean_is_chosen_and_a_lower_one_rejected():
    judge = FirmJudge()
    (pair,), counts = run(judge, ["hi", "hi!!!", "hi!", "hi!!"])
    assert pair.chosen[-1].content == "hi!!!"
    assert (pair.chosen_model, pair.chosen_rating) == ("m1", 4.0)
    assert pair.rejected_rating < 4.0
    assert pair.rejected_rating == {"m0": 1.0, "m2": 2.0, "m3": 3.0}[pair.rejected_model]
    facts = json.loads(pair.provenance)
    assert [answer["mean"] for answer in facts["answers"]] == [1, 4, 2, 3]
    assert facts["answers"][0]["ratings"] == dict.fromkeys(ASPECTS, 1.0)
    assert (facts["judge"], facts["seed"], facts["paper"]) == ("firm", 3, False)
    assert len(judge.asked) == len(ASPECTS), "one request for each aspect, with all texts in it"
    assert counts.outcomes == {"rated": 16}


def test_who_is_rejected_is_drawn_fairly_from_the_seed_and_the_row():
    means = [2.0, 5.0, 3.0, 1.0]
    drawn = Counter(ratings_module.binarise(means, seed, "row") for seed in range(900))
    assert set(drawn) == {(1, 0), (1, 2), (1, 3)}
    assert min(drawn.values()) > 240
    assert ratings_module.binarise(means, 5, "row") == ratings_module.binarise(means, 5, "row")


def test_ties_are_dropped_or_kept_as_asked_and_the_paper_does_not_look():
    assert ratings_module.binarise([3.0, 3.0], 0, "r") == "all answers are as good"
    kept = {ratings_module.binarise([3.0, 3.0], seed, "r", ties="keep") for seed in range(40)}
    assert kept == {(0, 1), (1, 0)}
    paper = {ratings_module.binarise([3.0, 3.0, 1.0], seed, "r", paper=True) for seed in range(40)}
    assert paper == {(0, 1), (0, 2)}, "the first best is chosen, an equal one may be rejected"
    ours = {ratings_module.binarise([3.0, 3.0, 1.0], seed, "r") for seed in range(40)}
    assert ours == {(0, 2), (1, 2)}


@pytest.mark.parametrize(
    ("reply", "values", "outcomes"),
    [
        ("### Text 1\nRating: 4\nRationale: fine\n\n### Text 2\nRating: 2", [4, 2], ["rated", "rated"]),
        ("#### Text 1:\n**Rating:** 4/5\n**Text 2**\nRating: N/A", [4, None], ["rated", "not applicable"]),
        ("### Text 2\nRating: 1\n### Text 1\nRating: 5", [5, 1], ["rated", "rated"]),
        ("### Text 1\nRating: 3\nRationale:\nText 2 is better than this.\n### Text 2\nRating: 5", [3, 5], None),
        ("### Text 1\nRating: 9\n### Text 2\nRating: 3.5", [None, 3.5], ["unread", "rated"]),
        ("### Text 1\nRating: -1\n### Text 2\nRating: 45", [None, None], ["unread", "unread"]),
        ("### Text 2\nRating: 3", [None, 3], ["unread", "rated"]),
        ('```json\n{"Text 1": {"Rating": 4}, "Text 2": {"Rating": "2"}}\n```', [4, 2], ["rated", "rated"]),
        ('{\n  "text_1": {\n    "Rationale": "Text 2",\n    "rating": 5\n  }\n}', [5, None], ["rated", "unread"]),
        ("I would rather not.", [None, None], ["unread", "unread"]),
    ],
)
def test_a_reply_is_read_by_the_numbers_of_the_texts(reply, values, outcomes):
    ratings = ratings_module.read_ratings("honesty", reply, 2)
    assert [rating.value for rating in ratings] == values
    assert outcomes is None or [rating.outcome for rating in ratings] == outcomes


def test_answers_are_rated_without_their_thoughts_and_a_pair_keeps_them():
    judge = FirmJudge()
    best, other = "<think>ho?</think>hi!!!", "<think>ho!!!!</think>hi"
    (pair,), counts = run(judge, [best, other])
    assert (pair.chosen[-1].content, pair.rejected[-1].content) == (best, other)
    assert not any("ho" in turn.content.split("## Texts")[1] for (*_, turn) in judge.asked)
    assert counts.words == {"chosen": [1], "rejected": [1]}
    for text, why in [("<think>ho", "an unfinished thought"), ("<think>ho</think>", "an empty answer")]:
        pairs, counts = run(FirmJudge(), [best, text])
        assert (pairs, counts.dropped) == ([], {why: 1})


def test_a_rationale_is_kept():
    assert ratings_module.read_ratings("honesty", "### Text 1\nRating: 4\nRationale: It hedges\nwell.", 1) == [
        Rating(4.0, "It hedges\nwell.")
    ]


def test_what_does_not_apply_stays_out_of_the_mean_and_what_is_unread_makes_no_pair():
    ratings = {"honesty": [Rating(None, outcome="not applicable"), Rating(4.0)], "truthfulness": [Rating(2.0)] * 2}
    assert ratings_module.mean_ratings(ratings, 2) == [2.0, 3.0]
    ratings["helpfulness"] = [Rating(5.0), Rating(None, outcome="unread")]
    assert ratings_module.mean_ratings(ratings, 2) == [3.5, None]
    pairs, counts = run(FirmJudge("Ratings are a matter of opinion."), ["hi?", "hi!"])
    assert not pairs
    assert counts.dropped == {"a rating could not be read": 1}
    assert counts.outcomes == {"unread": 4, "rated": 4}


def test_paper_mode_counts_unreadable_as_one_and_not_applicable_as_minus_one():
    broken = "### Text 1\nnothing\n### Text 2\nRating: N/A\n### Text 3\nRating: 4"
    ratings = ratings_module.read_ratings("honesty", broken, 3, paper=True)
    assert [rating.value for rating in ratings] == [1, -1, 4]
    short = {
        "honesty": ratings,
        "truthfulness": ratings_module.read_ratings("truthfulness", "### Text 1\nRating: 3", 3, paper=True),
    }
    assert ratings_module.mean_ratings(short, 3, paper=True) == [2.0, -1.0, 4.0], "aspects of unequal length"
    many = ratings_module.read_ratings(
        "honesty", "\n".join(f"### Text {i}\nRating: 5" for i in range(1, 7)), 6, paper=True
    )
    assert ratings_module.mean_ratings({"honesty": many}, 6, paper=True) == [5.0] * 4 + [None] * 2
    (pair,), _ = run(FirmJudge("Rating: N/A"), ["hi?", "hi!"], paper=True)
    assert (pair.chosen_rating, pair.rejected_rating) == (2.0, -1.0)


def test_the_texts_are_numbered_from_one_and_in_the_paper_from_two_under_instruction_following():
    for aspect in ASPECTS:
        for paper in (False, True):
            asked = ratings_module.prompt_for(aspect, "Greet me.", ["alpha", "beta"], paper=paper)[-1].content
            first = 2 if paper and aspect == "instruction_following" else 1
            assert re.findall(r"### Text (\d)", asked) == [str(first), str(first + 1)] * 2
            assert ("N/A" in asked) == (aspect == "honesty")
    assert len({ratings_module.prompt_for(aspect, "q", ["a"])[-1].content for aspect in ASPECTS}) == 4
    assert "paper" not in ratings_module.prompt_for("honesty", "q", ["a"])[0].content


def test_who_answers_is_drawn_without_regard_to_the_order_of_the_pool():
    pool = [f"m{i}" for i in range(9)]
    drawn = ratings_module.draw_models(pool, 1, "r")
    assert len(set(drawn)) == 4
    assert drawn == ratings_module.draw_models(pool[::-1], 1, "r") != ratings_module.draw_models(pool, 2, "r")
    sides = Counter(ratings_module.draw_models(pool, seed, "r", own="m3").index("m3") for seed in range(400))
    assert set(sides) == {0, 1}
    assert min(sides.values()) > 160


def test_prompts_that_cannot_be_rated_are_counted_and_not_asked():
    judge, counts = FirmJudge(), RatingCounts()
    given = [
        (prompt("a"), [CandidateAnswer("m", "x"), CandidateAnswer("n", "x")]),
        (prompt("b"), [CandidateAnswer("m", "x"), CandidateAnswer("n", " ")]),
        (prompt("c"), [CandidateAnswer("m", "x")]),
        (prompt("d"), [CandidateAnswer("m", "x"), CandidateAnswer("n", "x!")]),
    ]
    pairs = list(ratings_module.judge(given, judge, 0, plan=RatingPlan(), counts=counts))
    assert [pair.id for pair in pairs] == ["d"]
    assert counts.dropped == {"fewer than two different answers": 2, "an empty answer": 1}
    assert len(judge.asked) == 4


def test_the_statistics_show_who_wins_and_how_far_aspects_agree():
    counts = RatingCounts()
    given = [
        (
            prompt(f"r{i}"),
            [CandidateAnswer("strong", f"hello {i}" + "!" * 3), CandidateAnswer("weak", f"hello there {i}")],
        )
        for i in range(10)
    ]
    assert len(list(ratings_module.judge(given, FirmJudge(), 0, plan=RatingPlan(), counts=counts))) == 10
    stats = ratings_module.statistics(counts)
    assert stats["models"]["strong"] == {"rated_pairs": 10, "chosen": 1.0, "rejected": 0.0}
    assert stats["models"]["weak"] == {"rated_pairs": 10, "chosen": 0.0, "rejected": 1.0}
    assert stats["mean_words"] == {"chosen": 2.0, "rejected": 3.0}
    assert stats["aspect_agreement"] == dict.fromkeys(sorted(ASPECTS), 1.0)
    assert json.dumps(ratings_module.statistics(RatingCounts()))


def test_a_request_that_failed_makes_its_prompt_unread():
    class Broken(FirmJudge):
        def complete(self, prompts, sampling, done=None):
            return [[Completion("", (), (), "error", "no answer")] for _ in prompts]

    for paper in (False, True):
        pairs, counts = run(Broken(), ["a", "b"], paper=paper)
        assert not pairs
        assert counts.outcomes == {"unread": 8}


def test_a_real_model_that_cannot_judge_is_accounted_for(tiny_folder: Path):
    from tercet.models.generate import LocalGenerator

    counts = RatingCounts()
    given = [
        (prompt(f"r{i}"), [CandidateAnswer("a", f"yes {i}"), CandidateAnswer("b", hashlib.md5(b"no").hexdigest())])
        for i in range(4)
    ]
    tiny = LocalGenerator.open(tiny_folder, "float32")
    assert not list(ratings_module.judge(given, tiny, 0, plan=RatingPlan(max_new_tokens=8), counts=counts))
    assert counts.dropped == {"a rating could not be read": 4}
    assert counts.outcomes == {"unread": 32}
