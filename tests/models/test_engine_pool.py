"""A pool of engines: none idles, nothing is lost or doubled, whoever dies and however answers come."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tercet.models.chat import open_chat
from tercet.models.engines.pool import DEATHS, EnginePool
from tercet.models.engines.replica import EngineError, ReplicaDiedError, WrittenGroup
from tercet.rows import PLAIN, Completion, Likelihood, Message, Sampling, Seeded


def words(prompt, sampling, stream):
    """What any engine writes: it depends on the prompt, its seed and stream alone."""
    text = f"{list(prompt)} {sampling.seed} {stream}"
    return [Completion(f"{text} {sample}", (), (), "eos") for sample in range(sampling.n)]


class Scripted:
    """A replica whose answers come when a test says so, and at once where it is told to be `quick`."""

    context = 64

    def __init__(self, name, *, quick=False):
        self.name, self.quick = name, quick
        self.out: list[tuple[Future, WrittenGroup]] = []
        self.seen: list[list[int]] = []
        self.verbs: list[tuple[str, dict]] = []
        self.dead = self.closed = False

    def submit(self, prompt, sampling, stream):
        if self.dead:
            raise ReplicaDiedError(f"{self.name} died")
        self.seen.append(list(prompt))
        future: Future = Future()
        self.out.append((future, WrittenGroup(words(prompt, sampling, stream), 0, 0, self.name)))
        if self.quick:
            self.answer()
        return future

    def score(self, context, ids):
        future: Future = Future()
        future.set_result(Likelihood(-float(len(context)), len(ids)))
        return future

    def answer(self, place=0):
        future, group = self.out.pop(place)
        future.set_result(group)

    def die(self):
        """Tell of the death by its first prompt alone; what else is out may still answer."""
        self.dead = True
        if self.out:
            self.out.pop(0)[0].set_exception(ReplicaDiedError(f"{self.name} died"))

    def control(self, verb, **values):
        if self.dead:
            raise ReplicaDiedError(f"{self.name} died")
        self.verbs.append((verb, values))
        return self.name if verb == "checksum" else "same"

    def close(self):
        self.closed = True


@pytest.fixture(scope="module")
def chat(tiny_folder):
    return open_chat(tiny_folder)


def settled():
    """Wait for replacements that are being started."""
    for thread in threading.enumerate():
        if thread.name == "replace":
            thread.join(10)


def asked(pool, lengths, new=4, n=1):
    sampling = Sampling(new, 1.0, n=n)
    return [pool.submit([7] * length, sampling, place) for place, length in enumerate(lengths)]


def test_the_longest_work_goes_first_and_to_the_replica_with_the_fewest_tokens_out(chat):
    one, two = Scripted("one"), Scripted("two")
    pool = EnginePool([one, two], chat, at_once=1)
    asked(pool, [1, 2])  # both are busy from now on
    waiting = asked(pool, [3, 9, 5, 7])
    while one.out or two.out:
        (one if one.out else two).answer()
    assert [len(each) for each in one.seen + two.seen if len(each) > 2] == [9, 7, 5, 3]
    assert all(future.done() for future in waiting)

    one, two = Scripted("one"), Scripted("two")
    asked(EnginePool([one, two], chat), [30, 10, 5, 6, 3])
    assert [list(map(len, each.seen)) for each in (one, two)] == [[30], [10, 5, 6, 3]]


def test_a_replica_holds_at_most_its_bound_of_completions_and_a_larger_group_alone(chat):
    one = Scripted("one")
    pool = EnginePool([one], chat, at_once=8)
    asked(pool, [1] * 5, n=3)
    assert len(one.out) == 2
    one.answer()
    assert len(one.out) == 2
    alone = Scripted("alone")
    asked(EnginePool([alone], chat, at_once=8), [1, 1], n=20)
    assert len(alone.out) == 1


def test_results_keep_their_order_and_done_hears_of_each_once(chat):
    prompts = [[i] * (1 + i % 5) for i in range(40)]
    heard = []
    pool = EnginePool([Scripted("one", quick=True), Scripted("two", quick=True)], chat, at_once=2)
    sampling = Seeded(4, 1.0, n=2, seeds=tuple(range(100, 140)))
    found = pool.write(prompts, sampling, lambda i, group: heard.append((i, group)))
    assert found == [words(ids, Sampling(4, n=2, seed=100 + i), 0) for i, ids in enumerate(prompts)]
    assert sorted(i for i, _ in heard) == list(range(40))
    assert pool.counts.answered == pool.counts.asked == 40


def test_options_are_scored_by_their_own_tokens(chat):
    pool = EnginePool([Scripted("one"), Scripted("two")], chat)
    prompt = [Message(PLAIN, "It is")]
    context, ids = chat.continuations(prompt, [" a", " b c"])
    found = pool.likelihood([prompt, prompt], [[" a", " b c"], [" a"]])
    assert found[0] == [Likelihood(-float(len(context)), len(one)) for one in ids]
    assert found[1] == found[0][:1]


def test_what_a_dead_replica_had_is_asked_again_and_its_late_answer_dropped(chat):
    one, two = Scripted("one"), Scripted("two")
    pool = EnginePool([one, two], chat)
    found = asked(pool, [4, 4, 4, 4])
    one.die()
    assert one.closed
    late = len(one.out)
    while one.out:
        one.answer()
    assert not any(future.done() for future in found)
    while two.out:
        two.answer()
    assert [future.result().replica for future in found] == ["two"] * 4
    assert (pool.counts.again, pool.counts.late, pool.counts.answered) == (2, late, 4)
    assert late == 1


def test_a_replacement_writes_at_once_where_no_weights_were_put_in(chat):
    one, other = Scripted("one"), Scripted("other", quick=True)
    pool = EnginePool([one], chat, again=lambda name: other)
    found = asked(pool, [4, 5])
    one.die()
    settled()
    assert [future.result(5).replica for future in found] == ["other"] * 2
    assert (pool.counts.replaced, pool.names) == (1, ["other"])


def test_a_replacement_waits_for_the_next_weights_and_a_group_made_anew(chat):
    one, two, other = Scripted("one"), Scripted("two"), Scripted("other", quick=True)
    pool = EnginePool([one, two], chat, ranks=2, again=lambda name: other)
    assert pool.joined()
    pool.control("init_weight_transfer_engine", init_info={"rank_offset": 1, "world_size": 1 + pool.workers})
    assert [each.verbs[0][1]["init_info"]["rank_offset"] for each in (one, two)] == [1, 3]
    assert not pool.joined()
    pool.control("finish_weight_update", weight_version="1")
    found = asked(pool, [4, 4])
    one.die()
    settled()
    assert pool.joined()
    assert not other.seen
    with pytest.raises(ReplicaDiedError, match="one came or went; the transfer group must be made anew"):
        pool.control("update_weights", update_info={})
    with pytest.raises(ReplicaDiedError, match="one, other came or went"):
        pool.control("start_weight_update")
    two.answer()
    pool.control("init_weight_transfer_engine", init_info={"rank_offset": 1, "world_size": 5})
    pool.control("finish_weight_update", weight_version="2")
    two.answer()
    assert [future.result(5).replica for future in found] == ["two"] * 2
    asked(pool, [4, 4])
    assert len(other.seen) == 1


def test_the_last_replica_dead_after_an_update_is_one_clear_error(chat):
    one = Scripted("one")
    pool = EnginePool([one], chat, again=lambda name: Scripted("other"))
    pool.control("finish_weight_update", weight_version="1")
    found = asked(pool, [4, 4])
    one.die()
    settled()
    for future in found:
        with pytest.raises(EngineError, match="no engine is left that could write: one died; continue from the last"):
            future.result(5)


def test_a_replacement_that_cannot_start_is_said(chat):
    def fails(name):
        raise EngineError("no card is free")

    one = Scripted("one")
    pool = EnginePool([one], chat, again=fails)
    found = asked(pool, [4])
    one.die()
    settled()
    with pytest.raises(EngineError, match="one could not be replaced: no card is free"):
        found[0].result(5)


def test_a_prompt_that_kills_every_replica_is_given_up(chat):
    made = [Scripted(f"r{number}") for number in range(DEATHS + 1)]
    rest = iter(made[1:])
    pool = EnginePool(made[:1], chat, again=lambda name: next(rest))
    found = asked(pool, [4])
    for one in made[:DEATHS]:
        one.die()
        settled()
    with pytest.raises(EngineError, match=f"out on {DEATHS} engines that died"):
        found[0].result(5)
    assert not made[DEATHS].seen


def test_an_error_of_a_prompt_ends_the_call_and_asks_nothing_more(chat):
    class Refuses(Scripted):
        def submit(self, prompt, sampling, stream):
            self.seen.append(list(prompt))
            future = Future()
            future.set_exception(EngineError("it cannot do that"))
            return future

    one = Refuses("one")
    with pytest.raises(EngineError, match="it cannot do that"):
        EnginePool([one], chat).write([[1], [2]], Sampling(4))

    held = Scripted("held")
    pool = EnginePool([held], chat, at_once=1)
    first, second = asked(pool, [3, 3])
    second.cancel()
    held.answer()
    assert (first.done(), len(held.seen)) == (True, 1)


def test_verbs_reach_all_and_replicas_of_different_weights_are_an_error(chat):
    one, two = Scripted("one"), Scripted("two")
    pool = EnginePool([one, two], chat)
    assert pool.control("pause") == "same"
    with pytest.raises(EngineError, match=r"hold different weights, by their checksums: .'one': 'one', 'two': 'two'."):
        pool.control("checksum")
    one.dead = True
    assert pool.control("resume") == "same"
    assert pool.names == ["two"]
    two.dead = True
    with pytest.raises(ReplicaDiedError, match="two died"):
        pool.control("resume")


def test_closing_ends_what_is_out_and_what_waits(chat):
    one = Scripted("one")
    pool = EnginePool([one], chat, at_once=1, again=lambda name: Scripted("other"))
    found = asked(pool, [4, 4])
    pool.close()
    assert one.closed
    for future in found:
        with pytest.raises(EngineError, match="closed"):
            future.result(5)
    with pytest.raises(EngineError, match="closed"):
        asked(pool, [4])[0].result(5)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_the_schedule_every_prompt_is_answered_once_with_its_own_words(chat, data):
    live = [Scripted(f"r{number}") for number in range(data.draw(st.integers(1, 3)))]
    everyone = list(live)
    deaths = 0

    def again(name):
        made = Scripted(f"{name}+")
        everyone.append(made)
        live.append(made)
        return made

    pool = EnginePool(live, chat, at_once=data.draw(st.integers(1, 6)), again=again)
    wanted, found, heard = [], [], []
    prompts = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=12))
    while prompts or any(one.out for one in live):
        choices = [*["ask"] * bool(prompts), *[one for one in live if one.out]]
        pick = data.draw(st.sampled_from(choices))
        if pick == "ask":
            ids, sampling, stream = [3] * prompts.pop(), Sampling(4, 1.0, n=2, seed=5), len(found)
            future = pool.submit(ids, sampling, stream)
            future.add_done_callback(heard.append)
            found.append(future)
            wanted.append(words(ids, sampling, stream))
        elif deaths < DEATHS - 1 and data.draw(st.booleans()):
            deaths += 1
            live.remove(pick)
            pick.die()
            settled()
        else:
            pick.answer(data.draw(st.integers(0, len(pick.out) - 1)))
        for gone in set(everyone) - set(live):  # what the dead still say
            while gone.out and data.draw(st.booleans()):
                gone.answer()
    assert [future.result(5).completions for future in found] == wanted
    assert len(heard) == len(found) == pool.counts.answered
    pool.close()
