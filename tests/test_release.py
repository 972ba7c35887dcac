from __future__ import annotations

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

ENTRY = re.compile(r"^([\w.-]+)==(\S+)((?:(?!^\w).)*)", re.MULTILINE | re.DOTALL)


def locked() -> dict[str, tuple[Version, str]]:
    """Version and the rest of each entry of the lock."""
    text = (ROOT / "release" / "requirements.lock").read_text(encoding="utf-8")
    return {canonicalize_name(name): (Version(version), rest) for name, version, rest in ENTRY.findall(text)}


def wanted() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    found = [Requirement(text) for text in (*project["dependencies"], *extras["play"], *extras["lora"])]
    return [one for one in found if one.name != "torch"]


@pytest.mark.parametrize("requirement", wanted(), ids=lambda one: one.name)
def test_the_lock_holds_every_requirement_within_its_range(requirement):
    assert locked()[canonicalize_name(requirement.name)][0] in requirement.specifier


def test_every_locked_package_has_a_hash_and_the_tests_version():
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    tested = {canonicalize_name(name): Version(version) for name, version in pins}
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
