"""Ways to close an output: short sequences of tokens that satisfy a grammar from where it stands.

The search is greedy: it takes closing brackets and quotes first, then digits, then letters; if that does not end soon, it
tries all tokens in turn and takes out what was not needed; the text is then written in as few tokens as possible. It
depends on the state of the grammar and the limit alone. What it finds is short, not always shortest: for the beginning
of a grammar, which every request needs, `shortest` looks further.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from specrouter_llm.structured.matcher import Matcher
from specrouter_llm.structured.shortest import ShortestSearch
from specrouter_llm.structured.spelling import Spelling

_OPENERS, _CLOSERS = b"{[(<", b"}])>"
_DIGITS = (*b"1234567890",)
_NUM_WORDS = 256
_LONGEST_SEARCH = 64
"""Tokens of a closing for which `shortest` looks for a shorter one; for a longer one `path` tries another way."""


class Closer:
    """Finds ways to close, for one vocabulary."""

    def __init__(self, texts: Sequence[bytes]) -> None:
        """`texts[i]` are the bytes of token i; tokens without any are used only where nothing else is allowed."""
        self._vocab_size = len(texts)
        self._spelling = Spelling(texts)
        ids = sorted((i for i, text in enumerate(texts) if text), key=lambda i: (len(texts[i]), i))
        brackets = [i for i in ids if set(texts[i]) <= set(b"{}[]()<>\"'")]
        brackets.sort(key=lambda i: -_depth(texts[i]))
        quotes = [i for i in brackets if texts[i] == b'"' or (texts[i][:1] == b'"' and _depth(texts[i]) > 0)]
        closers = [i for i in brackets if texts[i][:1] != b'"' and _depth(texts[i]) > 0]
        pairs = [i for i in brackets if texts[i] in (b"{}", b"[]", b'""')]
        digits = [i for byte in _DIGITS for i in ids if texts[i] == bytes([byte])]
        words = [i for i in reversed(ids) if texts[i].isalpha() and texts[i].isascii()][:_NUM_WORDS]
        singles = [i for i in ids if len(texts[i]) == 1 and texts[i].isascii()]
        self._letters = [i for i in singles if texts[i] in (b"q", b"z")]
        self._in_text = [*quotes, *words, *digits, *singles]
        self._between = [*closers, *pairs, *digits, *words, *quotes, *singles]
        turns = itertools.chain.from_iterable(itertools.zip_longest(quotes, closers, digits, words, singles))
        self._mixed = list(dict.fromkeys(i for i in turns if i is not None))

    def path(self, matcher: Matcher, limit: int) -> tuple[int, ...] | None:
        """At most `limit` tokens that satisfy the grammar; None if none were found. The matcher is left as it was.

        Raises:
            MatcherError
        """
        preferred = _rollout(matcher, limit, self._preferred)
        found = [] if preferred is None else [self._respelled(matcher, preferred)]
        if preferred is None or len(preferred) > _LONGEST_SEARCH:  # it may lead to a bound that is far away
            anything = self._anything(matcher, limit if preferred is None else len(preferred))
            found += [] if anything is None else [self._respelled(matcher, anything)]
        return min(found, key=len, default=None)

    def shortest(self, matcher: Matcher, limit: int) -> tuple[tuple[int, ...] | None, bool]:
        """At most `limit` tokens that satisfy the grammar, and whether no fewer do. The matcher is left as it was.

        Raises:
            MatcherError
        """
        path = self.path(matcher, limit)
        if path is None or len(path) > _LONGEST_SEARCH:
            return path, False
        search = ShortestSearch(matcher, self._spelling)
        text = search.text(len(path))
        shorter = self._spelling.shortest(text) if text is not None else path
        return (shorter, search.complete) if matcher.closes(shorter) else (path, False)

    def _anything(self, matcher: Matcher, limit: int) -> list[int] | None:
        """A way out where the first choice is not one, or a long one: another choice may be."""
        tried: dict[bytes, Iterator[int]] = {}
        path = _rollout(matcher, limit, lambda mask: next(tried.setdefault(mask, self._one_by_one(mask)), None))
        return None if path is None else _shortened(matcher, path)

    def _respelled(self, matcher: Matcher, path: Sequence[int]) -> tuple[int, ...]:
        """The same text in as few tokens as possible."""
        shortest = self._spelling.shortest(self._spelling.text(path))
        return shortest if len(shortest) < len(path) and matcher.closes(shortest) else tuple(path)

    def _preferred(self, mask: bytes) -> int | None:
        """The most promising token. Where any letter may follow there is text, which brackets do not lead out of."""
        order = self._in_text if all(_bit(mask, i) for i in self._letters) else self._between
        return next((i for i in itertools.chain(order, range(self._vocab_size)) if _bit(mask, i)), None)

    def _one_by_one(self, mask: bytes) -> Iterator[int]:
        """All allowed tokens, different kinds in turn, over and over."""
        return itertools.cycle(i for i in itertools.chain(self._mixed, range(self._vocab_size)) if _bit(mask, i))


def _rollout(matcher: Matcher, limit: int, choose: Callable[[bytes], int | None]) -> list[int] | None:
    """Takes forced tokens, and choices by the mask of what is allowed, until the grammar accepts."""
    path: list[int] = []
    try:
        while not matcher.accepts:
            forced = matcher.forced()
            token_id = forced[0] if forced else choose(matcher.allowed())
            if token_id is None or len(path) >= limit or not matcher.advance(token_id):
                return None
            path.append(token_id)
        return path
    finally:
        matcher.rollback(len(path))


def _shortened(matcher: Matcher, path: list[int]) -> list[int]:
    """The path without stretches that it does not need."""
    size = len(path) // 2
    while size:
        start = 0
        while start + size <= len(path):
            shorter = path[:start] + path[start + size :]
            if matcher.closes(shorter):
                path = shorter
            else:
                start += size
        size //= 2
    return path


def _depth(text: bytes) -> int:
    """Brackets closed minus brackets opened."""
    return sum(byte in _CLOSERS for byte in text) - sum(byte in _OPENERS for byte in text)


def _bit(mask: bytes, token_id: int) -> bool:
    return bool(mask[token_id >> 3] >> (token_id & 7) & 1)
