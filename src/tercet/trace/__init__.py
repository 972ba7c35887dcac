"""Where an answer's words come from: spans that stand verbatim in the rows a model was trained on."""

from __future__ import annotations

from tercet.trace.tracer import SHORTEST, Trace, TracedRow, TracedSpan, Tracer

__all__ = ["SHORTEST", "Trace", "TracedRow", "TracedSpan", "Tracer"]
