"""The Triton kernels: right, and each token's bits its own.

Without a CUDA device they can run in triton's interpreter, where triton is installed. It has no bfloat16 products.

    TRITON_INTERPRET=1 pytest tests/runtime/test_triton_attention.py
"""

from __future__ import annotations

import copy
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import MistralConfig, MistralForCausalLM

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1 from the start", allow_module_level=True)

from specrouter_llm.runtime import triton_attention
from specrouter_llm.runtime.attention import RaggedContext
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.buckets import tiles_of
from specrouter_llm.runtime.graphs import GraphRunner
from specrouter_llm.runtime.runner import EagerRunner
from specrouter_llm.runtime.triton_attention import agrees, tile_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CAPACITY = 1536
"""More than one group of splits."""


def table_of(spans, padding=0):
    """The tiles as the kernels take them, with empty ones behind."""
    rows = [*tiles_of(spans), *[(0,) * 5] * padding]
    return torch.tensor(rows, device=DEVICE).t().contiguous()


def states(heads, key_heads, head_dim, dtype, tokens, value_dim=None, seed=0):
    """Random queries and slabs of three slots."""
    generator = torch.Generator().manual_seed(seed)
    slabs = (3, CAPACITY, key_heads)
    shapes = [(heads, tokens, head_dim), (*slabs, head_dim), (*slabs, value_dim or head_dim)]
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


def ragged(data, longest=1300):
    """One to three rows that feed a few tokens each at any position."""
    slots = data.draw(st.permutations([0, 1, 2]))[: data.draw(st.integers(1, 3))]
    return [Span(s, data.draw(st.integers(0, longest)), [0] * data.draw(st.integers(1, 12)), 0) for s in slots]


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_it_is_attention(data):
    """Any rows, head counts and sizes, sliding windows and soft caps: what RaggedContext gives."""
    heads, key_heads = data.draw(st.sampled_from([(4, 2), (3, 3), (7, 1), (8, 1), (6, 2)]))
    dtype, tolerance = data.draw(st.sampled_from([(torch.float64, 1e-9), (torch.float32, 1e-5), (torch.float16, 5e-3)]))
    window = data.draw(st.sampled_from([None, 5, 300]))
    softcap = data.draw(st.sampled_from([None, 2.0]))
    scaling = data.draw(st.sampled_from([None, 0.3]))
    spans = ragged(data)
    tokens = sum(len(span.token_ids) for span in spans)
    sizes = data.draw(st.sampled_from([(16, 16), (24, 24), (24, 16)]))
    query, key, value = states(heads, key_heads, sizes[0], dtype, tokens, sizes[1])
    ours = tile_attention(query, key, value, table_of(spans), CAPACITY, scaling, window, softcap)
    scale = scaling if scaling is not None else sizes[0] ** -0.5
    expected = RaggedContext(spans, CAPACITY).attend(query, key, value, scale, window, softcap)
    assert torch.allclose(expected, ours, atol=tolerance, rtol=0.0)


@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_bits_depend_on_nothing_but_the_row(data):
    """Alone or in company, in one piece or in two, in a small or a large bucket: the same bits."""
    window = data.draw(st.sampled_from([None, 300]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float16]))
    start, count = data.draw(st.integers(0, 700)), data.draw(st.integers(2, 12))
    query, key, value = states(4, 2, 16, dtype, 30)
    row = Span(1, start, [0] * count, 0)

    def run(spans, queries, extent=CAPACITY, padding=0):
        return tile_attention(queries, key, value, table_of(spans, padding), extent, None, window, None)

    alone = run([row], query[:, :count])
    mates = [Span(0, data.draw(st.integers(0, 900)), [0] * data.draw(st.integers(1, 9)), 0)]
    before = len(mates[0].token_ids)
    company = run([*mates, row], torch.cat([query[:, 20 : 20 + before], query[:, :count]], 1))[before:]
    cut = data.draw(st.integers(1, count - 1))
    pieces = [
        run([Span(1, start, [0] * cut, 0)], query[:, :cut]),
        run([Span(1, start + cut, [0] * (count - cut), 0)], query[:, cut:count]),
    ]
    small = run([row], query[:, :count], extent=max(start + count, 512), padding=3)
    assert torch.equal(alone, company)
    assert torch.equal(alone, torch.cat(pieces))
    assert torch.equal(alone, small)


def test_bits_do_not_depend_on_how_many_tiles_share_the_scratch(monkeypatch):
    """Tiles that are attended to some after others, because their partial sums would take too much, get the same bits."""
    spans = [Span(0, 900, [0] * 20, 0), Span(2, 3, [0] * 9, 0)]
    query, key, value = states(4, 2, 16, torch.float32, 29)
    arguments = (query, key, value, table_of(spans, 2), CAPACITY, None, None, None)
    together = tile_attention(*arguments)
    new_empty, taken = torch.Tensor.new_empty, []
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: taken.append(new_empty(*a, **k)) or taken[-1])
    held = []
    for room in (1, 10**5, 10**9):
        monkeypatch.setattr(triton_attention, "MOST_SCRATCH", room)
        taken.clear()
        assert torch.equal(together, tile_attention(*arguments))
        held.append(taken[0].nbytes + taken[1].nbytes)
    assert held[0] < held[1] <= 10**5 < held[2]


def test_padding_gets_zeros():
    """Tokens that no tile covers come out as zeros, unless nobody looks at them."""
    query, key, value = states(4, 2, 16, torch.float32, 6)
    table = table_of([Span(0, 5, [0] * 2, 0)], 2)
    output = tile_attention(query, key, value, table, 512, None, None, None)
    assert output[2:].count_nonzero() == 0
    assert output[:2].count_nonzero() > 0
    assert torch.equal(output[:2], tile_attention(query, key, value, table, 512, None, None, None, fill=False)[:2])


@pytest.mark.parametrize(
    ("dtype", "heads", "head_dim", "expected"),
    [
        (torch.float32, 4, 16, True),
        (torch.float16, 4, 80, True),
        (torch.int8, 4, 16, False),
        (torch.float32, 64, 16, False),
        (torch.float32, 4, 512, False),
    ],
)
def test_what_it_takes_on(dtype, heads, head_dim, expected):
    """The check at load accepts what works and refuses other shapes."""
    assert agrees(DEVICE, dtype, heads, 2, head_dim) is expected


def test_a_whole_model_runs_over_the_kernels():
    """Prefill, a mixed step and a rejection through the graph runner with the real attention."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = MistralForCausalLM(MistralConfig(vocab_size=40, num_key_value_heads=2, sliding_window=5, **shape))
    model = model.to(DEVICE).eval()
    eager = EagerRunner("m", copy.deepcopy(model), num_slots=2, context_length=512)
    options = {"num_slots": 2, "context_length": 512, "attention": tile_attention}
    runner = GraphRunner("m", model, capture=lambda run: run, **options)
    ids = [(7 * i) % 40 for i in range(30)]
    for spans in (
        [Span(0, 0, ids[:20], 0)],
        [Span(1, 0, ids[:2], 2), Span(0, 20, ids[20:], 9)],
        [Span(0, 25, [3, 1], 2), Span(1, 2, [5], 1)],
    ):
        assert torch.allclose(eager.forward(spans), runner.forward(spans), atol=1e-4)
