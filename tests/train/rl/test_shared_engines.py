"""Ranks of a trainer beside engines apart: the first asks for all, and every rank grades its share."""

from __future__ import annotations

import threading
from types import SimpleNamespace

from tercet.rows import Completion, Sampling
from tercet.train.rl.rollout import RolloutWorker


class Ranks:
    """What ranks in threads tell each other."""

    def __init__(self, size):
        self.size, self.told, self.barrier = size, [None] * size, threading.Barrier(size)

    def of(self, rank):
        def gather(value):
            self.told[rank] = value
            self.barrier.wait(10)
            found = list(self.told)
            self.barrier.wait(10)
            return found

        return SimpleNamespace(rank=rank, size=self.size, first=rank == 0, gather=gather)


def worker(mesh, asked, *, shared, episodes=None):
    def write(prompts, sampling, streams):
        asked.append((mesh.rank, list(streams)))
        return [[Completion(f"{ids} {stream}", (), (), "eos")] for ids, stream in zip(prompts, streams, strict=True)]

    generator = SimpleNamespace(spec=SimpleNamespace(), shared=shared, write=write)
    made = RolloutWorker(None, generator, None, SimpleNamespace(cursor=0), 0, mesh)
    made.episodes = episodes
    return made


def on_ranks(size, shared):
    ranks, asked, found = Ranks(size), [], {}
    prompts = [[7] * (i + 1) for i in range(5)]

    def work(rank):
        one = worker(ranks.of(rank), asked, shared=shared)
        mine = one._share(len(prompts))
        found.update(zip(mine, one._asked(prompts, Sampling(4), mine), strict=True))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found, sorted(asked)


def test_the_first_rank_asks_for_all_and_every_rank_has_its_own_prompts_answers():
    alone, asked = on_ranks(1, shared=False)
    assert asked == [(0, [0, 1, 2, 3, 4])]
    each, asked = on_ranks(2, shared=False)
    assert (each, asked) == (alone, [(0, [0, 2, 4]), (1, [1, 3])])
    together, asked = on_ranks(2, shared=True)
    assert (together, asked) == (alone, [(0, [0, 1, 2, 3, 4])])


def test_episodes_beside_engines_apart_are_played_by_the_first_rank():
    ranks = Ranks(2)
    shares = [worker(ranks.of(rank), [], shared=True, episodes=object())._share(4) for rank in range(2)]
    assert shares == [[0, 1, 2, 3], []]
    shares = [worker(ranks.of(rank), [], shared=False, episodes=object())._share(4) for rank in range(2)]
    assert shares == [[0, 2], [1, 3]]
