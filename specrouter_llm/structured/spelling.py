"""Texts in as few tokens as possible.

A text is a string of symbols: characters up to 255 are bytes, character 256 + i is token i, for tokens without a text.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

_FIRST_TOKEN = 256
Costs = tuple[int, ...]
"""For every beginning of a text, the empty one first, the tokens that it takes."""


def is_byte(symbol: str) -> bool:
    return ord(symbol) < _FIRST_TOKEN


class Spelling:
    """The ways to write texts with one vocabulary."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        """`texts[i]` are the bytes of token i."""
        self._symbols = [
            text.decode("latin-1") if text else chr(_FIRST_TOKEN + token_id) for token_id, text in enumerate(texts)
        ]
        self._ids: dict[str, int] = {}
        for token_id, symbols in enumerate(self._symbols):
            self._ids.setdefault(symbols, token_id)
        self._sorted = sorted(self._ids)
        self._lengths = sorted({len(symbols) for symbols in self._ids})
        singles = {symbols for symbols in self._ids if len(symbols) == 1}
        self.has_all_bytes = all(set(symbols) <= singles for symbols in self._ids)
        """Whether everything that tokens can write can be written byte by byte."""

    @property
    def singles(self) -> dict[str, int]:
        """All symbols that are tokens by themselves, with their ids."""
        return {symbols: token_id for symbols, token_id in self._ids.items() if len(symbols) == 1}

    def text(self, token_ids: Sequence[int]) -> str:
        """What tokens write."""
        return "".join(self._symbols[token_id] for token_id in token_ids)

    def costs(self, text: str, known: Costs) -> Costs:
        """The costs of a text that is one symbol longer than the one whose costs are known."""
        size = len(text)
        return (*known, min(known[size - n] + 1 for n in self._lengths if n <= size and text[size - n :] in self._ids))

    def at_least(self, text: str, costs: Costs) -> int:
        """Tokens that every text takes that begins like this."""
        least = costs[-1]
        for size in range(2, min(len(text), self._lengths[-1]) + 1):
            if costs[-1 - size] + 1 < least and self._begins_token(text[-size:]):
                least = costs[-1 - size] + 1
        return least

    def shortest(self, text: str) -> tuple[int, ...]:
        """The fewest tokens that write a text."""
        costs: Costs = (0,)
        for size in range(1, len(text) + 1):
            costs = self.costs(text[:size], costs)
        path: list[int] = []
        end = len(text)
        while end:
            size = next(
                n
                for n in self._lengths
                if n <= end and costs[end - n] + 1 == costs[end] and text[end - n : end] in self._ids
            )
            path.append(self._ids[text[end - size : end]])
            end -= size
        return tuple(reversed(path))

    def _begins_token(self, text: str) -> bool:
        place = bisect_left(self._sorted, text)
        return place < len(self._sorted) and self._sorted[place].startswith(text)
