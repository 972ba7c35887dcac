"""Without a card there is nothing to record: work is done each time it is asked for."""

from __future__ import annotations

import torch

from tercet.device.graphs import PLAIN, Graphs


def test_on_a_processor_work_is_done_each_time():
    done: list[int] = []
    graphs = Graphs(torch.device("cpu"))
    for number in range(PLAIN + 3):
        assert graphs.run("key", lambda number=number: done.append(number) or number) == number
    assert done == list(range(PLAIN + 3))
