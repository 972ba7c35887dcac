"""Writes docs/layouts.md from tests/data/layout_cases.py and the table of layouts, so that page and code agree."""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE / "layouts.md"
sys.path.append(str(HERE.parent / "tests" / "data"))
from layout_cases import CONVERSATIONS, EXCHANGES, PAIRS, PROMPTS, REFUSED, UNPAIRED, Case  # noqa: E402

from tercet.data.layouts import DATASETS, LAYOUTS  # noqa: E402

HEAD = """\
# Layouts of data

<!-- Written by docs/make_layouts.py from the table of layouts and tests/data/layout_cases.py; run `make docs`. -->

A source recognises how a file holds its rows; every row below is one that the tests read, from JSON lines, JSON and
parquet. What an adapter reads can also be named: `adapter = "sharegpt"`.

```toml
[stage.sft-data]
kind = "mix"
sources = [{ path = "chats.parquet" }]
```

* **The stage decides.** A `mix` reads rows, prompts, the chosen side of pairs, and of answers marked good or bad (KTO)
  the good ones: bad ones are left out and counted as "labelled bad". A `pair_mix` reads pairs only; a file that gives
  none is refused, with what it gives.
* **The first 50 rows decide** which layouts a file has. If they have one, the summary says which; else each row is read
  by the first layout of the table that fits it, and the summary says how many have which and which row differs
  first. A row that fits none is named with its keys.
* **Turns** are a list, its JSON, or a table's struct of lists; `role` and `content`, or `from` and `value`. The roles
  `developer` (system), `human`, `gpt`, `model`, `function_call`, `observation` and the like are known. Content may be
  in parts of text. Thoughts, calls and tools travel: [chat templates](templates.md).
* **Context.** An answer with `weight = 0` or `train = false` is read by the model and never trained. Other weights
  than 0 and 1 are refused.
* **A system text** in a column (`system`, `system_prompt`, `system_message`) becomes the first turn; `history` stands
  before an instruction and is trained as it is in LLaMA-Factory.
* **Prompts with a reference answer** get the verifier of the data set that they name (`dataset`, `data_source`, `task`;
  the table is below), or the `verifier` of the source or of the row. The published RLVR rows keep `gsm8k@1` and
  `math_flex@1`.
* **Only text.** Images, audio and video are refused, with the row.
"""


def render() -> str:
    """The page."""
    parts = [HEAD]
    parts += [_section("Conversations", CONVERSATIONS), _section("Questions and answers", EXCHANGES)]
    parts += [_section("Pairs", PAIRS), _section("Answers marked good or bad", UNPAIRED)]
    parts += [_section("Prompts", PROMPTS), _refused(), _datasets(), _table()]
    return "\n".join(parts)


def _section(title: str, cases: list[Case]) -> str:
    lines = [f"## {title}\n\n| layout | adapter | a row |\n|---|---|---|\n"]
    lines += [
        f"| {case.name} | `{case.adapter}` | {_code(json.dumps(case.row, ensure_ascii=False))} |\n" for case in cases
    ]
    return "".join(lines)


def _refused() -> str:
    lines = ["## Refused by name\n\n| what | a row |\n|---|---|\n"]
    return "".join([*lines, *(f"| {name} | {_code(json.dumps(raw))} |\n" for name, raw, _ in REFUSED)])


def _datasets() -> str:
    names: dict[str, list[str]] = {}
    for name, verifier in DATASETS.items():
        names.setdefault(verifier, []).append(f"`{name}`")
    lines = ["## Verifiers of data sets\n\n| verifier | names, in any case |\n|---|---|\n"]
    return "".join([*lines, *(f"| `{one}` | {', '.join(found)} |\n" for one, found in names.items())])


def _table() -> str:
    lines = ["## The table\n\nThe first that fits, of those that give what the stage needs.\n\n"]
    lines += ["| keys | gives | adapter | what that is |\n|---|---|---|---|\n"]
    for one in LAYOUTS:
        keys = ", ".join(f"`{key}`" for key in one.keys)
        lines.append(f"| {keys} | {one.gives} | {f'`{one.adapter}`' if one.adapter else 'none'} | {one.meaning} |\n")
    return "".join(lines)


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|") + "`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")
