"""How the package is built: layers, cycles, sizes, and which package may name which library.

Every rule is a function from parsed modules to a list of findings, each with a place and what to do; the last tests
make a violation of every rule and check that it is found.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.fast  # a law that is broken shows before every commit

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "tercet"

# Imports only go down. A pattern is matched against the first name after `tercet.`.
LAYERS = {
    5: r"cli\w*|__main__|__init__",
    4: r"inline|pipeline|preflight|stage|launch|forecast|play|watch",
    3: r"data|train|evals|report",
    2: r"models|device|trace",
    1: r"algos|environments|kernels|verify|rows\w*|records|hub|stats\w*",
    0: r"argv|html_table|machine|stop|outside|faults|folders|"
    r"recipe\w*|store|artifact_json|journal|track\w*|precision|sandbox",
}
PACKAGES = {
    "data",
    "train",
    "evals",
    "report",
    "models",
    "device",
    "trace",
    "algos",
    "verify",
    "sandbox",
    "environments",
}
SIDEWAYS = {
    ("models", "device"),
    ("verify", "rows"),
    ("sandbox", "machine"),
    ("sandbox", "argv"),
    ("verify", "records"),
    ("environments", "rows"),
    ("environments", "verify"),
    ("algos", "kernels"),
}  # imports within a layer that are allowed

# Who may name what; a library that is in nobody's list is nobody's.
ONLY_IN = {
    "torch.distributed": r"tercet\.device(\..*)?",
    "torch.cuda": r"tercet\.device(\..*)?",
    "ray": r"tercet\.device(\..*)?",
    "vllm": r"tercet\.models\.vllm(\..*)?",
    "wandb": r"tercet\.trackers",
    "trackio": r"tercet\.trackers",
    "mlflow": r"tercet\.trackers",
    "tensorboard": r"tercet\.trackers",
    "torch.utils.tensorboard": r"tercet\.trackers",
    "transformers.Trainer": r"(?!)",
    "transformers.Seq2SeqTrainer": r"(?!)",
    "transformers.TrainingArguments": r"(?!)",
    "peft": r"tercet\.models\.lora",
    "bitsandbytes": r"tercet\.device\.(optim|four_bits)",
    "accelerate": r"(?!)",
    "deepspeed": r"(?!)",
    "trl": r"(?!)",
}
TORCH_FREE = re.compile(
    r"tercet(\.(cli\w*|inline|html_table|pipeline|preflight|forecast|stage|launch|argv|machine|outside|recipe\w*|store|artifact_json|folders|faults|journal|rows\w*|records|hub|stats\w*|track\w*|precision|verify|environments|sandbox|data|evals|report|trace|play|watch)(\..*)?)?"
)
# Kernels that are taken when somebody has installed them; nothing asks for them.
WHEN_PRESENT = {"aiohttp", "flash_attn", "httpx", "liger_kernel", "lm_eval", "openenv", "verifiers"}

MAX_FUNCTION, MAX_FILE, MAX_MODULES = 60, 400, 28
# Lines of Python per package, `top` for the modules beside them. They fall; one rises only with a sentence in
# docs/log.md that says what the lines buy.
BUDGETS = {
    "algos": 657,
    "cli": 3_511,
    "data": 7_126,
    "device": 2_427,
    "environments": 861,
    "evals": 3_934,
    "forecast": 1_051,
    "hub": 400,
    "kernels": 111,
    "launch": 1_415,
    "models": 15_167,
    "play": 947,
    "preflight": 1_514,
    "recipe": 2_402,
    "report": 2_227,
    "sandbox": 2_471,
    "top": 4_951,
    "trace": 844,
    "train": 5_178,
    "watch": 642,
    "verify": 5_203,
}
# Flat tables may be long; the reason says why the file reads well all the same.
TABLES: dict[str, str] = {}

# Import names that differ from the name on the package index.
DISTRIBUTIONS = {
    "huggingface_hub": "huggingface-hub",
    "math_verify": "math-verify",
}

Modules = dict[str, ast.Module]


def load(folder: Path = SOURCE) -> Modules:
    """Every module of the package by dotted name; packages are `tercet.data.__init__`."""
    files = sorted(folder.rglob("*.py"))
    return {".".join(("tercet", *file.relative_to(folder).with_suffix("").parts)): parse(file) for file in files}


def parse(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def modules_of(**sources: str) -> Modules:
    """Modules from text, for the tests of the tests: `modules_of(data__mix="import tercet.evals.run")`."""
    return {f"tercet.{name.replace('__', '.')}": ast.parse(text) for name, text in sources.items()}


def imports(tree: ast.Module, package: str) -> Iterator[tuple[str, int]]:
    """Every dotted name a module imports, at the top or inside a function, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, *([base] if base else [])])
            yield from ((f"{base}.{alias.name}", node.lineno) for alias in node.names)


