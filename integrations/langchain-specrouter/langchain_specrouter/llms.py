"""`SpecRouterLLM`: text in, text out; no chat template, no tools."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeAlias

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun, Callbacks
from langchain_core.language_models import BaseLLM, LangSmithParams
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from pydantic import model_validator

from langchain_specrouter.answers import token_usage
from langchain_specrouter.batching import ConcurrentRuns
from langchain_specrouter.errors import SpecRouterInvalidRequestError, check_whole, core_errors
from langchain_specrouter.settings import PROVIDER, Call, SpecRouterSettings
from langchain_specrouter.statistics import Statistics
from specrouter_llm import Completion
from specrouter_llm.chat import usage

if TYPE_CHECKING:
    from specrouter_llm.text.tokenizer import Tokenizer

_AnyCallbacks: TypeAlias = "Callbacks | list[Callbacks]"
_NO_MATTER = frozenset({"tags", "metadata", "run_name", "run_id", "timeout", "on_step"})
"""Arguments of a call that its answer does not depend on."""
_GIVEN: ContextVar[Mapping[str, Any]] = ContextVar("arguments of the running call", default=MappingProxyType({}))


class SpecRouterLLM(ConcurrentRuns, SpecRouterSettings, BaseLLM):
    """Text completion with a local model; prompts that come together are one continuous batch.

    For instruction-tuned models use `ChatSpecRouter`, which writes the prompt as the model expects it.

    >>> llm = SpecRouterLLM(model="demo", max_tokens=12)
    >>> isinstance(llm.invoke("Once upon a time"), str)
    True
    >>> llm.close()
    """

    stats: Literal["off", "summary"] = "summary"
    """Whether each answer's generation_info tells about its decoding."""

    @model_validator(mode="after")
    def _set_specrouter_llm_version(self) -> Self:
        self._add_specrouter_metadata(self)
        return self

    @property
    def _llm_type(self) -> str:
        return "specrouter-llm"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = super()._get_ls_params(stop=stop, **kwargs)
        params["ls_provider"] = PROVIDER
        params["ls_model_name"] = str(kwargs.get("model") or self.model)
        return params

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**super()._identifying_params, **_GIVEN.get()}

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: _AnyCallbacks = None, **kwargs: Any
    ) -> LLMResult:
        with _told(kwargs):
            return super().generate(prompts, stop, callbacks, **kwargs)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: _AnyCallbacks = None, **kwargs: Any
    ) -> LLMResult:
        with _told(kwargs):
            return await super().agenerate(prompts, stop, callbacks, **kwargs)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if self._streams(prompts, kwargs):
            return _streamed(list(self._stream(prompts[0], stop, run_manager, **kwargs)))
        call = self._call(stop, kwargs)
        with core_errors():
            engine = self._engine_of(call.model, call.drafts)
            completions = engine.generate(prompts, call.params, **call.options)
            return self._result(completions, len(prompts), call, engine.tokenizer)

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if self._streams(prompts, kwargs):
            return _streamed([chunk async for chunk in self._astream(prompts[0], stop, run_manager, **kwargs)])
        call = self._call(stop, kwargs)
        with core_errors():
            engine = await asyncio.to_thread(self._engine_of, call.model, call.drafts)
            completions = await engine.agenerate(prompts, call.params, **call.options)
            return self._result(completions, len(prompts), call, engine.tokenizer)

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        call = self._stream_call(stop, kwargs)
        with core_errors():
            engine = self._engine_of(call.model, call.drafts)
            with engine.stream(prompt, call.params, **call.options) as handle:
                for delta in handle:
                    chunk = GenerationChunk(text=delta.text)
                    if run_manager is not None:  # unlike chat models, LLMs have to do this themselves
                        run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
                completion = handle.result()[0]
        yield GenerationChunk(text="", generation_info=self._info(completion, call, engine.tokenizer))

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        call = self._stream_call(stop, kwargs)
        with core_errors():
            engine = await asyncio.to_thread(self._engine_of, call.model, call.drafts)
            handle = await asyncio.to_thread(engine.astream, prompt, call.params, **call.options)  # encodes the prompt
            with handle:
                async for delta in handle:
                    chunk = GenerationChunk(text=delta.text)
                    if run_manager is not None:
                        await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                    yield chunk
                completion = (await handle.aresult())[0]
        yield GenerationChunk(text="", generation_info=self._info(completion, call, engine.tokenizer))

    def _streams(self, prompts: Sequence[str], kwargs: Mapping[str, Any]) -> bool:
        """Whether a call hands its tokens to handlers.

        Raises SpecRouterInvalidRequestError for several prompts: LangChain gives the handlers of the first alone.
        """
        streams = bool(kwargs.get("stream", self.streaming))
        if streams and len(prompts) > 1:
            raise SpecRouterInvalidRequestError("streaming=True streams one prompt: for several call batch()")
        return streams and len(prompts) == 1

    def _result(
        self, completions: Sequence[Completion], num_prompts: int, call: Call, tokenizer: Tokenizer | None
    ) -> LLMResult:
        """Raises the first request's error, SpecRouterTimeoutError or SpecRouterCancelledError."""
        generations: list[list[Generation]] = [[] for _ in range(num_prompts)]
        for completion in completions:
            completion.raise_for_error()
            info = self._info(completion, call, tokenizer)
            generations[completion.prompt_index].append(Generation(text=completion.text, generation_info=info))
        return LLMResult(
            generations=[list(answers) for answers in generations],  # typed as the wider lists that LLMResult may hold
            llm_output={"token_usage": token_usage(completions), "model_name": call.model},
        )

    def _info(self, completion: Completion, call: Call, tokenizer: Tokenizer | None) -> dict[str, Any]:
        """generation_info of one answer. Raises SpecRouterTimeoutError, SpecRouterCancelledError."""
        check_whole(completion.finish_reason, completion.text, call.options.get("timeout"))
        told, _ = Statistics(self.stats, ("response_metadata",)).report(completion, call.model, tokenizer)
        counts = usage(completion)
        names = ("input_tokens", "output_tokens", "total_tokens")
        return {**told, "usage_metadata": {name: counts[name] for name in names}}


def _streamed(chunks: Sequence[GenerationChunk]) -> LLMResult:
    """The result of a whole stream, whose last chunk tells about it."""
    info = chunks[-1].generation_info or {}
    counts = info["usage_metadata"]
    names = {"prompt_tokens": "input_tokens", "completion_tokens": "output_tokens", "total_tokens": "total_tokens"}
    answer = Generation(text="".join(chunk.text for chunk in chunks), generation_info=info)
    return LLMResult(
        generations=[[answer]],
        llm_output={
            "token_usage": {name: counts[ours] for name, ours in names.items()},
            "model_name": info["model_name"],
        },
    )


@contextmanager
def _told(kwargs: Mapping[str, Any]) -> Iterator[None]:
    """Within the block the arguments of the call identify a model too.

    BaseLLM, unlike BaseChatModel, leaves them out of the key of its cache: it would answer with what other arguments gave.
    """
    token = _GIVEN.set({name: value for name, value in kwargs.items() if name not in _NO_MATTER and value is not None})
    try:
        yield
    finally:
        _GIVEN.reset(token)
