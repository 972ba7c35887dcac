"""Tensors from one program to several others on CPUs, beside the group of a stage's own ranks: rank 0 sends."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from typing import Any

from torch import Tensor
from torch.distributed import PrefixStore, ProcessGroupGloo, TCPStore


def own_address() -> str:
    """How other machines reach this one: as its ranks meet, or by the network that it would send to others through."""
    meeting = os.environ.get("MASTER_ADDR", "")  # of the first rank, which is who is asked
    if meeting:
        return meeting
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address of no machine; nothing is sent
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])


def free_port() -> int:
    """A port that was free a moment ago, for a library that opens it itself."""
    with socket.create_server(("", 0)) as server:
        return int(server.getsockname()[1])


class Broadcast:
    """A group of programs in which rank 0 sends; every call is made by all of them."""

    def __init__(self, store: TCPStore, rank: int, size: int, timeout: float) -> None:
        """Meet the others, at most `timeout` seconds; so long everything later may take, too."""
        wait = timedelta(seconds=timeout)
        self.store = store  # of rank 0 it answers the others
        self._group: Any = ProcessGroupGloo(PrefixStore("weights", store), rank, size, wait)

    @staticmethod
    def listen(timeout: float) -> TCPStore:
        """Where the others will find rank 0; its `port` is a free one."""
        wait = timedelta(seconds=timeout)
        return TCPStore("127.0.0.1", 0, is_master=True, timeout=wait, wait_for_workers=False)

    @staticmethod
    def find(address: str, port: int, timeout: float) -> TCPStore:
        """Rank 0's store."""
        return TCPStore(address, port, is_master=False, timeout=timedelta(seconds=timeout))

    def pass_on(self, values: Tensor) -> None:
        """Send a tensor on the CPU, or receive one into it."""
        self._group.broadcast(values, 0).wait()
