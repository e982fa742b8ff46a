"""Grammars by llguidance: a lazy lexer and an Earley parser over the token trie (github.com/guidance-ai/llguidance).

Its matchers enter a state of error silently and for good, so every answer is checked; and they do not count an
end-of-sequence token after a finished grammar, so none is ever fed to them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from specrouter_llm.errors import InvalidParameterError, MissingDependencyError
from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.structured.matcher import MatcherError
from specrouter_llm.structured.refusals import refused_schema
from specrouter_llm.structured.schema import kept_by_backend

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer

_SCHEMA = "structured.json_schema"


class LlguidanceMatcher:
    """A Matcher over llguidance's."""

    def __init__(self, matcher: LLMatcher, eos_id: int) -> None:
        self._matcher = matcher
        self._eos_id = eos_id

    def allowed(self) -> bytes:
        mask = self._matcher.compute_bitmask()
        self._check()
        return mask

    @property
    def accepts(self) -> bool:
        accepting = self._matcher.is_accepting()
        self._check()
        return accepting

    @property
    def complete(self) -> bool:
        return self._matcher.is_stopped() and self.accepts

    def advance(self, token_id: int) -> bool:
        if self._matcher.validate_tokens([token_id]) != 1:
            self._check()
            return False
        self._matcher.consume_token(token_id)
        self._check()
        return True

    def rollback(self, num_tokens: int) -> None:
        if num_tokens:
            self._matcher.rollback(num_tokens)
            self._check()

    def closes(self, token_ids: Sequence[int]) -> bool:
        closing = [*token_ids, self._eos_id]
        valid = self._matcher.validate_tokens(closing)
        self._check()
        return valid == len(closing)

    def forced(self) -> list[int]:
        forced = self._matcher.compute_ff_tokens()
        self._check()
        return forced

    def copy(self) -> LlguidanceMatcher:
        return LlguidanceMatcher(self._matcher.deep_copy(), self._eos_id)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise MatcherError(self._matcher.get_error())


class LlguidanceBackend:
    """Compiles grammars for one vocabulary. Making it takes a second or more for a large one."""

    def __init__(self, tokenizer_json: str, vocab_size: int, eos_ids: Collection[int]) -> None:
        """`tokenizer_json` describes a tokenizer in the `tokenizers` library's format; `vocab_size` is the logits' width.

        Raises:
            InvalidParameterError: llguidance does not know this kind of tokenizer.
        """
        llguidance = _llguidance()
        # A tokenizer may know more ids than the model, and the model's logits are often padded.
        num_tokens = max(_largest_id(json.loads(tokenizer_json)) + 1, vocab_size)
        self.eos_ids = sorted(eos_ids)
        try:
            self._tokenizer = llguidance.LLTokenizer(tokenizer_json, n_vocab=num_tokens, eos_token=self.eos_ids)
        except ValueError as error:
            raise InvalidParameterError(f"there is no structured output with this tokenizer: {error}") from None
        self._plain = _plain_tokenizer(self._tokenizer, tokenizer_json)
        self.texts = [
            b"" if self._tokenizer.is_special_token(i) else self._tokenizer.decode_bytes([i]) for i in range(vocab_size)
        ]

    def encode_bytes(self, text: bytes) -> list[int] | None:
        """Tokens that write exactly this text, or special tokens that it names; None if there are none."""
        ids: list[int] = self._tokenizer.tokenize_bytes(text, parse_special=True)
        known = all(i < len(self.texts) for i in ids)
        return ids if known and self._tokenizer.decode_bytes(ids) == text else None

    def special_names(self, text: str) -> dict[int, bytes]:
        """The special tokens that a text names, and how."""
        ids = self._tokenizer.tokenize_str(text, parse_special=True)
        return {i: self._tokenizer.decode_bytes([i]) for i in ids if i < len(self.texts) and not self.texts[i]}

    def compile(self, spec: StructuredOutput) -> LlguidanceMatcher:
        """A matcher at the start of the grammar, behind the free text.

        Raises:
            UnsupportedSchemaError: a JSON schema says something that cannot be enforced.
            InvalidParameterError: the grammar is wrong; the message is the backend's.
        """
        matcher = _llguidance().LLMatcher(self._plain, _grammar(spec), log_level=0)
        if matcher.is_error():
            raise _refusal(spec, matcher.get_error())
        return LlguidanceMatcher(matcher, self.eos_ids[0])


