"""A table of rows that is written piece by piece, so that no stage holds all its rows in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from tercet.rows import CONVERSATIONS, Messages, plain


class TableWriter:
    """Dataclasses of one kind as parquet, piece by piece: the columns are the kind's fields, also without any row.

    Turns have a column of details from the first row on that has any: what was written until then is written again.
    """

    def __init__(self, path: Path, kind: type) -> None:
        self._path, self._kind, self._detailed = path, kind, False
        self._open()

    def __enter__(self) -> TableWriter:
        return self

    def __exit__(self, *args: object) -> None:
        self._table.close()

    def write(self, rows: Sequence[Any]) -> None:
        """Add some rows as one row group of the file."""
        import pyarrow as pa

        stored = [plain(row) for row in rows]
        if not self._detailed and any(
            "details" in turn for row in stored for key in CONVERSATIONS for turn in row.get(key, ())
        ):
            self._widen()
        if rows:
            self._table.write_table(pa.Table.from_pylist(stored, schema=self._schema))

    def _open(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        turn = pa.struct([(name, pa.string()) for name in ("role", "content", *["details"] * self._detailed)])
        plain_types = {str: pa.string(), float: pa.float64(), int: pa.int64(), bool: pa.bool_()}
        columns = plain_types | {Messages: pa.list_(turn)}
        hints = get_type_hints(self._kind)
        self._schema = pa.schema([(field.name, columns[hints[field.name]]) for field in fields(self._kind)])
        self._table = pq.ParquetWriter(self._path, self._schema, compression="zstd")

    def _widen(self) -> None:
        """Write the file again with details of turns, one row group in memory at a time."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self._table.close()
        narrow = self._path.with_name(f"{self._path.name}.narrow")
        self._path.rename(narrow)
        self._detailed = True
        self._open()
        with pq.ParquetFile(narrow) as written:
            for number in range(written.num_row_groups):
                rows = written.read_row_group(number).to_pylist()
                self._table.write_table(pa.Table.from_pylist(rows, schema=self._schema))
        narrow.unlink()
