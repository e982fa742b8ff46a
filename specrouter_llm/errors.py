"""Every error that this package raises on purpose.

SpecRouterError
├── InvalidParameterError (also ValueError)   a value that a call cannot be run with
│   ├── InvalidPromptError                    empty, of the wrong type, or not encodable
│   ├── ContextOverflowError                  the prompt does not fit the target's context
│   └── UnsupportedSchemaError                a JSON schema uses what the grammar backend cannot enforce
├── MissingDependencyError (also ImportError) an optional package is needed and not installed
├── ModelLoadError                            a model cannot be loaded
│   ├── ModelNotFoundError                    no such folder, no such name in the cache
│   ├── UnsafeModelError                      pickled weights or remote code
│   ├── UnsupportedModelError                 a kind of model whose state cannot be rolled back
│   ├── VocabularyMismatchError               two members of a pool disagree about token ids
│   └── MemoryBudgetError                     the pool does not fit the budget
├── QueueFullError                            too many requests are waiting
├── EngineClosedError                         the engine was closed, or stayed in another process
├── ReentrantCallError (also RuntimeError)    a callback waits for the engine that waits for the callback
├── RequestFailedError                        one request failed while it ran; the others go on
│   ├── NumericalError                        the target produced NaN or only -inf
│   └── CallbackError                         a callback of the user raised
└── ModelFailure                              a forward pass of one model raised (internal until it concerns the target)
"""

from __future__ import annotations

import traceback


def told(error: BaseException) -> str:
    """The kind and the message of an error of somebody else's, whose message may be an error too."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        return type(error).__name__


class SpecRouterError(Exception):
    """Base class of all errors of this package."""


class InvalidParameterError(SpecRouterError, ValueError):
    """A parameter is unknown, of the wrong type or out of range."""


class InvalidPromptError(InvalidParameterError):
    """A prompt is empty, of the wrong type or cannot be encoded."""


class ContextOverflowError(InvalidParameterError):
    """The prompt is longer than the context that the engine can serve."""


class UnsupportedSchemaError(InvalidParameterError):
    """A JSON schema uses a keyword that cannot be enforced; the message names it."""


class MissingDependencyError(SpecRouterError, ImportError):
    """An optional package is needed and not installed; the message names the extra that installs it."""


class ModelLoadError(SpecRouterError):
    """A model cannot be loaded."""


class ModelNotFoundError(ModelLoadError):
    """Neither a local folder nor a model name that can be resolved."""


class UnsafeModelError(ModelLoadError):
    """Loading would run code from the model's repository, or unpickle its weights."""


class UnsupportedModelError(ModelLoadError):
    """The architecture cannot be run losslessly by this engine; the message says why."""


class VocabularyMismatchError(ModelLoadError):
    """Two models of one pool give the same token id to different tokens."""


class MemoryBudgetError(ModelLoadError):
    """Weights and caches of the pool exceed the memory budget; the message shows the sum."""


class QueueFullError(SpecRouterError):
    """The waiting queue is at its limit."""


class EngineClosedError(SpecRouterError):
    """The engine has been closed, or it runs in the process from which this one was forked."""


class ReentrantCallError(SpecRouterError, RuntimeError):
    """A callback waits for the engine, in whose thread it runs."""

    def __init__(self) -> None:
        super().__init__(
            "this call waits for the engine, and on_step runs in the engine's thread: nobody could ever answer; "
            "call it from another thread, or when the request has ended"
        )


class RequestFailedError(SpecRouterError):
    """One request failed while it was running."""


class NumericalError(RequestFailedError):
    """The target's logits for this request hold NaN or no finite value."""


class CallbackError(RequestFailedError):
    """A callback that the user attached to this request raised."""


class ModelFailure(RequestFailedError):
    """A forward pass of `model` raised `cause`."""

    def __init__(self, model: str, cause: BaseException) -> None:
        super().__init__(f"model {model!r} failed: {told(cause)}")
        self.model = model
        self.cause = cause

    def released(self) -> ModelFailure:
        """The failure with the place where it happened as a note, and without tracebacks: their frames hold a failed forward's
        tensors, and the engine, for as long as anybody keeps the failure."""
        if self.cause.__traceback__ is not None:
            self.add_note("".join(traceback.format_tb(self.cause.__traceback__)).rstrip())
        error: BaseException | None = self
        while error is not None:
            error.__traceback__ = None
            error = error.__cause__ or error.__context__
        return self
