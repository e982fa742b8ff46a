"""Which engine answers: one that was handed over, or the process's shared one, loaded when it is first needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from specrouter_llm.chat import close_shared, shared_engine

if TYPE_CHECKING:
    from specrouter_llm import SpecRouter


class EngineSource:
    """Makes no engine until it is asked for one. A pickled source has none."""

    def __init__(self, given: SpecRouter | None) -> None:
        self._given = given
        self._shared: SpecRouter | None = None

    def engine(self, model: str, drafts: Sequence[str] | None, **options: Any) -> SpecRouter:
        """The engine that was given, or the one of this description; blocks while it is loaded. Raises what loading raises."""
        if self._given is not None:
            return self._given
        self._shared = shared_engine(model, drafts, **options)
        return self._shared

    @property
    def is_given(self) -> bool:
        """Whether the engine was handed over."""
        return self._given is not None

    @property
    def latest(self) -> SpecRouter | None:
        """The engine that was asked for last, if it is still open: nothing is loaded."""
        engine = self._given or self._shared
        return None if engine is None or engine.closed else engine

    def close(self) -> None:
        """Closes an engine that was loaded here; one that was handed over belongs to its maker."""
        engine, self._shared = self._shared, None
        if engine is not None:
            close_shared(engine)

    def __copy__(self) -> EngineSource:
        return EngineSource(self._given)

    def __deepcopy__(self, memo: Any) -> EngineSource:
        return EngineSource(self._given)

    def __getstate__(self) -> dict[str, Any]:
        return {"_given": None, "_shared": None}
