"""LangChain on SpecRouter: local models, lossless multi-level speculative decoding.

from langchain_specrouter import ChatSpecRouter

model = ChatSpecRouter(model="path/to/target", drafts=["path/to/small"])
model.invoke("Why is the sky blue?")
"""

from langchain_specrouter._version import __version__
from langchain_specrouter.callbacks import SpecRouterStatsHandler
from langchain_specrouter.chat_models import ChatSpecRouter
from langchain_specrouter.errors import (
    SpecRouterCancelledError,
    SpecRouterContextOverflowError,
    SpecRouterInvalidPromptError,
    SpecRouterInvalidRequestError,
    SpecRouterModelNotFoundError,
    SpecRouterQueueFullError,
    SpecRouterTimeoutError,
    SpecRouterUnsupportedSchemaError,
)
from langchain_specrouter.llms import SpecRouterLLM

__all__ = [
    "ChatSpecRouter",
    "SpecRouterCancelledError",
    "SpecRouterContextOverflowError",
    "SpecRouterInvalidPromptError",
    "SpecRouterInvalidRequestError",
    "SpecRouterLLM",
    "SpecRouterModelNotFoundError",
    "SpecRouterQueueFullError",
    "SpecRouterStatsHandler",
    "SpecRouterTimeoutError",
    "SpecRouterUnsupportedSchemaError",
    "__version__",
]
