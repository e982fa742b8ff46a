"""SpecRouterLLM: local models with lossless speculative decoding as a LlamaIndex LLM."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, cast

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr, model_validator
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection, default_completion_to_prompt

from llama_index.llms.specrouter.calls import AnswerHandle, Call, TextHandle
from llama_index.llms.specrouter.engines import EngineSource
from llama_index.llms.specrouter.messages import to_openai
from llama_index.llms.specrouter.requests import Arguments, named_choice, tool_specs
from llama_index.llms.specrouter.responses import (
    as_completion,
    malformed_calls,
    raw_dict,
    tool_selections,
)
from llama_index.llms.specrouter.steps import StepLog
from llama_index.llms.specrouter.structured import StructuredPredictionLLM
from specrouter_llm.chat import ChatRequest, ChatResult, counterparts, model_info
from specrouter_llm.chat import submit as submit_chat
from specrouter_llm.chat.grammar import answer_form
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.types import StepInfo

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

    from specrouter_llm import SpecRouter
    from specrouter_llm.text.tokenizer import Tokenizer

F = TypeVar("F", bound=Callable[..., Any])


def _chat_events(endpoint: F) -> F:
    return cast(F, llm_chat_callback()(endpoint))


def _completion_events(endpoint: F) -> F:
    return cast(F, llm_completion_callback()(endpoint))


def _same(response: ChatResponse) -> ChatResponse:
    return response


class SpecRouterLLM(StructuredPredictionLLM):
    """A local model that drafts with smaller ones and says what it would have said alone.

    Nothing is loaded when the object is made: the first call loads the models, and objects with equal `model`, `drafts`
    and engine options share them. Every endpoint is native, sync or async, and concurrent calls are one batch.

    Keyword arguments of a call override the fields for that call: any sampling parameter, any option of
    `SpecRouter.submit` (chain, windows, speculation, draft_sources, prediction, timeout, on_step), and tools, tool_choice,
    parallel_tool_calls, response_format, template_kwargs.

        llm = SpecRouterLLM(model="path/to/target", drafts=["path/to/small"])
        print(llm.complete("What is a routing problem?"))
    """

    model: str = Field(description="Name or folder of the target; 'demo' is the embedded family.")
    drafts: list[str] | None = Field(default=None, description="Smaller models with the same vocabulary, in any order.")
    context_window: int | None = Field(
        default=None, gt=0, description="Tokens of prompt and answer together; None is what the model has."
    )
    max_tokens: int = Field(default=256, gt=0, description="Tokens of an answer at most.")
    temperature: float | None = Field(
        default=None,
        description="0 always takes the most likely token. None leaves it, like other sampling that is None, to the model's "
        "generation config, else it is 0.",
    )
    top_p: float | None = Field(
        default=None, description="Sample from the likeliest tokens with this much probability."
    )
    top_k: int | None = Field(default=None, description="Sample from this many tokens.")
    min_p: float | None = Field(default=None, description="Drop tokens below this share of the likeliest one.")
    seed: int | None = Field(default=None, description="Makes sampling repeatable.")
    stop: list[str] | None = Field(default=None, description="Strings that end an answer; they are not part of it.")
    chain: list[str] | None = Field(default=None, description="Forces who drafts, lowest level first.")
    windows: list[int] | None = Field(default=None, description="Tokens that each level of `chain` offers.")
    speculation: bool | None = Field(default=None, description="False decodes without drafting.")
    policy: Literal["adaptive", "fixed", "off"] | None = Field(
        default=None, description="Who chooses where `chain` does not: adaptive (the default), fixed or off."
    )
    timeout: float | None = Field(default=None, description="Seconds after which an answer ends with what it has.")
    on_step: Callable[[StepInfo], None] | None = Field(
        default=None, exclude=True, description="Called in the engine's thread after each step of a request."
    )
    stats: Literal["off", "summary", "detailed"] = Field(
        default="summary", description="How much of the speculation is reported in `raw`."
    )
    template_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further variables of the chat template, such as enable_thinking."
    )
    additional_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Further defaults of calls, such as repetition_penalty or draft_sources."
    )
    engine_kwargs: dict[str, Any] = Field(
        default_factory=dict, description="Options of SpecRouter.from_pretrained, such as dtype or memory_budget."
    )

    _source: EngineSource = PrivateAttr()

    def __init__(self, model: str | None = None, *, engine: SpecRouter | None = None, **fields: Any) -> None:
        """`model` names what is to be loaded; or `engine` is one that you made, and close.

        Raises:
            ValueError: neither; a loading option beside `engine`; a field that there is not, or with an impossible value.
        """
        if unknown := sorted(fields.keys() - type(self).model_fields.keys()):
            raise InvalidParameterError(
                f"{type(self).__name__} has no field {', '.join(map(repr, unknown))}{counterparts(unknown)}; further sampling "
                "parameters go into additional_kwargs, options of SpecRouter.from_pretrained into engine_kwargs"
            )
        if engine is not None:
            model = _target_of(engine, model, fields)
        if model is None:
            raise InvalidParameterError("give model='path/or/name' (with drafts=[...]), or engine=SpecRouter...")
        super().__init__(**{"model": model, **fields})
        self._source = EngineSource(engine)

    @model_validator(mode="after")
    def _check_defaults(self) -> SpecRouterLLM:
        said = {name: getattr(self, name) for name in self.model_fields_set}
        _require_agreement(said, "additional_kwargs", self.additional_kwargs)
        loading = {ours: said[name] for name, ours in _LOADING.items() if name in said}
        _require_agreement(loading, "engine_kwargs", self.engine_kwargs)
        self._arguments({})
        return self

    def __copy__(self) -> Self:
        """A copy whose fields may be changed: it asks for an engine of its own."""
        copied = super().__copy__()
        copied._source = copy(self._source)
        return copied

    def __getstate__(self) -> dict[str, Any]:
        """The description alone: a pickled model loads its engine anew. Raises TypeError for one that was handed over."""
        if self._source.is_given:
            raise TypeError(
                "a model on an engine of your own (engine=) cannot be pickled: nothing tells its reader which weights that "
                "engine runs; give model= and drafts= instead"
            )
        return super().__getstate__()

    @classmethod
    def class_name(cls) -> str:
        return "SpecRouter_LLM"

    # ---------------------------------------------------------------- the model

    @property
    def engine(self) -> SpecRouter:
        """The engine that answers. The first use loads it, which takes a while."""
        options = {ours: getattr(self, name) for name, ours in _LOADING.items()}
        given = {key: value for key, value in options.items() if value is not None}
        return self._source.engine(self.model, self.drafts, **{**given, **self.engine_kwargs})

    def close(self) -> None:
        """Gives the memory back, for every object that shares this engine; the next call loads it again.

        An engine that was handed over stays open.
        """
        self._source.close()

    @property
    def metadata(self) -> LLMMetadata:
        """What the model can do, read from its configuration and chat template: the first use loads the engine."""
        engine = self.engine
        info = model_info(engine)
        return LLMMetadata(
            context_window=info.context_length,
            num_output=self.max_tokens,
            is_chat_model=_has_template(engine),
            is_function_calling_model=info.supports_tools,
            model_name=self.model,
        )

    def to_payload(self) -> dict[str, Any]:
        """What instrumentation events say about this model: its fields, and its chain once it is loaded."""
        payload: dict[str, Any] = {"class_name": self.class_name(), "model_name": self.model}
        payload |= self.model_dump(mode="json", include=_REPORTED, exclude_none=True)
        if (engine := self._source.latest) is not None:
            payload["chain_of_models"] = model_info(engine).chain
        return payload

    # ---------------------------------------------------------------- chat

    @_chat_events
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return self._chat_call(messages, kwargs).start().answer()

    @_chat_events
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return await (await self._chat_call(messages, kwargs).astart()).aanswer()

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        call = self._chat_call(messages, kwargs)

        @_chat_events
        def observed(llm: SpecRouterLLM, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
            return call.start().stream(_same)

        return call.guard(observed(self, messages, **kwargs))

    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        call = self._chat_call(messages, kwargs)

        @_chat_events
        async def observed(llm: SpecRouterLLM, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
            return (await call.astart()).astream(_same)

        return call.aguard(await observed(self, messages, **kwargs))

    # ---------------------------------------------------------------- completion

    @_completion_events
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`prompt` as the message of a user, in `query_wrapper_prompt` and behind `system_prompt` if there are any.

        It is text, and no message, if `completion_to_prompt` formats it (system prompt included) or the model has no chat
        template. It reaches the model as it is if it is `formatted`.
        """
        return as_completion(self._completion_call(prompt, formatted, kwargs).start().answer())

    @_completion_events
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return as_completion(await (await self._completion_call(prompt, formatted, kwargs).astart()).aanswer())

    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        call = self._completion_call(prompt, formatted, kwargs)

        @_completion_events
        def observed(llm: SpecRouterLLM, prompt: str, **kwargs: Any) -> CompletionResponseGen:
            return call.start().stream(as_completion)

        return call.guard(observed(self, prompt, **kwargs))

    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        call = self._completion_call(prompt, formatted, kwargs)

        @_completion_events
        async def observed(llm: SpecRouterLLM, prompt: str, **kwargs: Any) -> CompletionResponseAsyncGen:
            return (await call.astart()).astream(as_completion)

        return call.aguard(await observed(self, prompt, **kwargs))

    # ---------------------------------------------------------------- tools

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Arguments of `chat`. What is required here is enforced while the model writes."""
        messages = list(chat_history or [])
        if user_msg is not None:
            messages.append(ChatMessage(role="user", content=user_msg) if isinstance(user_msg, str) else user_msg)
        specs = tool_specs(tools)
        names = [spec["function"]["name"] for spec in specs]
        choice = named_choice(kwargs.pop("tool_choice", None), names, required=tool_required)
        if not specs:
            return {"messages": messages, **kwargs}
        chosen: dict[str, Any] = {"tools": specs, "parallel_tool_calls": allow_parallel_tool_calls}
        if choice is not None:
            chosen["tool_choice"] = choice
        return {"messages": messages, **chosen, **kwargs}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of a response, complete or as far as they are streamed.

        Raises:
            ValueError: with `error_on_no_tool_call`, there is no call or a malformed one.
        """
        malformed = malformed_calls(response.message)
        if malformed and error_on_no_tool_call:
            raise ValueError(f"the model's tool call is malformed: {'; '.join(malformed.values())}")
        selections = tool_selections(response.message)
        if not selections and error_on_no_tool_call:
            raise ValueError(
                f"the model called no tool but said: {response.message.content!r}; tool_required=True makes it call one"
            )
        return selections

    # ---------------------------------------------------------------- requests

    def _arguments(self, kwargs: dict[str, Any]) -> Arguments:
        defaults = {name: getattr(self, name) for name in _DEFAULTS} | self.additional_kwargs
        return Arguments.sort(defaults, kwargs)

    def _chat_call(self, messages: Sequence[ChatMessage], kwargs: dict[str, Any]) -> Call:
        return self._call(partial(self._submit_chat, to_openai(messages)), kwargs)

    def _completion_call(self, prompt: str, formatted: bool, kwargs: dict[str, Any]) -> Call:
        if not formatted and self.query_wrapper_prompt is not None:
            prompt = self.query_wrapper_prompt.format(query_str=prompt)
        if not formatted and self.completion_to_prompt not in (None, default_completion_to_prompt):
            prompt, formatted = self.completion_to_prompt(self._behind_system(prompt)), True
        return self._call(partial(self._submit_prompt, prompt, formatted), kwargs)

    def _behind_system(self, prompt: str) -> str:
        return f"{self.system_prompt}\n\n{prompt}" if self.system_prompt else prompt

    def _call(self, submit: Callable[[Arguments, SpecRouter], AnswerHandle], kwargs: dict[str, Any]) -> Call:
        arguments = self._arguments(kwargs)
        log = None
        if self.stats == "detailed":
            log = arguments.options["on_step"] = StepLog(arguments.options.get("on_step"))
        one_call = arguments.chat.get("parallel_tool_calls") is False

        def start() -> tuple[AnswerHandle, Tokenizer | None]:
            engine = self.engine
            return submit(arguments, engine), engine.tokenizer

        return Call(start, partial(self._raw, log=log), one_tool_call=one_call)

    def _submit_chat(
        self, messages: Sequence[Mapping[str, Any]], arguments: Arguments, engine: SpecRouter
    ) -> AnswerHandle:
        request = ChatRequest(messages=messages, params=arguments.params, options=arguments.options, **arguments.chat)
        return submit_chat(engine, request)

    def _submit_prompt(self, prompt: str, formatted: bool, arguments: Arguments, engine: SpecRouter) -> AnswerHandle:
        if not formatted and _has_template(engine):
            messages = self._extend_messages([ChatMessage(role="user", content=prompt)])
            return self._submit_chat(to_openai(messages), arguments, engine)
        if not formatted:
            prompt = self._behind_system(prompt)
        if in_chat_only := arguments.chat.keys() - {"template_kwargs", "response_format"}:
            raise InvalidParameterError(
                f"{', '.join(sorted(in_chat_only))}: not with a raw prompt; use a chat endpoint of a model with a chat template"
            )
        form = answer_form(arguments.chat.get("response_format"), arguments.params)
        params = arguments.params if form is None else arguments.params.replace(structured=form)
        return TextHandle(engine.submit(prompt, params, **arguments.options))

    def _raw(self, result: ChatResult, log: StepLog | None) -> dict[str, Any]:
        raw = raw_dict(result, self.model)
        if self.stats == "off":
            return {key: value for key, value in raw.items() if key not in ("speculative_decoding", "timings")}
        if log is not None:
            raw["speculative_decoding"]["steps"] = log.steps
        return raw


