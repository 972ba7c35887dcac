"""The pages agree with the code: the generated one is fresh, links lead somewhere, and named functions exist."""

from __future__ import annotations

import ast
import os
import re
import tomllib
from pathlib import Path

import pytest

from tercet.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
LINK = re.compile(r"\]\(([^)\s]+)\)|(?:src|srcset)=\"([^\"]+)\"")
NAME = re.compile(r"`(tercet(?:\.\w+)+)(?:\(\))?`")
OUTSIDE = re.compile(r"/wor[k]/(?:main|env|shared|[.])[\w./-]*|\b(?:tulu3|design|style|evaluation)[.]md\b[^\s]*")
TEXT = {".py", ".md", ".toml", ".svg", ".j2", ".css", ".js", ".txt"}
FILE = re.compile(r"`((?:src|tests|bench|docs|recipes)/[\w./-]+)`")


def links(text: str) -> list[str]:
    """Local targets of links and pictures, without anchors."""
    targets = [first or second for first, second in LINK.findall(text)]
    return [target.split("#")[0] for target in targets if not re.match(r"https?:|mailto:|#", target)]


def exists(name: str, source: Path = ROOT / "src") -> bool:
    """Whether `tercet.package.module.thing` is a package, a module, or something a module has at its top."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        place = source.joinpath(*parts[:cut])
        file = place.with_suffix(".py") if place.with_suffix(".py").is_file() else place / "__init__.py"
        if file.is_file():
            return defines(ast.parse(file.read_text(encoding="utf-8")).body, parts[cut:])
    return False


def defines(body: list[ast.stmt], rest: list[str]) -> bool:
    """Whether a body defines the first of `rest`, and that one the next."""
    if not rest:
        return True
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == rest[0]:
            return defines(node.body, rest[1:])
        if isinstance(node, ast.ImportFrom) and rest[0] in [alias.asname or alias.name for alias in node.names]:
            return len(rest) == 1
        late = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_PUBLIC"  # imported when first used
        if late and isinstance(node, ast.Assign) and rest[0] in ast.literal_eval(node.value):
            return len(rest) == 1
        targets = (
            node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        )
        if any(isinstance(part, ast.Name) and part.id == rest[0] for target in targets for part in ast.walk(target)):
            return len(rest) == 1
    return False


def test_the_recipe_page_has_every_stage_kind():
    page = (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8")
    kinds = Recipe.model_json_schema()["properties"]["stage"]["additionalProperties"]["discriminator"]["mapping"]
    assert set(re.findall(r'^### `kind = "(\w+)"`', page, re.MULTILINE)) == set(kinds)


def test_the_recipe_page_is_what_the_code_says(docs_script):
    page = docs_script("make_recipe").render()
    assert (ROOT / "docs" / "recipe.md").read_text(encoding="utf-8") == page, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    missing = [target for target in links(page.read_text(encoding="utf-8")) if not (page.parent / target).exists()]
    assert not missing, f"{page.name} links to what is not there: {missing}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_functions_and_files_exist(page):
    text = page.read_text(encoding="utf-8")
    missing = [name for name in NAME.findall(text) if not exists(name)]
    missing += [name for name in FILE.findall(text) if not (ROOT / name).exists()]
    assert not missing, f"{page.name} names what is not there: {missing}"


def test_the_docs_are_few_pages():
    pages = {page.name for page in (ROOT / "docs").glob("*.md")}
    assert pages == {
        "index.md",
        "measured.md",
        "start.md",
        "tour.md",
        "trace.md",
        "recipe.md",
        "export.md",
        "paper.md",
        "log.md",
        "templates.md",
        "layouts.md",
        "families.md",
        "forecast.md",
        "play.md",
    }


def test_the_changelog_knows_the_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_recipe_is_mentioned_in_the_docs():
    text = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert not [recipe.name for recipe in (ROOT / "recipes").glob("*.toml") if recipe.name not in text]


def test_no_file_speaks_of_places_outside_the_project():
    files = [file for folder in ("src", "tests", "docs", "bench", "recipes") for file in (ROOT / folder).rglob("*.*")]
    texts = [file for file in [*files, *ROOT.glob("*.*")] if file.suffix in TEXT and ".peer-venv" not in file.parts]
    found = [
        f"{file.relative_to(ROOT)}: {place}" for file in texts for place in OUTSIDE.findall(file.read_text("utf-8"))
    ]
    assert not found, "\n".join(["a reader cannot follow these:", *found])


def test_a_planted_name_and_a_planted_link_are_found(tmp_path):
    (tmp_path / "tercet" / "data").mkdir(parents=True)
    (tmp_path / "tercet" / "data" / "mix.py").write_text("LIMIT: int = 3\n\n\nclass Mix:\n    def run(self): ...\n")
    assert all(
        exists(name, tmp_path) for name in ("tercet.data.mix", "tercet.data.mix.LIMIT", "tercet.data.mix.Mix.run")
    )
    assert not any(
        exists(name, tmp_path) for name in ("tercet.data.sources", "tercet.data.mix.gone", "tercet.data.mix.Mix.x")
    )
    assert links('[a](b.md#c) [d](https://e.f) <img src="g.svg">') == ["b.md", "g.svg"]


def test_the_gate_is_executable():
    assert os.access(ROOT / ".ci" / "run", os.X_OK)
