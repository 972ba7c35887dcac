from __future__ import annotations

import os
import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "release"))

from audit import verdict  # noqa: E402  beside the package, like the scripts of docs/
from lock import SETS  # noqa: E402
from try_set import file_of, prove  # noqa: E402

ENTRY = re.compile(r"^([\w.-]+)==(\S+)((?:(?!^\w).)*)", re.MULTILINE | re.DOTALL)


def locked() -> dict[str, tuple[Version, str]]:
    """Version and the rest of each entry of the lock."""
    text = file_of("requirements").read_text(encoding="utf-8")
    return {canonicalize_name(name): (Version(version), rest) for name, version, rest in ENTRY.findall(text)}


def versions(file: Path) -> dict[str, Version]:
    """What a set pins."""
    found = ENTRY.findall(file.read_text(encoding="utf-8"))
    return {canonicalize_name(name): Version(version) for name, version, _ in found}


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def wanted() -> list[tuple[str, Requirement]]:
    """Each set with each requirement of its own."""
    extras = PROJECT["optional-dependencies"]
    return [
        (name, Requirement(text))
        for name, one in SETS.items()
        for text in (*PROJECT["dependencies"], *(text for extra in one["extras"] for text in extras[extra]))
        if not (one.get("without_torch") and text.startswith("torch>"))
    ]


@pytest.mark.parametrize(("name", "requirement"), wanted(), ids=lambda one: getattr(one, "name", one))
def test_a_set_holds_every_requirement_within_its_range(name, requirement):
    assert versions(file_of(name))[canonicalize_name(requirement.name)] in requirement.specifier


def test_every_requirement_says_from_which_version_it_works_and_no_extra_is_empty():
    for name, texts in {"tercet": PROJECT["dependencies"], **PROJECT["optional-dependencies"]}.items():
        assert texts, name
        for text in texts:
            assert any(one.operator == ">=" for one in Requirement(text).specifier), f"{name}: {text}"


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, one in SETS.items() if "proof" in one])
def test_a_set_installs_and_its_proof_holds(name, tmp_path):
    if name not in os.environ.get("TERCET_SETS", "").split(","):
        pytest.skip(f"TERCET_SETS={name} installs it: gigabytes, minutes, the package index, uv")
    prove(name, tmp_path)


def test_every_locked_package_has_a_hash_and_the_tests_version():
    tested = versions(ROOT / "constraints.txt")
    for name, (version, rest) in locked().items():
        assert re.search(r"--hash=sha256:[0-9a-f]{64}\b", rest), name
        assert version == tested.get(name, version), name


def test_torch_and_what_it_brings_stand_outside_the_lock():
    assert not [name for name in locked() if re.match(r"torch$|triton|nvidia-|cuda-", name)]


FINE = {"name": "a", "version": "1", "vulns": []}
FAULTY = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
UNKNOWN = {"name": "c", "skip_reason": "not found"}


@pytest.mark.parametrize(
    ("packages", "code", "line"),
    [
        ([FINE], 0, "1 packages: 0 with known faults, 1 without, 0 not looked up"),
        ([FINE, FAULTY], 1, "b 2: CVE-1, mended in 3"),
        ([FINE, UNKNOWN], 3, "2 packages: 0 with known faults, 1 without, 1 not looked up"),
        ([UNKNOWN, FAULTY], 1, "2 packages: 1 with known faults, 0 without, 1 not looked up"),
    ],
)
def test_an_audit_that_could_not_look_is_no_clean_one(packages, code, line):
    found = verdict({"dependencies": packages})
    assert found[0] == code
    assert line in found[1]
