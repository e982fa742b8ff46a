"""Grammars by llguidance: a lazy lexer and an Earley parser over the token trie (github.com/guidance-ai/llguidance).

Its matchers enter a state of error silently and for good, so every answer is checked; and they do not count an
end-of-sequence token after a finished grammar, so none is ever fed to them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from specrouter_llm.errors import InvalidParameterError, MissingDependencyError, UnsupportedSchemaError
from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.structured.matcher import MatcherError

if TYPE_CHECKING:
    from llguidance import LLMatcher

_UNSUPPORTED = re.compile(r"unimplemented|unknown format|not supported", re.IGNORECASE)


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
        """`tokenizer_json` describes a tokenizer in the `tokenizers` library's format; `vocab_size` is the logits' width."""
        llguidance = _llguidance()
        # A tokenizer may know more ids than the model, and the model's logits are often padded.
        num_tokens = max(_largest_id(json.loads(tokenizer_json)) + 1, vocab_size)
        self._eos_id = min(eos_ids)
        self._tokenizer = llguidance.LLTokenizer(tokenizer_json, n_vocab=num_tokens, eos_token=sorted(eos_ids))
        self._special_ids = [i for i in range(vocab_size) if i not in eos_ids and self._tokenizer.is_special_token(i)]
        self.texts: list[bytes] = [
            b"" if self._tokenizer.is_special_token(i) else self._tokenizer.decode_bytes([i]) for i in range(vocab_size)
        ]
        """The bytes of every token; none for special tokens."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text within a text; the name of a special token becomes that token."""
        ids: list[int] = self._tokenizer.tokenize_str(text, parse_special=True)
        return ids

    def is_special(self, token_ids: Sequence[int]) -> bool:
        """Whether they are one special token, which has no text."""
        return len(token_ids) == 1 and self._tokenizer.is_special_token(token_ids[0])

    def compile(self, spec: StructuredOutput) -> LlguidanceMatcher:
        """A matcher at the start of the grammar.

        Raises:
            UnsupportedSchemaError: a JSON schema says something that cannot be enforced.
            InvalidParameterError: the grammar is wrong; the message is the backend's.
        """
        grammar = self._grammar(spec) if spec.after is None else self._grammar_after(spec, spec.after)
        matcher = _llguidance().LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise _refusal(spec, matcher.get_error())
        return LlguidanceMatcher(matcher, self._eos_id)

    def _grammar(self, spec: StructuredOutput) -> str:
        matcher = _llguidance().LLMatcher
        if spec.json_schema is not None:
            return str(matcher.grammar_from_json_schema(json.dumps(_guided(spec))))
        if spec.regex is not None:
            return str(matcher.grammar_from_regex(spec.regex))
        return str(matcher.grammar_from_lark(spec.lark or _alternatives(spec)))

    def _grammar_after(self, spec: StructuredOutput, after: str) -> str:
        """The grammar behind free text that ends with the first `after`."""
        ids = self.encode(after)
        # Free text may hold special tokens, such as one that begins a think block.
        others = ",".join(str(i) for i in self._special_ids if [i] != ids)
        free = rf"free: (/(.|\n)*/ <[{others}]>)* " if others else "free: "
        if self.is_special(ids):
            free += rf"/(.|\n)*/ <[{ids[0]}]>"
        else:
            free += f"last\nlast[lazy]: /(.|\\n)*{_regex(after)}/"
        if spec.json_schema is not None:
            body = f"body: %json {json.dumps(_guided(spec))}"
        elif spec.regex is not None:
            body = f"body: {_slashed(spec.regex)}"
        else:
            body = f"body: %lark {{\n{spec.lark or _alternatives(spec)}\n}}"
        return str(_llguidance().LLMatcher.grammar_from_lark(f"start: free body\n{free}\n{body}\n"))


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
    schema = dict(spec.json_schema or {})
    return {**schema, "x-guidance": {**schema.get("x-guidance", {}), "whitespace_flexible": spec.whitespace}}


def _alternatives(spec: StructuredOutput) -> str:
    return "start: " + " | ".join(json.dumps(option, ensure_ascii=False) for option in spec.choice or ())


def _regex(text: str) -> str:
    """A regular expression for exactly this text, between slashes."""
    return "".join(c if c.isalnum() and c.isascii() else f"\\x{{{ord(c):x}}}" for c in text)


def _slashed(regex: str) -> str:
    """A regular expression as a literal of the grammar: slashes that are not escaped yet are."""
    return "/" + re.sub(r"\\.|/|\n", lambda m: {"/": r"\/", "\n": r"\n"}.get(m[0], m[0]), regex, flags=re.DOTALL) + "/"


def _largest_id(tokenizer: dict[str, Any]) -> int:
    vocabulary = tokenizer["model"]["vocab"]
    ids = vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary))
    return max(int(i) for i in [*ids, *(token["id"] for token in tokenizer.get("added_tokens", ()))])


def _refusal(spec: StructuredOutput, message: str) -> InvalidParameterError:
    first = message.strip().split("\n<state>")[0]
    if spec.json_schema is None:
        kind = next(name for name in ("regex", "lark", "choice") if getattr(spec, name) is not None)
        return InvalidParameterError(f"structured.{kind} cannot be compiled: {first}")
    if _UNSUPPORTED.search(first):
        return UnsupportedSchemaError(f"structured.json_schema holds what cannot be enforced: {first}")
    return InvalidParameterError(f"structured.json_schema cannot be compiled: {first}")
