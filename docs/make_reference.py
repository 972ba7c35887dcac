"""Writes docs/verbs.md, docs/tasks.md and docs/verifiers.md from what the package itself reads; run by `make docs`."""

from __future__ import annotations

import argparse
import inspect
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from tercet import hub
from tercet.cli.main import VERBS
from tercet.cli.parser import EPILOG, groups, parser
from tercet.evals.suite import LOCKED, SUITES, TASKS
from tercet.evals.task import Generated, Task, public_records
from tercet.pipeline import read_mirror
from tercet.rows import Source
from tercet.verify import VERIFIERS, Verifier

HERE = Path(__file__).parent
STANDINS = read_mirror(str(HERE.parent / "tests" / "standins" / "mirror.toml"))
HELP = "tercet VERB --help"
WRITTEN = "<!-- Written by docs/make_reference.py from {source}; run `make docs`. -->"


def verbs() -> str:
    """The page of the command line: every verb of the parser with all its arguments."""
    parts = ["# Verbs", WRITTEN.format(source="src/tercet/cli/verbs.toml"), EPILOG.replace(HELP, f"`{HELP}`")]
    made = next(one.choices for one in parser(VERBS)._actions if isinstance(one, argparse._SubParsersAction))
    for group, names in groups().items():
        parts.append(f"## {group}")
        parts += [_verb(name, made[name]) for name in names]
    return "\n\n".join(parts) + "\n"


def _verb(name: str, verb: argparse.ArgumentParser) -> str:
    known = [one for one in verb._actions if one.dest != "help"]
    given = [_given(one) for one in known if not one.option_strings]
    options = ["[options]"] if any(one.option_strings for one in known) else []
    usage = " ".join(["tercet", name, *given, *options])
    rows = [(_spelt(one), _choices(one)) for one in sorted(known, key=lambda one: bool(one.option_strings))]
    return f"### {name}\n\n{verb.description}\n\n```\n{usage}\n```" + (
        f"\n\n{_table(('argument', 'what it does'), rows)}" if rows else ""
    )


def _given(one: argparse.Action) -> str:
    shown = str(one.metavar or one.dest)
    return {"?": f"[{shown}]", "*": f"[{shown} …]", "+": f"{shown} …"}.get(str(one.nargs), shown)


def _spelt(one: argparse.Action) -> str:
    """An argument as it is typed: `--limit N`, `RECIPE`."""
    if not one.option_strings:
        return f"`{one.metavar or one.dest}`"
    metavar = one.metavar or ("" if one.nargs == 0 or one.choices else one.dest.upper())
    values = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    return f"`{' '.join([one.option_strings[0], *filter(None, [values])])}`" + (", required" if one.required else "")


def _choices(one: argparse.Action) -> str:
    named = [f"`{choice}`" for choice in one.choices or () if choice and str(choice) not in str(one.help)]
    return f"{one.help}" + (f"; {', '.join(named)}" if named and one.option_strings else "")


def tasks() -> str:
    """The page of the evaluation tasks: the suites, then every task as it is declared."""
    source = "src/tercet/evals/suites.toml and the tasks themselves"
    parts = ["# Tasks", WRITTEN.format(source=source), TASKS_HEAD, "## Suites"]
    for name, suite in SUITES.items():
        parts.append(f"### {name}")
        parts.append(_table(("row", "tasks"), [(row, _linked(ids)) for row, ids in suite.rows.items()]))
        parts += [f"Also asked, and not counted: {_linked(suite.beside)}."] if suite.beside else []
        parts += [f"Average of {left}: without {', '.join(rows)}." for left, rows in suite.without.items()]
    parts.append("## Every task")
    parts += [_task(one) for one in TASKS.values()]
    return "\n\n".join(parts) + "\n"


TASKS_HEAD = """\
`tercet eval MODEL --tasks A,B` takes suites and tasks. A task's name has its form behind the colon and its version
behind the `@`; a task that asks or grades otherwise is a new version. `NAME:bpb@1` of any task that has right answers
is their bits per byte. [Benchmarks](benchmarks.md) says how they are run, and how your own are made."""
METRICS = {
    "accuracy": "share of answers that the verifier calls right",
    "choice": "share of items whose likeliest option is right",
    "mc2": "share of the probability that falls on true options",
    "bpb": "bits per byte of the right answer; lower is better",
}


