"""What a user has who never saw the checkout: the wheel in an environment of its own, an empty home, no recipe file."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the built wheel; what it depends on is lent by this one."""
    place = tmp_path_factory.mktemp("wheel")
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--disable-pip-version-check", str(ROOT), "-w", str(place)]
    done = subprocess.run([sys.executable, *build], capture_output=True, text=True, check=False)
    if done.returncode and "No matching distribution" in done.stderr:
        pytest.skip("the index does not have hatchling, which builds the wheel")
    assert done.returncode == 0, done.stderr
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place / "venv")], check=True)
    python = place / "venv" / "bin" / "python"
    ask = [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site = Path(subprocess.run(ask, capture_output=True, text=True, check=True).stdout.strip())
    (wheel,) = place.glob("tercet-*.whl")
    install = ["-m", "pip", "install", "--quiet", "--no-deps", "--disable-pip-version-check", "--target", str(site)]
    subprocess.run([sys.executable, *install, str(wheel)], check=True)
    # A path in a .pth file is looked into for packages, not for further .pth files: the checkout stays out of sight.
    (site / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return python


def tercet(python: Path, folder: Path, *words: str) -> str:
    """What a command prints, in an empty home and a folder without recipes."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TERCET_CACHE")}
    environment = kept | {"HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    (folder / "home").mkdir(exist_ok=True)
    done = subprocess.run(
        [str(python), "-m", "tercet", *words], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_package_runs_from_the_wheel_alone(installed, tmp_path):
    where = [str(installed), "-c", "import tercet; print(tercet.__file__)"]
    shown = subprocess.run(where, cwd=tmp_path, capture_output=True, text=True, check=True, env={"PATH": "/usr/bin"})
    assert str(installed.parents[1]) in shown.stdout


def test_the_wheel_holds_every_recipe_and_every_file_of_the_package(installed):
    (wheel,) = installed.parents[2].glob("tercet-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    package = [file for file in (ROOT / "src" / "tercet").rglob("*") if file.is_file() and file.suffix != ".pyc"]
    wanted = {f"tercet/{file.relative_to(ROOT / 'src' / 'tercet').as_posix()}" for file in package}
    assert wanted | {f"tercet/recipes/{file.name}" for file in (ROOT / "recipes").glob("*.toml")} <= held


def test_a_recipe_that_came_along_is_listed_run_by_name_and_reported(installed, tmp_path):
    assert "quickstart" in tercet(installed, tmp_path, "recipes")
    assert "name: tercet\n" in tercet(installed, tmp_path, "skill")
    assert "report: " in tercet(installed, tmp_path, "run", "tiny")
    assert "runs/report-" in tercet(installed, tmp_path, "report", "runs")


def test_the_data_of_the_quickstart_needs_neither_model_nor_network(installed, tmp_path):
    tercet(installed, tmp_path, "run", "quickstart", "--only", "sft-data")
    assert list((tmp_path / "runs").glob("sft-data-*/payload/rows.parquet"))
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=True)
