"""The engine's errors as LangChain's: every class here is both, so that code which catches either works.

Only what LangChain names is translated; everything else (a closed engine, a NaN) is raised as the engine raises it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from langchain_core import exceptions as core

from specrouter_llm import FinishReason
from specrouter_llm import errors as ours


class SpecRouterContextOverflowError(ours.ContextOverflowError, core.ContextOverflowError):
    """The prompt is longer than the context that the engine can serve."""


class SpecRouterModelNotFoundError(ours.ModelNotFoundError, core.ModelNotFoundError):
    """Neither a local folder nor a model name that can be resolved."""


class SpecRouterUnsupportedSchemaError(ours.UnsupportedSchemaError, core.ModelInvalidRequestError):
    """A schema holds a keyword that decoding cannot guarantee."""


class SpecRouterInvalidPromptError(ours.InvalidPromptError, core.ModelInvalidRequestError):
    """The messages are empty, not text, or the chat template cannot render them."""


class SpecRouterInvalidRequestError(ours.InvalidParameterError, core.ModelInvalidRequestError):
    """A parameter is unknown, of the wrong type or out of range."""


class SpecRouterQueueFullError(ours.QueueFullError, core.ModelRateLimitError):
    """Too many requests are waiting; trying again later may succeed."""


class CutOffError(ours.SpecRouterError):
    """Something other than the model ended an answer."""

    def __init__(self, message: str, partial: str = "") -> None:
        super().__init__(message)
        self.partial = partial
        """The text that was produced until then."""


class SpecRouterTimeoutError(CutOffError, core.ModelTimeoutError, TimeoutError):
    """The request's `timeout` passed before its answer was complete."""


class SpecRouterCancelledError(CutOffError, core.ModelError):
    """Others ended the request before its answer was complete: mostly, the engine was closed.

    A task that is cancelled while it waits raises `asyncio.CancelledError`, as any task does.
    """


_TWINS: tuple[tuple[type[ours.SpecRouterError], type[ours.SpecRouterError]], ...] = (  # the most specific first
    (ours.ContextOverflowError, SpecRouterContextOverflowError),
    (ours.UnsupportedSchemaError, SpecRouterUnsupportedSchemaError),
    (ours.InvalidPromptError, SpecRouterInvalidPromptError),
    (ours.InvalidParameterError, SpecRouterInvalidRequestError),
    (ours.ModelNotFoundError, SpecRouterModelNotFoundError),
    (ours.QueueFullError, SpecRouterQueueFullError),
)


def translated(error: ours.SpecRouterError) -> ours.SpecRouterError:
    """The error's twin that is LangChain's too, or the error itself."""
    if isinstance(error, core.LangChainException):
        return error
    return next((twin(str(error)) for kind, twin in _TWINS if isinstance(error, kind)), error)


def check_whole(finish_reason: str, text: str, timeout: float | None) -> None:
    """Raises SpecRouterTimeoutError, SpecRouterCancelledError: the answer, so far `text`, was cut off from outside."""
    if finish_reason == FinishReason.TIMEOUT:
        raise SpecRouterTimeoutError(
            f"the answer was not complete after timeout={timeout} s; raise it, or lower max_tokens", text
        )
    if finish_reason == FinishReason.CANCELLED:
        raise SpecRouterCancelledError(
            "the answer was not complete when its request was cancelled, or the engine was closed", text
        )


@contextmanager
def core_errors() -> Iterator[None]:
    """Raises the twins of the engine's errors in its block."""
    try:
        yield
    except ours.SpecRouterError as error:
        twin = translated(error)
        if twin is error:
            raise
        raise twin from error
