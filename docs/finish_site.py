"""Finishes a built site: llms.txt and llms-full.txt, its pages as Markdown, and a search that leaves the log out.

The form of llms.txt is llmstxt.org's: a title, one paragraph, and links with a sentence each. Sections and sentences
are those of docs/index.md, whose last section becomes "Optional", as the form calls what may be left out.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).parent
ENTRY = re.compile(r"^- \[[^\]]+\]\(([\w/-]+\.md)\): .+$", re.M)
NOTEBOOK = "log.html"  # it names everything, and so would stand before the page that explains it


def sections(front: str) -> dict[str, list[str]]:
    """The lists of the front page by their headings."""
    _, *parts = re.split(r"^## ", front, flags=re.M)
    return {part.split("\n", 1)[0]: [found[0] for found in ENTRY.finditer(part)] for part in parts}


def index(front: str) -> str:
    """The text of llms.txt."""
    title, paragraph = front.split("\n\n")[:2]
    found = sections(front)
    lines = [title, "", "> " + " ".join(paragraph.split())]
    for name, entries in found.items():
        lines += ["", f"## {'Optional' if name == [*found][-1] else name}", "", *entries]
    return "\n".join(lines) + "\n"


def full(front: str) -> str:
    """All pages after one another, without the optional ones."""
    pages = [ENTRY.match(entry) for entries in [*sections(front).values()][:-1] for entry in entries]
    texts = [(DOCS / page[1]).read_text(encoding="utf-8") for page in pages if page]
    return "\n".join([index(front), *texts])


def bars(page: str) -> str:
    """A page whose table cells have no escaped bars: the generator leaves the backslash in code, GitHub does not."""
    return re.sub(r"<td\b.*?</td>", lambda cell: cell[0].replace(r"\|", "|"), page, flags=re.S)


def main(site: Path) -> None:
    """Write both files, put pages beside their HTML, where the links of llms.txt lead, mend tables and search."""
    front = (DOCS / "index.md").read_text(encoding="utf-8")
    (site / "llms.txt").write_text(index(front), encoding="utf-8")
    (site / "llms-full.txt").write_text(full(front), encoding="utf-8")
    for page in DOCS.rglob("*.md"):
        shutil.copyfile(page, site / page.relative_to(DOCS))
    for built in site.rglob("*.html"):
        built.write_text(bars(built.read_text(encoding="utf-8")), encoding="utf-8")
    found = json.loads((site / "search.json").read_text(encoding="utf-8"))
    found["items"] = [one for one in found["items"] if not one["location"].startswith(NOTEBOOK)]
    (site / "search.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
