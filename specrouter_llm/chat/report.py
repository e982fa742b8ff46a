"""What is told about a finished answer: plain JSON values under the names that existing tools read."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from specrouter_llm.types import Completion, Route, SpeculationStats

PROVIDER = "specrouter"


def metadata(completion: Completion, model: str, *, finish_reason: str | None = None) -> dict[str, Any]:
    """How an answer came about, in plain JSON types.

    The statistics have vLLM's names. `finish_reason` overrides the completion's, which knows nothing of tool calls.
    """
    return {
        "model_name": model,
        "model_provider": PROVIDER,
        "finish_reason": finish_reason or completion.finish_reason.value,
        "speculative_decoding": _speculation(completion.stats),
        "timings": asdict(completion.timings),
    }


def usage(completion: Completion, reasoning_tokens: int = 0) -> dict[str, int]:
    """Token counts of an answer."""
    counts = completion.usage
    return {
        "input_tokens": counts.prompt_tokens,
        "output_tokens": counts.completion_tokens,
        "total_tokens": counts.total_tokens,
        "cached_tokens": counts.cached_tokens,
        "reasoning_tokens": reasoning_tokens,
    }


def _speculation(stats: SpeculationStats) -> dict[str, Any]:
    return {
        "num_draft_tokens": stats.num_draft_tokens,
        "num_accepted_draft_tokens": stats.num_accepted_draft_tokens,
        "num_spec_steps": stats.num_spec_steps,
        "num_spec_tokens": stats.num_spec_tokens,
        "num_target_steps": stats.num_target_steps,
        "draft_acceptance_rate": stats.draft_acceptance_rate,
        "mean_acceptance_length": stats.mean_acceptance_length,
        "acceptance_histogram": list(stats.acceptance_histogram),
        "chain": [asdict(stage) for stage in stats.chain],
        "route": _route(stats.route) if stats.route.legs else None,
        "fallback": stats.fallback,
    }


def _route(route: Route) -> dict[str, Any]:
    """Which chains the tokens came by, and why; lists where the dataclasses have tuples."""
    return {
        "legs": [{**asdict(leg), "levels": list(leg.levels)} for leg in route.legs],
        "switches": [
            {**asdict(switch), "before": list(switch.before), "after": list(switch.after)} for switch in route.switches
        ],
        "predicted_seconds_per_token": route.predicted_seconds_per_token,
        "measured_seconds_per_token": route.measured_seconds_per_token,
    }