def own_imports(modules: Modules, name: str) -> Iterator[tuple[str, int]]:
    """The imports of `name` that are modules of ours, resolved: a name inside a module counts as the module."""
    for target, line in imports(modules[name], name.rpartition(".")[0]):
        if not target.startswith("tercet."):  # `import tercet` alone gives the package's place, nothing more
            continue
        for candidate in (
            target,
            f"{target}.__init__",
            target.rpartition(".")[0],
            f"{target.rpartition('.')[0]}.__init__",
        ):
            if candidate in modules:
                yield candidate, line
                break
        else:
            yield target, line


def layer(module: str) -> tuple[int, str]:
    """The layer and the first name of a module: `tercet.data.mix` is on layer 3, in `data`."""
    first = module.split(".")[1] if "." in module else "__init__"
    for level, pattern in LAYERS.items():
        if re.fullmatch(pattern, first):
            return level, first
    raise AssertionError(f"{module} has no place in LAYERS; give its first name a layer or move it into a package")


def wrong_way(modules: Modules) -> list[str]:
    """Imports that go up, or sideways between packages."""
    found = []
    for name in modules:
        level, first = layer(name)
        for target, line in own_imports(modules, name):
            other, second = layer(target)
            if other < level or first == second or (first, second) in SIDEWAYS:
                continue
            if other > level:
                found.append(
                    f"{name}:{line} imports {target}: from layer {level} up to {other}; pass a function or artifact"
                )
            elif PACKAGES & {first, second}:
                found.append(f"{name}:{line} imports {target}: packages of one layer meet on disk, never in imports")
    return found


def cycles(modules: Modules) -> list[str]:
    """Circles of imports, each told once."""
    graph = {name: {target for target, _ in own_imports(modules, name) if target in modules} for name in modules}
    found: set[tuple[str, ...]] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = path[path.index(name) :]
            turn = circle.index(min(circle))
            found.add(circle[turn:] + circle[:turn])
        elif name not in seen:
            for target in sorted(graph[name]):
                visit(target, (*path, name))
            seen.add(name)

    seen: set[str] = set()
    for name in sorted(graph):
        visit(name, ())
    return [" -> ".join((*circle, circle[0])) for circle in sorted(found)]


