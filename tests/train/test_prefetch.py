"""Steps built ahead: the same ones in the same order, errors at their place, and no thread left behind."""

from __future__ import annotations

import threading
import time
from itertools import count, islice

import pytest
import torch

from tercet.device.mesh import Mesh
from tercet.models.forest import Leaf, Tree
from tercet.models.forest_cuda import BLOCK
from tercet.train.batch import Step, batches, filling
from tercet.train.packing import Budget
from tercet.train.prefetch import in_thread, prefetched


def workers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "batches"]


def gone() -> bool:
    """Whether the thread has ended, which takes a moment."""
    deadline = time.monotonic() + 30
    while workers() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not workers()


def test_the_same_items_come_in_the_same_order():
    assert list(in_thread(iter(range(50)), 2)) == list(range(50))
    assert gone()


def test_they_are_made_by_another_thread_and_never_more_than_a_few_ahead():
    made: list[int] = []

    def items():
        for number in range(20):
            made.append(number)
            assert threading.current_thread() is not threading.main_thread()
            yield number

    for number in in_thread(items(), 2):
        time.sleep(0.005)
        assert len(made) <= number + 1 + 2 + 1  # the one taken, those that wait, the one being made


def test_what_goes_wrong_is_raised_after_the_items_before_it():
    def items():
        yield from range(3)
        raise ValueError("row 3 is no row")

    taken = in_thread(items(), 2)
    assert list(islice(taken, 3)) == [0, 1, 2]
    with pytest.raises(ValueError, match="row 3"):
        next(taken)
    assert gone()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_whoever_stops_taking_ends_the_thread_though_it_waits(error):
    def take():
        for number in in_thread(count(), 2):
            if number == 5:
                raise error

    with pytest.raises(error):
        take()
    assert gone()


def trees() -> list[Tree]:
    return [Tree([1, 2, 3], [Leaf([4] * length, [True] * length)]) for length in (5, 90, 30)]


def test_on_a_cpu_steps_are_built_when_they_are_asked_for():
    asked: list[Mesh] = []

    def make(mesh: Mesh):
        asked.append(mesh)
        yield Step(batches(trees(), Budget(64), mesh))

    ranks = Mesh()
    steps = prefetched(make, ranks)
    assert not asked
    (step,) = steps
    assert asked == [ranks]
    assert [batch.num_tokens for batch in step.batches] == [93, 41]
    assert not workers()


def test_a_batch_moves_with_everything_it_carries():
    (batch,) = batches(
        trees(), Budget(4096), Mesh(), lambda items, forest: {"reference_L": torch.zeros(forest.num_leaves)}
    )
    seen: list[torch.Tensor] = []
    moved = batch.moved(lambda tensor: seen.append(tensor) or tensor.to("meta"))
    tensors = [*vars(moved.forest).values(), *moved.values.values()]
    assert len(seen) == 8
    assert all(tensor.is_meta for tensor in tensors if isinstance(tensor, torch.Tensor))
    assert (moved.forest.segments, moved.num_tokens) == (batch.forest.segments, batch.num_tokens)


def test_built_on_the_host_for_a_gpu_they_have_the_gpus_lengths():
    multiple = filling(torch.device("cuda"))
    assert multiple == BLOCK == 128
    made = batches(trees(), Budget(64), Mesh(), multiple=multiple)
    assert [len(batch.forest.input_ids) for batch in made] == [128, 128]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no CUDA device")
def test_on_a_gpu_they_arrive_as_they_were_built():
    def make(mesh: Mesh):
        for _ in range(5):
            yield Step(batches(trees(), Budget(64), mesh, multiple=BLOCK), {"known": 1.0})

    found = list(prefetched(make, Mesh(device=torch.device("cuda"))))
    wanted = list(make(Mesh()))
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.metrics == other.metrics
        for mine, theirs in zip(one.batches, other.batches, strict=True):
            assert mine.forest.input_ids.is_cuda
            assert torch.equal(mine.forest.input_ids.cpu(), theirs.forest.input_ids)
