"""What the subcommands share: which pool to load, and how prompt files are read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrouter_llm.errors import InvalidParameterError

if TYPE_CHECKING:
    from specrouter_llm.config import ModelSource
    from specrouter_llm.engine.spec_router import SpecRouter


def split(text: str | None) -> list[str] | None:
    """The parts of a comma-separated option."""
    return [part.strip() for part in text.split(",") if part.strip()] if text else None


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """The models of a command."""

    target: str
    drafts: list[str] | None = None
    dtype: str | None = None
    device: str | None = None
    widen: str | None = None
    memory_budget: str | None = None

    def engine(self, *, progress: bool = True, **config: Any) -> SpecRouter:
        """Loads the pool and starts an engine."""
        from specrouter_llm.engine.spec_router import SpecRouter

        target, drafts = self._sources()
        return SpecRouter.from_pretrained(
            target,
            drafts,
            dtype=self.dtype,
            device=self.device,
            memory_budget=self.memory_budget,
            progress=progress,
            **config,
        )

    def target_model(self) -> Any:
        """The target alone, as transformers runs it."""
        from specrouter_llm.pool.pool import ModelPool

        target, _ = self._sources()
        pool = ModelPool.load(target, [], dtype=self.dtype, device=self.device, max_batch=1, progress=False)
        return pool.target.model

    def _sources(self) -> tuple[ModelSource, list[ModelSource] | None]:
        if self.widen is None:
            return self.target, list(self.drafts) if self.drafts else None
        from specrouter_llm.pool.family import widened_family

        specs = widened_family(self.target, self.drafts, self.widen)
        return specs[0], list(specs[1:])


def read_prompts(path: Path, limit: int) -> list[str]:
    """Prompts of a file: JSONL with a question, prompt, text or turns field (GSM8K, HumanEval, Spec-Bench), or lines.

    Raises:
        InvalidParameterError: no such file, or nothing usable in it.
    """
    if not path.is_file():
        raise InvalidParameterError(f"there is no prompt file {path}")
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    prompts = [_prompt_of(line) if path.suffix in {".jsonl", ".json"} else line for line in lines[:limit]]
    if not prompts:
        raise InvalidParameterError(f"{path} holds no prompts")
    return prompts


def _prompt_of(line: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidParameterError(f"a line of the prompt file is not JSON ({error}): {line[:80]!r}") from None
    if isinstance(record, dict):
        for name in ("question", "prompt", "text", "turns"):
            value = record.get(name)
            if value:
                return str(value[0] if isinstance(value, list) else value)
    raise InvalidParameterError(
        f"a line of the prompt file has no question, prompt, text or turns field: {line[:80]!r}"
    )