def dotted(node: ast.expr) -> str:
    """`torch.cuda.is_available` of an attribute chain, empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := dotted(node.value)):
        return f"{base}.{node.attr}"
    return ""


def misplaced_libraries(modules: Modules) -> list[str]:
    """Libraries named outside the package that may name them."""
    found = set()
    for name, tree in modules.items():
        used = list(imports(tree, name.rpartition(".")[0]))
        used += [(dotted(node), node.lineno) for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
        for target, line in used:
            for library, where in ONLY_IN.items():
                if (target == library or target.startswith(f"{library}.")) and not re.fullmatch(where, name):
                    found.add(f"{name}:{line} names {library}, which belongs to {where.replace('(?!)', 'nobody')}")
    return sorted(found)


def long_functions(modules: Modules) -> list[str]:
    """Functions over the limit, the longest first."""
    sizes = [
        (node.end_lineno - node.lineno + 1, f"{name}.{node.name}")
        for name, tree in modules.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno
    ]
    return [
        f"{place} has {size} lines; at most {MAX_FUNCTION}"
        for size, place in sorted(sizes)[::-1]
        if size > MAX_FUNCTION
    ]


def long_files(sizes: dict[str, int]) -> list[str]:
    """Files over the limit that are not tables."""
    over = [name for name, size in sizes.items() if size > MAX_FILE and name not in TABLES]
    return [
        f"{name} has {sizes[name]} lines; at most {MAX_FILE}, unless it is a table named in TABLES" for name in over
    ]


def prints(modules: Modules) -> list[str]:
    """Calls of print() outside the command line."""
    return [
        f"{name}:{node.lineno} prints; only the command line prints"
        for name, tree in modules.items()
        if not re.fullmatch(r"tercet\.(cli\w*|__main__)", name)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]


def third_party(modules: Modules) -> set[str]:
    """Distributions the package imports."""
    firsts = {target.split(".")[0] for name in modules for target, _ in imports(modules[name], name.rpartition(".")[0])}
    return {DISTRIBUTIONS.get(first, first) for first in firsts - set(sys.stdlib_module_names) - {"tercet"}}


def importing_torch(names: list[str]) -> str:
    """Import the modules in a process in which torch cannot be imported; what went wrong, or nothing."""
    script = """
import importlib, sys, traceback

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "torch":
            raise ImportError("torch was imported")

sys.meta_path.insert(0, Blocker())
for name in sys.argv[1:]:
    try:
        importlib.import_module(name)
    except ImportError as error:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if "tercet" in f.filename]
        print(f"{name}: {error} at {frames[-1].filename}:{frames[-1].lineno}" if frames else f"{name}: {error}")