class _Words:
    """A tokenizer, as llguidance wants one from Python, that finds no special tokens in a text: it spells their names."""

    bos_token_id = None

    def __init__(self, tokenizer: LLTokenizer, speller: LLTokenizer) -> None:
        """`speller` writes texts with tokens of `tokenizer`."""
        self.eos_token_id = tokenizer.eos_token
        self.tokens = [tokenizer.decode_bytes([i]) for i in range(tokenizer.vocab_size)]
        self.special_token_ids = [i for i in range(tokenizer.vocab_size) if tokenizer.is_special_token(i)]
        self._tokenizer = tokenizer
        self._speller = speller

    def __call__(self, text: bytes) -> list[int]:
        ids: list[int] = self._speller.tokenize_bytes(text)
        if any(map(self._tokenizer.is_special_token, ids)):  # merges may lead to one, too
            ids = self._tokenizer.greedy_tokenize(text.decode())
        return ids


def _plain_tokenizer(tokenizer: LLTokenizer, tokenizer_json: str) -> LLTokenizer:
    """The tokenizer for matchers: where a grammar asks for the text of a special token's name it takes ordinary tokens.

    A matcher that is told by its tokenizer that the special token writes the text allows nothing else there, and does
    not take it either.
    """
    if not tokenizer.is_canonical:  # then nothing is asked of it, and must not be
        return tokenizer
    llguidance = _llguidance()
    known = json.loads(tokenizer_json)
    known["added_tokens"] = [
        token for token in known.get("added_tokens", ()) if not tokenizer.is_special_token(token["id"])
    ]
    speller = llguidance.LLTokenizer(json.dumps(known), n_vocab=tokenizer.vocab_size, eos_token=tokenizer.eos_tokens)
    words = llguidance.TokenizerWrapper(_Words(tokenizer, speller))
    plain: LLTokenizer = llguidance.LLTokenizer(words, n_vocab=tokenizer.vocab_size, eos_token=tokenizer.eos_tokens)
    return plain


def _grammar(spec: StructuredOutput) -> str:
    """The grammar of what follows the free text, in the backend's own form."""
    matcher = _llguidance().LLMatcher
    if spec.json_schema is not None:
        return str(matcher.grammar_from_json_schema(json.dumps(_guided(spec))))
    if spec.regex is not None:
        return str(matcher.grammar_from_regex(spec.regex))
    return str(matcher.grammar_from_lark(spec.lark or _alternatives(spec)))


def check_schema(schema: Mapping[str, Any], name: str) -> None:
    """Whether a JSON schema, called `name` in messages, can be enforced.

    Raises:
        UnsupportedSchemaError: it says something that cannot be.
        InvalidParameterError: it is wrong; the message is the backend's.
        MissingDependencyError: llguidance is not installed.
    """
    matcher = _llguidance().LLMatcher
    grammar = matcher.grammar_from_json_schema(json.dumps(kept_by_backend(schema, name)))
    failed, messages = matcher.validate_grammar_with_warnings(grammar)
    if failed:
        raise refused_schema(name, "; ".join(messages))


def _llguidance() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingDependencyError(
            'structured output needs llguidance: pip install "specrouter-llm[structured]"'
        ) from error
    return llguidance


def _guided(spec: StructuredOutput) -> dict[str, Any]:
    """The schema with what the backend is to know about whitespace."""
    schema = kept_by_backend(spec.json_schema or {}, _SCHEMA)
    return {**schema, "x-guidance": {**schema.get("x-guidance", {}), "whitespace_flexible": spec.whitespace}}


def _alternatives(spec: StructuredOutput) -> str:
    return "start: " + " | ".join(literal(option) for option in spec.choice or ())


def literal(text: str) -> str:
    """A text as a literal of a Lark grammar, whose lexer takes no control characters: JSON escapes all but DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", r"\u007f")


def _largest_id(tokenizer: dict[str, Any]) -> int:
    vocabulary = tokenizer["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return max(int(i) for i in [*ids, *(token["id"] for token in tokenizer.get("added_tokens", ()))])


def _refusal(spec: StructuredOutput, message: str) -> InvalidParameterError:
    first = message.strip().split("\n<state>")[0]
    if spec.json_schema is None:
        kind = next(name for name in ("regex", "lark", "choice") if getattr(spec, name) is not None)
        return InvalidParameterError(f"structured.{kind} cannot be compiled: {first}")
    return refused_schema(_SCHEMA, first)
