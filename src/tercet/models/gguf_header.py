"""The header of a GGUF file, walked once with its limits before the gguf package reads it.

That package makes a Python object for every element that a header promises, also where the file has long ended.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

from tercet.models.headers import BaseError

WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a plain value, by its type
TEXT, ARRAY = 8, 9
ELEMENTS = 1 << 24  # of all arrays together; a vocabulary has a few hundred thousand
FIELDS, TENSORS, DIMENSIONS = 1 << 16, 1 << 20, 4


def check_header(path: Path) -> None:
    """Refuse a GGUF file whose header promises more than the file holds, or more than any model has."""
    with open(path, "rb") as file:
        walk = _Walk(file, path.stat().st_size)
        try:
            walk.all()
        except (struct.error, ValueError) as error:
            at = file.tell()
            raise BaseError(
                f"{path.name}: not a readable GGUF file ({error}, at byte {at:,}); it is cut or of another format"
            ) from error


class _Walk:
    """A place in the file, and how many elements its arrays may still have."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.left = file, size, ELEMENTS

    def all(self) -> None:
        magic, version, tensors, fields = self.read("<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3):
            raise ValueError(f"expected GGUF of version 2 or 3, found {magic!r} {version}")
        if tensors > TENSORS or fields > FIELDS:
            raise ValueError(f"{tensors:,} tensors and {fields:,} fields, expected at most {TENSORS:,} and {FIELDS:,}")
        for _ in range(fields):
            self.text()
            self.value(*self.read("<I"))
        for _ in range(tensors):
            self.text()
            (dimensions,) = self.read("<I")
            if not 0 < dimensions <= DIMENSIONS:
                raise ValueError(f"a tensor of {dimensions:,} dimensions")
            numbers = 1
            for size in self.read(f"<{dimensions}Q"):
                numbers *= size
            _, offset = self.read("<IQ")
            if not numbers or numbers > 32 * self.size or offset > self.size:  # a quarter of a bit per number
                raise ValueError(f"a tensor of {numbers:,} numbers at byte {offset:,} of {self.size:,}")

    def value(self, kind: int, inside: int = 0) -> None:
        if kind == TEXT:
            self.text()
        elif kind == ARRAY:
            of, count = self.read("<IQ")
            self.left -= count
            if self.left < 0 or inside > 1:
                raise ValueError(f"an array of {count:,} elements, expected at most {ELEMENTS:,} in all")
            if of in WIDTHS:
                self.skip(count * WIDTHS[of])
            else:
                for _ in range(count):
                    self.value(of, inside + 1)
        elif kind in WIDTHS:
            self.skip(WIDTHS[kind])
        else:
            raise ValueError(f"a value of the unknown type {kind}")

    def text(self) -> None:
        self.skip(*self.read("<Q"))

    def read(self, layout: str) -> tuple[int, ...]:
        return struct.unpack(layout, self.file.read(struct.calcsize(layout)))

    def skip(self, count: int) -> None:
        if count > self.size - self.file.tell():
            raise ValueError(f"{count:,} bytes, where {self.size - self.file.tell():,} are left")
        self.file.seek(count, 1)
