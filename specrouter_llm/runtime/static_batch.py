"""The inputs of a recorded forward: part of one device tensor at a fixed address, written anew for every step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.buckets import Bucket, Tile, tiles_of
from specrouter_llm.runtime.cache import SlotCache

_BY_TILE = len(Tile._fields)


class TileAttention(Protocol):
    """Attention by device tensors alone; see `triton_attention.tile_attention`."""

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        tiles: Tensor,
        extent: int,
        scaling: float | None,
        window: int | None,
        softcap: float | None,
    ) -> Tensor:
        """[Hq, N, D] over slabs [slots, capacity, Hk, D] -> [N, Hq, Dv].

        Zeros for tokens of no tile; anything where whatever follows looks at each row for itself.
        """
        ...


class StaticBatch:
    """An `AttentionContext` of one bucket, whose rows are whatever was filled in last."""

    def __init__(self, bucket: Bucket, cache: SlotCache, attention: TileAttention, fields: Tensor) -> None:
        """`fields`, int64 [`num_fields`] on the device, is where its inputs are written to."""
        self.bucket = bucket
        self._fields = fields
        self._attention = attention
        self._capacity = cache.capacity
        self._trash = cache.num_slots * cache.capacity
        self._num_tiles = bucket.tiles(cache.num_slots)
        by_token, by_tile = fields.split([5 * bucket.tokens, _BY_TILE * self._num_tiles])
        self.ids, self.positions, self.slots, self._write_index, self.wanted = by_token.view(5, -1).unbind()
        self._tiles = by_tile.view(_BY_TILE, -1)

    @classmethod
    def empty(cls, bucket: Bucket, cache: SlotCache, device: torch.device, attention: TileAttention) -> StaticBatch:
        """A batch with inputs of its own, of no row yet: what it runs over writes nothing that anyone reads."""
        fields = torch.zeros(cls.num_fields(bucket, cache), dtype=torch.long, device=device)
        batch = cls(bucket, cache, attention, fields)
        batch.fill([])
        return batch

    def fill(self, spans: Sequence[Span]) -> None:
        """Sets the inputs; see `fields_of`."""
        upload(self.fields_of(spans), self._fields)

    @staticmethod
    def num_fields(bucket: Bucket, cache: SlotCache) -> int:
        return 5 * bucket.tokens + _BY_TILE * bucket.tiles(cache.num_slots)

    def fields_of(self, spans: Sequence[Span]) -> list[int]:
        """What the inputs are for these spans; `wanted` begins with the indices of the wanted logits.

        Tokens that pad the bucket go to the cache's trash and attend to nothing; nothing reads what they leave there.
        """
        ids: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        wanted: list[int] = []
        for span in spans:
            ids.extend(span.token_ids)
            positions.extend(range(span.start, span.end))
            slots.extend([span.slot] * len(span.token_ids))
            wanted.extend(range(len(ids) - span.num_logits, len(ids)))
        writes = [slot * self._capacity + position for slot, position in zip(slots, positions, strict=True)]
        writes.extend(range(self._trash, self._trash + self.bucket.tokens - len(writes)))
        tiles = tiles_of(spans)
        by_tile = zip(*tiles, strict=True) if tiles else [()] * _BY_TILE
        fields = [
            number for field in (ids, positions, slots, writes, wanted) for number in padded(field, self.bucket.tokens)
        ]
        return fields + [number for field in by_tile for number in padded(field, self._num_tiles)]

    def write_index(self, device: torch.device) -> Tensor:
        return self._write_index

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scaling: float | None,
        window: int | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        return self._attention(query, key, value, self._tiles, self.bucket.extent, scaling, window, softcap)


def padded(field: Sequence[int], length: int) -> list[int]:
    """The field with zeros behind, up to a length."""
    return [*field, *[0] * (length - len(field))]


def upload(fields: Sequence[int], to: Tensor) -> None:
    """Writes numbers to a device tensor, in one copy that the host does not wait for.

    Memory that is not pinned is copied aside by the driver before the call returns, so what it came from may go at once.
    """
    to.copy_(torch.tensor(fields, dtype=torch.long), non_blocking=True)
