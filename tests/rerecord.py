"""A payload that a test has changed becomes what its artifact records, as if it had been committed so."""

from __future__ import annotations

from pathlib import Path

from tercet import artifact_json
from tercet.folders import payload_digest, set_writable


def rerecord(folder: Path) -> None:
    """Write the digest of the payload that stands in an artifact's folder into its record."""
    set_writable(folder, writable=True)
    record = artifact_json.read(folder) | {"digest": payload_digest(folder / "payload")}
    artifact_json.write(folder, {name: value for name, value in record.items() if name != artifact_json.OWN})
