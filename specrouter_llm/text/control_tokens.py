"""Control tokens: strings such as `<|end|>` that steer a model when a template writes them, and are text in user input.

A port of what transformers >= 5.20 does for `sanitize_control_tokens=True`, for the versions and the kinds of text
(documents) that it does not cover. Nothing here sets `split_special_tokens`: that flag is state of the Rust tokenizer,
and another thread that encodes at the same moment would see it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from specrouter_llm.errors import InvalidPromptError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Private-use characters around a control token of the user. They are removed from user input first, so they cannot
# be forged, and a template passes them through. The code points are those of transformers.
_START, _END = "\U000f0000", "\U000f0001"


class ControlTokens:
    """The control tokens of one tokenizer under one chat template ("" for none).

    They are all special tokens, and of the other added tokens those that the tokenizer declares (`chat_control_tokens`)
    or, without a declaration, those that occur in the template.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, template: str) -> None:
        self._tokenizer = tokenizer
        declared = getattr(tokenizer, "chat_control_tokens", None)
        self.names = frozenset(
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if token.special or _steers(token.content, declared, template)
        )
        # The longest first: a token takes priority over the tokens that it contains. (?!) never matches.
        names = "|".join(re.escape(name) for name in sorted(self.names, key=len, reverse=True)) or "(?!)"
        self._pattern = re.compile(f"({names})")
        self._marked = re.compile(f"{_START}({names}){_END}|[{_START}{_END}]")

    def occurs_in(self, text: str) -> bool:
        """Whether `text` holds the whole text of a control token."""
        return self._pattern.search(text) is not None

    def mark(self, value: Any) -> Any:
        """A copy of a JSON-like value in which every control token in a string (not in a key) is marked as text."""
        if isinstance(value, str):
            return self._pattern.sub(f"{_START}\\g<0>{_END}", value.replace(_START, "").replace(_END, ""))
        if isinstance(value, dict):
            return {key: self.mark(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [self.mark(item) for item in value]
        return value

    def encode_marked(self, text: str) -> list[int]:
        """Ids of a rendered template: marked control tokens become ordinary text, all others become tokens.

        Raises InvalidPromptError where the tokenizer knows no way to write a marked control token as ordinary text.
        """
        # A lone mark is what is left when a template cuts a string inside a mark; it gives None in place of a token.
        return self._encode_pieces(self._marked.split(text))

    def encode_text(self, text: str) -> list[int]:
        """Ids of `text`, all of it ordinary text, without the special tokens that the tokenizer adds by itself.

        Raises InvalidPromptError as `encode_marked` does.
        """
        return self._encode_pieces(self._pattern.split(text))

    def _encode_pieces(self, pieces: list[str | None]) -> list[int]:
        """`pieces` alternate: text in which control tokens count, then one control token that is meant as text, ..."""
        ids = encode_plain(self._tokenizer, pieces[0] or "")
        for number, piece in enumerate(pieces[1:], start=1):
            if not piece:
                continue
            if number % 2 == 0:
                ids += encode_continuation(self._tokenizer, piece)
                continue
            as_text = encode_continuation(self._tokenizer, piece, self._encode_without_added_tokens)
            if self._tokenizer.convert_tokens_to_ids(piece) in as_text:
                raise InvalidPromptError(f"the prompt holds {piece!r}, which this tokenizer cannot encode as text")
            ids += as_text
        return ids

    def _encode_without_added_tokens(self, text: str) -> list[int]:
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return list(self._tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True))
        # The parts of the Rust pipeline by hand, all but the one that looks for added tokens.
        if backend.normalizer is not None:
            text = backend.normalizer.normalize_str(text)
        words = [text]
        if backend.pre_tokenizer is not None:
            words = [word for word, _ in backend.pre_tokenizer.pre_tokenize_str(text)]
        return [token.id for word in words for token in backend.model.tokenize(word)]


def encode_plain(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Ids of `text` at the start of a sequence, special tokens parsed, none added."""
    return list(tokenizer.encode(text, add_special_tokens=False, verbose=False))


def encode_continuation(
    tokenizer: PreTrainedTokenizerBase, text: str, encode: Callable[[str], list[int]] | None = None
) -> list[int]:
    """Ids of `text` in the middle of a sequence: without the space that SentencePiece puts before a sequence."""
    encode = encode or partial(encode_plain, tokenizer)
    newline = encode_plain(tokenizer, "\n")
    ids = encode("\n" + text)
    # Where the newline does not stay a token of its own, there is no way to tell the rest apart.
    return ids[len(newline) :] if ids[: len(newline)] == newline else encode(text)


def _steers(name: str, declared: Any, template: str) -> bool:
    """Whether an added token that is not special is a control token."""
    if declared is not None:
        return name in declared
    # Added tokens such as Gemma's "\n" are ordinary text in a template.
    return name in template and not name.isspace()
