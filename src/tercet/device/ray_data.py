"""Jobs on all machines of a Ray cluster, by Ray Data; results come in the order of the jobs, as from one process."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Generic, TypeVar

J = TypeVar("J")
R = TypeVar("R")

WINDOW = 1024  # jobs of one call of Ray Data


class NoClusterError(RuntimeError):
    """There is no Ray, or no cluster; the message says what to do."""


class ClusterPool(Generic[J, R]):
    """On a cluster what `tercet.data.process_pool.ProcessPool` is on one machine; its function must be picklable."""

    def __init__(self, work: Callable[[J], R], window: int = 0) -> None:
        """`window` jobs, and results, wait in the cluster's memory at once; `WINDOW` when absent."""
        self.work, self.window = work, window or WINDOW

    def __enter__(self) -> ClusterPool[J, R]:
        return self

    def __exit__(self, *args: object) -> None:
        return

    def map(self, jobs: Iterable[J]) -> Iterator[R]:
        """The result of each job, in order. The first job that fails raises its own error here."""
        source = iter(jobs)
        if not (some := list(islice(source, self.window))):
            return
        ray = _cluster()
        own = ray.put(self.work)  # once for all windows; a worker unpacks it once
        while some:
            table = ray.data.from_items([{"job": pickle.dumps(job)} for job in some], override_num_blocks=len(some))
            done = table.map_batches(_do, batch_size=None, batch_format="pyarrow", fn_args=(own,))
            for row in done.take_all():  # all of a window: what is left half read would keep the cluster's workers
                found = pickle.loads(row["result"])
                if isinstance(found, Exception):
                    raise found
                yield found
            some = list(islice(source, self.window))


def free_processors() -> int:
    """Processors of the cluster that nobody has taken. Ranks that Ray started have taken one of each machine."""
    return int(_cluster().available_resources().get("CPU", 0))


def _cluster() -> Any:
    """Ray, connected to the cluster that `RAY_ADDRESS` names or that this machine belongs to."""
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise NoClusterError("launch = \"ray\" needs Ray: pip install 'tercet[ray]' on every machine") from error
    if not ray.is_initialized():
        try:
            ray.init(address=os.environ.get("RAY_ADDRESS", "auto"), log_to_driver=False)
        except ConnectionError as error:
            raise NoClusterError(
                'launch = "ray" needs a Ray cluster: `ray start --head` on the first machine and `ray start '
                "--address=HOST:6379` on the others, or RAY_ADDRESS; or set placement.launch to another launcher"
            ) from error
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    return ray


_held: dict[str, Any] = {}  # of a worker: the function that it got last


def _do(jobs: Any, own: Any) -> Any:
    """The results of some jobs, on a worker."""
    import pyarrow as pa
    import ray

    if own.hex() not in _held:
        _held.clear()
        _held[own.hex()] = ray.get(own)
    results = [pickle.dumps(_result(_held[own.hex()], job.as_py())) for job in jobs.column("job")]
    return pa.table({"result": pa.array(results, pa.binary())})


def _result(work: Callable[[Any], Any], job: bytes) -> Any:
    try:
        return work(pickle.loads(job))
    except Exception as error:  # raised where the results are taken, as if the job had been done there
        return error
