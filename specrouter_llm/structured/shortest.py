"""A search for the shortest way to satisfy a grammar, best first and byte by byte.

Bytes are cheaper to search than tokens: few may follow, and the fewest tokens for a text are known (`Spelling`). Where
any letter or digit may follow, one or two stand for all, and texts without such fillers come first.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from specrouter_llm.structured.matcher import Matcher
from specrouter_llm.structured.spelling import Costs, Spelling, is_byte

_MAX_STEPS = 2000
"""Tokens that the matcher may consume."""
_LOWER, _UPPER, _DIGITS = "abcdefghijklmnopqrstuvwxyz", "ABCDEFGHIJKLMNOPQRSTUVWXYZ", "0123456789"
_OTHERS = "".join(chr(i) for i in [*range(33), *range(127, 256)])
_PUNCTUATION = "".join(chr(i) for i in range(33, 127) if not chr(i).isalnum() and chr(i) != '"')
_CLASSES = (  # characters, how many of them make "any", what stands for them
    (_LOWER, 20, "az"),
    (_UPPER, 20, ""),
    (_DIGITS, 9, "019"),
    (_OTHERS, 20, ""),
    (_PUNCTUATION, 20, "'}])>"),
)


class ShortestSearch:
    """One search. It is complete if nothing was left out but special tokens where there is a choice."""

    def __init__(self, matcher: Matcher, spelling: Spelling) -> None:
        self._matcher = matcher
        self._spelling = spelling
        self._singles = spelling.singles
        self._bytes = {symbol: i for symbol, i in self._singles.items() if is_byte(symbol)}
        self._walked: list[int] = []
        self._num_steps = 0
        self.complete = spelling.has_all_bytes

    def text(self, num_tokens: int) -> str | None:
        """A text that satisfies the grammar in fewer tokens; None if none was found. Leaves the matcher as it was.

        Raises:
            MatcherError
        """
        best = None
        # By fillers, least cost, progress; then the order of discovery.
        nodes: list[tuple[int, int, int, int, str, Costs, tuple[int, ...]]] = [(0, 0, 0, 0, "", (0,), ())]
        num_found = 0
        while nodes:
            num_fillers, least, _, _, text, costs, path = heapq.heappop(nodes)
            if least >= num_tokens:
                continue
            if not self._walk(path):
                break
            if self._matcher.accepts and costs[-1] < num_tokens:
                best, num_tokens = text, costs[-1]
            for more, filler in self._next():
                longer, longer_costs = text, costs
                for symbol in more:
                    longer += symbol
                    longer_costs = self._spelling.costs(longer, longer_costs)
                least = self._spelling.at_least(longer, longer_costs)
                if least < num_tokens:
                    num_found += 1
                    key = (num_fillers + filler, least, -len(longer), num_found)
                    longer_path = (*path, *(self._singles[symbol] for symbol in more))
                    heapq.heappush(nodes, (*key, longer, longer_costs, longer_path))
        self._matcher.rollback(len(self._walked))
        return best

    def _walk(self, path: Sequence[int]) -> bool:
        """Puts the matcher behind a path; False, and the search is not complete, if that takes too many steps."""
        common = 0
        while common < min(len(path), len(self._walked)) and path[common] == self._walked[common]:
            common += 1
        self._num_steps += len(path) - common
        if self._num_steps > _MAX_STEPS:
            self.complete = False
            return False
        self._matcher.rollback(len(self._walked) - common)
        del self._walked[common:]
        for token_id in path[common:]:
            self._matcher.advance(token_id)
            self._walked.append(token_id)
        return True

    def _next(self) -> list[tuple[str, bool]]:
        """What to try: symbols, or a text if it has to follow; and whether each stands for others."""
        if self._matcher.complete:
            return []
        if forced := self._matcher.forced():
            text = self._spelling.text(forced)
            return [(text, False)] if all(symbol in self._singles for symbol in text) else []
        mask = self._matcher.allowed()
        allowed = {symbol: False for symbol, i in self._bytes.items() if mask[i >> 3] >> (i & 7) & 1}
        for characters, many, kept in _CLASSES:
            found = [symbol for symbol in characters if symbol in allowed]
            if len(found) < many:
                continue
            self.complete = False
            for symbol in found:
                if symbol in kept:
                    allowed[symbol] = True
                else:
                    del allowed[symbol]
        return list(allowed.items())
