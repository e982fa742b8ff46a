"""What a runner is asked to run, in pieces."""

from hypothesis import given
from hypothesis import strategies as st

from specrouter_llm.runtime.batch import Span, blocks, packed_inputs


@st.composite
def some_spans(draw):
    lengths = draw(st.lists(st.integers(0, 9), max_size=5))
    spans = []
    for slot, length in enumerate(lengths):
        start = draw(st.integers(0, 20))
        ids = draw(st.lists(st.integers(0, 99), min_size=length, max_size=length))
        spans.append(Span(slot, start, ids, draw(st.integers(0, length))))
    return spans


@given(spans=some_spans(), most=st.integers(1, 12))
def test_blocks_feed_the_same_tokens_and_want_the_same_logits(spans, most):
    found = list(blocks(spans, most))
    fed = [span for block in found for span in block]
    whole, pieces = packed_inputs(spans), packed_inputs(fed)
    assert all(one.equal(other) for one, other in zip(whole, pieces, strict=True))
    assert [s.slot for s in spans for _ in s.token_ids] == [s.slot for s in fed for _ in s.token_ids]
    sizes = [sum(len(span.token_ids) for span in block) for block in found]
    assert all(size == most for size in sizes[:-1])
    assert all(0 < size <= most for size in sizes)
