"""The notebook of the docs: what stands there is what its script writes, and it runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "start.ipynb"


def html(cells: list[dict]) -> str:
    """All that cells show as HTML."""
    outputs = [output for cell in cells for output in cell.get("outputs", [])]
    return "".join("".join(output.get("data", {}).get("text/html", "")) for output in outputs)


def test_the_notebook_has_the_cells_of_its_script_and_was_run(docs_script):
    cells = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    assert ["".join(cell["source"]) for cell in cells] == list(docs_script("make_notebook").CELLS)
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    for text in ("<table>", "Scores", "before to after", "<details>"):
        assert text in html(cells)
    assert "/tmp" not in NOTEBOOK.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_notebook_runs_and_shows_scores_and_rollouts(docs_script, tmp_path):
    found = html(docs_script("make_notebook").executed(tmp_path)["cells"])
    for text in ("sft (sft)", "Scores", "before to after", "<details>"):
        assert text in found
