"""Which engine answers: one that was handed over, or the process's shared one, loaded when it is first needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from specrouter_llm.chat import close_shared, shared_engine

if TYPE_CHECKING:
    from specrouter_llm import SpecRouter


class EngineSource:
    """Makes no engine until it is asked for one. A pickled source holds the description only."""

    def __init__(
        self, model: str, drafts: Sequence[str] | None, options: Mapping[str, Any], engine: SpecRouter | None
    ) -> None:
        self._model = model
        self._drafts = drafts
        self._options = options
        self._given = engine
        self._shared: SpecRouter | None = None

    def engine(self) -> SpecRouter:
        """The engine; blocks while it is loaded. Raises what loading raises."""
        if self._given is not None:
            return self._given
        engine = self._shared
        if engine is None or engine.closed:
            engine = self._shared = shared_engine(self._model, self._drafts, **self._options)
        return engine

    @property
    def ready(self) -> bool:
        """Whether `engine` would return at once."""
        return self._given is not None or (self._shared is not None and not self._shared.closed)

    def close(self) -> None:
        """Closes an engine that was loaded here; one that was handed over belongs to its maker."""
        engine, self._shared = self._shared, None
        if engine is not None:
            close_shared(engine)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_given": None, "_shared": None}