_DEFAULTS = (
    *("max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop"),
    *("chain", "windows", "speculation", "timeout", "on_step", "template_kwargs"),
)
_LOADING = {"policy": "policy", "context_window": "max_context"}
"""Fields that are options of the engine, and their names there."""
_REPORTED = {
    *("model", "drafts", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "stop"),
    *("chain", "windows", "speculation", "policy", "timeout", "stats"),
}


def _target_of(engine: Any, model: str | None, fields: Mapping[str, Any]) -> str:
    """The name of an engine's target. Raises InvalidParameterError for fields that contradict it."""
    if not hasattr(engine, "submit"):
        raise InvalidParameterError(f"engine must be a SpecRouter, got {type(engine).__name__}")
    loading = [name for name in ("context_window", "drafts", "engine_kwargs", "policy") if fields.get(name)]
    if loading:
        raise InvalidParameterError(f"engine= is loaded already; leave out {', '.join(loading)}")
    if model not in (None, engine.target):
        raise InvalidParameterError(
            f"model={model!r}, but the given engine serves {engine.target!r}: leave one of them out"
        )
    return str(engine.target)


def _require_agreement(fields: Mapping[str, Any], holder: str, held: Mapping[str, Any]) -> None:
    """Raises InvalidParameterError if a field was given and its value is another in a dict of further arguments."""
    for name in sorted(fields.keys() & held.keys()):
        if fields[name] is not None and fields[name] != held[name]:
            raise InvalidParameterError(
                f"{name} is {fields[name]!r} as a field and {held[name]!r} in {holder}: leave one of them out"
            )


def _has_template(engine: SpecRouter) -> bool:
    return engine.tokenizer is not None and bool(engine.tokenizer.chat_template)
