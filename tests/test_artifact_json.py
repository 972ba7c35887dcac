from __future__ import annotations

import json

import pytest

from tercet import artifact_json
from tercet.artifact_json import DamagedArtifactError

RECORD = {"kind": "mix", "name": "words", "key": "0" * 12, "inputs": {}, "metrics": {"loss": 0.5}, "digest": "0" * 64}


def test_a_record_is_read_back_with_a_digest_of_its_own(tmp_path):
    artifact_json.write(tmp_path, RECORD | {"seconds": 2.5, "beside": {}})
    found = artifact_json.read(tmp_path)
    assert len(found.pop("record_digest")) == 64
    assert found == RECORD | {"seconds": 2.5, "beside": {}}


@pytest.mark.parametrize("at", range(0, 400, 37))
def test_one_changed_bit_of_a_record_is_seen(tmp_path, at):
    artifact_json.write(tmp_path, RECORD | {"seconds": 2.5, "beside": {}})
    file = tmp_path / "artifact.json"
    data = bytearray(file.read_bytes())
    data[at % len(data)] ^= 2
    file.write_bytes(data)
    with pytest.raises(DamagedArtifactError, match="damaged"):
        artifact_json.read(tmp_path)


def test_a_record_of_an_earlier_version_has_no_digest_and_is_read(tmp_path):
    (tmp_path / "artifact.json").write_text(json.dumps(RECORD))
    assert artifact_json.is_older(artifact_json.read(tmp_path))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"metrics": {"loss": "low"}}, "metrics: expected numbers"),
        ({"inputs": {"../../etc": "0"}}, "names and keys without '/'"),
        ({"inputs": {"base": 3}}, "names and keys without '/'"),
        ({"key": None}, "key: expected str, got None"),
        ({"beside": {}}, "fields beside without record_digest"),
    ],
)
def test_a_field_of_another_type_is_named(tmp_path, change, why):
    (tmp_path / "artifact.json").write_text(json.dumps(RECORD | change))
    with pytest.raises(DamagedArtifactError, match=why):
        artifact_json.read(tmp_path)


def test_of_the_files_beside_only_the_log_may_grow(tmp_path):
    (tmp_path / "log.txt").write_text("said")
    (tmp_path / "metrics.jsonl").write_text("{}\n")
    kept = artifact_json.beside(tmp_path)
    for name in kept:
        with open(tmp_path / name, "a") as stream:
            stream.write("more")
    assert list(artifact_json.faults_beside(tmp_path, kept)) == ["metrics.jsonl has changed"]
