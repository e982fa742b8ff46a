"""One engine per configuration and process: chat models are made often, weights are loaded once."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specrouter_llm.errors import InvalidParameterError

if TYPE_CHECKING:
    from specrouter_llm.engine.spec_router import SpecRouter


@dataclass(frozen=True, slots=True)
class EngineKey:
    """What makes two engines the same: the models and every option, by value."""

    target: str
    drafts: Hashable
    options: Hashable

    @classmethod
    def of(cls, target: str, drafts: Sequence[str] | None, options: Mapping[str, Any]) -> EngineKey:
        """Raises InvalidParameterError for an option that cannot be compared by value."""
        if not isinstance(target, str) or not target:
            raise InvalidParameterError(f"a shared engine is named by its target's name or folder, got {target!r}")
        if isinstance(drafts, str):
            raise InvalidParameterError(f"drafts must be a list of names or folders, got {drafts!r}")
        return cls(target, _frozen(drafts, "drafts"), _frozen(options, "options"))


class _Registry:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loading: dict[EngineKey, threading.Lock] = {}
        self._engines: dict[EngineKey, SpecRouter] = {}

    def get(self, target: str, drafts: Sequence[str] | None, options: Mapping[str, Any]) -> SpecRouter:
        key = EngineKey.of(target, drafts, options)
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:  # other configurations may load at the same time
            engine = self._engines.get(key)
            if engine is None or engine.closed:
                from specrouter_llm.engine.spec_router import SpecRouter  # imports torch

                engine = SpecRouter.from_pretrained(target, drafts, **options)
                with self._lock:
                    self._engines[key] = engine
            return engine

    def close(self, engine: SpecRouter | None) -> None:
        with self._lock:
            closing = [key for key, shared in self._engines.items() if engine is None or shared is engine]
            engines = [self._engines.pop(key) for key in closing]
        for shared in engines:
            shared.close()


_REGISTRY = _Registry()


def shared_engine(target: str, drafts: Sequence[str] | None = None, **options: Any) -> SpecRouter:
    """The process's engine of this configuration, loaded by `SpecRouter.from_pretrained` when it is first asked for.

    Threads that ask at once get the same engine; a closed one is made anew. It stays until `close_shared`.

    Raises:
        InvalidParameterError, ModelLoadError: as `SpecRouter.from_pretrained`; the next call tries again.
    """
    return _REGISTRY.get(target, drafts, options)


def close_shared(engine: SpecRouter | None = None) -> None:
    """Closes one shared engine, or all of them, and forgets it. An engine of another origin is left alone."""
    _REGISTRY.close(engine)


def _frozen(value: Any, where: str) -> Hashable:
    """`value` as a hashable that equals another only if both are the same configuration (1, 1.0 and True differ)."""
    if isinstance(value, Mapping):
        return frozenset((str(key), _frozen(item, f"{where}[{key!r}]")) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_frozen(item, f"{where}[{i}]") for i, item in enumerate(value))
    try:
        hash(value)
    except TypeError:
        raise InvalidParameterError(
            f"{where} is a {type(value).__name__}, which cannot be compared by value; make the engine yourself with "
            "SpecRouter.from_pretrained and hand it over"
        ) from None
    return (type(value).__qualname__, value)
