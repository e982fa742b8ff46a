"""The eight endpoints: events, accumulation, counts, cancellation, a free event loop."""

from __future__ import annotations

import asyncio
import json
import math
import pickle
import time
from collections.abc import Coroutine
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, LLMMetadata, TextBlock
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler, TokenCountingHandler
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.llms.llm import LLM

from llama_index.llms.specrouter.testing.base import (
    ASYNC,
    CHAT,
    COMPLETION,
    ENDPOINTS,
    STREAMS,
    LLMTests,
    acall,
    call,
    eventually,
    joined,
    recorded,
    subject,
    text,
)


class EndpointTests(LLMTests):
    """Everything that holds for an endpoint whatever the model says."""

    def test_metadata(self, llm: LLM) -> None:
        """There is a name and a window that an answer fits in."""
        metadata = llm.metadata
        assert isinstance(metadata, LLMMetadata)
        assert metadata.model_name
        assert metadata.context_window >= metadata.num_output > 0

    def test_payload_is_plain(self, llm: LLM) -> None:
        """What instrumentation is told can be written as JSON."""
        assert llm.class_name() in json.dumps(llm.to_payload())

    def test_pickled(self, llm: LLM) -> None:
        """A model can be sent to another process."""
        assert pickle.loads(pickle.dumps(llm)).to_payload()["class_name"] == llm.class_name()

    @pytest.mark.parametrize("endpoint", ENDPOINTS)
    def test_events_fire_once(self, llm: LLM, endpoint: str) -> None:
        """One start and one end, of the endpoint's own kind, in both event systems."""
        own, other = (LLMChatStartEvent, LLMChatEndEvent), (LLMCompletionStartEvent, LLMCompletionEndEvent)
        if endpoint in COMPLETION:
            own, other = other, own  # type: ignore[assignment]  # two kinds of one endpoint
        debug = LlamaDebugHandler(print_trace_on_end=False)
        llm.callback_manager = CallbackManager([debug])
        with recorded() as events:
            responses = call(llm, endpoint, self.prompt)
        assert [len(events.of(kind)) for kind in own] == [1, 1]
        assert events.of(*other) == []
        assert text(events.of(own[1])[0].response) == text(responses[-1])
        starts, ends = debug.get_event_pairs(CBEventType.LLM)[0]
        assert len(debug.get_event_pairs(CBEventType.LLM)) == 1
        assert starts.id_ == ends.id_

    @pytest.mark.parametrize("endpoint", STREAMS)
    def test_deltas_add_up(self, llm: LLM, endpoint: str) -> None:
        """Each response holds the text so far, and its own piece; there is no response without a piece."""
        responses = call(llm, endpoint, self.prompt)
        assert None not in [response.delta for response in responses]
        assert [text(response) for response in responses] == [joined(responses[: i + 1]) for i in range(len(responses))]

    @pytest.mark.parametrize("endpoints", [CHAT, COMPLETION], ids=["chat", "complete"])
    def test_all_endpoints_say_the_same(self, llm: LLM, endpoints: tuple[str, ...]) -> None:
        """Streaming or not, async or not."""
        texts = {text(call(llm, endpoint, self.prompt)[-1]) for endpoint in endpoints}
        assert len(texts) == 1
        assert texts != {""}

    @pytest.mark.parametrize("endpoint", ENDPOINTS)
    def test_token_counts(self, llm: LLM, endpoint: str) -> None:
        """TokenCountingHandler counts what the final response reports, streamed or not."""
        counter = TokenCountingHandler(tokenizer=lambda text: ["wrong"] * 10_000)
        llm.callback_manager = CallbackManager([counter])
        raw = call(llm, endpoint, self.prompt)[-1].raw
        told: Any = raw  # a dictionary, or an answer of a client's own class
        usage: dict[str, Any] = told["usage"] if isinstance(told, dict) else told.usage.model_dump()
        counted = counter.prompt_llm_token_count, counter.completion_llm_token_count
        assert counted == (usage["prompt_tokens"], usage["completion_tokens"])
        assert 0 < usage["completion_tokens"] < usage["total_tokens"] == sum(counted)

    @pytest.mark.parametrize("endpoint", [name for name in STREAMS if not name.startswith("a")])
    def test_closing_a_stream_ends_the_request(self, llm: LLM, endpoint: str) -> None:
        """Even while an event handler holds on to the generator."""
        before = self._work(llm)
        with recorded() as events:
            stream = getattr(llm, endpoint)(subject(endpoint, self.long_prompt), **self.long_kwargs)
            next(stream)
            stream.close()
            self._assert_ended(llm, before)
        assert events.of(LLMChatEndEvent, LLMCompletionEndEvent) == []

    @pytest.mark.parametrize("endpoint", [name for name in STREAMS if name.startswith("a")])
    def test_closing_an_async_stream_ends_the_request(self, llm: LLM, endpoint: str) -> None:
        """As with a stream that is not async."""
        before = self._work(llm)

        async def leave() -> None:
            stream = await getattr(llm, endpoint)(subject(endpoint, self.long_prompt), **self.long_kwargs)
            await anext(stream)
            await stream.aclose()

        with recorded() as events:
            asyncio.run(leave())
            self._assert_ended(llm, before)
        assert events.of(LLMChatEndEvent, LLMCompletionEndEvent) == []

    @pytest.mark.parametrize("endpoint", STREAMS)
    def test_dropping_a_stream_ends_the_request(self, llm: LLM, endpoint: str) -> None:
        """Nobody has iterated over it yet."""
        before = self._work(llm)

        async def drop() -> None:
            await getattr(llm, endpoint)(subject(endpoint, self.long_prompt), **self.long_kwargs)

        if endpoint.startswith("a"):
            asyncio.run(drop())
        else:
            getattr(llm, endpoint)(subject(endpoint, self.long_prompt), **self.long_kwargs)
        self._assert_ended(llm, before)

    @pytest.mark.parametrize("endpoint", ASYNC)
    def test_cancelling_a_task_ends_the_request(self, llm: LLM, endpoint: str) -> None:
        """The task is in the middle of an answer."""
        before = self._work(llm)

        async def cancel() -> None:
            task = asyncio.create_task(acall(llm, endpoint, self.long_prompt, **self.long_kwargs))
            while self._work(llm).tokens == before.tokens:
                await asyncio.sleep(0.005)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(cancel())
        self._assert_ended(llm, before)

    @pytest.mark.parametrize("endpoint", ASYNC)
    def test_event_loop_stays_free(self, llm: LLM, endpoint: str) -> None:
        """Other tasks go on during an answer. The best of three tries: a busy machine holds up any loop at times."""
        call(llm, endpoint, self.prompt)
        longest = math.inf
        for _ in range(3):
            gap, seconds = asyncio.run(
                _longest_gap(acall(llm, endpoint, self.long_prompt, max_tokens=self.long_tokens))
            )
            if seconds < 2 * self.max_blocked_s:
                pytest.skip(f"an answer takes {seconds:.3f} s, too little to tell: raise `long_tokens`")
            longest = min(longest, gap)
            if longest < self.max_blocked_s:
                return
        pytest.fail(f"the event loop was held up for {longest:.3f} s")

    def test_many_at_once(self, llm: LLM) -> None:
        """Concurrent calls get their own answers."""

        async def together() -> list[str]:
            answers = await asyncio.gather(*(acall(llm, endpoint, self.prompt) for endpoint in ASYNC * 2))
            return [text(responses[-1]) for responses in answers]

        alone = [text(call(llm, endpoint, self.prompt)[-1]) for endpoint in ASYNC]
        assert asyncio.run(together()) == alone * 2

    @pytest.mark.parametrize("endpoint", CHAT)
    def test_no_messages(self, llm: LLM, endpoint: str) -> None:
        """An empty chat is refused."""
        with pytest.raises(ValueError, match="message"):
            _send(llm, endpoint, [])

    @pytest.mark.parametrize("endpoint", CHAT)
    def test_image_for_a_text_model(self, llm: LLM, endpoint: str) -> None:
        """What the model cannot see is refused rather than left out."""
        blocks = [TextBlock(text="What is this?"), ImageBlock(image=b"\x89PNG\r\n\x1a\n")]
        with pytest.raises(ValueError, match="image"):
            _send(llm, endpoint, [ChatMessage(role="user", blocks=blocks)])

    def _work(self, llm: LLM) -> Any:
        work = self.work(llm)
        if work is None:
            pytest.skip("`work` does not look into the engine")
        return work

    def _assert_ended(self, llm: LLM, before: Any) -> None:
        assert eventually(lambda: self._work(llm).live == before.live)
        assert self._work(llm).tokens - before.tokens < self.long_tokens


def _send(llm: LLM, endpoint: str, messages: list[ChatMessage]) -> None:
    async def asend() -> None:
        await getattr(llm, endpoint)(messages)

    if endpoint.startswith("a"):
        asyncio.run(asend())
    else:
        getattr(llm, endpoint)(messages)


async def _longest_gap(answer: Coroutine[Any, Any, Any]) -> tuple[float, float]:
    """For how many seconds a task that only wants to wake up had to wait, and how many the answer took."""
    longest = 0.0

    async def tick() -> None:
        nonlocal longest
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    start = time.perf_counter()
    await answer
    seconds = time.perf_counter() - start
    await asyncio.sleep(0.01)  # the task wakes up once more, after an answer that never let it
    ticking.cancel()
    return longest, seconds
