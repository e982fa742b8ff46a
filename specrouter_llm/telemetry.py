"""Spans for OpenTelemetry, if it is installed (`specrouter-llm[otel]`); nothing at all otherwise."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

try:
    from opentelemetry import trace
except ImportError:  # an optional dependency
    _INSTALLED = False
else:
    _INSTALLED = True

Attribute: TypeAlias = "str | bool | int | float | Sequence[str] | Sequence[int]"


class Span:
    """A span that may be ended in another thread than it was started in. Does nothing without OpenTelemetry."""

    def __init__(self, name: str, attributes: Mapping[str, Attribute]) -> None:
        """Starts it now, as a child of the span that is current in the calling thread or task."""
        self._span = None
        if _INSTALLED:
            tracer = trace.get_tracer("specrouter_llm")
            self._span = tracer.start_span(name, attributes=attributes)

    @property
    def recording(self) -> bool:
        """Whether anybody will see it: attributes that cost something need not be made otherwise."""
        return self._span is not None and self._span.is_recording()

    def set(self, attributes: Mapping[str, Attribute]) -> None:
        if self._span is not None:
            self._span.set_attributes(attributes)

    def end(self, error: BaseException | None = None) -> None:
        """Ends it; with an error as failed. Later calls do nothing."""
        span, self._span = self._span, None
        if span is None:
            return
        if error is not None:
            span.record_exception(error)
            span.set_attribute("error.type", type(error).__qualname__)
            span.set_status(trace.StatusCode.ERROR, str(error))
        span.end()
