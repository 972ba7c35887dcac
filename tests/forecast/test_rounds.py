"""Seconds of an RL round with engines: sums by hand, and laws that hold for every split of the cards."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tercet.forecast.machines import ASSUMED, machine
from tercet.forecast.rounds import round_of
from tercet.forecast.shape import known
from tercet.forecast.stages import forecast, refusal, setting_of
from tercet.forecast.work import Engines, Work, engines_of
from tercet.recipe import library, load

NODES, LARGE = machine("h100x64"), known("meta-llama/Llama-3.1-70B")
SHAPE = known("meta-llama/Llama-3.1-8B")
ENGINES = Engines(replicas=2, tensor=1, room=0.9 * 85e9, sequences=1024, apart=True)
PHASES = ("read", "write", "tail", "weights", "score", "train")
VLLM = 'stage.rlvr.engine="vllm"'
APART = 'placement.engine.placement="apart"'


def work(*settings: str, name: str = "tulu3.1-8b", ranks: int = 24, **changed: object) -> Work:
    recipe = load(library.located(name), [VLLM, *settings])
    spec = recipe.spec("rlvr")
    value = SHAPE if getattr(spec, "value", "") else None
    setting = setting_of(spec, recipe, NODES.with_cards(ranks))
    ahead = {"steps": 2, "completions": spec.batch * spec.num_generations}
    return replace(Work("rlvr", spec, SHAPE, value, setting, ahead, ENGINES), **changed)


def seconds(one: Work, where=NODES) -> dict[str, float]:
    return round_of(one, where, ASSUMED)


def test_writing_is_the_sum_of_its_steps_by_hand():
    found = seconds(work())
    flops, memory = 989e12 * 0.3, 3.35e12 * 0.6
    weights, cache = 2 * SHAPE.active, 2 * 32 * 8 * 128 * 2
    rows = 24 * 16  # of 48 prompts on two replicas; all fit
    assert found["read"] == pytest.approx(24 * 400 * 2 * SHAPE.active / flops)
    computing, reading = 2 * SHAPE.active * rows / flops, (weights + rows * 600 * cache) / memory
    assert found["write"] == pytest.approx(400 * (1e-3 + max(computing, reading)))
    assert found["tail"] == pytest.approx((2048 - 400) * (1e-3 + (weights + 600 * cache) / memory))


def test_learning_and_weights_by_hand():
    found = seconds(work())
    tokens, flops = 48 * (400 + 16 * 400), 24 * 989e12 * 0.3
    assert found["score"] == pytest.approx(tokens * 2 * 2 * SHAPE.active / flops)  # the policy's, and the reference's
    assert found["train"] == pytest.approx(tokens * 6 * SHAPE.active / flops)
    size = 2 * SHAPE.parameters  # gathered over a node's eight wires at most, and sent over one
    assert found["weights"] == pytest.approx(size * (23 / 24 / (8 * 50e9 * 0.6) + 1 / (50e9 * 0.6)))


def test_a_replica_of_several_cards_reads_its_share_and_exchanges_sums():
    one, four = (seconds(work(engines=replace(ENGINES, tensor=cards)))["tail"] for cards in (1, 4))
    rows = 2 * 2 * 4096 * 0.75 / (450e9 * 0.6)
    by_hand = (one - 1648e-3) / 4 + 1648 * (1e-3 + 2 * 32 * (15e-6 + rows))
    assert four == pytest.approx(by_hand)


@pytest.mark.parametrize("settings", [(), ("stage.rlvr.lag=1",), ("stage.rlvr.lag=1", "stage.rlvr.in_flight=true")])
@pytest.mark.parametrize("tensor", [1, 8])
def test_more_replicas_are_never_slower(settings, tensor):
    many = [work(*settings, engines=replace(ENGINES, replicas=n, tensor=tensor)) for n in (*range(1, 50), 64, 100)]
    found = [seconds(one)["round"] for one in many]
    assert found == sorted(found, reverse=True)


def test_a_round_in_turn_is_the_sum_of_its_phases():
    found = seconds(work())
    assert found["round"] == pytest.approx(sum(found[name] for name in PHASES))


@pytest.mark.parametrize("replicas", [1, 4, 40])
def test_ahead_is_never_slower_than_in_turn_and_never_shorter_than_either_side(replicas):
    engines = replace(ENGINES, replicas=replicas)
    plain, ahead, flight = (
        seconds(work(*(f"stage.rlvr.{one}" for one in settings), engines=engines))
        for settings in ((), ("lag=1",), ("lag=1", "in_flight=true"))
    )
    assert plain["round"] > ahead["round"] >= flight["round"]
    for found in (ahead, flight):
        assert found["round"] >= found["score"] + found["train"] + found["weights"]
        assert found["round"] >= found["read"] + found["write"] + found["weights"]


def test_engines_on_the_trainers_cards_take_turns_with_it():
    beside = replace(ENGINES, replicas=24, room=0.4 * 85e9, apart=False)
    found = seconds(work("stage.rlvr.lag=1", engines=beside))
    assert found["round"] == pytest.approx(sum(found[name] for name in PHASES))
    assert beside.cards == 0


def test_seconds_halve_where_all_rates_double(monkeypatch):
    for name in ("step", "near", "far"):
        monkeypatch.setitem(ASSUMED, name, 0.0)
    names = ("flops", "bandwidth", "link", "network")
    twice = replace(NODES, **{name: 2 * getattr(NODES, name) for name in names})
    one = work(engines=replace(ENGINES, tensor=16))
    slow, fast = seconds(one), seconds(one, twice)
    assert {name: value / 2 for name, value in slow.items()} == pytest.approx(fast)


def test_weights_in_parts_take_the_time_of_a_cards_part():
    given = [replace(ENGINES, tensor=cards, parts=True) for cards in (4, 8)]
    parts = [seconds(work(shape=LARGE, engines=engines))["weights"] for engines in given]
    assert parts[0] == pytest.approx(2 * LARGE.parameters / 4 / (50e9 * 0.6))
    assert parts[0] == pytest.approx(2 * parts[1])


def test_the_large_recipes_send_weights_in_parts():
    for name, replicas, tensor in (("tulu3-70b", 2, 4), ("tulu3-405b", 1, 16)):
        recipe = load(library.located(name))
        found = engines_of(recipe.spec("rlvr"), recipe, NODES)
        assert (found.replicas, found.tensor, found.parts, found.apart) == (replicas, tensor, True, True)


def test_within_a_node_weights_travel_by_its_links():
    near = seconds(work(ranks=6, engines=replace(ENGINES, replicas=2)))["weights"]
    assert near == pytest.approx(2 * SHAPE.parameters * (5 / 6 + 1) / (450e9 * 0.6))


def test_a_stage_without_an_engine_has_no_rounds():
    assert seconds(work(engines=None)) == {}
    assert forecast(work(engines=None), NODES, ASSUMED).phases == {}


def test_hours_and_cost_are_those_of_all_rounds_and_of_all_cards():
    one = work()
    found = forecast(one, NODES, ASSUMED)
    assert found.hours == pytest.approx(1920 * found.phases["round"] / 3600)
    assert found.dollars == pytest.approx(found.hours * (24 + 2) * NODES.price)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ((APART, "placement.engine.replicas=3", "placement.engine.tensor_parallel_size=4"), (3, 4, 12, 0.9)),
        ((APART, 'placement.engine.urls=["http://a:1", "http://b:1"]'), (2, 1, 0, 0.9)),
        (("placement.engine.gpu_memory_utilization=0.3",), (64, 1, 0, 0.3)),
    ],
)
def test_engines_are_where_the_recipe_says(settings, expected):
    recipe = load(library.located("tulu3.1-8b"), [VLLM, *settings])
    found = engines_of(recipe.spec("rlvr"), recipe, NODES)
    replicas, tensor, cards, share = expected
    assert (found.replicas, found.tensor, found.cards) == (replicas, tensor, cards)
    assert found.room == share * NODES.memory


def test_an_engine_beside_a_trainer_is_counted_when_it_writes():
    plain, beside = work(APART), work()
    found = forecast(replace(beside, engines=replace(ENGINES, apart=False)), NODES, ASSUMED).bytes
    assert found["engine"] == 0.4 * NODES.memory
    assert "engine" not in forecast(plain, NODES, ASSUMED).bytes
    assert found["peak"] >= found["engine"] + found["master weights"] + found["moments"]


def test_an_engine_that_its_trainers_card_cannot_hold_is_offered_cards_of_its_own():
    beside = work("placement.recompute=true", shape=LARGE, engines=replace(ENGINES, apart=False, replicas=64), ranks=64)
    crowded = replace(beside, setting=replace(beside.setting, engine=0.95 * NODES.memory))
    assert refusal(crowded, NODES)
    offered = forecast(crowded, NODES, ASSUMED).instead
    assert offered.startswith('placement.engine.placement = "apart", placement.engine.tensor_parallel_size = ')


def test_what_engines_cannot_hold_is_refused_with_what_does():
    large = work(APART, "placement.recompute=true", shape=LARGE, engines=ENGINES, ranks=56)
    found = forecast(large, NODES, ASSUMED)
    assert "of an engine's 76 on each of its cards" in found.refused
    assert found.instead == "placement.engine.replicas = 1, placement.engine.tensor_parallel_size = 4"
    assert not refusal(replace(large, engines=replace(ENGINES, replicas=1, tensor=4)), NODES)


def test_engines_leave_cards_to_train():
    all_of_them = work(APART, engines=replace(ENGINES, replicas=8), ranks=1)
    found = forecast(all_of_them, machine("h100x8"), ASSUMED)
    assert "take 8 cards of 8" in found.refused
    assert found.instead == "placement.engine.replicas = 4"


def test_an_evaluation_of_a_70b_model_fits_an_engine_of_several_cards():
    recipe = load(library.located("tulu3-8b"))
    spec = recipe.spec("skills-rlvr")
    alone = Work("skills-rlvr", spec, LARGE, None, setting_of(spec, recipe, NODES), {})
    offered = forecast(alone, NODES, ASSUMED).instead
    assert offered == 'stage.skills-rlvr.engine = "vllm", placement.engine.tensor_parallel_size = 4'
    recipe = load(library.located("tulu3-8b"), [part.replace(" = ", "=") for part in offered.split(", ")])
    spec = recipe.spec("skills-rlvr")
    engines = engines_of(spec, recipe, NODES)
    found = forecast(replace(alone, spec=spec, ahead={"completions": 1000}, engines=engines), NODES, ASSUMED)
    assert (found.refused, found.ranks, engines.cards) == ("", 4, 4)
    assert found.bytes["weights"] == 2 * LARGE.parameters / 4
    assert found.bytes["peak"] == pytest.approx(0.9 * NODES.memory)
    assert found.hours > 0
