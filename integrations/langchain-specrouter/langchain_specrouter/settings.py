"""What the chat model and the LLM share: fields, the lazily made engine, and the arguments of one call."""

from __future__ import annotations

import uuid
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Self
from weakref import WeakKeyDictionary

from langchain_core.language_models.base import BaseLanguageModel
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SkipValidation, model_validator

from langchain_specrouter._version import __version__
from langchain_specrouter.errors import SpecRouterInvalidRequestError, core_errors
from specrouter_llm import SamplingParams, StepInfo
from specrouter_llm.chat import close_shared, counterparts, model_info, shared_engine

if TYPE_CHECKING:
    from specrouter_llm import SpecRouter

PROVIDER = "specrouter"

_SAMPLING = frozenset(SamplingParams.model_fields) - {"structured"}
_ROUTING = ("chain", "windows", "speculation", "timeout", "on_step")
_PER_CALL = frozenset({*_ROUTING, "draft_sources", "prediction"})
_IGNORED = frozenset({"stream", "strict"})  # `stream` is for LangChain itself, `strict` has done its work in bind_tools

_ENGINE_IDS: WeakKeyDictionary[SpecRouter, str] = WeakKeyDictionary()
"""Of engines that were handed over. Nothing that they tell says which weights they run: not their name, which is the last
part of a folder's, nor dtype or context. So each is its own; unlike `id()` no other engine, of no process, gets the same."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call's arguments, sorted by who takes them."""

    model: str
    drafts: Sequence[str] | None
    params: SamplingParams
    options: dict[str, Any]
    """Of `SpecRouter.submit`."""
    other: dict[str, Any]
    """What is neither: tools and so on."""


