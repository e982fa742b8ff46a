"""The few shapes that forwards are padded to, so that one recorded graph serves many steps. Plain numbers, no tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from specrouter_llm.runtime.batch import Span

TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)
"""Numbers of tokens that are recorded; more than the last run without a graph."""
CANONICAL_TOKENS = 64
"""The one number of tokens of strict mode where bits depend on it: worth a launch, and still bound by the weights."""
TILE_TOKENS = 8
"""Most tokens of one row that attention handles together."""
_SHORTEST = 512
_GROWTH = 4


@dataclass(frozen=True, slots=True)
class Bucket:
    """What a graph is recorded for."""

    tokens: int
    extent: int
    """Positions of a slot that it can attend to."""

    def tiles(self, num_rows: int) -> int:
        """The most tiles that `tokens` tokens of at most `num_rows` rows are cut into."""
        return min(self.tokens, num_rows + self.tokens // TILE_TOKENS)


class Tile(NamedTuple):
    """Up to TILE_TOKENS consecutive tokens of one row."""

    slot: int
    offset: int
    """Of the first token, among all that are packed."""
    start: int
    """Its position."""
    number: int
    first: int
    """The position of the row's first token in this launch, of whatever tile."""


def bucket_for(spans: Sequence[Span], capacity: int, sizes: Sequence[int] = TOKENS) -> Bucket | None:
    """The smallest bucket of one of these numbers of tokens that holds the spans; None if they have too many."""
    fed = sum(len(span.token_ids) for span in spans)
    tokens = next((size for size in sizes if size >= fed), None)
    return None if tokens is None else Bucket(tokens, _extent(spans, capacity))


def loop_buckets(spans: Sequence[Span], count: int, capacity: int) -> tuple[Bucket, Bucket] | None:
    """The buckets of the first and of the later forwards of a loop, in which every row goes on for `count` tokens.

    The first has room for two tokens a row: one is committed but not fed after a refusal, two after a proposal that was
    accepted whole. None if that is too many.
    """
    fed = max(2 * len(spans), sum(len(span.token_ids) for span in spans))
    first = next((size for size in TOKENS if size >= fed), None)
    if first is None:
        return None
    extent = _extent(spans, capacity, count - 1)
    return Bucket(first, extent), Bucket(next(size for size in TOKENS if size >= len(spans)), extent)


def _extent(spans: Sequence[Span], capacity: int, more: int = 0) -> int:
    longest = max(span.end for span in spans) + more
    extent = _SHORTEST
    while extent < longest:
        extent *= _GROWTH
    return min(extent, capacity)


def tiles_of(spans: Sequence[Span]) -> list[Tile]:
    """The spans cut into tiles, in packed order."""
    tiles: list[Tile] = []
    offset = 0
    for span in spans:
        for start in range(span.start, span.end, TILE_TOKENS):
            number = min(TILE_TOKENS, span.end - start)
            tiles.append(Tile(span.slot, offset, start, number, span.start))
            offset += number
    return tiles


def launches(spans: Sequence[Span], size: int) -> Iterator[list[Span]]:
    """The spans cut, in order, into groups of `size` tokens, the last one shorter; every wanted logit stays wanted."""
    group: list[Span] = []
    room = size
    for span in spans:
        rest: Span | None = span
        while rest is not None:
            head, rest = _cut(rest, room)
            group.append(head)
            room -= len(head.token_ids)
            if room == 0:
                yield group
                group, room = [], size
    if group:
        yield group


def _cut(span: Span, count: int) -> tuple[Span, Span | None]:
    """The first `count` tokens of a span, and what is left of it."""
    if len(span.token_ids) <= count:
        return span, None
    wanted = max(0, count - (len(span.token_ids) - span.num_logits))
    head = Span(span.slot, span.start, span.token_ids[:count], wanted)
    return head, Span(span.slot, head.end, span.token_ids[count:], span.num_logits - wanted)
