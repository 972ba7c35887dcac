"""One word for one thing: the words that the field does not use stay out of code, pages, recipes and tests."""

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = {".py", ".md", ".toml", ".svg", ".j2", ".css", ".js"}
# What stands for which of the field's words; docs/concepts.md has the words.
OLD = {
    r"exams?|examin(e|es|ed|ing|ation)": "evaluation, benchmark",
    r"truths?": "reference answer",
    r"artefacts?": "artifact",
    r"hall|hops?": "package, step",
    r"masters": "master weights",
    r"ledgers?": "log",
    r"schools?|tutors?|duo|lessons?|taste|drills?": "trainer, algorithm, SFT data, RL prompts",
    r"desks?|crews?|spools?|thrift|looker|assessors?": "batcher, process pool, disk list, layer wrappers, searcher",
    r"watchers?|alarms?": "monitor, alert",
    r"prefs|rlvr_?spec": "on-policy pairs, GRPO",
    r"kitchen|pantry": "workspace",
}
# Module names of old that are packages now, and lists that became facts of a spec or a verifier.
IDENTIFIERS = re.compile(
    r"\b(?:(?:cli|engine|tasks|sandbox)_(?:text|exams|http|server|weights|dev|lm|mmlu|quick|safety|shots|unseen)"
    r"|sandbox_(?:run|child|kernel|view)|recipe_file|ROOMS|ACCEPTS|JUDGES)\b"
)
# Rows, tables and names that are public or written as text, and the one constant that keeps seeds as they were.
FREE = re.compile(
    r"(^|/)(data/tables/|standins/|log\.md$|test_vocabulary\.py$)|\.(jsonl|json|tsv|csv|parquet|gz)$|bench/results/|\.peer-venv/"
)


# Where the English word is meant, or the name is somebody else's: items, data sets, grade schools.
ALLOWED = re.compile(
    r"(?i)ground_truth|truthful|(words|constraints|talk|facts)-exam-\d|signal\.alarm|grade[- ]school|high[-_ ]school"
    r"|school newsletter|if_lessons|crew|test_prefs|\"kitchen\"|\"truth\"|^SEED = "
)


def files() -> list[Path]:
    folders = ("src", "docs", "recipes", "tests", "bench")
    found = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in TEXT]
    return sorted(file for file in found if not FREE.search(file.relative_to(ROOT).as_posix()))


def words(text: str) -> list[str]:
    """The words of a text, those of identifiers too: `read_exam` holds `exam`."""
    return re.findall(r"[A-Za-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", text))


@pytest.mark.parametrize("old", OLD, ids=OLD.get)
def test_no_old_word_is_left(old):
    pattern = re.compile(rf"(?i)(?:{old})")
    found = []
    for file in files():
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
            if any(pattern.fullmatch(word) for word in words(line)) and not ALLOWED.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert not found, "\n".join([f"write {OLD[old]} instead:", *found])


def test_no_old_identifier_is_left():
    sources = sorted((ROOT / "src").rglob("*.py"))
    found = [(file.name, match) for file in sources for match in IDENTIFIERS.findall(file.read_text(encoding="utf-8"))]
    assert not found, found


def test_no_class_name_stands_for_two_things():
    names: Counter[str] = Counter()
    for file in (ROOT / "src" / "tercet").rglob("*.py"):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names.update({node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)})
    assert not [name for name, times in names.items() if times > 1]
