"""Look up known faults of the locked packages: `make audit`.

Exit code 0: every package was looked up and none has a known fault; 1: some have; 3: some could not be looked up (no
network, or an index without advisories), which is no verdict on them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

LOCK = Path(__file__).with_name("requirements.lock")


def verdict(found: dict[str, Any]) -> tuple[int, list[str]]:
    """Exit code and lines for what pip-audit printed as JSON."""
    packages = found["dependencies"]
    faulty = [one for one in packages if one.get("vulns")]
    skipped = [one for one in packages if "skip_reason" in one]
    lines = [
        f"{one['name']} {one['version']}: {fault['id']}, mended in {', '.join(fault['fix_versions']) or 'no version'}"
        for one in faulty
        for fault in one["vulns"]
    ]
    lines.append(
        f"{len(packages)} packages: {len(faulty)} with known faults, "
        f"{len(packages) - len(faulty) - len(skipped)} without, {len(skipped)} not looked up"
    )
    return (1 if faulty else 3 if skipped else 0), lines


def main() -> int:
    """Ask, print, and say how it ended."""
    options = ["--requirement", str(LOCK), "--disable-pip", "--format", "json", "--progress-spinner", "off"]
    done = subprocess.run([sys.executable, "-m", "pip_audit", *options], capture_output=True, text=True, check=False)
    try:
        code, lines = verdict(json.loads(done.stdout))
    except ValueError:
        code, lines = 3, [done.stderr.strip()[-500:], "nothing was looked up"]
    sys.stdout.write("\n".join(lines) + "\n")
    return code


if __name__ == "__main__":
    sys.exit(main())
