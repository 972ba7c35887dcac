"""The chat template of a model as a function of messages: which one, with which arguments, on which day.

A template may ask for the date. It gets the recipe's, or `DAY` where there is none, never today's, so that the same
recipe means the same bytes tomorrow. Arguments that a recipe fixes become the template's own first line, so that every
tool that reads the folder writes the same prompts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from datetime import date as calendar_date
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

from tercet.models.template_limits import SECONDS, TemplateTimeout, compiled, within
from tercet.recipe import DAY

# Chat templates that a recipe may name, one file each. Tülu 3's (paper App. B.3) has plain-text markers, no BOS, no
# default system prompt, and no final newline; the one that ends its file is not part of it.
TEMPLATES = {
    file.name.removesuffix(".jinja"): file.read_text(encoding="utf-8").removesuffix("\n")
    for file in files("tercet.models").joinpath("templates").iterdir()
}
OWN = "own"
DATE_KEY = "chat_template_date"  # in tokenizer_config.json: the recipe's date, for every stage that reads the folder
BROKEN = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError, MemoryError, SyntaxError)
_LLAMA_DATE = "%d %b %Y"  # how templates with a `date_string` write it

Turn = Mapping[str, Any]


class ChatError(ValueError):
    """A template or a conversation that cannot be used; the message shows it with the mask marked."""


class ChatTemplate:
    """A compiled template. `__call__` writes messages; errors of the template become a `ChatError`."""

    def __init__(self, text: str, specials: Mapping[str, Any], date: str = "") -> None:
        self.text, self.date = text, date
        self._specials = dict(specials)
        self._day = _day(date or DAY)
        self._known: dict[str, Any] = {"documents": None, **specials}
        if "strftime_now" in text:
            self._known["strftime_now"] = self._day.strftime
        if date and "date_string" in text:  # without one such templates have a day of their own
            self._known["date_string"] = self._day.strftime(_LLAMA_DATE)
        # `render_jinja_template` copies messages and settings for every text; a compiled template needs no copies of
        # plain texts, and is asked itself where this version of transformers has the environment it is compiled in.
        try:
            self._write = compiled(text) if text else None
        except TemplateTimeout:
            raise ChatError(f"the chat template takes more than {SECONDS:g} s to compile; set another") from None
        except (TemplateError, *BROKEN) as error:
            raise ChatError(f"the chat template is not valid Jinja: {error}; repair it or set another") from error

    @property
    def digest_parts(self) -> tuple[str, ...]:
        """What decides the text beside the messages; the day only where the template reads it."""
        dated = "strftime_now" in self._known or "date_string" in self._known
        day = (f"date {self._day.isoformat()}",) if dated else ()
        return (self.text, repr(sorted(self._specials.items())), *day)

    def __call__(self, turns: Sequence[Turn], *, waiting: bool = False, tools: Sequence[Any] | None = None) -> str:
        """The text of a conversation, or of a prompt that waits for an answer."""
        if not self.text:
            raise ChatError(
                "the model has no chat template, so it can only continue plain text; set "
                'template = "tulu3" (or a file) under [base]'
            )
        try:
            if self._write is not None:
                known = {"messages": list(turns), "tools": tools, "add_generation_prompt": waiting}
                return str(within(self._write, known | self._known))
            render: Any = chat_template_utils.render_jinja_template  # its annotation forgets the second value
            more = {"chat_template": self.text, "tools": tools, "add_generation_prompt": waiting, **self._known}
            return str(within(lambda given: render([list(turns)], **given)[0][0], more))
        except TemplateTimeout:
            raise ChatError(f"the chat template ran for more than {SECONDS:g} s over one conversation") from None
        except TemplateError as error:  # the template's own refusal, or a special token it needs and does not have
            roles = ", ".join(turn["role"] for turn in turns)
            raise ChatError(f"the chat template refuses a conversation with the turns {roles}: {error}") from error
        except BROKEN as error:  # it met what it did not expect
            roles = ", ".join(turn["role"] for turn in turns)
            raise ChatError(f"the chat template fails on a conversation with the turns {roles}: {error!r}") from error


def template_text(tokenizer: PreTrainedTokenizerFast, template: str = OWN) -> str:
    """The text of a template: the tokenizer's own (`own`, `own:NAME` of several), a name of `TEMPLATES`, or a file.

    A model without any template gives empty text.
    """
    name, _, wanted = template.partition(":")
    if name == OWN:
        return _own(tokenizer.chat_template, wanted)
    if template in TEMPLATES:
        return TEMPLATES[template]
    if template.endswith(".jinja"):
        try:
            return Path(template).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ChatError(f"base.template: cannot read {template} ({error}); check the path") from error
    raise ChatError(
        f"unknown chat template {template!r}; expected own, own:NAME, one of {', '.join(TEMPLATES)}, or a file that "
        "ends in .jinja"
    )


def with_arguments(text: str, arguments: Mapping[str, Any]) -> str:
    """The template with some of its arguments fixed, unless a caller gives another value.

    They stand before the template's first character; `+%}` keeps a newline there that Jinja would swallow.
    """
    lines = []
    for name, value in sorted(arguments.items()):
        if not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise ChatError(f"base.template_args: {name!r} is no name of an argument of a chat template")
        if not re.search(rf"\b{name}\b", text):
            raise ChatError(
                f"base.template_args: the chat template does not read {name!r}, so it would change nothing; "
                "remove it, or look in the template for the name it has there"
            )
        lines.append(f"{{% set {name} = {name} if {name} is defined else {_literal(value)} +%}}")
    return "".join(lines) + text


def _own(found: Any, wanted: str) -> str:
    if isinstance(found, str) or not found:
        if wanted not in ("", "default"):
            raise ChatError(f"the tokenizer has one chat template; it has none called {wanted!r}; set template = own")
        return found or ""
    name = wanted or "default"
    if name not in found:
        known = ", ".join(sorted(found))
        raise ChatError(
            f"the tokenizer has several chat templates and none is called {name!r}; set template = own:NAME "
            f"with one of {known} under [base]"
        )
    return str(found[name])


def _literal(value: Any) -> str:
    """A TOML value as Jinja writes it; text in JSON's quotes reads the same there."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))}: {_literal(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_literal, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def _day(date: str) -> calendar_date:
    try:
        return calendar_date.fromisoformat(date)
    except ValueError:
        raise ChatError(f'base.date: expected a day such as "{DAY}", got {date!r}') from None
