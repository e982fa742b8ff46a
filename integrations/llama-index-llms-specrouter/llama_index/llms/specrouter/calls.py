"""One request on its way: started once, streamed or awaited, cancelled when nobody wants it any more."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

from llama_index.core.base.llms.types import ChatResponse

from llama_index.llms.specrouter.responses import Answer, final_response, first_call_only, token_logprobs
from specrouter_llm.chat import ChatDelta, ChatResult
from specrouter_llm.engine.handle import Handle
from specrouter_llm.types import Completion, Delta

if TYPE_CHECKING:
    from specrouter_llm.text.tokenizer import Tokenizer

R = TypeVar("R")
Report = Callable[[ChatResult], dict[str, Any]]
Submit: TypeAlias = "Callable[[], tuple[AnswerHandle, Tokenizer | None]]"
"""Gives the request's handle, and what its engine spells tokens with."""


class AnswerHandle(Protocol):
    """What `ChatHandle` and `TextHandle` have in common."""

    def __iter__(self) -> Iterator[ChatDelta]: ...
    def __aiter__(self) -> AsyncIterator[ChatDelta]: ...
    def result(self) -> list[ChatResult]: ...
    async def aresult(self) -> list[ChatResult]: ...
    def cancel(self) -> None: ...


class Call:
    """A request that runs from `start` until its answer is complete or it is cancelled.

    Streaming endpoints need `guard`: the callbacks of LlamaIndex iterate over our generator without closing it, and event
    handlers may keep it alive, so its own `finally` comes late or never. The guard is outside of the callbacks.
    """

    def __init__(self, submit: Submit, report: Report, *, one_tool_call: bool = False) -> None:
        """`submit` queues the request; `report` makes the `raw` of its final response; `one_tool_call` drops others."""
        self._submit = submit
        self._report = report
        self._one_tool_call = one_tool_call
        self._handle: AnswerHandle | None = None
        self._tokenizer: Tokenizer | None = None
        self._abandoned = False

    @property
    def handle(self) -> AnswerHandle:
        assert self._handle is not None, "the call was not started"
        return self._handle

    def start(self) -> Call:
        """Loads the engine if need be and queues the request. Raises what the engine raises."""
        self._handle, self._tokenizer = self._submit()
        if self._abandoned:
            self.cancel()
        return self

    async def astart(self) -> Call:
        """`start` off the event loop: loading, long prompts and grammars take time."""
        try:
            return await asyncio.to_thread(self.start)
        except asyncio.CancelledError:
            self._abandoned = True  # the thread goes on: it cancels what it has started
            self.cancel()
            raise

    def cancel(self) -> None:
        """Ends the request within one step; nothing if it has ended or never started."""
        if self._handle is not None:
            self._handle.cancel()

    def answer(self) -> ChatResponse:
        try:
            return self._limited(self._final(self.handle.result()))
        finally:
            self.cancel()

    async def aanswer(self) -> ChatResponse:
        try:
            return self._limited(self._final(await self.handle.aresult()))
        finally:
            self.cancel()

    def stream(self, shape: Callable[[ChatResponse], R]) -> Generator[R, None, None]:
        """A response for every piece; the last one holds the whole answer and `raw`."""
        answer = Answer()
        for delta in self.handle:
            response = answer.add(delta)
            if delta.finish_reason is not None:
                response = self._final(self.handle.result(), response)
            yield shape(self._limited(response))

    async def astream(self, shape: Callable[[ChatResponse], R]) -> AsyncGenerator[R, None]:
        answer = Answer()
        async for delta in self.handle:
            response = answer.add(delta)
            if delta.finish_reason is not None:
                response = self._final(await self.handle.aresult(), response)
            yield shape(self._limited(response))

    def guard(self, responses: Generator[R, None, None]) -> Generator[R, None, None]:
        """`responses`, and the request ends with the iteration."""
        try:
            yield from responses
        finally:
            self.cancel()

    async def aguard(self, responses: AsyncGenerator[R, None]) -> AsyncGenerator[R, None]:
        try:
            async for response in responses:
                yield response
        finally:
            self.cancel()
            await responses.aclose()

    def _final(self, results: list[ChatResult], last: ChatResponse | None = None) -> ChatResponse:
        (result,) = results
        return final_response(result, self._report(result), token_logprobs(result, self._tokenizer), last)

    def _limited(self, response: ChatResponse) -> ChatResponse:
        return first_call_only(response) if self._one_tool_call else response


class TextHandle:
    """The handle of a raw prompt: all that the model writes is content."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def __iter__(self) -> Iterator[ChatDelta]:
        return map(_chat_delta, self._handle)

    async def __aiter__(self) -> AsyncIterator[ChatDelta]:
        async for delta in self._handle:
            yield _chat_delta(delta)

    def result(self) -> list[ChatResult]:
        return [_chat_result(completion.raise_for_error()) for completion in self._handle.result()]

    async def aresult(self) -> list[ChatResult]:
        return [_chat_result(completion.raise_for_error()) for completion in await self._handle.aresult()]

    def cancel(self) -> None:
        self._handle.cancel()


def _chat_delta(delta: Delta) -> ChatDelta:
    reason = None if delta.finish_reason is None else delta.finish_reason.value
    return ChatDelta(delta.index, delta.text, "", (), reason, delta.token_ids)


def _chat_result(completion: Completion) -> ChatResult:
    return ChatResult(
        content=completion.text,
        reasoning="",
        tool_calls=(),
        finish_reason=completion.finish_reason.value,
        completion=completion,
    )
