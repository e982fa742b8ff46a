"""Compiled grammars, and the cache of an engine that holds them."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.structured.backend import LlguidanceBackend
from specrouter_llm.structured.closing import Closer
from specrouter_llm.structured.matcher import Matcher, MatcherError

_CACHED_GRAMMARS = 64
_LONGEST_CLOSING = 4096
"""Tokens up to which a first valid output is looked for."""


@dataclass(frozen=True, slots=True)
class Opening:
    """What ends the free text before a grammar."""

    token_ids: tuple[int, ...]
    text: bytes
    """Empty if it is one special token."""

    def tail(self, tail: bytes, token_id: int, text: bytes) -> bytes | None:
        """The end of the free text after one more token, as far as it matters; None if the free text is over."""
        if not self.text:
            return None if token_id == self.token_ids[0] else b""
        text = tail + text
        return None if self.text in text else text[max(0, len(text) - len(self.text) + 1) :]


class Grammar:
    """A compiled `StructuredOutput`; rows take copies of its matcher. May be shared by threads."""

    def __init__(self, start: Matcher, closer: Closer, texts: Sequence[bytes], opening: Opening | None) -> None:
        """`texts[i]` are the bytes of token i of the target. Raises MatcherError."""
        self.start = start
        self.texts = texts
        self.opening = opening
        self._closer = closer
        self.shortest = self.closing(start.copy(), _LONGEST_CLOSING, free=opening is not None)
        """A short output that satisfies the grammar; None if none was found."""

    def closing(self, matcher: Matcher, limit: int, *, free: bool) -> tuple[int, ...] | None:
        """At most `limit` tokens that close the output from here; None if none were found. Leaves the matcher as it was.

        Raises:
            MatcherError
        """
        first = self.opening.token_ids if free and self.opening is not None else ()
        taken = 0
        try:
            for token_id in first:
                if not matcher.advance(token_id):
                    return None
                taken += 1
            rest = self._closer.path(matcher, limit - taken)
            return None if rest is None else (*first, *rest)
        finally:
            matcher.rollback(taken)

    def check_budget(self, max_output: int) -> None:
        """Raises InvalidParameterError if no valid output of at most this many tokens is known."""
        if self.shortest is None:
            raise InvalidParameterError(
                f"structured: no output of at most {_LONGEST_CLOSING} tokens that satisfies the grammar was found"
            )
        if len(self.shortest) > max_output:
            raise InvalidParameterError(
                f"structured: {max_output} tokens are left for the output (max_tokens, or the context), and the shortest "
                f"output known to satisfy the grammar needs at least {len(self.shortest)}; raise max_tokens"
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
        opening = None
        if spec.after is not None:
            ids = backend.encode(spec.after)
            opening = Opening(tuple(ids), b"" if backend.is_special(ids) else spec.after.encode())
        try:
            return Grammar(backend.compile(spec), closer, backend.texts, opening)
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
