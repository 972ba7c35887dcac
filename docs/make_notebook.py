"""Writes docs/start.ipynb with its outputs: the cells below, executed by a kernel in an empty folder."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).with_name("start.ipynb")
SECONDS = 600  # for one cell

CELLS = (
    """# Tercet in a notebook

A recipe names stages; `run` makes what is missing of them, each an immutable folder that says where it came from. This
one has generated rows and a model of two layers, so it needs no download and about a minute. The model is far too
small to be of use: what is shown is how the parts fit. [start.md](start.md) has the same from the command line.""",
    '''from pathlib import Path

import tercet

Path("first.toml").write_text("""
name = "first"

[base]
model = "tiny:"

[stage.problems] # 40 word problems with answers, to train on
kind = "synth"
generator = "words@1"
rows = 40

[stage.test] # 24 talks that training never sees
kind = "synth"
generator = "talk@1"
split = "test"
rows = 24

[stage.benchmark]
kind = "benchmark"
tasks = ["talk@1"]
items = ["test"]

[stage.sft]
kind = "sft"
model = "base"
rows = "problems"
learning_rate = 3e-3
batch = 8
num_epochs = 4
max_length = 1024

[stage.rlvr]
kind = "grpo"
model = "sft"
prompts = "problems"
rounds = 2
batch = 8
num_generations = 4
max_length = 1024
max_new_tokens = 48
extra = [{ verifier = "letters.py:score" }] # a function of your own, below

[stage.before]
kind = "eval"
model = "base"
benchmark = "benchmark"

[stage.after]
kind = "eval"
model = "rlvr"
benchmark = "benchmark"
""")
Path("letters.py").write_text("""
def score(completion: str, reference: str) -> float:
    \'\'\'The share of a completion that is letters.\'\'\'
    return sum(letter.isalpha() for letter in completion) / max(1, len(completion))
""")
recipe = tercet.load("first.toml")
recipe.order()''',
    "`plan` says what exists and what is missing before anything runs; `run` makes it, one process per stage.",
    """store = tercet.Store("runs")
[(line.name, line.key, line.why) for line in tercet.plan(recipe, store)]""",
    "made = tercet.run(recipe, store)",
    "Every stage is an artifact, with its folder, its inputs and what it measured.",
    'made["sft"]',
    "Scores have a standard error. This task asks for the bits per byte of right answers, of which fewer are better.",
    'tercet.scores(made["before"], made["after"])',
    "Two checkpoints are compared item by item, with an interval and the difference that could have been detected.",
    'tercet.compare(made["before"], made["after"])',
    "What the model wrote in training lies in the artifact too, with its rewards.",
    'tercet.rollouts(made["rlvr"], num_rounds=1)',
    "All of it is data as well: a score is a number, and a second `run` finds everything there.",
    """after = tercet.scores(made["after"])["after"]["talk@1"]
again = tercet.run(recipe, store)
after.n, after.score, again["rlvr"].key == made["rlvr"].key""",
)


def notebook() -> Any:
    """The notebook without outputs: cells of words and of code take turns by what they begin with."""
    from nbformat import v4

    cells = []
    for number, text in enumerate(CELLS):
        make = v4.new_code_cell if is_code(text) else v4.new_markdown_cell
        cells.append(make(text, id=f"cell-{number}"))
    return v4.new_notebook(cells=cells, metadata={"language_info": {"name": "python"}})


def is_code(text: str) -> bool:
    """Whether a cell is Python rather than words."""
    try:
        compile(text, "cell", "exec")
    except SyntaxError:
        return False
    return not text.startswith("#")


def executed(folder: Path) -> Any:
    """The notebook with its outputs, run in `folder` by this interpreter; an error in a cell is raised."""
    from jupyter_client.kernelspec import KernelSpec
    from nbclient import NotebookClient

    made = notebook()
    client = NotebookClient(made, timeout=SECONDS, resources={"metadata": {"path": str(folder)}}, record_timing=False)
    client.create_kernel_manager()
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    vars(client.km)["_kernel_spec"] = KernelSpec(argv=command, language="python")  # whatever kernels are installed
    client.execute()
    return made


def main() -> None:
    """Execute and write; what is shown as a table is kept as that alone."""
    import nbformat

    with tempfile.TemporaryDirectory() as folder:
        made = executed(Path(folder))
    for output in (output for cell in made.cells for output in cell.get("outputs", [])):
        if "text/html" in output.get("data", {}):
            output.data.pop("text/plain", None)
    nbformat.write(made, NOTEBOOK)
    print(f"wrote {NOTEBOOK}")


if __name__ == "__main__":
    main()
