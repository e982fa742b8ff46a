"""Ragged attention over the masked slot cache, registered with transformers under one name.

A name that transformers' mask registry does not know makes the model build no mask, and hand this function whatever the
cache's `update` returned (the whole slabs) and the `spec` keyword of the forward (where each row lies).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from specrouter_llm.runtime.batch import Span

ATTENTION_NAME = "specrouter"
EXTENT_STEP = 512
"""Contexts are rounded up to this many positions: the bits of SDPA depend on the extent, so it must not vary step by step."""
_ROW_STEP = 4  # SDPA's CPU kernel is bit-stable per row only for query counts that are multiples of this


def extent(length: int) -> int:
    """`length` rounded up to the next multiple of EXTENT_STEP."""
    return -(-length // EXTENT_STEP) * EXTENT_STEP


class RaggedContext:
    """Where each row of a packed forward lies. Deliberately without a `.to`: accelerate's hooks must pass it through."""

    def __init__(self, spans: Sequence[Span], capacity: int) -> None:
        self.spans = tuple(spans)
        flat = [span.slot * capacity + p for span in spans for p in range(span.start, span.end)]
        self._write_index = torch.tensor(flat, dtype=torch.long)
        self._on_device: dict[torch.device, Tensor] = {}
        self._masks: dict[tuple[int, int, int | None, torch.device, torch.dtype], Tensor] = {}

    def write_index(self, device: torch.device) -> Tensor:
        """Flat positions [N] in a slab seen as [slots * capacity, ...]."""
        if device not in self._on_device:
            self._on_device[device] = self._write_index.to(device)
        return self._on_device[device]

    def mask(self, row: int, group: int, window: int | None, query: Tensor) -> Tensor:
        """Additive mask [padded group * n, extent] of one row; the query heads of a group lie one after another."""
        key = (row, group, window, query.device, query.dtype)
        if key not in self._masks:
            self._masks[key] = _additive_mask(self.spans[row], group, window, query)
        return self._masks[key]


def _additive_mask(span: Span, group: int, window: int | None, query: Tensor) -> Tensor:
    positions = torch.arange(span.start, span.end, device=query.device)[:, None]
    keys = torch.arange(extent(span.end), device=query.device)[None, :]
    hidden = keys > positions
    if window is not None:
        hidden |= keys <= positions - window
    mask = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill_(hidden, -torch.inf)
    mask = mask.repeat(group, 1)
    return F.pad(mask, (0, 0, 0, -mask.shape[0] % _ROW_STEP))


def ragged_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    spec: RaggedContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of packed queries [1, Hq, N, D] over slabs [slots, capacity, Hk, D]; returns ([1, N, Hq, Dv], None).

    Every row runs over its own context only, rounded to EXTENT_STEP, so nothing about its neighbours can reach its bits.
    Query heads that share a key head are folded into query rows.
    """
    if spec is None:
        raise RuntimeError("a model prepared for SpecRouter was called outside of its runner")
    heads, key_heads = query.shape[1], key.shape[2]
    group = heads // key_heads
    output = query.new_empty(query.shape[2], heads, value.shape[3])
    offset = 0
    for row, span in enumerate(spec.spans):
        count = len(span.token_ids)
        size = extent(span.end)
        folded = query[0, :, offset : offset + count].reshape(key_heads, group * count, -1)
        folded = F.pad(folded, (0, 0, 0, -folded.shape[1] % _ROW_STEP))
        keys = key[span.slot, :size].transpose(0, 1)
        values = value[span.slot, :size].transpose(0, 1)
        mask = spec.mask(row, group, sliding_window, query)
        attended = _attend(folded, keys, values, mask, scaling, softcap)[:, : group * count]
        output[offset : offset + count] = attended.reshape(heads, count, -1).transpose(0, 1)
        offset += count
    return output[None], None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, softcap: float | None
) -> Tensor:
    """[Hk, m, D] x [Hk, L, D] -> [Hk, m, Dv]; written out only where SDPA lacks soft-capping (Gemma 2)."""
    if softcap is None:
        return F.scaled_dot_product_attention(query[None], key[None], value[None], attn_mask=mask, scale=scaling)[0]
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    scores = torch.tanh(query @ key.transpose(1, 2) * scale / softcap) * softcap + mask
    return scores.softmax(dim=-1) @ value


AttentionInterface.register(ATTENTION_NAME, ragged_attention)
