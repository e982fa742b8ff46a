"""The intake: from what a caller hands over to a checked, encoded request. Nothing runs before all of it is right."""

from __future__ import annotations

import math
import operator
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, cast

from specrouter_llm.engine.request import Request
from specrouter_llm.errors import ContextOverflowError, InvalidParameterError, InvalidPromptError
from specrouter_llm.router import ChainRouter
from specrouter_llm.sampling.params import MAX_SEED, SamplingParams
from specrouter_llm.structured.grammar import Grammar, GrammarCompiler
from specrouter_llm.text.tokenizer import Tokenizer
from specrouter_llm.types import ChatMessage, Prompt, StepInfo


@dataclass(frozen=True, slots=True)
class RequestOptions:
    """What a call may say about a request beside how its tokens are chosen. See `SpecRouter.submit`."""

    chain: Sequence[str] | None = None
    windows: Sequence[int] | None = None
    speculation: bool | None = None
    draft_sources: Sequence[str | Sequence[int]] = ()
    prediction: str | Sequence[int] | None = None
    timeout: float | None = None
    on_step: Callable[[StepInfo], None] | None = None
    tools: Sequence[Any] | None = None
    template_kwargs: Mapping[str, Any] | None = None
    keep_special_tokens: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("chain", "windows", "draft_sources", "keep_special_tokens"):
            value = getattr(self, name)
            absent = value is None and name in ("chain", "windows")
            if not absent and (isinstance(value, str) or not isinstance(value, Sequence)):
                raise InvalidParameterError(f"{name} must be a list, got {value!r}")
        if self.speculation is not None and not isinstance(self.speculation, bool):
            raise InvalidParameterError(f"speculation must be True, False or None, got {self.speculation!r}")
        if self.on_step is not None and not callable(self.on_step):
            raise InvalidParameterError(f"on_step must be a function, got {self.on_step!r}")
        if self.timeout is not None and not (_is_number(self.timeout) and self.timeout > 0):
            raise InvalidParameterError(f"timeout must be a positive number of seconds, got {self.timeout!r}")


_OPTION_NAMES = frozenset(field.name for field in fields(RequestOptions))


