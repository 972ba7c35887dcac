"""The engine of a stage by its placement: servers behind a pool, and what each kind cannot do."""

from __future__ import annotations

import pytest
from tests.models.engine_servers import SglangLike, VllmLike, running

from tercet.models.engines.opening import opened, settings_of
from tercet.models.engines.pool import EnginePool
from tercet.models.engines.replica import EngineError
from tercet.recipe.placement import EnginePlacement
from tercet.rows import Sampling


def test_servers_are_a_pool_that_has_the_folders_weights(tiny_folder):
    with running(VllmLike) as one, running(VllmLike) as two:
        engine = EnginePlacement(placement="apart", urls=(one.url, two.url), max_num_seqs=4)
        pool = opened(tiny_folder, "float32", engine)
        assert isinstance(pool, EnginePool)
        assert (pool.names, pool.context, pool.at_once) == ([one.url, two.url], 64, 4)
        found = pool.write([[40 + i] for i in range(8)], Sampling(3))
        assert all(len(group) == 1 for group in found)
        pool.close()
    for server in (one, two):
        paths = [path for path, _ in server.asked]
        assert any("reload_weights" in str(body) for _, body in server.asked)
        assert paths.count("/inference/v1/generate") > 1  # both answered, beside the look at the beginning


def test_servers_of_a_trainer_get_their_weights_from_it(tiny_folder):
    with running(VllmLike) as one:
        engine = EnginePlacement(placement="apart", urls=(one.url,))
        opened(tiny_folder, "float32", engine, taken=1).close()
    assert not any("reload_weights" in str(body) for _, body in one.asked)


def test_one_server_that_does_not_answer_is_the_error_and_the_others_are_left(tiny_folder):
    with running(VllmLike) as one:
        engine = EnginePlacement(placement="apart", urls=(one.url, "http://127.0.0.1:9"))
        with pytest.raises(EngineError, match=r"127.0.0.1:9: vLLM does not answer"):
            opened(tiny_folder, "float32", engine)


def test_sglang_runs_as_servers_alone(tiny_folder):
    with pytest.raises(EngineError, match=r'engine = "sglang" runs as servers: name them in engine.urls'):
        opened(tiny_folder, "float32", EnginePlacement(), "sglang")
    with pytest.raises(EngineError, match=r"Ray does not start here: name them in engine.urls"):
        opened(tiny_folder, "float32", EnginePlacement(placement="apart"), "sglang")
    with running(SglangLike) as one:
        pool = opened(tiny_folder, "float32", EnginePlacement(placement="apart", urls=(one.url,)), "sglang")
        assert pool.names == [one.url]
        pool.close()


def test_the_placements_own_numbers_reach_the_engine_and_options_stand_above_them():
    engine = EnginePlacement(max_model_len=128, max_num_seqs=8, options={"max_num_seqs": 4, "enforce_eager": True})
    own = {"gpu_memory_utilization": 0.9, "weight_transfer_config": {"backend": "process"}}
    assert settings_of(engine) == {**own, "max_model_len": 128, "max_num_seqs": 4, "enforce_eager": True}
    assert settings_of(engine, beside=True)["gpu_memory_utilization"] == 0.4
    apart = EnginePlacement(placement="apart", gpu_memory_utilization=0.7)
    assert settings_of(apart) == {"gpu_memory_utilization": 0.7, "weight_transfer_config": {"backend": "gloo"}}