"""
    run = subprocess.run(
        [sys.executable, "-c", script, *names], capture_output=True, text=True, cwd=SOURCE.parent, check=False
    )
    return run.stdout + ("" if run.returncode == 0 else run.stderr)


@pytest.fixture(scope="module")
def modules() -> Modules:
    return load()


def report(found: list[str]) -> str:
    return "\n" + "\n".join(found)


def test_imports_only_go_down(modules):
    assert not (found := wrong_way(modules)), report(found)


def test_there_are_no_import_cycles(modules):
    assert not (found := cycles(modules)), report(found)


def test_libraries_are_named_in_their_packages_only(modules):
    assert not (found := misplaced_libraries(modules)), report(found)


def test_functions_can_be_read_without_scrolling(modules):
    assert not (found := long_functions(modules)), report(found)


def test_files_stay_short():
    assert not (found := long_files({name: len(lines(name)) for name in load()})), report(found)


def test_every_package_keeps_within_its_budget_of_lines():
    sizes: Counter[str] = Counter()
    for name in load():
        sizes[name.split(".")[1] if name.count(".") > 1 else "top"] += len(lines(name))
    over = {name: (size, BUDGETS.get(name, 0)) for name, size in sizes.items() if size > BUDGETS.get(name, 0)}
    assert not over, f"lines and budget: {over}; take something out, or say in docs/log.md what more lines buy"
    loose = {name: most for name, most in BUDGETS.items() if most - sizes[name] > most // 20}
    assert not loose, f"these packages have shrunk: lower their budgets to what they have, {dict(sizes)}"


def test_few_modules_stand_beside_the_packages():
    assert len(list(SOURCE.glob("*.py"))) <= MAX_MODULES


def test_the_documents_show_the_layers_as_they_are():
    page = (ROOT / "docs" / "layers.md").read_text(encoding="utf-8")
    shown = {
        int(number): set(re.split(r"  +", rest)[0].split())
        for number, rest in re.findall(r"^(\d) {6}(.+)$", page, re.M)
    }
    found: dict[int, set[str]] = {}
    for name in load():
        number, first = layer(name)
        found.setdefault(number, set()).add(first)
    assert shown == found


def test_every_table_exists_and_is_still_long():
    short = [name for name in TABLES if not path_of(name).is_file() or len(lines(name)) <= 200]
    assert not short, f"take these out of TABLES, they need no exception: {short}"


def test_only_the_command_line_prints(modules):
    assert not (found := prints(modules)), report(found)


def test_everything_but_four_packages_does_without_torch(modules):
    names = [name.removesuffix(".__init__") for name in modules]
    free = [name for name in names if TORCH_FREE.fullmatch(name)]
    assert not (found := importing_torch(free)), f"\n{found}"


def test_dependencies_are_what_is_imported(modules):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    required = {re.split(r"[<>=\[]", need)[0] for need in project["dependencies"]}
    optional = {re.split(r"[<>=\[]", need)[0] for needs in project["optional-dependencies"].values() for need in needs}
    used = third_party(modules)
    assert not (missing := used - required - optional - WHEN_PRESENT), (
        f"imported but not in pyproject.toml: {sorted(missing)}"
    )
    assert not (idle := required - used), f"in pyproject.toml but imported nowhere: {sorted(idle)}"


def path_of(module: str) -> Path:
    return SOURCE.joinpath(*module.split(".")[1:]).with_suffix(".py")


def lines(module: str) -> list[str]:
    return path_of(module).read_text(encoding="utf-8").splitlines()


VIOLATIONS: list[tuple[Callable[[Modules], list[str]], Modules, str]] = [
    (wrong_way, modules_of(algos__tokens="import tercet.rows", rows=""), "algos.tokens:1 imports tercet.rows"),
    (
        wrong_way,
        modules_of(data__mix="from tercet.evals import run", evals__run=""),
        "data.mix:1 imports tercet.evals.run",
    ),
    (
        wrong_way,
        modules_of(device__mesh="from tercet.models.chat import render", models__chat=""),
        "imports tercet.models.chat",
    ),
    (
        wrong_way,
        modules_of(store="def f():\n    from tercet import pipeline", pipeline=""),
        "store:2 imports tercet.pipeline",
    ),
    (
        wrong_way,
        modules_of(train__loop="from ..data import mix", data__mix=""),
        "train.loop:1 imports tercet.data.mix",
    ),
    (
        cycles,
        modules_of(data__a="from . import b", data__b="from .c import x", data__c="import tercet.data.a"),
        "a -> tercet.data.b",
    ),
    (
        misplaced_libraries,
        modules_of(train__loop="import torch\ntorch.cuda.synchronize()"),
        "train.loop:2 names torch.cuda",
    ),
    (misplaced_libraries, modules_of(train__loop="from torch import distributed as d"), "names torch.distributed"),
    (misplaced_libraries, modules_of(models__generate="import vllm"), "names vllm"),
    (misplaced_libraries, modules_of(device__mesh="from transformers import Trainer"), "belongs to nobody"),
    (long_functions, modules_of(data__mix="def f():\n" + "    pass\n" * 60), "data.mix.f has 61 lines"),
    (prints, modules_of(store="print('x')"), "store:1 prints"),
]


@pytest.mark.parametrize(("rule", "modules", "message"), VIOLATIONS)
def test_a_violation_is_found(rule, modules, message):
    found = rule(modules)
    assert len(found) == 1
    assert message in found[0]


def test_what_the_layers_allow_is_not_reported():
    allowed = modules_of(
        cli="import tercet.pipeline",
        pipeline="from tercet import store",
        store="",
        rows="",
        track="print",
        recipe="",
        recipe__file="import tercet.recipe",
        models__chat="import tercet.rows",
        models__weights="from tercet.device import mesh",
        device__mesh="import torch.distributed",
    )
    assert wrong_way(allowed) == cycles(allowed) == misplaced_libraries(allowed) == prints(allowed) == []


def test_a_file_without_a_layer_is_refused():
    with pytest.raises(AssertionError, match="no place in LAYERS"):
        wrong_way(modules_of(utils=""))


def test_a_long_file_is_found():
    assert long_files({"tercet.data.mix": MAX_FILE + 1, "tercet.data.sources": MAX_FILE}) == [
        "tercet.data.mix has 401 lines; at most 400, unless it is a table named in TABLES"
    ]


def test_an_import_of_torch_is_found():
    assert "torch was imported" in importing_torch(["torch.nn"])
