"""The models of a measurement: loaded as an engine, or as transformers runs them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeGuard

from specrouter_llm.bench.texts import TextPrompt
from specrouter_llm.config import ModelSource
from specrouter_llm.engine.policies import PolicyName
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.pool.family import widened_family
from specrouter_llm.pool.pool import ModelPool
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.scheduling.policy import Policy
from specrouter_llm.types import Completion, Packing


@dataclass(frozen=True, slots=True)
class Models:
    """A target and its drafters, not yet loaded."""

    target: ModelSource = "demo"
    drafts: Sequence[ModelSource] | None = None
    """None is the rest of the embedded family for "demo", and no drafter for other targets."""
    dtype: str | None = None
    device: str | None = None

    @classmethod
    def of(
        cls,
        target: str,
        drafts: Sequence[str] | None = None,
        dtype: str | None = None,
        device: str | None = None,
        widen: str | None = None,
        *,
        target_only: bool = False,
    ) -> Models:
        """By name; `widen` runs the family in a larger shape, for example "150M", or the target alone."""
        if widen is None:
            return cls(target, drafts or None, dtype, device)
        specs = widened_family(target, drafts or None, widen)
        if target_only:
            specs = [specs[0], *(replace(spec, widen=None) for spec in specs[1:])]
        return cls(specs[0], tuple(specs[1:]), dtype, device)

    def engine(self, *, policy: Policy | PolicyName = "fixed", **options: Any) -> SpecRouter:
        """An engine over all members. As with peers, nothing is asked that the measurement does not say."""
        return SpecRouter.from_pretrained(
            self.target,
            self.drafts,
            dtype=self.dtype,
            device=self.device,
            policy=policy,
            progress=False,
            generation_config="ignore",
            **options,
        )

    def pool(self, *, max_batch: int = 1, packing: Packing | None = None) -> ModelPool:
        """The members as transformers runs them; with `packing` as an engine's runners take them."""
        return ModelPool.load(
            self.target,
            self.drafts,
            dtype=self.dtype,
            device=self.device,
            max_batch=max_batch,
            packing=packing,
            progress=False,
        )


def encode(engine: SpecRouter, prompt: TextPrompt | list[int], *, raw: bool = False) -> list[int]:
    """A prompt through the target's chat template, text being a user's turn; without one, or `raw`, the texts alone.

    Token ids stay as they are.
    """
    if _is_ids(prompt):
        return prompt
    messages: Any = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    tokenizer = engine.tokenizer
    if raw or tokenizer is None or tokenizer.chat_template is None:
        return engine.encode("\n\n".join(message["content"] for message in messages))
    return engine.encode(messages)


def completions_of(
    engine: SpecRouter, prompts: Sequence[list[int]], params: SamplingParams, seed: int
) -> list[Completion]:
    """One per prompt, decoded together, each with noise of its own. Raises the error of one that failed."""
    handles = [engine.submit(prompt, params, seed=seed + i) for i, prompt in enumerate(prompts)]
    return [handle.result()[0].raise_for_error() for handle in handles]


def _is_ids(prompt: TextPrompt | list[int]) -> TypeGuard[list[int]]:
    return not isinstance(prompt, str) and bool(prompt) and isinstance(prompt[0], int)
