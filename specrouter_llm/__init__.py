"""Lossless speculative decoding as a routing problem: same weights, prompt, parameters and seed, same tokens, faster.

    from specrouter_llm import SpecRouter

    with SpecRouter.from_pretrained("demo") as engine:
        print(engine.generate("Once upon a time", max_tokens=60)[0].text)

The names below are imported when they are first used, so that importing the package does not import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from specrouter_llm.config import EngineConfig, ModelSpec, WideShape
    from specrouter_llm.drafting.ngram import NgramProposer
    from specrouter_llm.drafting.proposer import Proposer
    from specrouter_llm.engine.handle import Handle
    from specrouter_llm.engine.spec_router import SpecRouter
    from specrouter_llm.engine.worker import EngineStats
    from specrouter_llm.errors import SpecRouterError
    from specrouter_llm.sampling.params import SamplingParams
    from specrouter_llm.sampling.structured import StructuredOutput
    from specrouter_llm.scheduling.plan import Plan
    from specrouter_llm.scheduling.policy import (
        FixedPolicy,
        Forward,
        Policy,
        RowObservation,
        RowView,
        StepObservation,
        Trial,
    )
    from specrouter_llm.types import (
        Completion,
        Delta,
        FinishReason,
        Route,
        SpeculationStats,
        StepInfo,
        Timings,
        TokenLogprob,
        Usage,
    )

_HOMES = {
    "Completion": "types",
    "Delta": "types",
    "EngineConfig": "config",
    "EngineStats": "engine.worker",
    "FinishReason": "types",
    "FixedPolicy": "scheduling.policy",
    "Forward": "scheduling.policy",
    "Handle": "engine.handle",
    "ModelSpec": "config",
    "NgramProposer": "drafting.ngram",
    "Plan": "scheduling.plan",
    "Policy": "scheduling.policy",
    "Proposer": "drafting.proposer",
    "Route": "types",
    "RowObservation": "scheduling.policy",
    "RowView": "scheduling.policy",
    "SamplingParams": "sampling.params",
    "SpecRouter": "engine.spec_router",
    "SpecRouterError": "errors",
    "SpeculationStats": "types",
    "StepInfo": "types",
    "StepObservation": "scheduling.policy",
    "StructuredOutput": "sampling.structured",
    "Timings": "types",
    "TokenLogprob": "types",
    "Trial": "scheduling.policy",
    "Usage": "types",
    "WideShape": "config",
}

__version__ = "0.1.0"

__all__ = [
    "Completion",
    "Delta",
    "EngineConfig",
    "EngineStats",
    "FinishReason",
    "FixedPolicy",
    "Forward",
    "Handle",
    "ModelSpec",
    "NgramProposer",
    "Plan",
    "Policy",
    "Proposer",
    "Route",
    "RowObservation",
    "RowView",
    "SamplingParams",
    "SpecRouter",
    "SpecRouterError",
    "SpeculationStats",
    "StepInfo",
    "StepObservation",
    "StructuredOutput",
    "Timings",
    "TokenLogprob",
    "Trial",
    "Usage",
    "WideShape",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
