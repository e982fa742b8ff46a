"""The caller's end of a chat: an iterator and an async iterator of deltas, results, and a way to cancel."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import TypeAlias

from specrouter_llm.chat.parser import Pieces, ReplyParser
from specrouter_llm.chat.values import ChatDelta, ChatResult
from specrouter_llm.engine.handle import Handle
from specrouter_llm.types import Completion, Delta, FinishReason

OnEnd: TypeAlias = Callable[[list[ChatResult], list[tuple[str, int]], BaseException | None], None]


class ChatHandle:
    """One submitted chat. Iterate over it (`for` or `async for`) to stream, or ask for its `result()`.

    Dropping, closing or leaving it, or cancelling the task that waits for it, cancels the request.
    """

    def __init__(
        self,
        handle: Handle,
        parser: Callable[[], ReplyParser],
        reasoning_tokens: Callable[[Completion, str], int],
        on_end: OnEnd,
    ) -> None:
        """`parser` makes one for each sample; `reasoning_tokens` counts those of a completion; `on_end` is called once, with
        the samples that have ended (without their text where nobody waits for it), the finish reason and the number of
        tokens of others that were delivered in part, and the error, if there is one.
        """
        self._handle = handle
        self._on_end: OnEnd | None = on_end
        self._answers = defaultdict[int, _Answer](lambda: _Answer(parser()))
        self._reasoning_tokens = reasoning_tokens

    def __iter__(self) -> ChatHandle:
        return self

    def __next__(self) -> ChatDelta:
        try:
            return self._delta(next(self._handle))
        except BaseException as end:
            self._end(end)
            raise

    def result(self) -> list[ChatResult]:
        """All answers, in order; blocks until they have ended. Raises the request's error."""
        for _ in self:
            pass
        return self._results()

    def __aiter__(self) -> ChatHandle:
        return self

    async def __anext__(self) -> ChatDelta:
        try:
            return self._delta(await anext(self._handle))
        except BaseException as end:
            self._end(end)
            raise

    async def aresult(self) -> list[ChatResult]:
        """`result()` without blocking the event loop; cancelling the task cancels the request."""
        async for _ in self:
            pass
        return self._results()

    def cancel(self) -> None:
        """Ends the request within one step. Harmless when it has ended."""
        self._handle.cancel()

    def __del__(self) -> None:
        self._end(None)

    def close(self) -> None:
        """Cancels; nobody waits for the end any more."""
        self.cancel()
        self._end(None)

    async def aclose(self) -> None:
        self.close()

    def __enter__(self) -> ChatHandle:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def __aenter__(self) -> ChatHandle:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.close()

    def _delta(self, delta: Delta) -> ChatDelta:
        answer = self._answers[delta.index]
        answer.num_tokens += len(delta.token_ids)
        pieces = answer.feed(delta.text)
        finish_reason = None
        if delta.finish_reason is not None:
            last = answer.finish()
            pieces = Pieces(
                pieces.content + last.content,
                pieces.reasoning + last.reasoning,
                (*pieces.tool_calls, *last.tool_calls),
            )
            finish_reason = answer.reason = answer.finish_reason(delta.finish_reason.value)
        return ChatDelta(
            delta.index, pieces.content, pieces.reasoning, pieces.tool_calls, finish_reason, delta.token_ids
        )

    def _end(self, end: BaseException | None) -> None:
        """The iteration is over, regularly if by StopIteration or its async twin. Else nothing is waited for: a finalizer may
        call this."""
        on_end, self._on_end = self._on_end, None
        if on_end is None:
            return
        if isinstance(end, (StopIteration, StopAsyncIteration)):
            on_end(self._results(), [], None)
            return
        results, rest = {each.index: each for each in self._handle.ended}, dict(self._answers)
        told = [_left(completion, rest.pop(index, None)) for index, completion in results.items()]
        on_end(told, [(answer.reason or "cancelled", answer.num_tokens) for answer in rest.values()], end)

    def _results(self) -> list[ChatResult]:
        results = []
        for completion in self._handle.result():  # all have ended and been delivered: this does not block
            if completion.finish_reason is FinishReason.ERROR:
                completion.raise_for_error()
            results.append(self._result(completion, self._answers[completion.index]))
        return results

    def _result(self, completion: Completion, answer: _Answer) -> ChatResult:
        reasoning = "".join(answer.reasoning)
        return ChatResult(
            content="".join(answer.content),
            reasoning=reasoning,
            tool_calls=answer.parser.tool_calls,
            finish_reason=answer.finish_reason(completion.finish_reason.value),
            completion=completion,
            reasoning_tokens=self._reasoning_tokens(completion, reasoning) if reasoning else 0,
        )


def _left(completion: Completion, answer: _Answer | None) -> ChatResult:
    """A sample that has ended and is not waited for."""
    reason = answer.reason if answer is not None else None
    return ChatResult("", "", (), reason or completion.finish_reason.value, completion, 0)


class _Answer:
    """One sample as far as it has been read."""

    def __init__(self, parser: ReplyParser) -> None:
        self.parser = parser
        self.content: list[str] = []
        self.reasoning: list[str] = []
        self.num_tokens = 0
        self.reason: str | None = None
        """Once it has been read to its end."""

    def feed(self, text: str) -> Pieces:
        return self._keep(self.parser.feed(text))

    def finish(self) -> Pieces:
        return self._keep(self.parser.finish())

    def finish_reason(self, reason: str) -> str:
        called = any(call.error is None for call in self.parser.tool_calls)
        return "tool_calls" if reason == "stop" and called else reason

    def _keep(self, pieces: Pieces) -> Pieces:
        self.content.append(pieces.content)
        self.reasoning.append(pieces.reasoning)
        return pieces
