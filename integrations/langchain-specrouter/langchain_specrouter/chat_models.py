"""`ChatSpecRouter`: a chat model on the engine's chat layer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.output_parsers import BaseOutputParser
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from pydantic import Field, model_validator

from langchain_specrouter.answer_tool import AnswerTool
from langchain_specrouter.answers import FIRST_CALL_BLOCK, delta_chunks, generation, last_chunks
from langchain_specrouter.batching import ConcurrentChats
from langchain_specrouter.errors import SpecRouterInvalidRequestError, check_whole, core_errors
from langchain_specrouter.messages import to_chat
from langchain_specrouter.profile import assumed_profile, loaded_profile
from langchain_specrouter.settings import PROVIDER, Call, SpecRouterSettings
from langchain_specrouter.statistics import Statistics, StatsLevel, StatsSink
from langchain_specrouter.structured import (
    METHODS,
    Method,
    Schema,
    as_function,
    json_schema,
    response_format,
    text_parser,
    to_response_format,
    with_raw,
)
from langchain_specrouter.tools import AnyTool, ToolChoice, to_tool_choice, to_tools
from specrouter_llm import chat

if TYPE_CHECKING:
    from langchain_core.language_models import ModelProfile

    from specrouter_llm import SpecRouter
    from specrouter_llm.text.tokenizer import Tokenizer

_CHAT_ARGUMENTS = frozenset(
    {"tools", "tool_choice", "parallel_tool_calls", "response_format", "template_kwargs", "stats"}
)


class ChatSpecRouter(ConcurrentChats, SpecRouterSettings, BaseChatModel):
    """Chat models that run on this machine, with lossless multi-level speculative decoding.

    Setup:
        `pip install langchain-specrouter`; no key, no server.

    Key init args:
        model, drafts: the target and smaller models of the same family; or engine=, a `SpecRouter` of your own.
        temperature, max_tokens, top_p, top_k, min_p, seed, stop, ...: how the target chooses tokens.
        chain, windows, speculation, policy: how it is drafted for. They change the speed, never the answer.
        stats: how much each answer tells about its decoding: "off", "summary" or "detailed".

    Instantiate:
        >>> model = ChatSpecRouter(model="demo", max_tokens=40)

    Invoke, stream, async:
        >>> message = model.invoke([("user", "What is 3 plus 4?")])
        >>> text = "".join(chunk.text for chunk in model.stream("What is 3 plus 4?"))
        >>> text == message.text
        True

    Tool calling:
        `model.bind_tools([function], tool_choice="any")`: a forced call is a grammar, so it is always well-formed.

    Structured output:
        `model.with_structured_output(Schema)`: always valid, closed before `max_tokens`.

    Usage metadata:
        >>> sorted(message.usage_metadata)
        ['input_token_details', 'input_tokens', 'output_token_details', 'output_tokens', 'total_tokens']

    Response metadata:
        >>> sorted(message.response_metadata)
        ['finish_reason', 'model_name', 'model_provider', 'speculative_decoding', 'timings']
        >>> model.close()
    """

    stats: StatsLevel = "summary"
    """"detailed" lists every decoding step."""
    stats_sinks: frozenset[StatsSink] = frozenset({"response_metadata"})
    """Where statistics are put; "custom_event" needs a surrounding run."""
    template_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further variables of the chat template, such as enable_thinking."""

    @model_validator(mode="after")
    def _set_specrouter_chat_version(self) -> Self:
        self._add_specrouter_metadata(self)
        return self

    @property
    def _llm_type(self) -> str:
        return "specrouter-chat"

    def _described(self) -> dict[str, Any]:
        more = {"template_kwargs": self.template_kwargs} if self.template_kwargs else {}
        return {**super()._described(), **more}

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = PROVIDER
        params["ls_model_name"] = str(kwargs.get("model") or self.model)
        if not stop and self.stop:
            params["ls_stop"] = [self.stop] if isinstance(self.stop, str) else list(self.stop)
        return params

    def _resolve_model_profile(self) -> ModelProfile | None:
        if self.engine is not None:
            return loaded_profile(chat.model_info(self.engine).name, self.engine)
        return assumed_profile(self.model)

    def _on_loaded(self, engine: SpecRouter) -> None:
        if self.profile == assumed_profile(self.model):  # nobody has given another
            self.profile = loaded_profile(self.model, engine)

    # ---------------------------------------------------------------- answers

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(stop, kwargs, _CHAT_ARGUMENTS)
        stats = self._statistics(call)
        with core_errors():
            handle, tokenizer = self._submit(messages, call)
            with handle:
                results = handle.result()
        for result in results:
            stats.dispatch(result.completion, call.model)
        return _chat_result(results, call, stats, tokenizer)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        call = self._call(stop, kwargs, _CHAT_ARGUMENTS)
        stats = self._statistics(call)
        with core_errors():
            handle, tokenizer = await asyncio.to_thread(self._submit, messages, call)
            with handle:
                results = await handle.aresult()
        for result in results:
            await stats.adispatch(result.completion, call.model)
        return _chat_result(results, call, stats, tokenizer)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        call = self._stream_call(stop, kwargs, _CHAT_ARGUMENTS)
        stats = self._statistics(call)
        with core_errors():
            handle, tokenizer = self._submit(messages, call)
            with handle:  # leaving cancels
                for delta in handle:
                    for chunk in delta_chunks(delta, self._first_call):
                        if run_manager is not None:
                            run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk
                result = handle.result()[0]
        stats.dispatch(result.completion, call.model)
        for chunk in self._last_chunks(result, call, stats, tokenizer):
            if run_manager is not None:
                run_manager.on_llm_new_token("", chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        call = self._stream_call(stop, kwargs, _CHAT_ARGUMENTS)
        stats = self._statistics(call)
        with core_errors():
            handle, tokenizer = await asyncio.to_thread(self._submit, messages, call)
            with handle:
                async for delta in handle:
                    for chunk in delta_chunks(delta, self._first_call):
                        if run_manager is not None:
                            await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                        yield chunk
                result = (await handle.aresult())[0]
        await stats.adispatch(result.completion, call.model)
        for chunk in self._last_chunks(result, call, stats, tokenizer):
            if run_manager is not None:
                await run_manager.on_llm_new_token("", chunk=chunk)
            yield chunk

    @property
    def _first_call(self) -> int:
        """Index of an answer's first call in its chunks."""
        return FIRST_CALL_BLOCK if self.output_version == "v1" else 0

    def _last_chunks(
        self, result: chat.ChatResult, call: Call, stats: Statistics, tokenizer: Tokenizer | None
    ) -> list[ChatGenerationChunk]:
        """Raises SpecRouterTimeoutError, SpecRouterCancelledError."""
        return last_chunks(result, *_reported(result, call, stats, tokenizer), self._first_call)

    # ---------------------------------------------------------------- one call

    def _statistics(self, call: Call) -> Statistics:
        return Statistics.of(call.other.get("stats", self.stats), self.stats_sinks, call.options)

    def _submit(self, messages: Sequence[BaseMessage], call: Call) -> tuple[chat.ChatHandle, Tokenizer | None]:
        """Queues one chat; (its handle, its engine's tokenizer).

        May load the model and compile a grammar, so async callers run it in a thread.
        """
        with core_errors():
            request = self._request(messages, call)
            engine = self._engine_of(call.model, call.drafts)
            return chat.submit(engine, request), engine.tokenizer

    def _request(self, messages: Sequence[BaseMessage], call: Call) -> chat.ChatRequest:
        tools = to_tools(call.other.get("tools", ()))
        return chat.ChatRequest(
            messages=to_chat(messages),
            tools=tools,
            tool_choice=to_tool_choice(call.other.get("tool_choice"), tools),
            parallel_tool_calls=call.other.get("parallel_tool_calls", True),
            response_format=call.other.get("response_format"),
            params=call.params,
            options=call.options,
            template_kwargs={**self.template_kwargs, **call.other.get("template_kwargs", {})},
        )

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[AnyTool] | None = None) -> int:
        """Length of the prompt that the messages become, tools and template included; 0 for no messages.

        Loads the model if need be.
        """
        if not messages:
            return 0
        request = self._request(messages, self._call(None, {"tools": tools}, _CHAT_ARGUMENTS))
        with core_errors():
            return chat.count_tokens(self._engine_of(self.model, self.drafts), request)

    # ---------------------------------------------------------------- tools and structured output

    def bind_tools(
        self,
        tools: Sequence[AnyTool],
        *,
        tool_choice: ToolChoice = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """This model with tools.

        Args:
            tools: functions, LangChain tools, pydantic classes, TypedDicts, or schemas as dicts.
            tool_choice: "auto", "none", "any" (or "required", True), the name of a tool, or OpenAI's dict.
                A forced call follows the tool's schema.
            strict: as in OpenAI's schemas: all arguments required, no others allowed.
            kwargs: bound too, such as parallel_tool_calls=False or response_format=..., which may be a schema in any form.

        Raises:
            SpecRouterInvalidRequestError: a choice that is not among the tools, a response_format that is no schema.
        """
        if "response_format" in kwargs:
            kwargs["response_format"] = to_response_format(kwargs["response_format"])
        converted = to_tools(tools, strict=strict)
        choice = to_tool_choice(tool_choice, converted)
        return self.bind(tools=converted, **({} if choice is None else {"tool_choice": choice}), **kwargs)

    def with_structured_output(
        self,
        schema: Schema | None = None,
        *,
        method: Method = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """This model with answers that follow a schema: always valid JSON, complete before `max_tokens`.

        Args:
            schema: a pydantic class (v1 or v2; answers are its instances), a TypedDict or a JSON schema (answers are
                dicts). None, with method "json_mode": any JSON object.
            method: "json_schema": the answer is the JSON. "function_calling": the answer is a call of one tool made
                from the schema. "json_mode": as "json_schema"; here JSON mode holds a given schema as well.
            include_raw: whether to return {"raw", "parsed", "parsing_error"} instead of raising parsing errors.
            strict: as in `bind_tools`; the other methods are always strict.
            kwargs: bound to the model too.

        Raises:
            SpecRouterInvalidRequestError: an unknown method, no schema where one is needed.
        """
        if method not in METHODS:
            raise SpecRouterInvalidRequestError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
        if schema is None and method != "json_mode":
            raise SpecRouterInvalidRequestError(f"method {method!r} needs a schema")
        if schema is not None:
            traced = as_function(json_schema(schema)) if isinstance(schema, dict) else schema
            kwargs["ls_structured_output_format"] = {"kwargs": {"method": method}, "schema": traced}
        if method == "function_calling" and schema is not None:
            tool = AnswerTool.of(schema)
            kwargs["parallel_tool_calls"] = False
            model = self.bind_tools([tool.definition], tool_choice=tool.name, strict=strict, **kwargs)
            parser: BaseOutputParser[Any] = tool.parser
        else:
            model = self.bind(response_format=response_format(schema), **kwargs)
            parser = text_parser(schema)
        return with_raw(model, parser) if include_raw else model | parser


def _chat_result(
    results: Sequence[chat.ChatResult], call: Call, stats: Statistics, tokenizer: Tokenizer | None
) -> ChatResult:
    """Raises SpecRouterTimeoutError, SpecRouterCancelledError."""
    return ChatResult(
        generations=[generation(result, *_reported(result, call, stats, tokenizer)) for result in results]
    )


def _reported(
    result: chat.ChatResult, call: Call, stats: Statistics, tokenizer: Tokenizer | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(response_metadata, additional_kwargs) of an answer that is whole."""
    check_whole(result.finish_reason, result.content, call.options.get("timeout"))
    return stats.report(result.completion, call.model, tokenizer, result.finish_reason)
