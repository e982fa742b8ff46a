"""The StateManager: logical lengths over physical slots. Rollback is an assignment, nothing ever moves.

Every model's cache is a prefix of the committed tokens, possibly a short one: lagging is legal, wrong is not.

    positions        0 ........ C ........ T ........ T+n ..... T+k
    committed        [-------------------)                            T tokens
    valid at rest    [---------)                                      C <= T-1   (lag is legal)
    next forward     feeds      [-----------------------------)       C .. T+k   (catch-up + k proposed)
    kept             [---------------------------------)              the n accepted; the recovered or bonus token
                                                                      is committed, but not yet fed
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum

from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.runner import Runner

logger = logging.getLogger(__name__)


class SlotStatus(Enum):
    """At any time every slot is in exactly one of these."""

    FREE = "free"
    CACHED = "cached"
    """No request owns it; its tokens wait for a request with the same prefix."""
    ACTIVE = "active"


class StateManager:
    """Slots of all models of a pool. One request row owns one slot, the same index in every model."""

    def __init__(
        self, runners: Mapping[str, Runner], num_slots: int, *, prefix_reuse: bool = True, min_reuse: int = 16
    ) -> None:
        self._runners = dict(runners)
        self._prefix_reuse = prefix_reuse
        self._min_reuse = min_reuse
        self._status = [SlotStatus.FREE] * num_slots
        self._tokens: list[list[int]] = [[] for _ in range(num_slots)]
        self._num_valid = {name: [0] * num_slots for name in runners}
        # Per model and slot: what was fed at positions >= T within the current step. Empty at rest.
        self._tail: dict[str, list[list[int]]] = {name: [[] for _ in range(num_slots)] for name in runners}
        self._last_used = [0] * num_slots
        self._clock = 0

    # ---------------------------------------------------------------- slots

    @property
    def num_slots(self) -> int:
        return len(self._status)

    def slots(self, status: SlotStatus) -> list[int]:
        """Indices of the slots in a status."""
        return [slot for slot, s in enumerate(self._status) if s is status]

    def admit(self, token_ids: Sequence[int]) -> tuple[int, dict[str, int]]:
        """Gives a row a slot: the one whose cached tokens share the longest prefix, else a free one, else the oldest.

        Returns the slot and, per model, how many tokens of the prefix are already in its cache. A shared prefix shorter
        than `min_reuse` is no reason to evict another row's tokens while a slot is free.

        Raises:
            RuntimeError: no slot is available (the engine admits only when one is).
        """
        available = [slot for slot, s in enumerate(self._status) if s is not SlotStatus.ACTIVE]
        if not available:
            raise RuntimeError("no slot is available")
        shared = {slot: self._shared_prefix(slot, token_ids) for slot in available}

        def preference(slot: int) -> tuple[int, bool, int]:
            worth = shared[slot] if shared[slot] >= self._min_reuse else 0
            return worth, self._status[slot] is SlotStatus.FREE, -self._last_used[slot]

        slot = max(available, key=preference)
        for lengths in self._num_valid.values():
            lengths[slot] = min(lengths[slot], shared[slot], len(token_ids) - 1)
        self._status[slot] = SlotStatus.ACTIVE
        self._tokens[slot] = list(token_ids)
        return slot, {name: lengths[slot] for name, lengths in self._num_valid.items()}

    def _shared_prefix(self, slot: int, token_ids: Sequence[int]) -> int:
        if not self._prefix_reuse or self._status[slot] is not SlotStatus.CACHED:
            return 0
        return common_prefix(self._tokens[slot], token_ids)

    def release(self, slot: int) -> None:
        """The row is done; its tokens stay until the slot is needed."""
        self._clock += 1
        self._last_used[slot] = self._clock
        self._status[slot] = SlotStatus.CACHED if self._prefix_reuse else SlotStatus.FREE

    def discard(self, slot: int) -> None:
        """The row failed; nothing of its slot may reach another row."""
        for name in self._num_valid:
            self.poison(name, slot)
        self._tokens[slot] = []
        self._status[slot] = SlotStatus.FREE

    def poison(self, model: str, slot: int) -> None:
        """One model's part of a slot cannot be trusted: its length becomes 0 and its content zero."""
        self._num_valid[model][slot] = 0
        self._tail[model][slot] = []
        try:
            self._runners[model].clear(slot)
        except Exception:  # a device that is gone; what is left there lies behind the mask, and is finite
            logger.warning("slot %d of %s could not be cleared", slot, model, exc_info=True)

    # ---------------------------------------------------------------- lengths

    def tokens(self, slot: int) -> list[int]:
        """Committed tokens of a slot (prompt and output); grows with `commit`, not to be modified by others."""
        return self._tokens[slot]

    def num_valid(self, model: str, slot: int) -> int:
        """Logical length: tokens of the slot whose keys and values the model holds."""
        return self._num_valid[model][slot]

    def lag(self, model: str, slot: int) -> int:
        """Tokens that the model must take in before it can choose the next one, but for the last."""
        return len(self._tokens[slot]) - 1 - self._num_valid[model][slot]

    # ---------------------------------------------------------------- a step

    def span(self, model: str, slot: int, hypothesis: Sequence[int], num_logits: int) -> Span:
        """What to feed so that the model has seen committed + hypothesis, with logits for the last `num_logits` of it.

        Starts after the longest prefix that the cache already holds: this is rollback and catch-up in one expression.
        """
        committed = self._tokens[slot]
        length = len(committed) + len(hypothesis)
        start = min(self._agreed(model, slot, hypothesis), length - num_logits)
        return Span(slot, start, [*committed[start:], *hypothesis[max(0, start - len(committed)) :]], num_logits)

    def prefill_span(self, model: str, slot: int, max_tokens: int) -> Span:
        """The next chunk of committed tokens, without logits; never the last one, which the next step feeds."""
        committed = self._tokens[slot]
        start = self._num_valid[model][slot]
        return Span(slot, start, committed[start : min(start + max_tokens, len(committed) - 1)], 0)

    def wrote(self, model: str, span: Span) -> None:
        """The model has run over the span."""
        base = len(self._tokens[span.slot])
        kept = self._tail[model][span.slot][: max(0, span.start - base)]
        self._tail[model][span.slot] = [*kept, *span.token_ids[max(0, base - span.start) :]]
        self._num_valid[model][span.slot] = span.end

    def commit(self, slot: int, token_ids: Sequence[int]) -> None:
        """Tokens become final; every model keeps the longest prefix that agrees with them (the rollback)."""
        most = len(self._tokens[slot]) + len(token_ids) - 1  # the last one is yet to be fed
        for model, lengths in self._num_valid.items():
            lengths[slot] = min(self._agreed(model, slot, token_ids), most)
            self._tail[model][slot] = []
        self._tokens[slot].extend(token_ids)

    def _agreed(self, model: str, slot: int, hypothesis: Sequence[int]) -> int:
        """How much of committed + hypothesis the model's cache holds."""
        valid, base = self._num_valid[model][slot], len(self._tokens[slot])
        return valid if valid <= base else base + common_prefix(self._tail[model][slot], hypothesis)

    def snapshot(self, slots: Iterable[int]) -> dict[tuple[str, int], int]:
        """Lengths of the slots in every model, to be restored if the step fails."""
        return {(name, slot): lengths[slot] for slot in slots for name, lengths in self._num_valid.items()}

    def restore(self, snapshot: Mapping[tuple[str, int], int]) -> None:
        """Undoes a step: positions below the old lengths were not written, so the lengths are all there is to undo.

        The minimum keeps a slot that was poisoned within the step at 0.
        """
        for (name, slot), length in snapshot.items():
            self._num_valid[name][slot] = min(self._num_valid[name][slot], length)
            self._tail[name][slot] = []

    # ---------------------------------------------------------------- invariants

    def check(self) -> None:
        """Asserts what must hold at rest (between steps)."""
        for slot, status in enumerate(self._status):
            for model, lengths in self._num_valid.items():
                assert not self._tail[model][slot], f"{model} slot {slot}: a tail is left at rest"
                if status is not SlotStatus.FREE:
                    assert 0 <= lengths[slot] <= len(self._tokens[slot]) - 1, f"{model} slot {slot}: {lengths[slot]}"


def common_prefix(a: Sequence[int], b: Sequence[int | None]) -> int:
    """Length of the longest common prefix."""
    limit = min(len(a), len(b))
    if a[:limit] == b[:limit]:
        return limit
    return next((i for i in range(limit) if a[i] != b[i]), limit)
