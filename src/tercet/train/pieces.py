"""A table read piece by piece on all machines of a Ray cluster, by the function that reads it whole on one.

Ranks that Ray started hold a processor of each machine. Jobs that wait for one of these would wait for ever, so a table
is read here where the cluster has no processor left; and where it is too short to be worth the way.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tercet.device.ray_data import ClusterPool, free_processors
from tercet.recipe import Placement

Read = Callable[[Path, int], Iterator[pa.RecordBatch]]  # of a table and a number of threads
WORTH = 4  # pieces; a table of no more is read here
WINDOW = 256  # pieces that are in the cluster's memory at once


def in_pieces(read: Read, path: Path, rows: int, placement: Placement, threads: int) -> Iterator[pa.RecordBatch]:
    """What `read` makes of a table: a batch for every `rows` of it, in order. `read` must be picklable."""
    if placement.launch != "ray" or _num_rows(path) <= WORTH * rows or not free_processors():
        yield from read(path, threads)
        return
    done = 0
    try:
        for batch in ClusterPool(partial(_one, read, path.name), WINDOW).map(_pieces(path, rows)):
            yield batch
            done += 1
    except ValueError:  # of a row in a piece; raised here it has the table's name and the row's number in it
        yield from islice(read(path, threads), done, None)


def _num_rows(path: Path) -> int:
    with pq.ParquetFile(path) as table:
        return int(table.metadata.num_rows)


def _pieces(path: Path, rows: int) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path, buffer_size=1 << 20, pre_buffer=False) as table:
        yield from table.iter_batches(rows)  # a whole number of pieces is in each row group that a stage writes


def _one(read: Read, name: str, piece: pa.RecordBatch) -> pa.RecordBatch:
    """The batch of a piece, on a worker: `read` takes a file, so the piece becomes one for a moment."""
    with tempfile.TemporaryDirectory() as folder:
        pq.write_table(pa.Table.from_batches([piece]), Path(folder) / name)
        (found,) = read(Path(folder) / name, 1)
    return found
