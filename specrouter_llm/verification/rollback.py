"""The RollbackProcessor: makes a step final or takes it back. Both are assignments of logical lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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

    @contextmanager
    def atomic(self, rows: Sequence[Row]) -> Iterator[None]:
        """A step over models: if anything in it raises, every model's lengths are what they were before."""
        snapshot = self._state.snapshot(row.slot for row in rows)
        try:
            yield
        except BaseException:
            self._state.restore(snapshot)
            raise
