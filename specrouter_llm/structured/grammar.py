"""Compiled grammars, and the cache of an engine that holds them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass

from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.structured.backend import LlguidanceBackend
from specrouter_llm.structured.closing import Closer
from specrouter_llm.structured.matcher import Matcher, MatcherError, Vocabulary
from specrouter_llm.structured.opening import Opening

_CACHED_GRAMMARS = 64
_LONGEST_CLOSING = 4096
"""Tokens up to which a first valid output is looked for."""


@dataclass(frozen=True, slots=True)
class Entry:
    """How a grammar begins when the token that ended the free text holds some of it already."""

    token_ids: tuple[int, ...]
    """What the matcher consumes for that."""
    closing: tuple[int, ...]
    """Tokens that satisfy the grammar from there."""


class Grammar:
    """A compiled `StructuredOutput`; rows take copies of its matcher. May be shared by threads."""

    def __init__(
        self,
        start: Matcher,
        vocabulary: Vocabulary,
        closer: Closer,
        spec: StructuredOutput,
        opening: Opening | None,
    ) -> None:
        """`start` does not know of the free text, which ends with `opening`. Raises MatcherError."""
        self.start = start
        self.opening = opening
        self.optional = spec.optional
        self.texts = vocabulary.texts
        """The bytes of every token."""
        self.eos_ids = vocabulary.eos_ids
        self._encode = vocabulary.encode_bytes
        self._closer = closer
        self._entries: dict[bytes, Entry | None] = {}
        self._body, complete = closer.shortest(start.copy(), _LONGEST_CLOSING)
        self.shortest = self._body if opening is None else () if spec.optional else self.closing_of_free_text(0)
        """A short output that satisfies the grammar; None if none was found."""
        # The search does not try the tokens that a Lark grammar may name.
        self.is_shortest = complete and opening is None and spec.lark is None
        """Whether there is no shorter one."""

    def entry(self, rest: bytes) -> Entry | None:
        """The grammar's beginning after `rest`, the bytes of a token behind the free text; None if they may not follow."""
        if rest not in self._entries:
            self._entries[rest] = self._enter(rest)
        return self._entries[rest]

    def closing(self, matcher: Matcher, limit: int) -> tuple[int, ...] | None:
        """At most `limit` tokens that satisfy the grammar from here; None if none were found. Leaves the matcher as it was.

        Raises:
            MatcherError
        """
        return self._closer.path(matcher, limit)

    def closing_of_free_text(self, matched: int) -> tuple[int, ...] | None:
        """Tokens that end free text, of which `matched` bytes are part of its last string, and satisfy the grammar."""
        ending = self.opening.endings[matched] if self.opening is not None else None
        return None if ending is None or self._body is None else (*ending, *self._body)

    def _enter(self, rest: bytes) -> Entry | None:
        if not rest:
            return None if self._body is None else Entry((), self._body)
        matcher, token_ids = self.start.copy(), self._encode(rest)
        try:
            if token_ids is None or not all(self.texts[i] and matcher.advance(i) for i in token_ids):
                return None
            closing = () if matcher.accepts else self._closer.path(matcher, _LONGEST_CLOSING)
        except MatcherError:
            return None
        return None if closing is None else Entry(tuple(token_ids), closing)

    def check_budget(self, max_output: int) -> None:
        """Raises InvalidParameterError if no valid output of at most this many tokens is known."""
        if self._body is None or self.shortest is None:
            raise InvalidParameterError(
                f"structured: no output of at most {_LONGEST_CLOSING} tokens that satisfies the grammar was found: it is too "
                "long, or holds characters that no ordinary token of this model writes"
            )
        if len(self.shortest) > max_output:
            raise InvalidParameterError(
                f"structured: {max_output} tokens are left for the output (max_tokens, or the context), and satisfying the "
                f"grammar needs {'at least' if self.is_shortest else 'about'} {len(self.shortest)}; raise max_tokens"
            )


class GrammarCompiler:
    """Compiles descriptions for one engine and keeps the latest. May be used by several threads."""

    def __init__(self, tokenizer_json: Callable[[], str | None], vocab_size: int, eos_ids: Collection[int]) -> None:
        """`tokenizer_json` gives the tokenizer in the format of the `tokenizers` library, if it can be written so;
        `vocab_size` is the width of the target's logits. Nothing is built before the first use.
        """
        self._tokenizer_json = tokenizer_json
        self._vocab_size = vocab_size
        self._eos_ids = frozenset(eos_ids)
        self._lock = threading.Lock()
        self._grammars: OrderedDict[str, Grammar] = OrderedDict()
        self._tools: tuple[LlguidanceBackend, Closer] | None = None

    def compile(self, spec: StructuredOutput) -> Grammar:
        """The grammar of a description.

        Raises:
            InvalidParameterError: it cannot be compiled, or this engine's tokenizer cannot be used for it.
            MissingDependencyError: llguidance is not installed.
        """
        with self._lock:
            grammar = self._grammars.pop(spec.key, None)
            if grammar is None:
                grammar = self._compile(spec)
            self._grammars[spec.key] = grammar
            if len(self._grammars) > _CACHED_GRAMMARS:
                self._grammars.popitem(last=False)
            return grammar

    def _compile(self, spec: StructuredOutput) -> Grammar:
        if self._tools is None:
            backend = self._backend()
            self._tools = backend, Closer(backend.texts)
        backend, closer = self._tools
        start, opening = backend.compile(spec), None
        if spec.after is not None:
            opening = Opening(spec.after, backend.texts, backend.special_names(spec.after), backend.encode_bytes)
        try:
            return Grammar(start, backend, closer, spec, opening)
        except MatcherError as error:
            raise InvalidParameterError(f"structured: the grammar is too complex: {error}") from None

    def _backend(self) -> LlguidanceBackend:
        if (tokenizer_json := self._tokenizer_json()) is None:
            raise InvalidParameterError(
                "structured output needs a tokenizer that the tokenizers library can write down (a fast tokenizer), and "
                "this engine has none"
            )
        if not self._eos_ids:
            raise InvalidParameterError("structured output needs an end-of-sequence token, and the target has none")
        return LlguidanceBackend(tokenizer_json, self._vocab_size, self._eos_ids)
