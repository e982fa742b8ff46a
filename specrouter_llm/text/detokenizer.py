"""Incremental detokenization: ids in, one at a time, and text out as soon as no later id can change it.

Why not `tokenizers.decoders.DecodeStream`: it raises on some byte sequences that are not UTF-8, and it takes a U+FFFD
of the model's own for an unfinished character. Here a window over the last ids is decoded anew for each token:

    ids     ... forgotten | a b c d e f | g          the window is `a ... g`
    text    ... returned earlier  .....|.|?          released, newly final, and perhaps one U+FFFD held back

How decoders look ahead bounds what must be held back and how short the window may be:

* Byte-level tokens. Bytes are joined, then decoded. A character has at most four bytes and every token has at least
  one, so a window of four tokens or more decodes to the right text behind its first three bytes, whatever came before:
  UTF-8 finds its way back by itself. An unfinished character at the end shows as exactly one U+FFFD.
* Byte fallback (`<0xE4>`, SentencePiece). One byte that does not fit turns the whole run of such tokens into U+FFFD,
  also the bytes before it: nothing of a run is final before the run ends. It is decoded once, at its end.
* Leading spaces. Decoders drop the space before the first token: the window always keeps tokens before the new one.
"""

from __future__ import annotations

from collections.abc import Sequence

from specrouter_llm.text.tokenizer import Tokenizer

_REPLACEMENT = "\ufffd"
_SHORT_WINDOW = 6
"""Tokens that stay when the window is cut: the four of a character, and some to spare."""
_LONG_WINDOW = 12
_LONGEST_TENTATIVE_RUN = 32
"""Byte-fallback runs longer than this are not looked into before they end, so that the cost stays bounded."""


class Detokenizer:
    """Turns the ids of one completion into text, incrementally, at a cost per token that does not grow.

    The pieces from `push` and `flush` add up to what `decode(prompt_tail + output)` has beyond its common beginning
    with `decode(prompt_tail)`. The tail (a few tokens are enough) decides about the space before the first word, and
    about a character that the prompt left unfinished.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_tail: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._byte_ids = tokenizer.byte_ids
        self._window = [token_id for token_id in prompt_tail if token_id in tokenizer.text_ids]
        self._run = 0
        """Byte-fallback tokens at the end of the window, those of the prompt not counted."""
        self._released = 0
        """Characters of the window's text that were returned, or belong to the prompt."""
        self._prompt_text: str | None = tokenizer.decode_text_ids(self._window)
        """The prompt's share of the window's text, until it is known how much of it the output leaves unchanged."""

    def push(self, token_id: int) -> str:
        """Take in the next id; return the text that is final now and was not before. Any integer will do."""
        if token_id not in self._tokenizer.text_ids:
            return ""
        self._window.append(token_id)
        if token_id in self._byte_ids:
            self._run += 1
            return ""
        self._run = 0
        text = self._tokenizer.decode_text_ids(self._window)
        final = len(text) - text.endswith(_REPLACEMENT)
        start = self._start(text)
        if start >= final and len(self._window) <= _LONG_WINDOW:
            return ""  # keeps the prompt's text, which may still be waiting for the rest of its last character
        self._prompt_text = None
        self._released = max(start, final)
        if len(self._window) > _LONG_WINDOW:
            self._shorten(held=len(text) - self._released)
        return text[start:final]

    def push_all(self, token_ids: Sequence[int]) -> str:
        """What `push` would return for these ids in turn, all together and at about the cost of one."""
        if self._run or not self._byte_ids.isdisjoint(token_ids):
            return "".join(map(self.push, token_ids))
        known = [token_id for token_id in token_ids if token_id in self._tokenizer.text_ids]
        self._window += known[:-1]
        return self.push(known[-1]) if known else ""

    def peek(self) -> str:
        """The text that `flush` would return."""
        text = self._tokenizer.decode_text_ids(self._window)
        return text[self._start(text) :]

    def tentative(self) -> str:
        """The part of `peek` that is held back only because its run of byte-fallback tokens may go on and turn invalid.

        "" for runs that are invalid or unfinished already, and for very long ones.
        """
        if not 0 < self._run <= _LONGEST_TENTATIVE_RUN:
            return ""
        text = self.peek()
        return "" if text.endswith(_REPLACEMENT) else text

    def flush(self) -> str:
        """The rest of the text, once there are no more ids: an unfinished character shows as U+FFFD."""
        text = self.peek()
        self._window, self._run, self._released, self._prompt_text = [], 0, 0, None
        return text

    def _start(self, text: str) -> int:
        """Where in the window's text the part begins that has not been returned."""
        if self._prompt_text is None:
            return self._released
        return _common_length(self._prompt_text, text)

    def _shorten(self, held: int) -> None:
        self._window = self._window[-_SHORT_WINDOW:]
        self._released = len(self._tokenizer.decode_text_ids(self._window)) - held


def _common_length(one: str, other: str) -> int:
    """Number of characters at the beginning that both have."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(i for i in range(shorter) if one[i] != other[i])
