"""N-gram lookup: what followed the last words before, in the prompt, the answer so far, documents or a prediction.

Prompt lookup decoding (Saxena, 2023) with suffix matching and keyed choice: among the continuations of the longest match,
seen n_v times each, the proposal is argmax_v(log n_v + g) with the row's own noise, the very rule by which the target
will choose. Greedy rows take the most frequent continuation, the latest of equals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from specrouter_llm.state.row import Row

_BARRIER = -1  # between texts: no match and no continuation runs across it


class NgramProposer:
    """Model-free drafter over prompt, output and `draft_sources` of a row."""

    def __init__(
        self, *, name: str = "ngram", min_match: int = 2, max_match: int = 12, max_candidates: int = 64
    ) -> None:
        self.name = name
        self._min_match = min_match
        self._max_match = max_match
        self._max_candidates = max_candidates

    def propose(self, row: Row, hypothesis: Sequence[int], max_tokens: int) -> list[int]:
        index = row.scratch.get(self.name)
        if index is None:
            index = row.scratch[self.name] = _Index(row.draft_sources, self._min_match)
        index.extend(row.token_ids)
        reach = self._max_match
        context = [*row.token_ids[-reach:], *hypothesis][-reach:]
        ends = index.longest_matches(context, self._max_candidates)
        proposal: list[int] = []
        while ends and len(proposal) < max_tokens:
            token_id = self._choose(
                row, len(row.token_ids) + len(hypothesis) + len(proposal), index.continuations(ends)
            )
            if token_id is None:
                break
            proposal.append(token_id)
            if token_id in row.end_ids:
                break
            ends = [end + 1 for end in ends if index.follows(end, token_id)]
        return proposal

    def _choose(self, row: Row, position: int, counts: dict[int, int]) -> int | None:
        """The continuation by keyed counts; `counts` is ordered latest first."""
        if not counts:
            return None
        if row.sampler.params.greedy or len(counts) == 1:
            return max(counts, key=lambda token_id: counts[token_id])
        ids = list(counts)
        noise = row.sampler.noise_at(position, ids)
        return max(zip(ids, noise, strict=True), key=lambda pair: math.log(counts[pair[0]]) + pair[1])[0]


class _Index:
    """Texts in one list with barriers, the row's own tokens last, and where each n-gram ends."""

    def __init__(self, sources: Sequence[Sequence[int]], order: int) -> None:
        self._order = order
        self._text: list[int] = []
        self._ends: dict[tuple[int, ...], list[int]] = {}
        self._own = 0  # tokens of the row already taken in
        for source in sources:
            self._append(source)
            self._text.append(_BARRIER)

    def extend(self, token_ids: Sequence[int]) -> None:
        """Takes in what the row has committed since the last call."""
        self._append(token_ids[self._own :])
        self._own = len(token_ids)

    def _append(self, token_ids: Sequence[int]) -> None:
        for token_id in token_ids:
            self._text.append(token_id)
            gram = tuple(self._text[-self._order :])
            if len(gram) == self._order and _BARRIER not in gram:
                self._ends.setdefault(gram, []).append(len(self._text))

    def longest_matches(self, context: Sequence[int], limit: int) -> list[int]:
        """Ends of the latest `limit` matches, latest first, that agree with the context furthest back."""
        found = self._ends.get(tuple(context[-self._order :]), ())[-limit:]
        ends = [end for end in reversed(found) if end < len(self._text)]
        lengths = [self._agreement(end, context) for end in ends]
        longest = max(lengths, default=0)
        return [end for end, length in zip(ends, lengths, strict=True) if length == longest]

    def _agreement(self, end: int, context: Sequence[int]) -> int:
        length = self._order
        while length < len(context) and end > length and self._text[end - length - 1] == context[-length - 1]:
            length += 1
        return length

    def continuations(self, ends: Sequence[int]) -> dict[int, int]:
        """How often each token follows, in the order of `ends`."""
        counts: dict[int, int] = {}
        for end in ends:
            if end < len(self._text) and self._text[end] != _BARRIER:
                counts[self._text[end]] = counts.get(self._text[end], 0) + 1
        return counts

    def follows(self, end: int, token_id: int) -> bool:
        return end < len(self._text) and self._text[end] == token_id
