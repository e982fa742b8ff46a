"""Several tokens in one launch: a forward over what each row lacks, its choice, and forwards over the choices themselves.

All but the token ids is known before: positions, places in the cache, tiles and the keys of the noise are written for
every turn at once. The ids go from each choice to the next forward on the device, and to the host when all are made.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.buckets import Bucket
from specrouter_llm.runtime.cache import SlotCache
from specrouter_llm.runtime.static_batch import StaticBatch, TileAttention, padded, upload
from specrouter_llm.sampling.choice import pick
from specrouter_llm.sampling.row import Warp

Keys = Sequence[tuple[int, int]]
"""`row_keys` of one row's choices, in order; empty if it chooses greedily."""
_NO_KEY = (0, 0)


@runtime_checkable
class LoopingRunner(Protocol):
    """A runner that can go on by its own choices without the host between them."""

    def loop(self, spans: Sequence[Span], count: int, warp: Warp, keys: Sequence[Keys]) -> Tensor | None:
        """The next `count` choices of each row after its span: ids, int64 [rows, count] on the runner's device.

        Writes the cache as `forward` over the spans and all choices but the last would, and perhaps behind that. BROKEN
        stands for a choice that could not be made; what follows it in its row means nothing. None if these rows must go
        token by token.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoopShape:
    """What a loop is recorded for."""

    first: Bucket
    later: Bucket
    count: int
    """Choices per row."""
    warp: Warp


class DraftLoop:
    """The inputs of one shape, and the turns over them."""

    def __init__(self, shape: LoopShape, cache: SlotCache, device: torch.device, attention: TileAttention) -> None:
        self._warp = shape.warp
        self._rows = shape.later.tokens
        buckets = [shape.first, *[shape.later] * (shape.count - 1)]
        sizes = [StaticBatch.num_fields(bucket, cache) for bucket in buckets]
        self._fields = torch.zeros(sum(sizes) + 2 * self._rows * shape.count, dtype=torch.long, device=device)
        *parts, keys = self._fields.split([*sizes, 2 * self._rows * shape.count])
        self._keys = keys.view(shape.count, self._rows, 2)
        self._turns = [StaticBatch(bucket, cache, attention, part) for bucket, part in zip(buckets, parts, strict=True)]

    def fill(self, spans: Sequence[Span], keys: Sequence[Keys]) -> None:
        """Sets the inputs of all turns; every span wants the logits of its last token.

        Rows may have fewer keys than there are turns: what is chosen without one is nobody's.
        """
        fields: list[int] = []
        for number, turn in enumerate(self._turns):
            fed = [Span(span.slot, span.end + number - 1, [0], 1) for span in spans] if number else spans
            fields += turn.fields_of(fed)
        for number in range(len(self._turns)):
            now = [part for row in keys for part in (row[number] if number < len(row) else _NO_KEY)]
            fields += padded(now, 2 * self._rows)
        upload(fields, self._fields)

    def run(self, logits_of: Callable[[StaticBatch, Tensor], Tensor]) -> Tensor:
        """Choices [rows of the bucket, count]; `logits_of` is the forward of a batch with the given ids [tokens, V]."""
        chosen: list[Tensor] = []
        for turn, keys in zip(self._turns, self._keys.to(torch.int32), strict=True):
            # What is not a choice must still be a token.
            logits = logits_of(turn, chosen[-1].clamp_min(0) if chosen else turn.ids)
            chosen.append(pick(logits.index_select(0, turn.wanted[: self._rows]), self._warp, keys))
        return torch.stack(chosen, dim=1)
