"""Rows of a parquet file from outside, in batches that fit into memory however small the file is.

A column's values may be numbers of entries in a dictionary, so that a few bytes stand for any amount of text. Where
the dictionary of a column is larger than writers make it, its size in a batch is counted before it is written out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from tercet.rows import SourceError
from tercet.rows_limits import RATIO, SETTING, UNPACKED, longest

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS = 10_000
BATCH_ROWS = 64  # as fast as 1,000, where rows have texts
DICTIONARY_BYTES = 2 << 20  # writers end a dictionary at 1 MiB
_BUFFER = 1 << 20


def parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The rows as objects."""
    for piece in parquet_batches(path):
        yield from piece.to_pylist()


def parquet_batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The rows in batches; a row or a file beyond the limits is a `SourceError`.

    Reads page by page: the default reads a whole row group ahead, and some files are one row group.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False) as table:
        large, schema = _large_dictionaries(path, table), table.schema_arrow
        if not large:
            yield from table.iter_batches(BATCH_ROWS)
            return
    number, most = 0, longest()
    with pq.ParquetFile(path, buffer_size=_BUFFER, pre_buffer=False, read_dictionary=large) as table:
        for piece in table.iter_batches(BATCH_ROWS):
            whole = sum(map(_written_bytes, piece.columns)) <= most
            for part in [piece] if whole else [piece.slice(row, 1) for row in range(piece.num_rows)]:
                number += part.num_rows
                if not whole and sum(map(_written_bytes, part.columns)) > most:
                    what = f"is longer than {most >> 20} MiB; write it shorter, or set {SETTING} above {most >> 20}"
                    raise SourceError(f"{path}, row {number}: {what}")
                yield from pa.Table.from_batches([part]).cast(schema).to_batches()


def _large_dictionaries(path: Path, table: Any) -> list[str]:
    """The columns of texts whose dictionaries are larger than usual, after a look at the shape of the file."""
    found, columns = set[str](), table.metadata.num_columns
    if columns > COLUMNS:
        raise SourceError(f"{path}: has {columns:,} columns; at most {COLUMNS:,} are read; leave some out")
    with open(path, "rb") as stream:
        for group in range(table.metadata.num_row_groups):
            for number in range(columns):
                chunk = table.metadata.row_group(group).column(number)
                _check_ratio(path, chunk)
                start = min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset)), default=0)
                if chunk.physical_type == "BYTE_ARRAY" and _dictionary_bytes(stream, start) > DICTIONARY_BYTES:
                    found.add(chunk.path_in_schema)
    return sorted(found)


def _check_ratio(path: Path, chunk: Any) -> None:
    packed, size = chunk.total_compressed_size, chunk.total_uncompressed_size
    if size > max(UNPACKED * longest(), RATIO * packed):
        raise SourceError(
            f"{path}: column {chunk.path_in_schema!r:.80} unpacks from {packed:,} to {size:,} bytes, more than {RATIO} "
            f"times; unpack the file yourself if that is meant, or set {SETTING} above {longest() >> 20}"
        )


def _dictionary_bytes(stream: BinaryIO, start: int) -> int:
    """The unpacked size of the dictionary that a column begins with, by the header there; 0 without one.

    A header begins with type (2 is a dictionary) and size, each a byte 0x15 and a number of seven bits a byte, whose
    lowest bit is the sign. One that is written otherwise counts as large.
    """
    stream.seek(start)
    head, values = iter(stream.read(32)), list[int]()
    for _ in range(2):
        if next(head, 0) != 0x15:
            return DICTIONARY_BYTES + 1
        value = shift = 0
        for byte in head:
            value, shift = value | (byte & 0x7F) << shift, shift + 7
            if byte < 0x80:
                break
        values.append(value >> 1)
    return values[1] if values[0] == 2 else 0


def _written_bytes(column: Any) -> int:
    """The bytes of a column's values when each is written out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(column.type):
        return pc.sum(pc.take(pc.binary_length(column.dictionary), column.indices)).as_py() or 0
    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        return _written_bytes(column.flatten())
    if pa.types.is_struct(column.type):
        return sum(map(_written_bytes, column.flatten()))
    return int(column.nbytes)
