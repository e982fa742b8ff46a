"""Ragged attention over the masked slot cache, registered with transformers under one name.

A name that transformers' mask registry does not know makes the model build no mask, and hand this function whatever the
cache's `update` returned (the whole slabs) and the `spec` keyword of the forward (where each row lies).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from specrouter_llm.runtime.batch import Span

ATTENTION_NAME = "specrouter"
STORAGE_STEP = 512
"""Slabs hold a multiple of this many positions."""
EXTENT_STEP = 64
"""A query attends over its own context rounded up to a multiple of this."""
_ROW_STEP = 4  # batched products on a CPU are bit-stable per row only for query counts that are multiples of this


def rounded_up(length: int, step: int) -> int:
    """The next multiple of `step`."""
    return -(-length // step) * step


class Piece(NamedTuple):
    """Consecutive queries of one row that attend over the same extent.

    The bits of attention depend on the extent, so it must be a function of the query's position alone: were it that of the
    longest query fed with it, a token's logits would depend on how many tokens were verified beside it.
    """

    slot: int
    offset: int
    """Of the first query, among all that are packed."""
    start: int
    """Its position."""
    number: int
    extent: int


def _pieces(spans: Sequence[Span]) -> list[Piece]:
    pieces: list[Piece] = []
    offset = 0
    for span in spans:
        start = span.start
        while start < span.end:
            extent = rounded_up(start + 1, EXTENT_STEP)
            count = min(span.end, extent) - start
            pieces.append(Piece(span.slot, offset, start, count, extent))
            offset += count
            start += count
    return pieces


class AttentionContext(Protocol):
    """Where each row of a packed forward lies, and how its attention is computed.

    Deliberately without a `.to`: accelerate's hooks must pass it through.
    """

    def write_index(self, device: torch.device) -> Tensor:
        """Flat positions [N] in a slab seen as [slots * capacity, ...]."""
        ...

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """[Hq, N, D] over slabs [slots, capacity, Hk, D] -> [N, Hq, Dv]."""
        ...


class RaggedContext:
    """Rows of any length, known on the host: attention piece by piece, on any device."""

    def __init__(self, spans: Sequence[Span], capacity: int) -> None:
        self.pieces = _pieces(spans)
        flat = [span.slot * capacity + p for span in spans for p in range(span.start, span.end)]
        self._write_index = torch.tensor(flat, dtype=torch.long)
        self._on_device: dict[torch.device, Tensor] = {}
        self._masks: dict[tuple[Piece, int, int | None, torch.device, torch.dtype], Tensor] = {}

    def write_index(self, device: torch.device) -> Tensor:
        if device not in self._on_device:
            self._on_device[device] = self._write_index.to(device)
        return self._on_device[device]

    def mask(self, piece: Piece, group: int, window: int | None, query: Tensor) -> Tensor:
        """Additive mask [padded n * group, extent] of one piece; a token's query heads of a group lie side by side."""
        key = (piece, group, window, query.device, query.dtype)
        if key not in self._masks:
            self._masks[key] = _additive_mask(piece, group, window, query)
        return self._masks[key]

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        """Every query runs over its own context only, rounded to EXTENT_STEP, so its neighbours cannot reach its bits.

        Query heads that share a key head are folded into query rows. Queries behind the last span get zeros.
        """
        heads, key_heads = query.shape[0], key.shape[2]
        group = heads // key_heads
        rows = query.transpose(0, 1).unflatten(1, (key_heads, group))
        output = query.new_zeros(len(rows), key_heads, group, value.shape[3])
        for piece in self.pieces:
            slot, offset, _, count, extent = piece
            folded = rows[offset : offset + count].transpose(0, 1).reshape(key_heads, count * group, -1)
            if missing := -folded.shape[1] % _ROW_STEP:
                folded = F.pad(folded, (0, 0, 0, missing))
            keys, values = key[slot, :extent].permute(1, 2, 0), value[slot, :extent].transpose(0, 1)
            mask = self.mask(piece, group, window, query)
            attended = _attend(folded, keys, values, mask, scaling, softcap)[:, : group * count]
            output[offset : offset + count] = attended.unflatten(1, (count, group)).transpose(0, 1)
        return output.flatten(1, 2)


def _additive_mask(piece: Piece, group: int, window: int | None, query: Tensor) -> Tensor:
    positions = torch.arange(piece.start, piece.start + piece.number, device=query.device)[:, None]
    keys = torch.arange(piece.extent, device=query.device)[None, :]
    hidden = keys > positions
    if window is not None:
        hidden |= keys <= positions - window
    mask = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill_(hidden, -torch.inf)
    mask = mask.repeat_interleave(group, dim=0)
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
    spec: AttentionContext | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of packed queries [1, Hq, N, D] over slabs [slots, capacity, Hk, D]; returns ([1, N, Hq, Dv], None)."""
    if spec is None:
        raise RuntimeError("a model prepared for SpecRouter was called outside of its runner")
    return spec.attend(query[0], key, value, scaling, sliding_window, softcap)[None], None


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float | None, softcap: float | None
) -> Tensor:
    """[Hk, m, D] x [Hk, D, L] -> [Hk, m, Dv], softmax in float32 at least.

    Written out: for the few queries of a decoding step torch's fused kernel takes up to twice the time on a CPU.
    """
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if softcap is None:
        scores = torch.baddbmm(mask, query, key, alpha=scale)
    else:
        scores = torch.tanh(torch.bmm(query, key) * (scale / softcap)) * softcap + mask
    weights = scores.softmax(dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32))
    return torch.bmm(weights.to(value.dtype), value)


AttentionInterface.register(ATTENTION_NAME, ragged_attention)