class SpecRouterSettings(BaseModel):
    """Fields of every SpecRouter model. None leaves a value to the engine."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    model: str = ""
    """The target: a name, a local folder, or "demo", the embedded family. Not needed with `engine`."""
    drafts: list[str] | None = None
    """Smaller models with the target's vocabulary, in any order."""
    engine: SkipValidation[Any] = Field(default=None, exclude=True, repr=False)
    """An engine (`SpecRouter`) of your own. Without it one is made at the first call, shared by all models of the process
    with the same target, drafts and options. Answers in LangChain's cache are this engine's: no other one finds them."""
    policy: Literal["adaptive", "fixed", "off"] | None = None
    """Who chooses chains where `chain` does not: see `SpecRouter.from_pretrained`."""
    engine_kwargs: dict[str, Any] = Field(default_factory=dict)
    """Further options of `SpecRouter.from_pretrained`: dtype, device, device_map, max_batch, max_context, ..."""

    temperature: float | None = None
    """0 is greedy. None leaves it, like other sampling that is None, to the model's generation config, else it is 0."""
    max_tokens: int | None = None
    """256 by default."""
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: list[str] | str | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    bad_words: list[str] | None = None
    min_tokens: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    n: int | None = None
    """Answers per prompt; only `generate` returns more than the first."""
    logprobs: bool | None = None
    top_logprobs: int | None = None

    chain: list[str] | None = None
    """Forces a chain, lowest level first."""
    windows: list[int] | None = None
    speculation: bool | None = None
    """False decodes plainly."""
    timeout: float | None = None
    """Seconds for one answer; then the call raises SpecRouterTimeoutError."""
    on_step: Callable[[StepInfo], None] | None = Field(default=None, exclude=True, repr=False)
    """Called in the engine's thread after each decoding step of each request."""

    max_retries: int | None = Field(default=None, exclude=True)
    """Accepted for compatibility: there is no network between you and the model."""
    api_key: Any = Field(default=None, exclude=True, repr=False)
    """Accepted for compatibility."""
    streaming: bool | None = None
    """True hands the tokens of every call to `on_llm_new_token` of its handlers, as a stream's are; `stream=False` in a call
    does not."""

    _engines: list[SpecRouter] = PrivateAttr(default_factory=list)
    """Those that calls of this model have used, one of the user's own aside."""

    @model_validator(mode="before")
    @classmethod
    def _warn_of_unknown(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and (unknown := [str(name) for name in values if name not in cls.model_fields]):
            unknown.sort()
            warnings.warn(
                f"{cls.__name__} has no field {', '.join(unknown)}: ignored{counterparts(unknown)}", stacklevel=2
            )
        return values

    @model_validator(mode="after")
    def _check_specrouter(self) -> Self:
        """Raises InvalidParameterError (seen as a ValidationError) before anything is loaded."""
        if self.engine is not None:
            if not hasattr(self.engine, "submit"):
                raise ValueError(f"engine must be a SpecRouter, got {type(self.engine).__name__}")
            name = model_info(self.engine).name
            if self.model not in ("", name):
                raise ValueError(f"model={self.model!r}, but the given engine serves {name!r}: leave one of them out")
            if self.drafts is not None or self.policy is not None or self.engine_kwargs:
                raise ValueError("drafts, policy and engine_kwargs make an engine; one was given: leave them out")
            self.model = name
        elif not self.model:
            raise ValueError("give model=, the name or folder of the target, or engine=")
        self._params(None, {})
        return self

    # ---------------------------------------------------------------- the engine

    def load(self) -> Self:
        """Loads the model now rather than at the first call. Raises ModelLoadError."""
        self._engine_of(self.model, self.drafts)
        return self

    def close(self) -> None:
        """Ends the engines that this model has made, for all that share them, and gives their memory back.

        A later call loads the model again. An engine that was handed over is its owner's to close.
        """
        while self._engines:
            close_shared(self._engines.pop())

    def _engine_of(self, model: str, drafts: Sequence[str] | None) -> SpecRouter:
        """The engine that serves `model`; loads it if need be, which blocks."""
        if self.engine is not None and model == self.model:
            if drafts is not None:
                raise SpecRouterInvalidRequestError("drafts make an engine; one was given: leave them out")
            return self.engine  # type: ignore[no-any-return]  # a field of any type
        options = {**self.engine_kwargs, **({} if self.policy is None else {"policy": self.policy})}
        with core_errors():
            engine = shared_engine(model, drafts, **options)
        if engine not in self._engines:
            self._engines = [*(used for used in self._engines if not used.closed), engine]
            if model == self.model:
                self._on_loaded(engine)
        return engine

    def _on_loaded(self, engine: SpecRouter) -> None:
        """Called when the engine of `self.model` has been found."""

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy that shares the engines."""
        kept = {id(engine): engine for engine in (self.engine, *self._engines) if engine is not None}
        return super().__deepcopy__({**(memo or {}), **kept})

    def __getstate__(self) -> dict[Any, Any]:
        """The description alone: a pickled model loads its engine anew. Raises TypeError for one that was handed over."""
        if self.engine is not None:
            raise TypeError(
                "a model on an engine of your own (engine=) cannot be pickled: nothing tells its reader which weights that "
                "engine runs; give model= and drafts= instead"
            )
        state = super().__getstate__()
        return {**state, "__pydantic_private__": {**(state["__pydantic_private__"] or {}), "_engines": []}}

    # ---------------------------------------------------------------- one call

    def _call(self, stop: Sequence[str] | None, kwargs: Mapping[str, Any], other: frozenset[str] = frozenset()) -> Call:
        """Sorts the arguments of one call; `other` are names that the caller handles itself.

        Raises SpecRouterInvalidRequestError for an unknown name or an impossible value.
        """
        known = _SAMPLING | _PER_CALL | other | _IGNORED | {"model", "drafts"}
        if unknown := sorted(kwargs.keys() - known):
            raise SpecRouterInvalidRequestError(
                f"unknown parameter {', '.join(map(repr, unknown))}{counterparts(unknown)}; "
                f"known: {', '.join(sorted(known - _IGNORED))}"
            )
        given = {name: value for name, value in kwargs.items() if value is not None}
        model = given.get("model", self.model)
        own = model == self.model
        fields = {name: getattr(self, name) for name in _ROUTING if own or name not in ("chain", "windows")}
        with core_errors():
            params = self._params(stop, given)
        return Call(
            model=model,
            drafts=given.get("drafts", self.drafts if own else None),
            params=params,
            options={
                **{name: value for name, value in fields.items() if value is not None},
                **{name: value for name, value in given.items() if name in _PER_CALL},
            },
            other={name: value for name, value in given.items() if name in other},
        )

    def _stream_call(
        self, stop: Sequence[str] | None, kwargs: Mapping[str, Any], other: frozenset[str] = frozenset()
    ) -> Call:
        """`_call` of a stream, which has one answer. Raises SpecRouterInvalidRequestError."""
        call = self._call(stop, kwargs, other)
        if call.params.n > 1:
            raise SpecRouterInvalidRequestError(
                "a stream has one answer, and streaming=True makes every call one: for n > 1 call generate() without it"
            )
        return call

    def _params(self, stop: Sequence[str] | None, given: Mapping[str, Any]) -> SamplingParams:
        values = {name: value for name in _SAMPLING if (value := getattr(self, name)) is not None}
        values |= {name: value for name, value in given.items() if name in _SAMPLING}
        if stop is not None:
            values["stop"] = stop
        return SamplingParams(**values)

    # ---------------------------------------------------------------- what LangChain asks for

    def get_token_ids(self, text: str) -> list[int]:
        """Ids of a text in the target's vocabulary, nothing added. Loads the model if need be."""
        tokenizer = self._engine_of(self.model, self.drafts).tokenizer
        if tokenizer is None:
            raise SpecRouterInvalidRequestError("this engine has no tokenizer")
        with core_errors():
            return tokenizer.encode_document(text)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        """All that an answer depends on, and the chain: what traces show, and the key of LangChain's cache.

        It is there twice: LangChain writes the arguments of a call over the names, also a None that leaves ours in force,
        but never over `defaults`.
        """
        described = self._described()
        return {**described, "defaults": described}

    def _described(self) -> dict[str, Any]:
        """The fields that an answer depends on, as far as they are set, and the chain."""
        names = ("model", "drafts", "policy", "engine_kwargs", *sorted(_SAMPLING), *_ROUTING)
        params = {name: getattr(self, name) for name in names if name not in ("on_step", "timeout")}
        if self.engine is not None:
            params["engine"] = _ENGINE_IDS.setdefault(self.engine, uuid.uuid4().hex)
        return {name: value for name, value in params.items() if value not in (None, {})}

    def _add_specrouter_metadata(self, model: BaseLanguageModel[Any]) -> None:
        """What a trace should know about every run of this model."""
        model._add_version("langchain-specrouter", __version__)
        if self.chain is not None:
            model.metadata = {**(model.metadata or {}), "specrouter_chain": list(self.chain)}
