"""What a client is told of a request that gets no answer, in the protocol's own words and codes."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

KINDS = {429: "rate_limit_error"}
CODES = {
    "extra_forbidden": ("unknown_parameter", "this server does not know the field"),
    "missing": ("missing_required_parameter", "the field is missing"),
    "model_type": ("invalid_type", "expected an object"),
    "too_short": ("empty_array", ""),
    "too_long": ("array_above_max_length", ""),
    "string_too_short": ("invalid_value", ""),
    "string_too_long": ("string_above_max_length", ""),
}


class Problem(ValueError):  # noqa: N818 - a reply, not a failure of the program
    """A request that gets an error for an answer: HTTP status, message, the protocol's code, the field at fault."""

    def __init__(self, status: int, message: str, code: str = "", param: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    @property
    def body(self) -> dict[str, Any]:
        """The protocol's error object."""
        kind = KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        about = {"message": str(self), "type": kind, "param": self.param or None, "code": self.code or None}
        return {"error": about}


def unsupported(param: str, message: str, *, value: bool = False) -> Problem:
    """A field, or a value of it, that the protocol knows and this server does not serve."""
    return Problem(400, f"{param}: {message}", "unsupported_value" if value else "unsupported_parameter", param)


def invalid(error: ValidationError) -> Problem:
    """The first field that is not as the protocol has it."""
    first = error.errors(include_url=False)[0]
    where = ".".join(map(str, first["loc"]))[:100]
    kind = first["type"]
    code, message = CODES.get(kind, ("invalid_type" if kind.endswith("_type") else "invalid_value", ""))
    return Problem(400, f"{where}: {message or first['msg'].removeprefix('Value error, ')}", code, where)
