"""Replicas behind a URL, against servers with the documented fields of vLLM and SGLang."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from engine_servers import EngineServer, SglangLike, VllmLike, running, written

from tercet.models.chat import open_chat
from tercet.models.engines.replica import EngineError, ReplicaDiedError
from tercet.models.engines.served import ServedEngine
from tercet.models.sglang.served import SglangServer
from tercet.models.vllm.generator import settings_of
from tercet.models.vllm.served import VllmServer
from tercet.rows import Likelihood, Sampling

KINDS: dict[str, tuple[type[ServedEngine], type[EngineServer]]] = {
    "vllm": (VllmServer, VllmLike),
    "sglang": (SglangServer, SglangLike),
}
WAIT = 10.0


@pytest.fixture(params=list(KINDS))
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(kind: str) -> Iterator[Any]:
    with running(KINDS[kind][1]) as found:
        yield found


@pytest.fixture
def chat(tiny_folder: Path) -> Any:
    return open_chat(tiny_folder)


@pytest.fixture
def engine(kind: str, server: Any, chat: Any) -> Iterator[ServedEngine]:
    with contextlib.closing(KINDS[kind][0].open(server.url, chat, "float32")) as found:
        yield found


def test_a_group_is_what_the_server_wrote_sample_by_sample(engine, chat):
    sampling = Sampling(8, temperature=1.0, n=3, seed=4)
    group = engine.submit([60, 61], sampling, 7).result(WAIT)
    seed = settings_of(sampling, 7, sorted(chat.stops))["seed"]
    wanted = [written([60, 61], seed + i, 8) for i in range(3)]
    assert [(list(one.token_ids), list(one.logps)) for one in group.completions] == wanted
    assert [one.text for one in group.completions] == [chat.completion(*one, ()).text for one in wanted]
    assert (group.first, group.last, group.replica) == (0, 0, engine.url)


def test_greedy_completions_are_asked_for_once(engine, server):
    group = engine.submit([60, 61], Sampling(2, n=4), 0).result(WAIT)
    assert len(group.completions) == 4
    assert {one.token_ids for one in group.completions} == {tuple(written([60, 61], None, 2)[0])}
    _, body = server.asked[-1]
    assert len(body.get("input_ids", [1])) == 1
    assert body["sampling_params"] if isinstance(engine, SglangServer) else body["sampling_params"]["n"] == 1


def test_an_option_is_scored_by_its_own_tokens(engine):
    found = engine.score([50, 51], [52, 54]).result(WAIT)
    assert found == Likelihood(-(52 + 54) / 8, 2, True)
    assert not engine.score([50, 51], [52, 53]).result(WAIT).greedy


def test_what_is_beyond_the_context_is_an_error_of_that_prompt(engine):
    group = engine.submit([60] * 64, Sampling(4, n=2), 0).result(WAIT)
    assert [one.error for one in group.completions] == [
        "a prompt of 64 tokens does not fit into the engine's context of 64"
    ] * 2
    assert math.isnan(engine.score([60] * 40, [60] * 24).result(WAIT).logp)
    assert len(engine.submit([60] * 62, Sampling(8), 0).result(WAIT).completions[0].token_ids) == 2


def test_a_server_that_breaks_off_is_a_replica_that_died(engine, server):
    server.broken = True
    with pytest.raises(ReplicaDiedError, match=r"does not answer .*see its log; start it with"):
        engine.submit([61], Sampling(4), 1).result(WAIT)


def test_what_was_asked_of_an_engine_that_is_left_ends_at_once(engine, server):
    server.hold.clear()
    waiting = engine.submit([60], Sampling(4), 0)
    engine.close()
    with pytest.raises(ReplicaDiedError):
        waiting.result(WAIT)


def test_a_server_that_is_not_there_is_one_error(kind, chat):
    with running(KINDS[kind][1]) as gone:
        url = gone.url
    with pytest.raises(ReplicaDiedError, match=f"{url}: .* does not answer"):
        KINDS[kind][0].open(url, chat, "float32")


def test_a_server_that_lost_its_weights_is_a_replica_that_died(engine, server, tmp_path):
    engine.load(tmp_path)
    assert server.label == "0"
    assert engine.submit([60], Sampling(4), 0).result(WAIT).first == 0
    server.label = "default"  # started again
    with pytest.raises(ReplicaDiedError, match="started again and holds its first weights"):
        engine.submit([60], Sampling(4), 0).result(WAIT)


def test_a_folder_that_a_server_was_started_with_is_not_loaded_again(engine, server):
    asked = len(server.asked)
    engine.load(Path("/models/m"))
    assert len(server.asked) == asked


def test_a_key_is_read_from_its_file(kind, server, chat, tmp_path):
    server.key = "sesame"
    with pytest.raises(EngineError, match=r"name the file with its key in engine\.key_file"):
        KINDS[kind][0].open(server.url, chat, "float32")
    file = tmp_path / "key"
    file.write_text("sesame\n")
    file.chmod(0o600)
    KINDS[kind][0].open(server.url, chat, "float32", key_file=str(file)).close()


@pytest.mark.parametrize("url", ["localhost:8000", "http://host:8000/v1", "ftp://host"])
def test_what_is_no_address_is_refused(kind, chat, url):
    with pytest.raises(EngineError, match=r"is no address of a server; expected http://HOST:PORT"):
        KINDS[kind][0].open(url, chat, "float32")


def test_a_server_of_another_precision_is_refused(kind, server, chat):
    with pytest.raises(EngineError, match="--dtype float32; start it with --dtype bfloat16"):
        KINDS[kind][0].open(server.url, chat, "bfloat16")


def test_an_answer_of_another_shape_names_the_server(engine, server):
    for path in ("/inference/v1/generate", "/generate"):
        server.refusal[path] = (200, {"choices": [{"index": 0}]})
    with pytest.raises(EngineError, match="an answer of another shape"):
        engine.submit([60], Sampling(4), 0).result(WAIT)


def test_a_refusal_is_told_in_the_servers_words_and_is_no_death(engine, server):
    for path in ("/inference/v1/generate", "/generate"):
        server.refusal[path] = (400, {"error": {"message": "n must be at most 2"}})
    with pytest.raises(EngineError, match=r"refuses \(n must be at most 2\)") as caught:
        engine.submit([60], Sampling(4, 1.0, n=3), 0).result(WAIT)
    assert not isinstance(caught.value, ReplicaDiedError)


@pytest.mark.parametrize("kind", ["vllm"])
@pytest.mark.parametrize(
    ("settings", "refusal", "match"),
    [
        ({"logprobs_mode": "raw_logprobs"}, {}, "start it with --logprobs-mode processed_logprobs"),
        (
            {},
            {"/inference/v1/generate": (403, {"error": {"message": "disabled"}})},
            r"vllm serve MODEL .*--enable-scale-out",
        ),
    ],
)
def test_a_vllm_that_was_started_otherwise_is_refused(kind, server, chat, settings, refusal, match):
    server.settings |= settings
    server.refusal |= refusal
    with pytest.raises(EngineError, match=match):
        VllmServer.open(server.url, chat, "float32")


@pytest.mark.parametrize("kind", ["vllm"])
def test_verbs_are_vllms_own_routes(engine, server):
    engine.control("pause")
    engine.control("init_weight_transfer_engine", init_info={"port": 5})
    engine.control("expect", shapes={"a": [2]})
    engine.control("start_weight_update")
    engine.control("update_weights", update_info={"names": ["a"]})
    engine.control("finish_weight_update", weight_version=3)
    engine.control("wake_up", tags=["weights", "kv_cache"])
    engine.control("resume")
    assert engine.control("checksum") == "0123abcd"
    assert server.asked[-9:] == [
        ("/pause?mode=keep", {}),
        ("/init_weight_transfer_engine", {"init_info": {"port": 5}}),
        ("/collective_rpc", {"method": "expect", "kwargs": {"shapes": {"a": [2]}}}),
        ("/start_weight_update", {}),
        ("/update_weights", {"update_info": {"names": ["a"]}}),
        ("/finish_weight_update", {"weight_version": "3"}),
        ("/wake_up?tags=weights&tags=kv_cache", {}),
        ("/resume", {}),
        ("/collective_rpc", {"method": "checksum"}),
    ]
    assert engine.submit([60], Sampling(4), 0).result(WAIT)[1:3] == (3, 3)


@pytest.mark.parametrize("kind", ["vllm"])
def test_a_vllm_on_a_cpu_loads_no_folder(server, chat, tmp_path):
    server.device = "cpu"
    with (
        contextlib.closing(VllmServer.open(server.url, chat, "float32")) as engine,
        pytest.raises(EngineError, match=r"cannot load .*start it on that folder"),
    ):
        engine.load(tmp_path)


@pytest.mark.parametrize("kind", ["sglang"])
def test_sglang_has_other_verbs(engine, server):
    engine.control("pause")
    engine.control("resume")
    assert server.asked[-2:] == [("/pause_generation", {"mode": "retract"}), ("/continue_generation", {})]
    with pytest.raises(EngineError, match="SGLang has no 'start_weight_update'; it takes weights from a folder"):
        engine.control("start_weight_update")
