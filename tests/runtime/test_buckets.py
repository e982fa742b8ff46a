"""Which shape a forward is padded to, and how it is cut: arithmetic, for any spans."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.buckets import TOKENS, bucket_for, launches, tiles_of

CAPACITY = 4096


@st.composite
def ragged_spans(draw, longest=40):
    """Up to six rows in different slots."""
    spans = []
    for slot in draw(st.permutations(range(6)))[: draw(st.integers(1, 6))]:
        ids = draw(st.lists(st.integers(0, 99), min_size=1, max_size=longest))
        start = draw(st.integers(0, CAPACITY - len(ids)))
        spans.append(Span(slot, start, ids, draw(st.integers(0, len(ids)))))
    return spans


def fed(spans):
    """(slot, position, token, whether its logits are wanted) of every token, in order."""
    return [
        (span.slot, span.start + i, token_id, i >= len(span.token_ids) - span.num_logits)
        for span in spans
        for i, token_id in enumerate(span.token_ids)
    ]


@given(spans=ragged_spans())
def test_a_bucket_holds_what_it_is_for(spans):
    """Enough tokens, extent and tiles, none of them more than needed; nothing for long prompts."""
    tokens = len(fed(spans))
    bucket = bucket_for(spans, CAPACITY)
    if bucket is None:
        assert tokens > TOKENS[-1]
        return
    assert min(size for size in TOKENS if tokens <= size) == bucket.tokens
    longest = max(span.end for span in spans)
    assert longest <= bucket.extent <= max(512, min(CAPACITY, 4 * longest))
    assert len(tiles_of(spans)) <= bucket.tiles(num_rows=6)


@given(spans=ragged_spans())
def test_tiles_cover_every_token_once(spans):
    """In packed order, each within one row."""
    slots = {span.slot: span for span in spans}
    covered = []
    for tile in tiles_of(spans):
        assert tile.offset == len(covered)
        assert 1 <= tile.number <= 8
        covered += [(tile.slot, position) for position in range(tile.start, tile.start + tile.number)]
        assert slots[tile.slot].start == tile.first <= tile.start
    assert covered == [token[:2] for token in fed(spans)]


@given(spans=ragged_spans(), size=st.integers(1, 70))
def test_launches_feed_the_same_tokens(spans, size):
    """All but the last are full; tokens, order and wanted logits are those of the spans."""
    parts = list(launches(spans, size))
    assert [token for part in parts for token in fed(part)] == fed(spans)
    counts = [len(fed(part)) for part in parts]
    assert all(count == size for count in counts[:-1])
    assert 1 <= counts[-1] <= size
    assert all(len(span.token_ids) for part in parts for span in part)


def test_one_size_is_one_number_of_tokens():
    """Whatever is fed."""
    few, many = [Span(0, 0, [1], 1)], [Span(0, 3000, [1] * 60, 1)]
    assert bucket_for(few, CAPACITY, [64]).tokens == bucket_for(many, CAPACITY, [64]).tokens
