"""The masked slot cache of one model: fixed slabs, written by position, never moved when tokens are rejected.

Per layer K and V are [slots, capacity, key heads, head size]. What is valid is not known here: a row's logical length
lives in the StateManager, everything beyond it is hidden by the attention mask and overwritten by the next write.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from specrouter_llm.runtime.attention import EXTENT_STEP, STORAGE_STEP, AttentionContext, RaggedContext, rounded_up
from specrouter_llm.runtime.batch import Span


class SlotLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is untyped
    """One layer's slabs, made on the first write so that device, dtype and head counts are the layer's own."""

    is_compileable = False
    is_croppable = False
    is_sliding = False

    def __init__(self, cache: SlotCache) -> None:
        super().__init__()
        # Weak: with a circle the slabs, which may be gigabytes, would wait for the garbage collector.
        self._cache = cast("SlotCache", weakref.proxy(cache))
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Zeros, not empty memory: what lies behind the mask must be finite."""
        self._key_rows, self.keys = self._cache.slab(key_states)
        self._value_rows, self.values = self._cache.slab(value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes [1, heads, N, size] at the positions of the current forward; returns the whole slabs."""
        return self.write(key_states[0].transpose(0, 1), value_states[0].transpose(0, 1))

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """`update` for [N, heads, size].

        What is not finite is stored as 0, for a masked position has weight 0, but 0 * NaN is NaN.
        """
        key_rows, value_rows = self.rows(keys, values)
        context = self._cache.context
        if context is None:
            raise RuntimeError("the slot cache was written to outside of a forward pass")
        index = context.write_index(keys.device)
        if self is self._cache.layers[-1]:
            self._cache.mark(keys, index)
        key_rows.index_copy_(0, index, _finite(keys))
        value_rows.index_copy_(0, index, _finite(values))
        return self.keys, self.values

    def rows(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """The slabs as [slots * capacity + trash, heads, size]; the first call makes them, for states like these."""
        if self.keys is None:
            self.lazy_initialization(keys, values)
        return self._key_rows, self._value_rows

    def grow(self, capacity: int, used: Sequence[int]) -> None:
        """Room for `capacity` positions per slot; only positions ever written (`used` per slot) are copied."""
        if self.keys is None or self.keys.shape[1] == self.values.shape[1] == capacity:
            return
        if self.keys.shape[1] != capacity:
            self.keys = _grown(self.keys, capacity, used)
        self._key_rows = self.keys.flatten(0, 1)
        self.values = _grown(self.values, capacity, used)
        self._value_rows = self.values.flatten(0, 1)

    def get_mask_sizes(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        return self._cache.capacity, 0

    def get_seq_length(self, *args: Any, **kwargs: Any) -> int:
        return 0

    def get_max_length(self) -> int:
        return self._cache.capacity


def _finite(states: Tensor) -> Tensor:
    return states.nan_to_num(0.0, 0.0, 0.0)


def _grown(slab: Tensor, capacity: int, used: Sequence[int]) -> Tensor:
    grown = torch.zeros((slab.shape[0], capacity, *slab.shape[2:]), dtype=slab.dtype, device=slab.device)
    for slot, length in enumerate(used):
        grown[slot, :length] = slab[slot, :length]
    return grown


class SlotCache(Cache):  # type: ignore[misc]  # transformers is untyped
    """All layers of one model's cache."""

    def __init__(self, num_layers: int, num_slots: int, max_length: int, *, trash: int = 0) -> None:
        """`trash` rows behind each slab take what tokens that only pad a batch write; nothing reads them.

        A cache with trash has its full capacity from the start and never moves: graphs hold its addresses.
        """
        self.num_slots = num_slots
        self.max_length = max_length
        self.trash = trash
        self.capacity = rounded_up(max_length, STORAGE_STEP) if trash else STORAGE_STEP
        self.context: AttentionContext | None = None
        self._growing = 0
        """The capacity of layers that have grown, if others failed to."""
        self._used = [0] * num_slots
        self._broken: Tensor | None = None
        """[slots, capacity]: positions whose keys and values were not finite, and are stored as zeros."""
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])

    def reserve(self, length: int) -> None:
        """Room for `length` positions in every slot. Grows layer by layer, so the peak is one layer's copy."""
        if length > self.max_length:
            raise ValueError(f"{length} positions were asked for, the cache is limited to {self.max_length}")
        capacity = max(rounded_up(length, STORAGE_STEP), self._growing)
        if capacity <= self.capacity:
            return
        self._growing = capacity  # should one of them fail, the next forward begins with the rest
        for layer in self.layers:
            layer.grow(capacity, self._used)
        if self._broken is not None and self._broken.shape[1] != capacity:
            self._broken = _grown(self._broken, capacity, self._used)
            self._broken_rows = self._broken.flatten()
        self.capacity = capacity

    def slab(self, like: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros for states [N, ...]: rows [slots * capacity + trash, ...], and all but the trash as [slots, capacity, ...]."""
        number = self.num_slots * self.capacity
        rows = torch.zeros((number + self.trash, *like.shape[1:]), dtype=like.dtype, device=like.device)
        return rows, rows[:number].unflatten(0, (self.num_slots, self.capacity))

    def expect(self, spans: Sequence[Span]) -> None:
        """Makes room for what a forward is going to write."""
        self.reserve(max(span.end for span in spans))
        for span in spans:
            self._used[span.slot] = max(self._used[span.slot], rounded_up(span.end, EXTENT_STEP))

    def begin(self, spans: Sequence[Span]) -> RaggedContext:
        """Prepares one forward over `spans`."""
        self.expect(spans)
        context = RaggedContext(spans, self.capacity)
        self.context = context
        return context

    def mark(self, keys: Tensor, index: Tensor) -> None:
        """Notes which of the tokens just written are broken, from the last layer's keys [N, heads, size].

        A token that is not finite anywhere below is not finite here: the residual stream carries it up.
        """
        broken = ~keys.isfinite().all(dim=2).all(dim=1)
        self.broken_slab(keys.device)
        self._broken_rows.index_copy_(0, index, broken)

    def broken_slab(self, device: torch.device) -> Tensor:
        """[slots, capacity] whether a position is broken; made by the first call."""
        if self._broken is None:
            self._broken_rows, self._broken = self.slab(torch.empty(0, dtype=torch.bool, device=device))
        return self._broken

    def without_broken(self, logits: Tensor, spans: Sequence[Span]) -> Tensor:
        """Logits with NaN wherever a token at or before the position is broken: what attention would have passed on."""
        if self._broken is None or not self._broken.any():
            return logits
        wanted = [(span.slot, end - 1) for span in spans for end in range(span.end - span.num_logits + 1, span.end + 1)]
        slots, positions = torch.tensor(wanted, dtype=torch.long, device=self._broken.device).view(-1, 2).unbind(1)
        return self.nan_where_broken(logits, slots, positions, self.capacity)

    def nan_where_broken(self, logits: Tensor, slots: Tensor, positions: Tensor, extent: int) -> Tensor:
        """`without_broken` by device tensors [n] alone, over the first `extent` positions of each slot."""
        if self._broken is None:
            return logits
        past = torch.arange(extent, device=positions.device) <= positions[:, None]
        hit = (self._broken[slots, :extent] & past).any(dim=1)
        return logits.masked_fill(hit.to(logits.device)[:, None], torch.nan)

    def clear(self, slot: int) -> None:
        """Zeroes all that was ever written to a slot."""
        for layer in self.layers:
            if layer.keys is not None:
                layer.keys[slot, : self._used[slot]].zero_()
                layer.values[slot, : self._used[slot]].zero_()
        if self._broken is not None:
            self._broken[slot] = False
        self._used[slot] = 0

    @property
    def nbytes(self) -> int:
        """Bytes of all slabs."""
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.layers if layer.keys is not None)
