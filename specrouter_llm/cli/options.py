"""What the subcommands share: which pool to load."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specrouter_llm.cli.arguments import Budget, Device, Drafts, Dtype, Target, Widen
from specrouter_llm.errors import InvalidParameterError

if TYPE_CHECKING:
    from specrouter_llm.config import ModelSource
    from specrouter_llm.engine.spec_router import SpecRouter
    from specrouter_llm.pool.pool import ModelPool


def levels(text: str | None, without: str) -> list[str] | None:
    """The levels of a chain; None if there is none. `without` says how to do without a chain.

    Raises:
        InvalidParameterError: it was given, and names no level.
    """
    found = _parts(text)
    if text is not None and not found:
        raise InvalidParameterError(f"--chain names no level, got {text!r}: leave it out{without}")
    return found or None


def numbers(text: str | None, option: str) -> list[int] | None:
    """The parts of a comma-separated option as whole numbers; None if it was not given.

    Raises:
        InvalidParameterError: one of them is none, or there is none; the message names the option.
    """
    try:
        found = [int(part) for part in _parts(text)]
    except ValueError:
        found = []
    if text is not None and not found:
        raise InvalidParameterError(f"{option} takes whole numbers separated by commas, such as 8,4, got {text!r}")
    return found or None


def said(options: Mapping[str, Any]) -> dict[str, Any]:
    """Those that were given: the rest is left to the model."""
    return {name: value for name, value in options.items() if value is not None}


def _parts(text: str | None) -> list[str]:
    """Of a comma-separated option, without the empty ones."""
    return [part.strip() for part in (text or "").split(",") if part.strip()]


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """The models of a command."""

    target: Target = "demo"
    drafts: Drafts = None
    dtype: Dtype = None
    device: Device = None
    widen: Widen = None
    memory_budget: Budget = None

    def engine(self, *, progress: bool = True, **config: Any) -> SpecRouter:
        """Loads the pool and starts an engine."""
        from specrouter_llm.engine.spec_router import SpecRouter

        target, drafts = self.sources()
        return SpecRouter.from_pretrained(
            target,
            drafts,
            dtype=self.dtype,
            device=self.device,
            memory_budget=self.memory_budget,
            progress=progress,
            **config,
        )

    def pool(self, *, max_batch: int, progress: bool) -> ModelPool:
        """The models alone, accounted for as an engine would run them."""
        from specrouter_llm.pool.pool import ModelPool
        from specrouter_llm.runtime.select import packing_bytes

        target, drafts = self.sources()
        return ModelPool.load(
            target,
            drafts,
            dtype=self.dtype,
            device=self.device,
            memory_budget=self.memory_budget,
            max_batch=max_batch,
            packing=packing_bytes,
            progress=progress,
        )

    def target_model(self) -> Any:
        """The target alone, as transformers runs it."""
        from specrouter_llm.pool.pool import ModelPool

        target, _ = self.sources()
        pool = ModelPool.load(target, [], dtype=self.dtype, device=self.device, max_batch=1, progress=False)
        return pool.target.model

    def sources(self) -> tuple[ModelSource, list[ModelSource] | None]:
        """Target and drafters, not yet loaded. Raises InvalidParameterError if they cannot be widened so far."""
        if self.widen is None:
            return self.target, list(self.drafts) if self.drafts else None
        from specrouter_llm.pool.family import widened_family

        specs = widened_family(self.target, self.drafts, self.widen)
        return specs[0], list(specs[1:])