def _task(one: Task) -> str:
    asked = "plain text, without a chat template" if one.layout == "plain" else f"chat, examples as {one.layout}"
    drawn = one.sampling
    how = f"temperature {drawn.temperature:g}, {drawn.n} samples" if drawn.temperature else "greedy"
    rows = [
        ("skill", one.skill),
        ("metric", METRICS[one.metric] + (f"; pass@{one.pass_k}" if one.pass_k else "")),
        ("verifier", f"[`{one.verifier}`](verifiers.md#{_slug(one.verifier)})" if one.verifier else ""),
        ("asked as", asked if one.examples else asked.split(", examples")[0]),
        ("worked examples", _examples(one)),
        ("written", f"{how}, at most {drawn.max_new_tokens} tokens" if one.metric == "accuracy" else ""),
        ("mean over", "its subsets" if one.aggregate == "macro" else "items"),
        ("items", _sources((one.data,) if isinstance(one.data, Generated) else one.data)),
        ("licence", one.licence),
        ("variant", one.variant),
        ("opened by", "`--final` alone" if one.id in LOCKED else ""),
    ]
    facts = "\n".join(f"- **{name}**: {text}" for name, text in rows if text)
    return f"### {one.id}\n\n{one.description}\n\n{facts}"


def _examples(one: Task) -> str:
    """How many there are before a question, counted on the stand-ins of the tests, and where they come from."""
    if not (one.shots and any(name.startswith(one.examples[0].path) for name in STANDINS)):
        return _sources(one.examples)
    shown = one.shots(public_records(one, STANDINS)[0], hub.records(one.examples, STANDINS))
    return f"{len(shown)}, from {_sources(one.examples)}"


def _sources(sources: Iterable[Generated | Source]) -> str:
    """Public ids, each once, with how many parts are read and the pinned revision."""
    found: Counter[tuple[str, str]] = Counter()
    for one in sources:
        if isinstance(one, Generated):
            return f"generator `{one.generator}`, {one.rows} rows"
        split = "" if one.path.startswith("github:") else f", {one.split}"
        found[f"`{one.path}`{split}", f", at {one.revision[:12]}" if one.revision else ""] += 1
    return "; ".join(f"{place}{f', {parts} parts' if parts > 1 else ''}{at}" for (place, at), parts in found.items())


def verifiers() -> str:
    """The page of the verifiers: what passes, and what each reads, from its own docstring or table entry."""
    source = "src/tercet/verify/verifiers.toml and the functions' docstrings"
    rows = [(f"[`{one.name}`](#{_slug(one.name)})", _short(one)) for one in VERIFIERS.values()]
    parts = ["# Verifiers", WRITTEN.format(source=source), VERIFIERS_HEAD, _table(("verifier", "passes"), rows)]
    return "\n\n".join([*parts, *(_verifier(one) for one in VERIFIERS.values())]) + "\n"


def _verifier(one: Verifier) -> str:
    needs, graded = _needs(one), [task.id for task in TASKS.values() if task.verifier == one.name]
    parts = [f"## {one.name}", *_said(one)]
    parts += [f"It {needs}."] if needs else []
    parts += [f"An answer that passes: `{one.plainly.format('REFERENCE')}`"] if one.plainly not in ("", "{}") else []
    parts += [f"Grades {_linked(graded, 'tasks.md')}."] if graded else []
    return "\n\n".join(parts)


VERIFIERS_HEAD = """\
A verifier takes a completion and a reference answer and returns a grade. `tercet grade NAME FILE` runs one on stored
completions; rows, sources, `extra` and tasks name them alike. Of two versions the later reads answers more exactly, and
the earlier is the published protocol. [Training](training.md#verifiers) says how they pay, and how to write
[your own](training.md#a-verifier-of-your-own)."""


def _said(one: Verifier) -> list[str]:
    """The paragraphs that a verifier's function says about it, without its own name."""
    if one.about:
        return [one.about]
    paragraphs = inspect.getdoc(one.loaded) or ""
    text = re.sub(r"^`[\w@]+`: ", "", paragraphs)
    return [" ".join(part.split()) for part in (text[0].upper() + text[1:]).split("\n\n")]


def _short(one: Verifier) -> str:
    """The first paragraph, of an LLM judge the first sentence."""
    return _said(one)[0].split(". ")[0].rstrip(".") + "."


def _needs(one: Verifier) -> str:
    facts = {
        "asks the model that the stage names as `judge`": one.asks_model,
        "needs an encoder for some rows": one.embeds,
        "runs programs in the sandbox": one.sandbox,
        "needs no reference answer": not one.needs_reference,
        "sees the thought before an answer too": one.sees_thoughts,
    }
    return " and ".join(text for text, holds in facts.items() if holds)


def _linked(ids: Iterable[str], page: str = "") -> str:
    return ", ".join(f"[`{name}`]({page}#{_slug(name)})" for name in ids)


def _slug(title: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    return re.sub(r"[^\w\- ]", "", title).lower().replace(" ", "-")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |" for cells in lines)


PAGES = {"verbs.md": verbs, "tasks.md": tasks, "verifiers.md": verifiers}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (HERE / name).write_text(page(), encoding="utf-8")
        print(f"wrote {HERE / name}")
