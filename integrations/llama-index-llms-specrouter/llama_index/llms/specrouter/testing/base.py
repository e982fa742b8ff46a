"""What all conformance tests share: the model under test, and ways to call and to watch it."""

from __future__ import annotations

import asyncio
import time
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.bridge.pydantic import PrivateAttr
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.llms.llm import LLM
from llama_index_instrumentation import get_dispatcher

CHAT = ("chat", "stream_chat", "achat", "astream_chat")
COMPLETION = ("complete", "stream_complete", "acomplete", "astream_complete")
ENDPOINTS = CHAT + COMPLETION
STREAMS = tuple(name for name in ENDPOINTS if "stream" in name)
ASYNC = tuple(name for name in ENDPOINTS if name.startswith("a"))

Response = ChatResponse | CompletionResponse


@dataclass(frozen=True)
class Work:
    """What the engine behind a model does now, and has done."""

    live: int
    """Requests that run or wait."""
    tokens: int
    """Tokens produced since the engine was made."""


class LLMTests:
    """The model under test. Override what does not fit yours."""

    prompt = "Say hello."
    long_prompt = "Count to one thousand."
    """A prompt with an answer of at least `long_tokens`, with `long_kwargs`."""
    long_tokens = 300
    max_blocked_s = 0.05
    """How long an async endpoint may hold up the event loop, at most."""

    @property
    def long_kwargs(self) -> dict[str, Any]:
        return {"max_tokens": 3 * self.long_tokens}

    @abstractmethod
    def make_llm(self) -> LLM:
        """A model under test. It is closed after each test if it has `close`."""

    def work(self, llm: LLM) -> Work | None:
        """Looks into the engine; None leaves out the tests that a cancelled request ends."""
        return None

    @pytest.fixture
    def llm(self) -> Iterator[LLM]:
        llm = self.make_llm()
        yield llm
        close = getattr(llm, "close", None)
        if close is not None:
            close()


def subject(endpoint: str, prompt: str) -> str | list[ChatMessage]:
    """What an endpoint takes for this prompt."""
    return prompt if "complete" in endpoint else [ChatMessage(role="user", content=prompt)]


async def acall(llm: LLM, endpoint: str, prompt: str, **kwargs: Any) -> list[Response]:
    """All responses of an async endpoint, one if it does not stream."""
    outcome = await getattr(llm, endpoint)(subject(endpoint, prompt), **kwargs)
    return [response async for response in outcome] if "stream" in endpoint else [outcome]


def call(llm: LLM, endpoint: str, prompt: str, **kwargs: Any) -> list[Response]:
    """All responses of an endpoint, one if it does not stream."""
    if endpoint.startswith("a"):
        return asyncio.run(acall(llm, endpoint, prompt, **kwargs))
    outcome = getattr(llm, endpoint)(subject(endpoint, prompt), **kwargs)
    return list(outcome) if "stream" in endpoint else [outcome]


def text(response: Response) -> str:
    """What has been said so far."""
    return response.text if isinstance(response, CompletionResponse) else response.message.content or ""


class Recorder(BaseEventHandler):
    """Keeps every instrumentation event."""

    _events: list[BaseEvent] = PrivateAttr(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self._events.append(event)

    def of(self, *kinds: type[BaseEvent]) -> list[Any]:
        return [event for event in self._events if isinstance(event, kinds)]


@contextmanager
def recorded() -> Iterator[Recorder]:
    """A recorder of everything that happens inside."""
    dispatcher, recorder = get_dispatcher(), Recorder()
    dispatcher.add_event_handler(recorder)
    try:
        yield recorder
    finally:
        dispatcher.event_handlers[:] = [handler for handler in dispatcher.event_handlers if handler is not recorder]


def eventually(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether `condition` becomes true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def joined(responses: Sequence[Response]) -> str:
    """The deltas of a stream."""
    return "".join(response.delta or "" for response in responses)
