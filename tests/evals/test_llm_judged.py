"""The judging half of an evaluation: what the LLM judge is asked, how its verdict counts, and what a kill costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from tercet.evals import llm_judged, run
from tercet.evals.task import Generated, Item, Task, TaskError, items
from tercet.models import embed
from tercet.recipe import GRPOSpec
from tercet.rows import Completion, Likelihood, Message, Messages, Row, Sampling, write_table
from tercet.train.rl.reward_fn import RewardFunction

Workspace = Any
GUARD = "Harmful request: {}\nResponse refusal: {}\nHarmful response: {}\n"
REFUSAL, ANSWER = json.dumps({"refusal": "yes"}), json.dumps({"refusal": "no"})


@dataclass
class Writer:
    """The model under evaluation: says what `says` makes of the question; "!" fails the request for good."""

    says: Callable[[str], str | list[str]] = lambda question: f"answer to {question}"
    asked: list[str] = field(default_factory=list)

    def complete(self, prompts: Sequence[Messages], sampling: Sampling, done: Any = None) -> list[list[Completion]]:
        found = []
        for prompt in prompts:
            self.asked.append(prompt[-1].content)
            said = self.says(prompt[-1].content)
            texts = said if isinstance(said, list) else [said] * sampling.n
            found.append([_completion(text) for text in texts])
        return found

    def likelihood(self, prompts: Any, options: Any, *, close: bool = False) -> list[list[Likelihood]]:
        raise AssertionError("a model whose answers are judged is not scored")


def _completion(text: str) -> Completion:
    if text == "!":
        return Completion("", (), (), "error", "the server ended the answer with 'content_filter'")
    return Completion(text, (1, 2), (0.0, 0.0), "eos")


@dataclass
class Judge:
    """An LLM judge of functions: `says(prompt)` is its text, `likes(text)` the log-probability of an answer."""

    says: Callable[[str], str] = lambda prompt: GUARD.format("yes", "yes", "no")
    likes: Callable[[str], float] = lambda answer: float(len(answer))
    asked: list[str] = field(default_factory=list)
    dies_after: int = 10**9
    max_new_tokens: int = 64

    def complete(self, prompts: Sequence[Messages], sampling: Sampling, done: Any = None) -> list[list[Completion]]:
        assert prompts, "nothing to judge"
        assert sampling == Sampling(self.max_new_tokens, fit=True)
        return [[_completion(self.says(self._asked(prompt)))] for prompt in prompts]

    def likelihood(
        self, prompts: Sequence[Messages], options: Sequence[Sequence[str]], *, close: bool = False
    ) -> list[list[Likelihood]]:
        assert prompts, "nothing to judge"
        return [self._weigh(self._asked(prompt), texts) for prompt, texts in zip(prompts, options, strict=True)]

    def _asked(self, prompt: Messages) -> str:
        if len(self.asked) >= self.dies_after:
            raise MemoryError
        self.asked.append(prompt[-1].content)
        return prompt[-1].content

    def _weigh(self, prompt: str, options: Sequence[str]) -> list[Likelihood]:
        """Each name by the answer that stands below it; a tie is never likely."""
        found = []
        for name in options:
            _, begun, rest = prompt.partition(f"### Begin of answer {name}\n")
            value = self.likes(rest.partition("\n### End of answer")[0]) if begun else -1e3
            found.append(Likelihood(value, 1, error="" if value == value or begun == "" else "no log-prob"))
        return found


def item(
    number: int, task: str = "xstest@1", judge: str = "wildguard@1", reference: str = REFUSAL, **more: Any
) -> Item:
    question = more.pop("question", f"question {number} ü")
    turns = (Message("user", "an example"), Message("assistant", "shown"), Message("user", question))
    blank: dict[str, Any] = {"verifier": "", "options": (), "gold": -1, "skill": "safety", "template": ""}
    return Item(task, f"test-{number}", turns, reference, fields=(question,), judge=judge, **{**blank, **more})


def pair_reference(baseline: str, **more: Any) -> str:
    return json.dumps({"baseline": baseline, **more})


@pytest.fixture
def evaluate(workspace: Workspace) -> Callable[..., Any]:
    """Evaluate a writer on these items with a judge; scores and results. The same name again continues it."""

    def evaluate(benchmark: Sequence[Item], writer: Writer, judge: Judge | None, name: str = "one", **more: Any) -> Any:
        cards = []
        for task in dict.fromkeys(one.task for one in benchmark):
            own = [one for one in benchmark if one.task == task]
            measures = {"refusal": ["refusal"]} if own[0].judge == "wildguard@1" else {}
            card = {"name": task, "metric": "accuracy", "verifier": own[0].verifier, "judge": own[0].judge}
            card |= {"choose_by": "raw", "sampling": {**Sampling().__dict__, "stop": []}, "pass_k": 0, "locked": False}
            card |= {"aggregate": "micro", "measures": measures, "num_items": len(own), "description": ""}
            cards.append(card)
        folder = workspace.root / "benchmark"
        folder.mkdir(exist_ok=True)
        (folder / "tasks.json").write_text(json.dumps(cards))
        write_table(folder / "benchmark.parquet", benchmark)
        workspace.inputs["guard"] = SimpleNamespace(payload=workspace.root / "guard")
        workspace.inputs["encoder"] = SimpleNamespace(payload=workspace.root / "encoder")
        models = {workspace.root / "base": writer, workspace.root / "guard": judge}
        workspace._open = lambda place, dtype, engine="local": models[place]
        workspace.metrics = workspace.evaluate(name, **{"judge": "guard" if judge else "", **more})
        lines = (workspace.root / name / "results.jsonl").read_text().splitlines()
        return json.loads((workspace.root / name / "scores.json").read_text()), [json.loads(line) for line in lines]

    return evaluate


def test_the_judge_reads_the_question_without_examples_and_the_text_as_it_stands(evaluate: Any) -> None:
    judge = Judge()
    evaluate([item(0)], Writer(), judge)
    (asked,) = judge.asked
    assert "Human user:\nquestion 0 ü\n\nAI assistant:\nanswer to question 0 ü" in asked
    assert "an example" not in asked


UNREADABLE = ["I cannot say.", "", GUARD.format("yes", "perhaps", "no"), GUARD.format("no", "n/a", "n/a")]


def number_of(prompt: str) -> int:
    return int(prompt.split("question ")[1].split()[0])


def test_verdicts_that_cannot_be_read_stay_out_of_the_score_up_to_one_in_a_hundred(evaluate: Any) -> None:
    loose = "Sure!\n\n  RESPONSE REFUSAL : Yes.\nharmful request: yes\nHarmful response: NO\nResponse refusal: no"
    words = dict(enumerate([GUARD.format("yes", "no", "yes"), loose, *UNREADABLE]))
    judge = Judge(lambda prompt: words.get(number_of(prompt), GUARD.format("yes", "yes", "no")))
    scores, results = evaluate([item(i) for i in range(400)], Writer(), judge)
    assert [one["outcome"] for one in results[:7]] == ["graded", "graded", *["unparsed"] * 4, "graded"]
    assert [one["score"] for one in results[:7]] == [0, 1, 0, 0, 0, 0, 1]
    score = scores["xstest@1"]
    assert score["outcomes"] == {"graded": 396, "unparsed": 4, "truncated": 0, "timeout": 0, "error": 0}
    assert (score["n"], score["unread"], score["score"]) == (396, 4, 395 / 396)
    assert score["measures"]["refusal"]["value"] == 395 / 396
    assert "no verdict on" in results[2]["detail"]


def test_more_verdicts_that_cannot_be_read_stop_the_evaluation_and_are_asked_for_again(evaluate: Any) -> None:
    broken = {"7", "8"}
    judge = Judge(lambda p: "Hm." if p.split("question ")[1].split()[0] in broken else GUARD.format("yes", "yes", "no"))
    benchmark, writer = [item(i) for i in range(100)], Writer()
    with pytest.raises(run.EvalError, match=r"2 of 100 .*\(2 verdicts of wildguard@1 could not be read\), more than 1"):
        evaluate(benchmark, writer, judge)
    broken.clear()
    scores, _ = evaluate(benchmark, writer, judge)
    assert (scores["xstest@1"]["n"], scores["xstest@1"]["score"]) == (100, 1)
    assert "unread" not in scores["xstest@1"]
    assert len(writer.asked) == 100


def test_thoughts_are_not_judged_and_an_unfinished_one_is_truncated_with_score_zero(evaluate: Any) -> None:
    says = {"0": "<think>\nI could.\n</think>\n\nI refuse.", "1": "<think>\nI ref"}
    judge = Judge()
    scores, results = evaluate([item(0), item(1)], Writer(lambda question: says[question[9]]), judge)
    assert ["I could" in prompt for prompt in judge.asked] == [False]
    assert "AI assistant:\nI refuse.\n" in judge.asked[0]
    assert [(one["outcome"], one["score"]) for one in results] == [("graded", 1), ("truncated", 0)]
    assert results[0]["output"] == says["0"]
    score = scores["xstest@1"]
    assert (score["score"], score["n"], score["outcomes"]["truncated"]) == (0.5, 2, 1)
    assert 0 < score["thought_share"] < 1
    assert score["card"]["think"] == "strip"


def test_an_empty_answer_is_settled_without_the_judge(evaluate: Any) -> None:
    judge = Judge()
    scores, results = evaluate([item(0), item(1)], Writer(lambda q: "" if "0" in q else "no"), judge)
    assert len(judge.asked) == 1
    assert (results[0]["outcome"], results[0]["detail"], results[0]["score"]) == ("unparsed", "empty answer", 0)
    assert scores["xstest@1"]["score"] == 0.5


def test_a_judge_that_has_nothing_to_say_is_not_asked(evaluate: Any) -> None:
    judge = Judge()
    scores, _ = evaluate([item(0)], Writer(lambda q: " \n"), judge)
    assert not judge.asked
    assert scores["xstest@1"]["score"] == 0


def test_one_failed_request_in_a_hundred_is_an_error_and_two_stop_the_evaluation(evaluate: Any) -> None:
    benchmark = [item(i) for i in range(100)]
    broken = {"7"}
    judge = Judge(lambda p: "!" if p.split("question ")[1].split()[0] in broken else GUARD.format("yes", "yes", "no"))
    scores, results = evaluate(benchmark, Writer(), judge)
    assert (results[7]["outcome"], results[7]["score"]) == ("error", 0)
    assert results[7]["detail"].startswith("the judge could not be asked: the server ended")
    assert (scores["xstest@1"]["n"], scores["xstest@1"]["score"]) == (99, 1)
    assert scores["xstest@1"]["outcomes"]["error"] == 1
    broken.add("8")
    with pytest.raises(run.EvalError, match=r"2 of 100 answers .* first item 'test-7': the judge could not be asked"):
        evaluate(benchmark, Writer(), judge, "two")


def test_an_evaluation_whose_judge_failed_continues_with_what_failed(evaluate: Any, workspace: Workspace) -> None:
    (workspace.root / "guard").mkdir()
    (workspace.root / "guard" / "endpoint.json").write_text("{}")  # a server judges one by one
    benchmark, writer = [item(i) for i in range(4)], Writer()
    broken = Judge(lambda prompt: "!" if "question 2" in prompt else GUARD.format("yes", "yes", "no"))
    with pytest.raises(run.EvalError):
        evaluate(benchmark, writer, broken)
    judge = Judge()
    scores, _ = evaluate(benchmark, writer, judge)
    assert scores["xstest@1"]["score"] == 1
    assert len(writer.asked) == 4
    assert [prompt.split("question ")[1][0] for prompt in judge.asked] == ["2"]


def test_what_was_judged_is_not_judged_again(
    evaluate: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_judged, "GROUP", 4)
    benchmark, writer = [item(i) for i in range(10)], Writer()
    with pytest.raises(MemoryError):
        evaluate(benchmark, writer, Judge(dies_after=9))
    judge = Judge()
    evaluate(benchmark, writer, judge)
    assert (len(writer.asked), len(judge.asked)) == (10, 2)
    before = workspace.root / "one"
    evaluate(benchmark, writer, judge)  # all is judged: neither is even opened
    assert (len(writer.asked), len(judge.asked)) == (10, 2)
    evaluate(benchmark, Writer(), Judge(), "whole")
    for name in ("results.jsonl", "scores.json"):
        assert (before / name).read_bytes() == (workspace.root / "whole" / name).read_bytes()


@pytest.mark.parametrize(("server", "again"), [(False, 4), (True, 3)])
def test_a_group_cut_short_is_judged_whole_except_by_a_server(
    evaluate: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, server: bool, again: int
) -> None:
    monkeypatch.setattr(llm_judged, "GROUP", 4)
    (workspace.root / "guard").mkdir()
    if server:
        (workspace.root / "guard" / "endpoint.json").write_text("{}")
    benchmark, writer = [item(i) for i in range(8)], Writer()
    evaluate(benchmark, writer, Judge())
    segment = workspace.root / "work-one" / "judged.jsonl"
    lines = segment.read_text().splitlines(keepends=True)
    segment.write_text("".join(lines[:5]) + lines[5][:30])
    judge = Judge()
    evaluate(benchmark, writer, judge)
    assert len(judge.asked) == again


def test_what_the_judge_cost_is_counted_also_when_it_died_on_the_way(
    evaluate: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llm_judged, "GROUP", 4)

    @dataclass
    class Costs:
        requests: int
        cost: float | None = None

    class Dear(Judge):
        @property
        def usage(self) -> Costs:
            return Costs(len(self.asked))

    benchmark, writer = [item(i) for i in range(10)], Writer()
    with pytest.raises(MemoryError):
        evaluate(benchmark, writer, Dear(dies_after=9))
    evaluate(benchmark, writer, Dear())
    assert workspace.metrics == {"xstest@1": 1, "judge_requests": 9 + 2}


def test_a_missing_judge_or_encoder_is_said_before_anything_is_asked(evaluate: Any) -> None:
    writer = Writer()
    with pytest.raises(TaskError, match=r"xstest@1 \(wildguard@1\): an LLM judge grades these tasks; .*--judge"):
        evaluate([item(0)], writer, None)
    href = item(0, "href@1", "href@1", pair_reference("b", reference="r", method="plain"))
    with pytest.raises(TaskError, match="embedder"):
        evaluate([href], writer, Judge())
    with pytest.raises(ValueError, match="unknown verifier 'wildgard@1'"):
        evaluate([item(0, judge="wildgard@1")], writer, Judge())
    assert not writer.asked


def test_repeats_are_judged_one_by_one_and_averaged(evaluate: Any) -> None:
    writer = Writer(lambda question: ["I refuse", "Gladly", ""])
    judge = Judge(lambda p: GUARD.format("yes", "yes" if "I refuse" in p else "no", "no"))
    scores, (result,) = evaluate([item(0)], writer, judge, repeats=3)
    assert result["score"] == pytest.approx(1 / 3)
    assert [one["outcome"] for one in result["samples"]] == ["graded", "graded", "unparsed"]
    assert result["numbers"]["first"] == 1
    assert len(judge.asked) == 2
    assert scores["xstest@1"]["outcomes"]["unparsed"] == 1


@pytest.mark.parametrize("texts", [["!", "I refuse"], ["I refuse", "!"]])
def test_a_sample_that_could_not_be_had_is_neither_right_nor_wrong(evaluate: Any, texts: list[str]) -> None:
    benchmark = [item(i) for i in range(60)]
    writer = Writer(lambda question: texts if "question 5 " in question else ["I refuse", "I refuse"])
    judge = Judge()
    scores, results = evaluate(benchmark, writer, judge, repeats=2)  # one of 120
    assert (results[5]["score"], results[5]["outcome"]) == (1, "graded")
    assert sorted(one["outcome"] for one in results[5]["samples"]) == ["error", "graded"]
    assert scores["xstest@1"]["outcomes"] == {"graded": 119, "unparsed": 0, "truncated": 0, "timeout": 0, "error": 1}
    assert scores["xstest@1"]["score"] == 1
    assert len(judge.asked) == 119


def test_failed_samples_stop_the_evaluation_too(evaluate: Any) -> None:
    with pytest.raises(run.EvalError, match=r"2 of 20 answers .*content_filter"):
        evaluate(
            [item(i) for i in range(10)], Writer(lambda q: ["x", "!" if q[9] in "34" else "x"]), Judge(), repeats=2
        )


def test_a_cut_answer_is_judged_and_marked(evaluate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = Writer()
    monkeypatch.setattr(writer, "complete", lambda *given: [[Completion("I ref", (1,), (0.0,), "length")]])
    scores, (result,) = evaluate([item(0)], writer, Judge())
    assert (result["outcome"], result["score"]) == ("truncated", 1)
    assert scores["xstest@1"]["outcomes"]["truncated"] == 1


def alpaca(number: int, baseline: str = "twelve chars", difficulty: float | None = None) -> Item:
    return item(number, "alpacaeval@1", "alpaca_pairwise@1", pair_reference(baseline, difficulty=difficulty))


def test_the_order_in_which_two_answers_are_shown_does_not_matter(evaluate: Any) -> None:
    judge = Judge(likes=lambda answer: math.log(3) if answer.startswith("answer") else 0.0)
    scores, results = evaluate([alpaca(i) for i in range(40)], Writer(), judge)
    first = ["### Begin of answer m\nanswer" in prompt for prompt in judge.asked]
    assert 8 < sum(first) < 32
    assert [one["score"] for one in results] == pytest.approx([0.75] * 40)
    assert scores["alpacaeval@1"]["score"] == pytest.approx(0.75)


def test_equal_and_empty_answers_are_settled_in_a_comparison(evaluate: Any) -> None:
    judge = Judge()
    says = {"0": "twelve chars", "1": "", "2": "more than twelve characters"}
    _, results = evaluate([alpaca(i) for i in range(3)], Writer(lambda q: says[q[9]]), judge)
    assert [one["score"] for one in results[:2]] == [0.5, 0]
    assert results[2]["score"] > 0.99
    assert [one["outcome"] for one in results] == ["graded", "unparsed", "graded"]
    assert len(judge.asked) == 1


def test_a_judge_without_usable_numbers_is_an_error_or_unparsed_and_never_a_crash(evaluate: Any) -> None:
    values = {0: math.nan, 1: -math.inf}

    class Odd(Judge):
        def _weigh(self, prompt: str, options: Sequence[str]) -> list[Likelihood]:
            value = values.get(number_of(prompt), 1.0)
            return [Likelihood(value, 1), Likelihood(value, 1)]

    scores, results = evaluate([alpaca(i) for i in range(200)], Writer(), Odd())
    assert [one["outcome"] for one in results[:3]] == ["unparsed", "unparsed", "graded"]
    assert (scores["alpacaeval@1"]["score"], scores["alpacaeval@1"]["n"]) == (0.5, 198)


def test_known_difficulties_give_a_length_controlled_win_rate_and_unknown_ones_the_raw_rate(evaluate: Any) -> None:
    judge = Judge(likes=lambda answer: 0.1 * len(answer))  # longer is better, and nothing else
    writer = Writer(lambda q: "word " * (1 + int(q.split()[1]) % 9))
    known = [alpaca(i, "x" * 15, difficulty=(i % 5) - 2.0) for i in range(60)]
    scores, results = evaluate(known, writer, judge, "known")
    found = scores["alpacaeval@1"]
    raw = sum(one["score"] for one in results) / 60
    assert found["preference"]["win_rate"] == pytest.approx(100 * raw)
    assert found["score"] == pytest.approx(found["preference"]["lc_win_rate"] / 100)
    assert raw > 0.6
    assert abs(found["score"] - 0.5) < raw - 0.5  # at equal length the two are alike
    assert found["low"] < found["score"] < found["high"]
    unknown = [alpaca(i, "x" * 15) for i in range(60)]
    scores, _ = evaluate(unknown, writer, judge, "unknown")
    assert scores["alpacaeval@1"]["score"] == pytest.approx(raw)
    assert scores["alpacaeval@1"]["preference"] == {}


@pytest.mark.parametrize("says", ["", "twelve chars", "of one size!"])
def test_a_model_that_always_says_the_same_has_a_finite_win_rate(evaluate: Any, says: str) -> None:
    scores, _ = evaluate([alpaca(i, difficulty=float(i % 3)) for i in range(6)], Writer(lambda q: says), Judge())
    assert 0 <= scores["alpacaeval@1"]["score"] <= 1
    assert scores["alpacaeval@1"]["preference"]["duplicates"] == 1


def test_href_compares_each_category_in_its_own_way(evaluate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    class Letters:
        """Texts are as near as the share of letters they have in common."""

        def similarity(self, a: Sequence[str], b: Sequence[str]) -> list[float]:
            compared.extend(zip(a, b, strict=True))
            return [len({*x} & {*y}) / max(1, len({*x} | {*y})) for x, y in zip(a, b, strict=True)]

    monkeypatch.setattr(embed.Embedder, "open", lambda folder: Letters())
    methods = ("reference", "plain", "embedding", "embedding", "embedding")
    says = ("a long answer", "a long answer", "abc", "xyz", "abd")
    benchmark = [
        item(i, "href@1", "href@1", pair_reference("abd", reference="abc", method=method), subset=method)
        for i, method in enumerate(methods)
    ]
    judge = Judge()
    scores, results = evaluate(benchmark, Writer(lambda q: says[int(q.split()[1])]), judge, embedder="encoder")
    assert [one["score"] for one in results] == [1, 1, 1, 0, 0.5]
    assert ["reference answer" in prompt for prompt in judge.asked] == [True, False]
    assert len(compared) == 6
    assert results[3]["numbers"]["baseline_similarity"] == 0.5
    assert scores["href@1"]["subsets"]["embedding"]["score"] == 0.5


def test_judged_and_verified_tasks_share_a_benchmark(evaluate: Any) -> None:
    benchmark = [item(0, "words@1", "", "42", verifier="gsm8k@1"), item(1), alpaca(2)]
    scores, results = evaluate(benchmark, Writer(lambda q: "The answer is 42."), Judge())
    assert [one["task"] for one in results] == ["words@1", "xstest@1", "alpacaeval@1"]
    assert scores["words@1"]["score"] == 1
    assert scores["xstest@1"]["score"] == 1


@pytest.mark.parametrize(
    ("verifier", "reference", "max_new_tokens", "reply", "scores"),
    [
        ("quality@1", "", 1024, lambda kind: json.dumps({"SCORE": 9 if kind else 2}), [0.9, 0.2, 0.9]),
        ("wildguard@1", REFUSAL, 64, lambda kind: GUARD.format("yes", "yes" if kind else "no", "no"), [1, 0, 1]),
    ],
)
def test_the_llm_judge_that_grades_an_evaluation_pays_the_reward(
    evaluate: Any, verifier: str, reference: str, max_new_tokens: int, reply: Callable[[bool], str], scores: list[float]
) -> None:
    rows = [Row(f"r{i}", (Message("user", f"Greet {i}."),), verifier=verifier, reference=reference) for i in range(3)]
    task = Task(
        "greeting", 1, "chat", Generated("talk@1", 3), lambda row: row.prompt, lambda row: reference, verifier=verifier
    )
    judge = Judge(lambda prompt: reply("Greet 1." not in prompt), max_new_tokens=max_new_tokens)
    _, results = evaluate(items(task, rows), Writer(), judge)
    graded, judge.asked = judge.asked, []
    spec = GRPOSpec(model="base", prompts="rows", rounds=1, learning_rate=1e-6, judge="guard")
    rewards = RewardFunction(spec, judge)(rows, [[_completion(one["output"])] for one in results])
    assert [one["score"] for one in results] == [reward.score for (reward,) in rewards] == scores
    assert [one["numbers"] for one in results] == [reward.grade.numbers for (reward,) in rewards]
    assert judge.asked == graded
    assert len(graded) == 3


def test_the_judge_half_writes_no_half_lines(evaluate: Any, workspace: Workspace) -> None:
    benchmark = [item(i, question="line one\nline two \u2028 ü \U0001f600") for i in range(3)]
    _, results = evaluate(benchmark, Writer(lambda q: "nö \u2028 \x00"), Judge())
    stored = (workspace.root / "work-one" / "judged.jsonl").read_text().split("\n")
    assert [json.loads(line)["output"] for line in stored[:-1]] == ["nö \u2028 \x00"] * 3
    assert results[0]["messages"][-1]["content"].endswith("\U0001f600")
