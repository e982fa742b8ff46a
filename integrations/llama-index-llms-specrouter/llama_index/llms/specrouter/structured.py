"""Structured prediction by constrained decoding: the schema is enforced while the model writes.

Without this LlamaIndex would offer the schema as a tool and hope, in streams, that the model calls it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from functools import partial
from typing import Any, NamedTuple, TypeAlias, TypeVar, cast

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.instrumentation.events.llm import (
    LLMStructuredPredictEndEvent,
    LLMStructuredPredictInProgressEvent,
    LLMStructuredPredictStartEvent,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.program.utils import FlexibleModel, process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.types import Model, PydanticProgramMode
from llama_index_instrumentation import get_dispatcher

F = TypeVar("F", bound=Callable[..., Any])
Response: TypeAlias = ChatResponse | CompletionResponse

_dispatcher = get_dispatcher(__name__)


def _span(method: F) -> F:
    return cast(F, _dispatcher.span(method))


class StructuredPredictionLLM(FunctionCallingLLM):
    """The four structured methods for a model whose endpoints take `response_format`: those of chats, or those of
    completions if it does not chat.

    Any `pydantic_program_mode` but DEFAULT is LlamaIndex's own business.
    """

    @_span
    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """An `output_cls`; ValueError if what its schema cannot say (a validator of yours) refuses the answer."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            output: Model = super().structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return output
        _started(output_cls, prompt, prompt_args)
        endpoints = self._endpoints(prompt, prompt_args)
        return _ended(output_cls, endpoints.answer(**_with_schema(output_cls, llm_kwargs)))

    @_span
    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """`structured_predict` without blocking the event loop."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            output: Model = await super().astructured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return output
        _started(output_cls, prompt, prompt_args)
        endpoints = await self._aendpoints(prompt, prompt_args)
        return _ended(output_cls, await endpoints.aanswer(**_with_schema(output_cls, llm_kwargs)))

    @_span
    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Model | FlexibleModel, None, None]:
        """What is known so far, as objects with fields missing or None; the last one is an `output_cls`."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            yield from super().stream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)
            return
        _started(output_cls, prompt, prompt_args)
        objects = _Objects(output_cls)
        responses = self._endpoints(prompt, prompt_args).stream(**_with_schema(output_cls, llm_kwargs))
        try:
            for response in responses:
                yield objects.add(response)
        finally:
            responses.close()
        yield objects.end()

    @_span
    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Model | FlexibleModel, None]:
        """`stream_structured_predict` as an async generator, to be awaited first."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            return await super().astream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

        async def generate() -> AsyncGenerator[Model | FlexibleModel, None]:
            _started(output_cls, prompt, prompt_args)
            objects = _Objects(output_cls)
            endpoints = await self._aendpoints(prompt, prompt_args)
            responses = await endpoints.astream(**_with_schema(output_cls, llm_kwargs))
            try:
                async for response in responses:
                    yield objects.add(response)
            finally:
                await responses.aclose()
            yield objects.end()

        return generate()

    def _endpoints(self, prompt: BasePromptTemplate, prompt_args: dict[str, Any]) -> _Endpoints:
        """They answer the prompt, its messages or its text, with the system prompt that `predict` would give it."""
        if self.metadata.is_chat_model:
            messages = self._extend_messages(prompt.format_messages(llm=self, **prompt_args))
            chats = self.chat, self.achat, self.stream_chat, self.astream_chat
            return _Endpoints(*(partial(endpoint, messages) for endpoint in chats))
        formatters = {
            "messages_to_prompt": self.messages_to_prompt,
            "completion_to_prompt": self.completion_to_prompt,
        }
        text = self._extend_prompt(prompt.format(llm=self, **formatters, **prompt_args))
        completions = self.complete, self.acomplete, self.stream_complete, self.astream_complete
        return _Endpoints(*(partial(endpoint, text, formatted=True) for endpoint in completions))

    async def _aendpoints(self, prompt: BasePromptTemplate, prompt_args: dict[str, Any]) -> _Endpoints:
        await asyncio.to_thread(lambda: self.metadata)  # the first use loads the model
        return self._endpoints(prompt, prompt_args)


class _Endpoints(NamedTuple):
    """The endpoints of one kind, with what they are asked."""

    answer: Callable[..., Any]
    aanswer: Callable[..., Any]
    stream: Callable[..., Any]
    astream: Callable[..., Any]


class _Objects:
    """The objects of one stream."""

    def __init__(self, output_cls: type[BaseModel]) -> None:
        self._output_cls = output_cls
        self._objects: list[BaseModel] | None = None
        self._last: Response | None = None

    def add(self, response: Response) -> Any:
        known = process_streaming_objects(response, self._output_cls, self._objects)
        self._objects, self._last = [cast(BaseModel, known)], response
        _dispatcher.event(LLMStructuredPredictInProgressEvent(output=known))
        return known

    def end(self) -> Any:
        assert self._last is not None, "a stream ends with a response"
        return _ended(self._output_cls, self._last)


def _started(output_cls: type[BaseModel], prompt: BasePromptTemplate, prompt_args: dict[str, Any]) -> None:
    _dispatcher.event(LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args))


def _ended(output_cls: type[Model], response: Response) -> Model:
    """Raises ValueError for an answer that was cut off from outside, or that validators of the class refuse."""
    reason = response.raw["finish_reason"] if isinstance(response.raw, dict) else None
    if reason == "timeout":
        raise ValueError(
            f"the timeout passed before the {output_cls.__name__} was complete; raise it, or lower max_tokens"
        )
    if reason == "cancelled":
        raise ValueError(
            f"the request was cancelled before the {output_cls.__name__} was complete, or its engine was closed"
        )
    text = response.text if isinstance(response, CompletionResponse) else response.message.content
    output = output_cls.model_validate_json(text or "")
    _dispatcher.event(LLMStructuredPredictEndEvent(output=output))
    return output


def _with_schema(output_cls: type[BaseModel], llm_kwargs: dict[str, Any] | None) -> dict[str, Any]:
    """Arguments of an endpoint that answers with this class; those of LlamaIndex's tool programs have no meaning here."""
    kept = {key: value for key, value in (llm_kwargs or {}).items() if key not in _PROGRAM_KWARGS}
    schema = {"name": output_cls.__name__, "schema": output_cls.model_json_schema()}
    return {**kept, "response_format": {"type": "json_schema", "json_schema": schema}}


_PROGRAM_KWARGS = frozenset({"tool_required", "tool_choice", "allow_parallel_tool_calls"})
