"""Several tokens without the host between them: a forward over what each row lacks, its choice, and forwards over choices.

All but the token ids is known before, and changes by one from turn to turn: positions, places in the cache, tiles, and which
key of the noise is next. So two graphs serve any number of choices, a first turn and another one that moves the inputs on,
and launches of the latter follow each other. The ids go from each choice to the next forward on the device, and to the host
when all are made.
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
LogitsOf = Callable[[StaticBatch, Tensor], Tensor]
"""The forward of a batch with the given ids [tokens]: logits [tokens, V]."""
MOST_CHOICES = 32
"""Of one loop."""
_NO_KEY = (0, 0)


@runtime_checkable
class LoopingRunner(Protocol):
    """A runner that can go on by its own choices without the host between them."""

    def loops(self, warp: Warp) -> bool:
        """Whether it can choose under these settings without the host."""
        ...

    def loop(self, spans: Sequence[Span], count: int, warp: Warp, keys: Sequence[Keys]) -> Tensor | None:
        """The next `count` choices of each row after its span: ids, int64 [rows, count] on the runner's device.

        Writes the cache as `forward` over the spans and all choices but the last would. BROKEN stands for a choice that
        could not be made; what follows it in its row means nothing. None if these rows must go token by token.
        """
        ...


@dataclass(frozen=True, slots=True)
class LoopShape:
    """What a loop is recorded for."""

    first: Bucket
    later: Bucket
    warp: Warp


class DraftLoop:
    """The inputs of one shape, and the turns over them."""

    def __init__(self, shape: LoopShape, cache: SlotCache, device: torch.device, attention: TileAttention) -> None:
        """Nobody takes part before `fill`."""
        self._warp = shape.warp
        self._rows = shape.later.tokens
        first, later = (StaticBatch.num_fields(bucket, cache) for bucket in (shape.first, shape.later))
        sizes = [first, later + 1, later + 1, 2 * self._rows * MOST_CHOICES]
        self._fields = torch.zeros(sum(sizes), dtype=torch.long, device=device)
        of_first, self._moving, self._moves, keys = self._fields.split(sizes)
        of_later, self._turn = self._moving.split([later, 1])
        self._first = StaticBatch(shape.first, cache, attention, of_first)
        self._later = StaticBatch(shape.later, cache, attention, of_later)
        self._keys = keys.view(MOST_CHOICES, self._rows, 2)
        self._chosen = torch.zeros(MOST_CHOICES, self._rows, dtype=torch.long, device=device)
        self.fill([], [])

    def fill(self, spans: Sequence[Span], keys: Sequence[Keys]) -> None:
        """Sets the inputs of the first turn, and how they move; every span wants the logits of its last token."""
        fields = self._first.fields_of(spans)
        places = [[Span(span.slot, span.end - 1 + turn, [0], 1) for span in spans] for turn in (0, 1)]
        now, then = (self._later.fields_of(fed) for fed in places)
        fields += [*now, 0]
        fields += [*(after - before for before, after in zip(now, then, strict=True)), int(bool(spans))]
        for number in range(max(map(len, keys), default=0)):
            fields += padded([part for row in keys for part in (row[number] if row else _NO_KEY)], 2 * self._rows)
        upload(fields, self._fields[: len(fields)])

    def start(self, logits_of: LogitsOf) -> Tensor:
        """The first choices, over the rows' spans."""
        return self._choose(logits_of(self._first, self._first.ids), self._first)

    def go_on(self, logits_of: LogitsOf) -> Tensor:
        """The next choices, over the last ones."""
        self._moving += self._moves
        return self._choose(logits_of(self._later, self._later.ids), self._later)

    def _choose(self, logits: Tensor, batch: StaticBatch) -> Tensor:
        """All choices so far, [MOST_CHOICES, rows of the bucket]."""
        keys = self._keys.index_select(0, self._turn)[0].to(torch.int32)
        chosen = pick(logits.index_select(0, batch.wanted[: self._rows]), self._warp, keys)
        self._chosen.index_copy_(0, self._turn, chosen[None])
        self._later.ids.copy_(chosen.clamp_min(0))  # what is not a choice must still be a token
        return self._chosen
