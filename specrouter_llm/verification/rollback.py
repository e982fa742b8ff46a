"""The RollbackProcessor: makes a step final or takes it back. Both are assignments of logical lengths."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from specrouter_llm.state.manager import StateManager
from specrouter_llm.state.row import Row


class RollbackProcessor:
    """Keeps every model's cache a prefix of the committed tokens."""

    def __init__(self, state: StateManager) -> None:
        self._state = state

    def commit(self, row: Row, token_ids: Sequence[int]) -> None:
        """Commits tokens to a row; what any model was fed beyond the agreed prefix falls behind its mask."""
        self._state.commit(row.slot, token_ids)
        row.commit(token_ids)

    def atomic(self, rows: Sequence[Row]) -> Atomic:
        """A step over models: if anything in it raises, every model's lengths are what they were before."""
        return Atomic(self._state, [row.slot for row in rows])


class Atomic:
    """Lengths of some slots, that come back if what is done within raises."""

    __slots__ = ("_snapshot", "_state")

    def __init__(self, state: StateManager, slots: Sequence[int]) -> None:
        self._state = state
        self._snapshot = state.snapshot(slots)

    def __enter__(self) -> None:
        """The lengths are known already."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._state.restore(self._snapshot)
