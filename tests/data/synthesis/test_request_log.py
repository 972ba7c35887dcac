"""What a request log has is never asked again, what it spends is never more than allowed, and kills change nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from author_server import Author

from tercet.data.synthesis import ratings
from tercet.data.synthesis.personas import SeedCounts, synthesise
from tercet.data.synthesis.personas_checks import AnswerPlan
from tercet.data.synthesis.request_log import (
    AwayError,
    BudgetError,
    LoggedModel,
    RequestLog,
    RequestLogError,
    request_key,
)
from tercet.models.openai.endpoint import EndpointGenerator
from tercet.rows import Completion, Message, Messages, Row, Sampling, write_table
from tercet.rows_file import read_file

KILLS, WIDTH = 5, 4
DRAWN = Sampling(max_new_tokens=10, temperature=1.0, n=3, seed=5)
GREEDY = Sampling(max_new_tokens=10)
# Children of this server are born with everything imported, so that a kill costs no start.
SERVER = multiprocessing.get_context("forkserver")


def ask(text: str) -> Messages:
    return (Message("user", text),)


class CountingModel:
    """Counts what it is asked, charges ten tokens to read and five to write, and answers with the seed it was given."""

    def __init__(self, fails: Callable[[str], bool] = lambda text: False, pause: float = 0.0) -> None:
        self.asked: list[str] = []
        self.calls: list[tuple[int, Sampling]] = []
        self.used, self.lock = (0, 0), threading.Lock()
        self.fails, self.pause = fails, pause

    def complete(self, prompts: Sequence[Messages], sampling: Sampling, done=None) -> list[list[Completion]]:
        self.calls.append((len(prompts), sampling))
        results = []
        for i, prompt in enumerate(prompts):
            text = prompt[-1].content
            time.sleep(self.pause)
            self.asked.append(text)
            if text == "stop":
                raise RuntimeError("the model is gone")
            failed = self.fails(text)
            with self.lock:
                self.used = (self.used[0] + 10, self.used[1] + 5)
            said = (
                Completion("", (), (), "error", "full")
                if failed
                else Completion(f"{text}/{sampling.stream(i)[0]}", (1,), (), "eos")
            )
            results.append([said] * sampling.n)
            if done:
                done(i, results[-1])
        return results

    def likelihood(self, prompts, options, *, close=False):
        raise AssertionError("not asked for")


def open_model(
    log: RequestLog, model: CountingModel, *, width: int = 1, price: tuple[float, float] = (0.0, 0.0)
) -> LoggedModel:
    return LoggedModel(log, "counting", model, price=price, meter=lambda: model.used, at_once=(width, 64))


def test_what_was_answered_is_read_and_not_asked(tmp_path):
    path, prompts = tmp_path / "deep" / "log.jsonl", [ask("a"), ask("b"), ask("a")]
    first, second = CountingModel(), CountingModel()
    with RequestLog(path) as log:
        answered = open_model(log, first).complete(prompts, DRAWN)
        assert sorted(first.asked) == ["a"] * 3 + ["b"] * 3, "the same question is asked once"
        assert answered[0] == answered[2] != answered[1]
        assert len({answer.text for answer in answered[0]}) == 3
        assert open_model(log, first).complete(prompts[:2], DRAWN) == answered[:2]
    with RequestLog(path) as log:
        assert open_model(log, second).complete(prompts, DRAWN) == answered
        assert log.spent.answers == len(log) == 6
        assert (log.spent.prompt_tokens, log.spent.completion_tokens) == (60, 30)
    assert not second.asked


def test_an_answer_depends_on_nothing_that_is_asked_beside_it(tmp_path):
    with RequestLog(tmp_path / "one") as one, RequestLog(tmp_path / "two") as two:
        together = open_model(one, CountingModel(), width=2).complete([ask(str(i)) for i in range(9)], DRAWN)
        model = open_model(two, CountingModel())
        assert [model.complete([ask(str(i))], DRAWN)[0] for i in reversed(range(9))] == together[::-1]


def test_every_part_of_a_request_is_in_its_key():
    key = request_key("m", ask("a"), DRAWN, 0)
    changed = [
        request_key("n", ask("a"), DRAWN, 0),
        request_key("m", ask("b"), DRAWN, 0),
        request_key("m", (Message("system", "a"),), DRAWN, 0),
        request_key("m", ask("a"), DRAWN, 1),
        *(
            request_key("m", ask("a"), Sampling(**{**vars(DRAWN), name: value}), 0)
            for name, value in [("seed", 6), ("temperature", 0.5), ("top_p", 0.5), ("top_k", 5), ("stop", ("x",))]
        ),
        request_key("m", ask("a"), Sampling(**{**vars(DRAWN), "max_new_tokens": 11}), 0),
    ]
    assert len({key, *changed}) == 11
    assert request_key("m", ask("a"), Sampling(**{**vars(DRAWN), "n": 9}), 0) == key, "more samples keep the first ones"


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(10, 1.0, seed=5)])
def test_requests_go_in_batches_and_drawn_ones_have_seeds_of_their_own(tmp_path, sampling):
    with RequestLog(tmp_path / "log") as log:
        counting, prompts = CountingModel(), [ask(str(i)) for i in range(100)]
        answered = open_model(log, counting).complete(prompts, sampling)
    assert [count for count, _ in counting.calls] == [64, 36]
    assert len({answered[i][0].text.split("/")[1] for i in range(100)}) == 100
    with RequestLog(tmp_path / "other") as log:
        alone = CountingModel()
        assert LoggedModel(log, "counting", alone, at_once=(1, 1)).complete(prompts, sampling) == answered
        assert [count for count, _ in alone.calls] == [1] * 100


def test_done_is_called_once_for_each_prompt_also_for_known_ones(tmp_path):
    with RequestLog(tmp_path / "log") as log:
        model = open_model(log, CountingModel(), width=2)
        model.complete([ask("b")], DRAWN)
        seen: list[int] = []
        found = model.complete([ask(text) for text in "abcb"], DRAWN, lambda i, answers: seen.append(i))
        assert seen[:2] == [1, 3]
        assert sorted(seen) == [0, 1, 2, 3]
        assert all(len(answers) == 3 for answers in found)
        assert model.complete([], DRAWN) == []


def test_an_answer_whose_line_a_kill_cut_short_is_asked_again_and_the_first_time_counted(tmp_path):
    path = tmp_path / "log"
    with RequestLog(path) as log:
        answered = open_model(log, CountingModel()).complete([ask("a"), ask("b")], GREEDY)
    path.write_bytes(path.read_bytes()[:-20])
    again = CountingModel()
    with RequestLog(path) as log:
        assert log.spent.unknown == 1
        assert open_model(log, again).complete([ask("a"), ask("b")], GREEDY) == answered
    assert again.asked == ["b"]


@pytest.mark.parametrize("line", [b"null\n", b"{}\n", b'{"asked": [1]}\n', b'{"key": "a", "read": "x"}\n'])
def test_a_foreign_line_is_named(tmp_path, line):
    path = tmp_path / "log"
    path.write_bytes(b'{"asked": {}}\n' + line)
    with pytest.raises(RequestLogError, match="line 2: not a line of a request log"):
        RequestLog(path)


def test_threads_that_ask_the_same_pay_once(tmp_path):
    counting, results = CountingModel(pause=0.002), {}
    with RequestLog(tmp_path / "log") as log:
        model = open_model(log, counting)
        orders = [random.Random(number).sample("abcdefgh", 8) for number in range(6)]

        def work(number: int) -> None:
            found = model.complete([ask(text) for text in orders[number]], DRAWN)
            results[number] = dict(zip(orders[number], found, strict=True))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert Counter(counting.asked) == dict.fromkeys("abcdefgh", 3)
    assert all(results[number] == results[0] for number in range(6))


def test_a_failed_answer_is_returned_and_asked_again_in_the_next_call(tmp_path):
    path, counting = tmp_path / "log", CountingModel(fails=lambda text: text == "b")
    with RequestLog(path) as log:
        (good,), (bad,) = open_model(log, counting).complete([ask("a"), ask("b")], GREEDY)
        assert (good.stop, bad.stop, bad.error) == ("eos", "error", "full")
        assert (log.spent.answers, log.spent.failed) == (1, 1)
    with RequestLog(path) as log:
        assert log.spent.unknown == 0
        again = CountingModel()
        ((answer,),) = open_model(log, again).complete([ask("b")], GREEDY)
        assert (answer.stop, again.asked) == ("eos", ["b"])


def test_failure_after_failure_stops_the_run_and_answers_between_them_do_not(tmp_path):
    prompts = [ask(str(number)) for number in range(200)]
    with RequestLog(tmp_path / "now and then") as log:
        now_and_then = CountingModel(fails=lambda text: int(text) % 40 > 0)
        open_model(log, now_and_then).complete(prompts, GREEDY)
        assert (log.spent.answers, log.spent.failed) == (5, 195)
    with RequestLog(tmp_path / "away") as log:
        away = CountingModel(fails=lambda text: True)
        with pytest.raises(
            AwayError, match=r"the last 64 requests to counting failed, the last one with: full; see to"
        ):
            open_model(log, away).complete(prompts, GREEDY)
        assert (len(away.asked), log.spent.unknown) == (64, 0)


def test_an_error_of_the_model_loses_no_answer_and_stops_no_other_caller(tmp_path):
    counting = CountingModel()
    with RequestLog(tmp_path / "log") as log:
        model = open_model(log, counting)
        with pytest.raises(RuntimeError, match="the model is gone"):
            model.complete([ask(text) for text in ("a", "stop", "c")], GREEDY)
        assert (len(log), log.spent.unknown) == (1, 2)
        model.complete([ask("a"), ask("c")], GREEDY)
    assert counting.asked == ["a", "stop", "c"]


@pytest.mark.parametrize("width", [1, 3])
def test_the_budget_stops_the_run_before_it_is_exceeded(tmp_path, width):
    path, price = tmp_path / "log", (1000.0, 10000.0)  # an answer costs 0.06, and at most (1 + 16) / 1000 + 0.1
    prompts = [ask(text) for text in "abcdefghijklmnop"]
    with RequestLog(path, budget=0.5) as log:
        model = open_model(log, CountingModel(pause=0.001), width=width, price=price)
        with pytest.raises(BudgetError, match=r"the budget is 0.5: 0.42 is spent on 7 answers, and the next .* 0.117"):
            model.complete(prompts, DRAWN)
        assert log.spent.cost == pytest.approx(0.42)
    with RequestLog(path, budget=10.0) as log:
        more = CountingModel()
        model = open_model(log, more, price=price)
        model.complete(prompts, DRAWN)
        assert len(more.asked) == 3 * 16 - 7
        assert log.spent.cost == pytest.approx(3 * 16 * 0.06)
    with RequestLog(path, budget=0.0) as log:
        assert len(open_model(log, CountingModel(), price=price).complete(prompts, DRAWN)) == 16, (
            "what is there is free"
        )


def test_greedy_batches_are_cut_to_the_budget(tmp_path):
    with RequestLog(tmp_path / "log", budget=0.5) as log:
        counting = CountingModel()
        model = open_model(log, counting, price=(1000.0, 10000.0))
        with pytest.raises(BudgetError):
            model.complete([ask(text) for text in "abcdefghij"], GREEDY)
    assert [count for count, _ in counting.calls] == [4, 2, 1]


def test_requests_under_way_at_a_kill_count_with_the_most_they_may_have_cost(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b'{"asked": {"k": 0.4, "l": 0.3}}\n{"asked": {"k": 0.4}}\n')
    with RequestLog(path, budget=1.15) as log:
        assert (log.spent.unknown, log.spent.unknown_cost) == (3, pytest.approx(1.1))
        with pytest.raises(BudgetError, match=r"up to 1\.1 for 3 requests cut off by a kill"):
            open_model(log, CountingModel(), price=(1000.0, 10000.0)).complete([ask("a")], GREEDY)


def test_where_the_meter_stands_still_an_answer_counts_in_full(tmp_path):
    with RequestLog(tmp_path / "log", budget=1.0) as log:
        LoggedModel(log, "silent", CountingModel(), price=(0.0, 10000.0)).complete([ask("a")], GREEDY)
        assert log.spent.cost == pytest.approx(0.1)


def test_what_makes_no_sense_is_refused(tmp_path):
    with RequestLog(tmp_path / "log") as log:
        with pytest.raises(RequestLogError, match="prices from 0"):
            open_model(log, CountingModel(), price=(-1.0, 0.0))
        with pytest.raises(RequestLogError, match="ask the model itself"):
            open_model(log, CountingModel()).likelihood([ask("a")], [["b"]])


def logged_model(log: RequestLog, url: str, name: str) -> LoggedModel:
    """One model of the server behind the log, with a meter of its own."""
    model = EndpointGenerator.open(url, name, concurrency=WIDTH)

    def used() -> tuple[int, int]:
        return model.usage.prompt_tokens, model.usage.completion_tokens

    return LoggedModel(log, name, model, price=(1.0, 10.0), meter=used, at_once=(WIDTH, 1))


def run_curation(url: str, folder: str, personas: list[str]) -> None:
    """Author, pool and judge, one after another, in a process of its own."""
    counts, rated = SeedCounts(), ratings.RatingCounts()
    with RequestLog(Path(folder) / "log.jsonl", budget=1.0) as log:
        plan = AnswerPlan(answers=3, max_new_tokens=60)
        rows = list(synthesise("persona_gsm", personas, logged_model(log, url, "author"), 7, plan=plan, counts=counts))
        asked = [Row(row.id, row.prompt) for row in rows[:15]]
        answered = {
            name: logged_model(log, url, name).complete([row.prompt for row in asked], Sampling(60, 1.0))
            for name in ("left", "right")
        }
        answers = [
            [ratings.CandidateAnswer(name, answered[name][i][0].text) for name in answered] for i in range(len(asked))
        ]
        how = ratings.RatingPlan("judge", temperature=0.1)
        given = zip(asked, answers, strict=True)
        pairs = list(ratings.judge(given, logged_model(log, url, "judge"), 7, plan=how, counts=rated))
    write_table(Path(folder) / "rows.parquet", rows)
    write_table(Path(folder) / "pairs.parquet", pairs)
    stats = ratings.statistics(rated)
    (Path(folder) / "counts.json").write_text(json.dumps([counts.read, counts.kept, counts.dropped, stats]))


def start(url: str, folder: Path, personas: list[str]):
    folder.mkdir(exist_ok=True)
    child = SERVER.Process(target=run_curation, args=(url, str(folder), personas))
    child.start()
    return child


def known(file: Path) -> set[int]:
    """Which answers the log has, by the seeds that the server was sent for them."""
    whole = file.read_bytes() if file.is_file() else b""
    lines = map(json.loads, whole[: whole.rfind(b"\n") + 1].splitlines())
    return {(int(line["key"][:8], 16) >> 1) * 1_000_003 % (1 << 31) for line in lines if "text" in line}


def kill_when(child, file: Path, answers: int, extra: float) -> None:
    """SIGKILL a run a moment after its log has so many answers."""
    deadline = time.monotonic() + 60
    while len(known(file)) < answers:
        assert child.is_alive(), "ended too early"
        assert time.monotonic() < deadline, "the run makes no progress"
        time.sleep(0.002)
    time.sleep(extra)
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    assert child.exitcode == -signal.SIGKILL
    time.sleep(0.1)  # what was on its way to the server has arrived


def finish(child) -> None:
    child.join()
    assert child.exitcode == 0


def test_killed_five_times_fifty_personas_end_in_the_same_rows_and_nothing_is_paid_twice(shared_data, tmp_path):
    SERVER.set_forkserver_preload(
        ["tercet.models.openai.endpoint", "tercet.data.synthesis.personas", "tercet.data.synthesis.ratings"]
    )
    file = shared_data / "personas" / "persona_hub" / "personas.jsonl"
    personas = [row["persona"] for row, _ in zip(read_file(file), range(50), strict=False)]
    chance, calm, killed = random.Random("kills"), tmp_path / "calm", tmp_path / "killed"
    marks: list[tuple[set[int], int]] = []
    with Author() as server:
        url = server.url
        finish(start(url, calm, personas))
        undisturbed, server.asked = set(server.asked), []
        for moment in sorted(chance.sample(range(5, 260), KILLS)):
            kill_when(start(url, killed, personas), killed / "log.jsonl", moment, chance.uniform(0.0, 0.01))
            marks.append((known(killed / "log.jsonl"), len(server.asked)))
        finish(start(url, killed, personas))
        asked = list(server.asked)
        finish(start(url, killed, personas))
        assert server.asked == asked, "a run that is complete asks for nothing"
    for name in ("rows.parquet", "pairs.parquet", "counts.json"):
        assert (killed / name).read_bytes() == (calm / name).read_bytes()
    assert set(asked) == undisturbed
    for have, before in marks:
        assert not have & {seed for _, seed in asked[before:]}, "what the log had was paid again"
    with RequestLog(killed / "log.jsonl") as log:
        assert len(log) == len(undisturbed) == 200 + 15 * (2 + 4)
        assert len(asked) - len(set(asked)) <= log.spent.unknown <= KILLS * WIDTH, "only what a kill cut off"
    read, kept, dropped, stats = json.loads((calm / "counts.json").read_text())
    assert read == 50 == kept + sum(dropped.values())
    assert 20 < kept < 50
    assert stats["read"] == 15 == stats["pairs"] + sum(stats["dropped"].values())
    assert stats["pairs"] > 5