class Intake:
    """Encodes prompts and checks everything about a request against one engine."""

    def __init__(
        self,
        router: ChainRouter,
        tokenizer: Tokenizer | None,
        *,
        vocab_size: int,
        eos_ids: frozenset[int],
        max_context: int,
        default_params: SamplingParams,
    ) -> None:
        """`default_params` say what a request is given that does not say it."""
        self._router = router
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = eos_ids
        self._max_context = max_context
        self._default_params = default_params
        self._grammars = GrammarCompiler(
            tokenizer.to_json if tokenizer is not None else lambda: None, vocab_size, eos_ids
        )
        self._encoding = threading.Lock()  # fast tokenizers do not like to be configured by two threads at once

    def requests(
        self, prompts: Prompt | Sequence[Prompt], params: SamplingParams | None, given: Mapping[str, Any]
    ) -> list[Request]:
        """All requests of one call; `given` mixes request options and sampling parameters by name.

        Raises:
            InvalidParameterError: anything about any of them is wrong.
        """
        options = RequestOptions(**{name: value for name, value in given.items() if name in _OPTION_NAMES})
        sampling = with_changes(params, {name: value for name, value in given.items() if name not in _OPTION_NAMES})
        return [self.request(prompt, sampling, options, index) for index, prompt in enumerate(as_batch(prompts))]

    def request(self, prompt: Prompt, params: SamplingParams, options: RequestOptions, index: int = 0) -> Request:
        """One request. Raises InvalidParameterError, InvalidPromptError or ContextOverflowError."""
        params = params.over(self._default_params)
        if (params.stop or any(isinstance(word, str) for word in params.bad_words)) and self._tokenizer is None:
            raise InvalidParameterError("stop strings and bad words need a tokenizer, and this engine has none")
        self._check_token_ids(params)
        plan = self._router.resolve(options.chain, options.windows, options.speculation)
        sources = [*options.draft_sources, *([options.prediction] if options.prediction is not None else [])]
        eos_ids = frozenset() if params.ignore_eos else self._eos_ids
        prompt_ids = self.encode(prompt, options.tools, options.template_kwargs)
        return Request(
            prompt_index=index,
            prompt_ids=prompt_ids,
            params=params,
            seed=params.seed if params.seed is not None else secrets.randbelow(MAX_SEED),
            plan=plan,
            draft_sources=[self._encode_source(source) for source in sources],
            bad_words=self._bad_words(params),
            end_ids=eos_ids | frozenset(params.stop_token_ids),
            eos_ids=eos_ids,
            max_length=self._max_context,
            timeout=options.timeout,
            on_step=options.on_step,
            grammar=self._grammar(params, self._max_context - len(prompt_ids)),
            keep_special_tokens=tuple(options.keep_special_tokens),
        )

    def encode(
        self,
        prompt: Prompt,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Token ids of a prompt: text as it is, a chat through the template once. Raises InvalidPromptError."""
        if isinstance(prompt, str):
            ids = self._require_tokenizer("text prompts").encode(prompt) if prompt else []
        elif _is_chat(prompt):
            with self._encoding:
                ids = self._require_tokenizer("chats").encode_chat(
                    cast("list[ChatMessage]", prompt), tools=tools, template_kwargs=template_kwargs
                )
        elif _are_ids(prompt):
            ids = list(cast("Sequence[int]", prompt))
        else:
            raise InvalidPromptError(
                f"a prompt is text, a list of token ids or a list of chat messages, got {type(prompt).__name__}"
            )
        self._check_ids(ids)
        return ids

    def context(self, token_ids: Iterable[int]) -> list[int]:
        """Ids of a text that nothing is to follow: as many as the context holds.

        Raises:
            InvalidPromptError, ContextOverflowError: none, too many, unknown ones, or no whole numbers.
        """
        try:
            ids = [operator.index(token_id) for token_id in token_ids]
        except TypeError:
            raise InvalidPromptError(f"token ids are whole numbers, got {token_ids!r}") from None
        self._check_known(ids)
        if len(ids) > self._max_context:
            raise ContextOverflowError(
                f"{len(ids)} tokens were given, and this engine's context is {self._max_context} tokens"
            )
        return ids

    def _check_ids(self, ids: Sequence[int]) -> None:
        self._check_known(ids)
        if len(ids) >= self._max_context:
            raise ContextOverflowError(
                f"the prompt has {len(ids)} tokens and this engine's context is {self._max_context} tokens, prompt and "
                "answer together; shorten the prompt, or raise max_context if the model and the memory budget allow"
            )

    def _check_known(self, ids: Sequence[int]) -> None:
        if not ids:
            raise InvalidPromptError("the prompt is empty; give at least one token")
        wrong = next((i for i in ids if not 0 <= i < self._vocab_size), None)
        if wrong is not None:
            raise InvalidPromptError(f"token id {wrong} is outside the target's vocabulary of {self._vocab_size}")

    def _check_token_ids(self, params: SamplingParams) -> None:
        words = [token_id for word in params.bad_words if not isinstance(word, str) for token_id in word]
        given = {"stop_token_ids": params.stop_token_ids, "logit_bias": params.logit_bias, "bad_words": words}
        for name, ids in given.items():
            unknown = next((i for i in ids if i >= self._vocab_size), None)
            if unknown is not None:
                raise InvalidParameterError(
                    f"{name}: {unknown} is outside the target's vocabulary of {self._vocab_size}"
                )

    def _encode_source(self, source: str | Sequence[int]) -> Sequence[int]:
        if not isinstance(source, str):
            if not _are_ids(source):
                raise InvalidParameterError(f"a draft source is text or a list of token ids, got {source!r}")
            return source
        return self._require_tokenizer("text sources").encode_document(source)

    def _grammar(self, params: SamplingParams, room: int) -> Grammar | None:
        """The compiled grammar of the output, of which `room` tokens fit the context."""
        if params.structured is None:
            return None
        grammar = self._grammars.compile(params.structured)
        grammar.check_budget(min(params.max_tokens, room))
        return grammar

    def _bad_words(self, params: SamplingParams) -> Sequence[Sequence[int]]:
        if not params.bad_words:
            return ()
        if self._tokenizer is None:
            return [word for word in params.bad_words if not isinstance(word, str)]
        return self._tokenizer.words_to_ids(params.bad_words)

    def _require_tokenizer(self, what: str) -> Tokenizer:
        if self._tokenizer is None:
            raise InvalidPromptError(f"{what} need a tokenizer, and the target came without one; give token ids")
        return self._tokenizer


def with_changes(params: SamplingParams | None, changes: Mapping[str, Any]) -> SamplingParams:
    """`params`, or none, with some values changed. Raises InvalidParameterError."""
    if params is None:
        return SamplingParams(**changes)
    if not isinstance(params, SamplingParams):
        raise InvalidParameterError(f"params must be SamplingParams, got {type(params).__name__}")
    return params.replace(**changes) if changes else params


def as_batch(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    """One prompt, or many, as a list of prompts. Raises InvalidPromptError."""
    if isinstance(prompts, str) or _is_chat(prompts):
        return [cast("Prompt", prompts)]
    if not isinstance(prompts, Sequence):
        raise InvalidPromptError(
            f"prompts are text, token ids, chat messages, or a list of them; got {type(prompts).__name__}"
        )
    if not prompts:
        raise InvalidPromptError("there is no prompt: the list is empty")
    if all(isinstance(item, int) for item in prompts):
        return [cast("Prompt", prompts)]
    return [cast("Prompt", prompt) for prompt in prompts]


def _are_ids(value: object) -> bool:
    """Whether a value is a sequence of ints; bytes are one by accident and no token ids."""
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes, bytearray)):
        return False
    return all(isinstance(i, int) and not isinstance(i, bool) for i in value)


def _is_number(value: object) -> bool:
    """Whether a value is a number that clocks can be compared with."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(float(value))
    except OverflowError:
        return False


def _is_chat(prompt: object) -> bool:
    return isinstance(prompt, Sequence) and bool(prompt) and all(isinstance(m, Mapping) for m in prompt)
