"""A group beside the ranks' own: what rank 0 sends arrives at every other, whoever else they talk to."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tercet.device.broadcast import Broadcast, free_port, own_address


def test_what_the_first_sends_all_others_have():
    store = Broadcast.listen(30.0)
    sent = [torch.arange(5, dtype=torch.uint8), torch.full((300_000,), 7, dtype=torch.uint8)]

    def receive(rank: int) -> list[torch.Tensor]:
        group = Broadcast(Broadcast.find("127.0.0.1", store.port, 30.0), rank, 3, 30.0)
        found = [torch.zeros_like(one) for one in sent]
        for one in found:
            group.pass_on(one)
        return found

    with ThreadPoolExecutor(2) as threads:
        others = [threads.submit(receive, rank) for rank in (1, 2)]
        group = Broadcast(store, 0, 3, 30.0)
        for one in sent:
            group.pass_on(one)
        assert all(torch.equal(*pair) for other in others for pair in zip(sent, other.result(), strict=True))


def test_who_waits_for_one_that_never_comes_is_told():
    with pytest.raises(RuntimeError):
        Broadcast(Broadcast.listen(0.3), 0, 2, 0.3)


def test_the_address_is_where_the_ranks_meet_or_this_machines_own(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "node7")
    assert own_address() == "node7"
    monkeypatch.delenv("MASTER_ADDR")
    assert socket.inet_aton(own_address())
    with socket.create_server(("", free_port())):
        pass
