"""The attacks of test_limits.py, which runs this module in a process per class: `python -m ... CLASS FOLDER`."""

from __future__ import annotations

import gzip
import io
import json
import resource
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

HEAD = 'name = "x"\n[base]\nmodel = "tiny:"\n'
MIX = '[stage.{name}]\nkind = "mix"\nsources = [{{ {source} }}]\n'
MIB = 1 << 20
N = 4 * MIB - 200


def _stages(count: int, source: str = 'path = "x"') -> str:
    return HEAD + "".join(MIX.format(name=f"s{number}", source=source) for number in range(count))


RECIPES: dict[str, Callable[[], str]] = {
    "lists in lists": lambda: HEAD + "a = " + "[" * N,
    "tables in tables": lambda: HEAD + "a = " + "{ a = " * (N // 6),
    "lists and tables": lambda: HEAD + "a = " + "[{ a = " * (N // 7),
    "a key of a million parts": lambda: HEAD + "a." * (N // 2) + "a = 1",
    "a header of a million parts": lambda: HEAD + "[" + "a." * (N // 2) + "a]",
    "a quoted key of a million parts": lambda: HEAD + '"a".' * (N // 4) + "a = 1",
    "a million numbers": lambda: HEAD + "a = [" + "1.5," * (N // 4) + "]",
    "a million inline tables": lambda: HEAD + "a = [" + "{a=1}," * (N // 6) + "]",
    "a million tables": lambda: HEAD + "[[a]]\n" * (N // 6),
    "a million keys": lambda: HEAD + "".join(f"k{number} = 1\n" for number in range(N // 14)),
    "a file of 8 MiB": lambda: HEAD + "#" * (8 * MIB),
    "20,000 stages": lambda: _stages(20_000),
    "10,000 stages, each wrong": lambda: _stages(5_000, "pat = 1").replace("mix", "mixx"),
    "10,000 stages in a circle": lambda: (
        HEAD + "".join(MIX.format(name=f"s{one}", source=f'stage = "s{(one + 1) % 9000}"') for one in range(9000))
    ),
    "10,000 stages that name none": lambda: _stages(9000, 'stage = "none"'),
    "a text of backslashes": lambda: HEAD + 'a = "' + "\\\\" * (N // 2) + '"',
    "a text of quotes": lambda: HEAD + 'a = """' + '""\n' * (N // 3) + '"""',
    "texts that do not end": lambda: HEAD + 'a = """\\' * (N // 8),
    "a number of a million digits": lambda: HEAD + "a = " + "9" * MIB,
    "a hexadecimal number of a million digits": lambda: HEAD + "a = 0x" + "f" * MIB,
    "a number beyond 64 bits": lambda: f"seed = {2**63}\n" + HEAD,
    "a huge exponent": lambda: HEAD.replace("[base]", "scale = 1e999\n[base]"),
    "no number": lambda: HEAD.replace("[base]", "scale = nan\n[base]"),
    "a name with a null": lambda: HEAD.replace('"x"', '"\\u0000"'),
    "a name with an escape sequence": lambda: HEAD.replace('"x"', '"\\u001b[2J"'),
    "an unknown key with an escape sequence": lambda: HEAD + '"\\u001b[2J" = 1\n',
    "a stage name that leads away": lambda: HEAD + MIX.format(name='"../../x"', source='path = "x"'),
    "a stage name of 1,000 letters": lambda: HEAD + MIX.format(name="a" * 1000, source='path = "x"'),
    "a stage name of a million letters": lambda: HEAD + MIX.format(name="a" * MIB, source='path = "x"'),
    "two stage names but for case": lambda: _stages(1) + MIX.format(name="S0", source='path = "x"'),
    "a stage called base": lambda: HEAD + MIX.format(name="base", source='path = "x"'),
    "a recipe that extends itself": lambda: 'extends = "recipe.toml"\n',
    "a recipe that extends a folder": lambda: 'extends = "."\n',
    "a path with a null": lambda: 'extends = "a\\u0000b"\n',
}
SETS = {
    "brackets": "base.date=" + "[" * 100_000,
    "a key of many parts": "a" + ".a" * 50_000 + "=1",
    "a number": "seed=" + "9" * 100_000,
    "an index": "base." + "9" * 5000 + "=1",
    "half a character": "base.model=\udcff",
    "an escape sequence": "base.model=\x1b[2J",
    "an open quote": '"' * 99_999 + "=1",
}


def _gz(text: bytes, times: int) -> bytes:
    out = io.BytesIO()
    with gzip.GzipFile("", "wb", 6, out) as stream:
        for _ in range(times):
            stream.write(text)
    return out.getvalue()


def _zip() -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("rows.jsonl", "{}\n" * 9)
    return gzip.compress(out.getvalue())


def _row(**more: object) -> bytes:
    return json.dumps(
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]} | more
    ).encode()


def _turn(**more: object) -> bytes:
    return json.dumps(
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"} | more]}
    ).encode()


ROWS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "a line of 80 MiB": ("a.jsonl", lambda: b'{"a": "' + b"x" * (80 * MIB) + b'"}'),
    "a line of 80 MiB of csv": ("a.csv", lambda: b"a,b\n" + b"x" * (80 * MIB)),
    "an open quote of 80 MiB": ("a.csv", lambda: b'a,b\n"' + (b"x" * 4095 + b"\n") * (20 * 1024)),
    "30 million empty lists": ("a.jsonl", lambda: b'{"a": [' + b"[]," * (20 * MIB) + b"[]]}"),
    "30 million empty objects": ("a.json", lambda: b"[" + b"{}," * (20 * MIB) + b"{}]"),
    "20 million cells": ("a.csv", lambda: b"," * (20 * MIB)),
    "a gz of one line of 2 GiB": ("a.jsonl.gz", lambda: _gz(b"x" * MIB, 2048)),
    "a gz of short lines of 1 GiB": ("a.jsonl.gz", lambda: _gz(b"\n" + b" " * 4095, 1 << 18)),
    "a gz of json of 2 GiB": ("a.json.gz", lambda: _gz(b"[" * MIB, 2048)),
    "a gz of csv of 2 GiB": ("a.csv.gz", lambda: _gz((b"a" * 65535 + b"\n") * 16, 2048)),
    "a gz of a gz": ("a.jsonl.gz", lambda: gzip.compress(_gz(b"x" * MIB, 512))),
    "a gz of a zip": ("a.jsonl.gz", _zip),
    "a truncated gz": ("a.jsonl.gz", lambda: gzip.compress(_row() * 999)[:-9]),
    "a gz with a wrong sum": ("a.jsonl.gz", lambda: gzip.compress(_row())[:-8] + b"\0" * 8),
    "no gz": ("a.jsonl.gz", lambda: b"\x1f\x8b\x08\x00" + b"\xff" * 99),
    "a million brackets": ("a.jsonl", lambda: b"[" * MIB),
    "a million brackets of json": ("a.json", lambda: b"[" * MIB),
    "900 lists in each other": ("a.jsonl", lambda: b'{"a": ' + b"[" * 900 + b"]" * 900 + b"}"),
    "900 objects in each other": ("a.jsonl", lambda: b'{"a": ' * 900 + b"1" + b"}" * 900),
    "tools in each other": ("a.jsonl", lambda: _row(tools="[" * 99_999)),
    "a call's arguments in each other": (
        "a.jsonl",
        lambda: _turn(tool_calls=[{"function": {"name": "f", "arguments": "[" * 99_999}}]),
    ),
    "a number of 5,000 digits": ("a.jsonl", lambda: b'{"a": ' + b"9" * 5000 + b"}"),
    "a number of 5,000 digits of json": ("a.json", lambda: b'[{"a": ' + b"9" * 5000 + b"}]"),
    "a weight that is no number": ("a.jsonl", lambda: _turn(weight=float("nan"))),
    "a key that stands twice": ("a.jsonl", lambda: b'{"id": 1, "id": 2}'),
    "a byte that is no text": ("a.jsonl", lambda: _row() + b"\n\xff"),
    "half a character": ("a.jsonl", lambda: _row(id="\ud800")),
    "half a character in a call": (
        "a.jsonl",
        lambda: _turn(tool_calls=[{"function": {"name": "f", "arguments": {"x": "\udfff"}}}]),
    ),
    "details that no turn has": ("a.jsonl", lambda: _turn(details='{"x": 1}')),
    "details that are no object": ("a.jsonl", lambda: _turn(details="[1, 2]")),
    "details in each other": ("a.jsonl", lambda: _turn(details="[" * 99_999)),
    "a role that is a list": ("a.jsonl", lambda: _turn(role=[])),
    "no parquet": ("a.parquet", lambda: b"PAR1" + b"\xff" * 99 + b"PAR1"),
    "parquet with an endless footer": ("a.parquet", lambda: b"PAR1" + b"\xff\xff\xff\x7f" + b"PAR1"),
}

FOR = "{% for a in range(99999) %}"
LOOP = FOR * 3 + "{% endfor %}" * 3
GROW = "{{% set n = namespace(x='ab') %}}{{% for i in range(99) %}}{{% set n.x = {} %}}{{% endfor %}}{{{{ n.x }}}}"
TEMPLATES = {
    "loops in loops": LOOP,
    "a range": "{% for a in range(10**12) %}{% endfor %}",
    "a product": "{{ 'a' * 10**10 }}",
    "a product the other way": "{{ 10**10 * 'a' }}",
    "a product of lists": "{{ [1] * 10**9 }}",
    "a product of products": "{{ (['a' * 99999] * 99999) | join }}",
    "a power": "{{ 9 ** (9 ** 9) }}",
    "a power of powers": GROW.replace("'ab'", "3").format("n.x * n.x"),
    "a field": "{{ '%1000000000d' % 1 }}",
    "a field with a star": "{{ '%*d' % (10**9, 1) }}",
    "a field of a method": "{{ '{:1000000000}'.format(1) }}",
    "a field in a field": "{{ '{:{}}'.format(1, 10**9) }}",
    "a field of a filter": "{{ '%1000000000d' | format(1) }}",
    "a field of a mapping": "{{ '{a:1000000000}'.format_map({'a': 1}) }}",
    "center": "{{ 'a' | center(10**9) }}",
    "center of a method": "{{ 'a'.center(10**9) }}",
    "ljust": "{{ 'a'.ljust(10**9) }}",
    "ljust by another way": "{% set f = 'a'['lju' ~ 'st'] %}{{ f(10**9) }}",
    "ljust by attr": "{{ ('a' | attr('ljust'))(10**9) }}",
    "center by map": "{{ ['a'] | map('center', 10**9) | list }}",
    "zfill": "{{ 'a'.zfill(10**9) }}",
    "expandtabs": "{{ '\t\t'.expandtabs(10**9) }}",
    "indentation": "{{ 'a\nb' | indent(10**9) }}",
    "an indentation of JSON": "{{ [1, [2]] | tojson(indent=10**9) }}",
    "bytes of a number": "{{ (1).to_bytes(10**9) }}",
    "a round number": "{{ 1.5 | round(10**9, 'ceil') }}",
    "words of Latin": "{{ lipsum(n=10**9) }}",
    "replacement": "{% set x = 'a' * 9999 %}{{ x.replace('a', x).replace('a', x) }}",
    "replacement by a filter": "{% set x = 'a' * 9999 %}{{ x | replace('a', x) | replace('a', x) }}",
    "a separator": "{% set x = 'a' * 99999 %}{{ x.join(x) | length }}",
    "translation": "{{ 'aaaa'.translate({97: 'b' * 999999}) }}",
    "growth by ~": GROW.format("n.x ~ n.x"),
    "growth by +": GROW.format("n.x + n.x"),
    "growth of lists": GROW.format("[n.x, n.x]"),
    "growth of tables": GROW.format("{'a': n.x, 'b': n.x}") + "{{ n.x | tojson }}",
    "growth by a format": GROW.format("'%s%s' % (n.x, n.x)"),
    "growth by a macro": "{% macro f(x, n) %}{% if n %}{{ f(x ~ x, n - 1) }}{% endif %}{% endmacro %}{{ f('ab', 99) }}",
    "growth by what a macro writes": "{% macro f(x) %}{{ x }}{{ x }}{% endmacro %}" + GROW.format("f(n.x)"),
    "growth by a block": GROW.replace(
        "{{% set n.x = {} %}}", "{{% set y %}}{{{{ n.x }}}}{{{{ n.x }}}}{{% endset %}}{{% set n.x = y %}}"
    ).format(),
    "growth in a chain": GROW.format("n.x" + " ~ n.x" * 5000),
    "growth by sums in a chain": GROW.format("n.x" + " + n.x" * 50),
    "a macro that calls itself": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    "a macro that calls itself twice": "{% macro f(n) %}{{ f(n-1) if n }}{{ f(n-1) if n }}{% endmacro %}{{ f(90) }}",
    "output without end": FOR * 2 + "{{ messages[0].content }}" + "{% endfor %}" * 2,
    "output of a macro without end": "{% macro f() %}" + FOR + "{{ 'a' * 99999 }}{% endfor %}{% endmacro %}{{ f() }}",
    "brackets": "{{ " + "(" * 20_000 + " }}",
    "blocks in blocks": "{% if x %}" * 2000 + "{% endif %}" * 2000,
    "loops in a hundred loops": "{% for a in x %}" * 100 + "{% endfor %}" * 100,
    "a template of a megabyte": "{{ a }}" * 150_000,
    "a chain of attributes": "{{ a" + ".a" * 20_000 + " }}",
    "signs": "{{ " + "-" * 20_000 + "1 }}",
    "an import": "{% import 'os' as os %}",
    "an inner attribute": "{{ ''.__class__.__mro__[1].__subclasses__() | length }}{{ raise_exception('x') }}",
    "a change of messages": "{{ messages.append(1) }}",
    "a division by nothing": "{{ 1 // 0 }}",
    "a float without end": "{{ 10.0 ** 400 }}",
}


def _recipes(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    from tercet.recipe import load

    path = folder / "recipe.toml"
    for name, text in RECIPES.items():
        path.write_text(text(), encoding="utf-8")
        yield name, lambda: load(path)


def _sets(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    from tercet.recipe import load

    path = folder / "recipe.toml"
    path.write_text(_stages(1), encoding="utf-8")
    for name, text in SETS.items():
        yield name, lambda text=text: load(path, [text])


def _rows(folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    from tercet.data.reading import Reading
    from tercet.data.sources import load
    from tercet.recipe import SourceSpec

    for name, (file, data) in ROWS.items():
        (folder / file).write_bytes(data())
        source = SourceSpec(path=str(folder / file), max_bad=0)
        yield name, lambda source=source: list(load(source, {}, {}, Reading()))
        (folder / file).unlink()


def _templates(_folder: Path) -> Iterator[tuple[str, Callable[[], object]]]:
    from tercet.models.chat_template import ChatTemplate

    turns = [{"role": "user", "content": "question " * 9999}]
    for name, text in TEMPLATES.items():
        yield name, lambda text=text: ChatTemplate(text, {})(turns)


CLASSES = {
    "recipes": (_recipes, RECIPES),
    "overrides": (_sets, SETS),
    "rows": (_rows, ROWS),
    "templates": (_templates, TEMPLATES),
}
CASES = [(group, name) for group, (_, names) in CLASSES.items() for name in names]


def main(group: str, folder: Path) -> None:
    """Run the attacks of one class; a line of JSON for each."""
    for name, attack in CLASSES[group][0](folder):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began = time.process_time()
        error, message = "nothing", ""
        try:
            message = f"{attack()!r:.200}"
        except BaseException as found:
            error, message = type(found).__name__, str(found)
        seconds = time.process_time() - began
        mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        line = {"name": name, "error": error, "message": message, "seconds": round(seconds, 2), "mib": round(mib)}
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
