"""The pages agree with the code: the generated one is fresh, links lead somewhere, and named functions exist."""

from __future__ import annotations

import ast
import json
import os
import re
import tomllib
from pathlib import Path

import pytest

from tercet.recipe import Recipe

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
SITE = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))["project"]
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


@pytest.mark.parametrize("name", ["verbs.md", "tasks.md", "verifiers.md"])
def test_the_reference_pages_are_what_the_code_says(docs_script, name):
    page = docs_script("make_reference").PAGES[name]()
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == page, "run `make docs`"


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


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and the site give a page's headings."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_anchors_lead_to_headings():
    found = [
        f"{page.name}: {target}"
        for page in PAGES
        for target in (first for first, _ in LINK.findall(page.read_text(encoding="utf-8")) if "#" in first)
        if not target.startswith("http")
        if (there := page.parent / target.split("#")[0] if target[0] != "#" else page).suffix == ".md"
        if target.split("#")[1] not in anchors(there)
    ]
    assert not found, f"no heading has these anchors: {found}"


def test_every_page_stands_in_the_navigation_and_with_a_sentence_on_the_front_page(docs_script):
    sections = {
        name: [page for one in below for page in one.values()]
        for part in SITE["nav"][1:]
        for name, below in part.items()
    }
    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")} - {"index.md"}
    assert {page for below in sections.values() for page in below} == pages, "nav of zensical.toml and docs/ differ"
    front = docs_script("finish_site").sections((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    shown = {name: [links(entry)[0] for entry in entries] for name, entries in front.items()}
    assert shown == sections, "the lists of docs/index.md and nav of zensical.toml differ"


def test_a_list_of_the_docs_has_a_blank_line_before_it():
    """GitHub needs none; the site would print it as running text."""
    found = []
    for page in (ROOT / "docs").rglob("*.md"):
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
        found += [
            f"{page.name}: {line}"
            for line in re.findall(r"^(?![-*| \n#]|\d+\.).+\n((?:[-*]|1\.) .{,40})", text, re.MULTILINE)
        ]
    assert not found, found


def test_the_site_asks_no_other_host_and_the_agents_file_names_every_section(docs_script):
    assert SITE["theme"]["font"] is False
    text = docs_script("finish_site").index((ROOT / "docs" / "index.md").read_text(encoding="utf-8"))
    assert text.startswith("# Tercet\n\n> Tercet is ")
    names = [next(iter(part)) for part in SITE["nav"][1:-1]]
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == [*names, "Optional"]


def test_a_built_site_gets_pages_as_markdown_cells_with_bars_and_a_search_without_the_log(docs_script, tmp_path):
    (tmp_path / "how").mkdir()
    items = [{"location": "log.html#a"}, {"location": "data.html"}]
    (tmp_path / "search.json").write_text(json.dumps({"items": items}))
    (tmp_path / "data.html").write_text(r"<td><code>A\|B</code></td> <pre>a \| b</pre>")
    docs_script("finish_site").main(tmp_path)
    assert (tmp_path / "data.html").read_text() == r"<td><code>A|B</code></td> <pre>a \| b</pre>"
    assert json.loads((tmp_path / "search.json").read_text())["items"] == items[1:]
    assert not [
        target for target in links((tmp_path / "llms.txt").read_text("utf-8")) if not (tmp_path / target).is_file()
    ]
    assert "# Benchmarks" in (tmp_path / "llms-full.txt").read_text("utf-8")


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
