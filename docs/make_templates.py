"""Writes docs/templates.md from the families of tests/models, so that page, tests and code cannot disagree."""

from __future__ import annotations

import sys
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE / "templates.md"
sys.path.append(str(HERE.parent / "tests" / "models"))
from template_families import FAMILIES, Family, tokenizer_of  # noqa: E402

from tercet.models.chat import Chat  # noqa: E402
from tercet.rows import Message  # noqa: E402

HEAD = """\
# Chat templates

<!-- Written by docs/make_templates.py from tests/models/template_families.py; run `make docs`. -->

The template of a model is asked, never looked up by the model's name. What is trained of an answer is exactly what the
model must write behind the generation prompt that it will see, with the token that ends the turn: a space, a channel or
an empty thought in front of the answer too. `[base]` says which template, with which arguments, on which day:

```toml
[base]
model = "models/qwen3"
template = "own"                              # or own:NAME of several, tulu3, a file.jinja
template_args = { enable_thinking = false }   # become the template's first line, so that every tool writes the same
date = "2026-11-29"                           # for templates that ask for the date; this day when absent
```

* **Thoughts.** A row's thought may stand in the turn's `reasoning_content` (also `thinking`, `reasoning` or `thought`)
  or between `<think>` and `</think>` in its content. It is written where the template has its place, else between
  `<think>` marks in the content. `thinking = "drop"` in a stage leaves thoughts out and counts them. A thought that
  the template would lose is refused with its row.
* **Written thoughts.** What a model writes is read back by the same marks. Where they are special tokens or the
  template's own, or where the prompt has opened the thought, the text of a completion has `<think>` marks around it.
  What verifiers and LLM judges grade of it says [Training](training.md#verdicts).
* **Several turns.** Many templates leave the thoughts of earlier turns out, or end the last turn differently. Then a
  row takes several texts, one for each answer that would stand behind another context than the model sees; they share
  what they begin with. Pairs train the last turn only, in its own context.
* **Tools.** `tool_calls` of assistant turns (arguments as an object or as JSON text), turns of the role `tool`, and a
  `tools` column are rendered by the template. Calls are trained, what tools say is not. A row whose calls or tools the
  template does not write is refused by name; a chat template that carries them is the way round.
* **Ends.** Generation stops at the template's end token, the tokenizer's, and every `eos_token_id` of the generation
  config; all of them stand in the generation config of every model made from this one. Where a template writes the
  end token only as the beginning of the next turn, it is added to the last one.
* **Without a mask.** A template whose answers have no fixed place can still be evaluated, served and chatted with; a
  warning says so. A recipe that trains stops at the base stage. A model without any template reads plain text.

## Families

Templates of the tests, in the structure of real ones: what the model must write for the answer `A`, and for the thought
`T` and the answer; ⏎ is a newline. The last columns say whether calls of tools are written, and whether a
conversation of two exchanges without thoughts takes one text or two.

| template | answer | with a thought | calls | texts |
|---|---|---|---|---|
"""


def render() -> str:
    """The page."""
    return HEAD + "".join(_line(number, family) for number, family in enumerate(FAMILIES))


def _line(number: int, family: Family) -> str:
    chat = Chat(tokenizer_of(number))
    turns = [
        Message(role, text) for role, text in (("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))
    ]
    texts = 1 + len(chat.encode(turns).others)
    cells = (family.name, family.answer, family.thought or "refused", "yes" if family.call else "refused", str(texts))
    return f"| {' | '.join(map(_cell, cells))} |\n"


def _cell(text: str) -> str:
    plain = text in ("yes", "refused") or text.isdigit()
    return text if plain else "`" + text.replace("\n", "⏎").replace("|", "\\|") + "`"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
    print(f"wrote {PAGE}")
