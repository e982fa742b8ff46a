"""The probe at load: are the bits of a row's logits the same whatever runs beside it and however its tokens are fed?

Only then can the engine promise equal tokens bit for bit. What decides is the machine, the build of torch and the shapes,
so it is asked, not assumed: of attention alone over long contexts, and of the whole forward over a few tokens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from specrouter_llm.runtime.attention import EXTENT_STEP, STORAGE_STEP, RaggedContext, rounded_up
from specrouter_llm.runtime.batch import Span

_STARTS = (0, 200, EXTENT_STEP - 3, 512 - 5, 1100)
"""Contexts that attention is probed at; some cross the border of an extent."""
_COUNTS = (1, 2, 3, 5, 9)
"""Numbers of tokens that are fed at a time."""
_LENGTH = 18
_FORWARD_LENGTH = 9
"""Tokens for the whole model: enough for every pattern below, few enough for a large one."""
_FEW_MATES = (2, 7)
"""Tokens of another row before them."""
PROBE_LENGTH = 1536
"""Positions that `is_stable_in` needs to try all its contexts."""


def is_bitwise(forward: Callable[[Sequence[Span]], Tensor], vocab_size: int, shape: tuple[int, int, int]) -> bool:
    """`forward` has two slots to write to; `shape` is (query heads, key heads, head size)."""
    with torch.inference_mode():
        return all(_attention_is_stable(start, *shape) for start in _STARTS) and _forward_is_stable(forward, vocab_size)


def is_stable_in(
    forward: Callable[[Sequence[Span]], Tensor], vocab_size: int, length: int, sizes: Sequence[int]
) -> bool:
    """`is_bitwise` of a forward that is padded to one of a few numbers of tokens: in all of them, and over long contexts.

    `forward` has two slots of `length` positions to write to.
    """
    starts = [start for start in _STARTS if start + _FORWARD_LENGTH <= length]
    mates = [min(size - _FORWARD_LENGTH, length) for size in sizes if size > _FORWARD_LENGTH]
    return bool(starts) and all(_forward_is_stable(forward, vocab_size, start, mates) for start in starts)


def _attention_is_stable(start: int, heads: int, key_heads: int, head_dim: int) -> bool:
    """Queries all at once, a few at a time, beside another row, and as the beginning of a chunk of a prompt."""
    generator = torch.Generator().manual_seed(start)
    capacity = rounded_up(start + EXTENT_STEP, STORAGE_STEP)
    keys, values = (torch.randn(2, capacity, key_heads, head_dim, generator=generator) for _ in range(2))
    queries = torch.randn(heads, EXTENT_STEP, head_dim, generator=generator)

    def run(first: int, count: int, mates: int = 0) -> Tensor:
        spans = [Span(0, start + first, [0] * count, 0), Span(1, 7, [0] * mates, 0)][: 1 + bool(mates)]
        packed = torch.cat([queries[:, first : first + count], queries[:, :mates]], dim=1)
        return RaggedContext(spans, capacity).attend(packed, keys, values, head_dim**-0.5)[: min(count, _LENGTH)]

    whole = run(0, _LENGTH)
    pieces = [torch.cat([run(i, min(n, _LENGTH - i)) for i in range(0, _LENGTH, n)]) for n in _COUNTS]
    return all(torch.equal(whole, other) for other in (*pieces, run(0, _LENGTH, mates=4), run(0, EXTENT_STEP)))


def _forward_is_stable(
    forward: Callable[[Sequence[Span]], Tensor], vocab_size: int, start: int = 0, mates: Sequence[int] = _FEW_MATES
) -> bool:
    """The same tokens fed whole, in pieces, and behind another row."""
    ids = [(11 + 7 * i) % vocab_size for i in range(start + max(_FORWARD_LENGTH, *mates))]
    end = start + _FORWARD_LENGTH
    if start:
        forward([Span(0, 0, ids[:start], 0)])

    def run(*cuts: int, mates: int = 0) -> Tensor:
        mate = [Span(1, 0, ids[:mates], 0)] if mates else []
        edges = (start, *(start + cut for cut in cuts), end)
        return torch.cat([forward([*mate, Span(0, a, ids[a:b], b - a)]) for a, b in itertools.pairwise(edges)])

    whole = run()
    fewer, *more = mates
    others = (run(1, 2, 4), run(4, 7), run(5, mates=fewer), *(run(mates=count) for count in more))
    return all(torch.equal(whole, other) for other in others)
