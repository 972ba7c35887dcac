"""A prompt that begins like one read before is read from where they part, and is answered as it is alone."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from itertools import chain

import pytest
import torch
from families import tiny_config, tiny_model

from tercet.models.generate import LocalGenerator
from tercet.models.openai.jobs import GenerationJob, Ticket
from tercet.models.openai.live import Live, rows_of
from tercet.models.openai.remembered import PromptMemory
from tercet.models.policy import Policy
from tercet.rows import Completion, Sampling

SYSTEM = [10 + 7 * i % 90 for i in range(80)]
TURN = [*SYSTEM, 5, 6, 7]
HOWS = {"greedy": Sampling(8), "drawn": Sampling(8, 1.0, n=2)}


@pytest.fixture(scope="module", params=["llama", "gemma2", "gpt_oss"])
def generator(request, sharp_folder) -> LocalGenerator:
    """The small model, and others whose layers have windows, caps and sinks."""
    found = LocalGenerator.open(sharp_folder, "float32", rows=8)
    if request.param != "llama":
        found.policy = Policy(tiny_model(tiny_config(request.param), "forest"))
    return found


@pytest.fixture
def rows(generator):
    with torch.no_grad(), generator.writing():
        yield rows_of(generator, 8)


def answers(rows: Live, *jobs: GenerationJob) -> list[list[Completion]]:
    """What is written of jobs that come at once."""
    tickets = [Ticket(job) for job in jobs]
    queue = deque(tickets)
    while queue or rows.busy:
        for row in rows.turn(queue):
            row.ticket.finish(row.sample, Completion("", tuple(row.token_ids), tuple(row.logps), "length"))
    return [list(ticket.answer.result(0).completions) for ticket in tickets]


def alone(generator: LocalGenerator, *jobs: GenerationJob) -> list[list[Completion]]:
    return answers(rows_of(generator, 8), *jobs)


def assert_same(found: list[list[Completion]], wanted: list[list[Completion]]) -> None:
    for ours, theirs in zip(chain(*found), chain(*wanted), strict=True):
        assert ours.token_ids == theirs.token_ids
        assert ours.logps == pytest.approx(theirs.logps, abs=1e-4)


@pytest.mark.parametrize("name", HOWS)
def test_the_next_turn_and_another_question_behind_one_system_prompt_are_answered_as_alone(generator, rows, name):
    first = GenerationJob(TURN, HOWS[name], 3)
    (done, *_), *_ = answers(rows, first)
    history = [*TURN, *done.token_ids]
    turn, other = replace(first, ids=[*history, 8, 9], seed=4), replace(first, ids=[*SYSTEM, 40, 41], seed=5)
    for job, shared in ((turn, len(TURN)), (other, len(SYSTEM)), (first, len(TURN))):
        before = generator.work.tokens
        found = answers(rows, job)
        read = generator.work.tokens - before - sum(len(one.token_ids) - 1 for one in found[0])
        assert read == len(job.ids) - shared
        assert_same(found, alone(generator, job))


def test_a_prompt_that_comes_again_has_the_same_answer_to_the_last_bit(generator, rows):
    job = GenerationJob(TURN, Sampling(8, 1.0), 3, top=2)
    answers(rows, replace(job, ids=[*SYSTEM, 1, 2]))
    assert answers(rows, job) == answers(rows, job) == answers(rows, job)


def test_those_that_come_at_once_are_answered_as_alone_and_keep_their_order(generator, rows):
    answers(rows, GenerationJob(TURN, Sampling(4)))
    jobs = [
        GenerationJob(ids, Sampling(6, 1.0), i) for i, ids in enumerate(([*TURN, 9], [3, 4], TURN, [5], [*TURN, 2]))
    ]
    assert_same(answers(rows, *jobs), [one for job in jobs for one in alone(generator, job)])


def test_an_echo_reads_its_whole_prompt(generator, rows):
    job = GenerationJob(TURN, Sampling(2), top=0, echo=True)
    answers(rows, replace(job, echo=False))
    ticket = Ticket(job)
    queue = deque([ticket])
    while queue or rows.busy:
        rows.turn(queue)
    assert [one.token for one in ticket.prompt] == TURN


def test_the_memory_is_bounded_and_who_was_used_last_stays():
    memory, none = PromptMemory(100), torch.zeros(1, 1)
    for start in (0, 100, 200):
        memory.keep(range(start, start + 40), {}, none)
        memory.find(range(40))
    assert [int(one.ids[0]) for one in memory.known.values()] == [200, 0]
    memory.keep(range(300, 500), {}, none)
    assert len(memory.known) == 2
    assert memory.find([*range(31), 7]) is None
    assert memory.find([*range(32), 7])[1] == 32
    assert memory.find(range(35))[1] == 34
