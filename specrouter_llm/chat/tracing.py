"""What a span of one chat says: the `gen_ai.*` attributes of OpenTelemetry's conventions, and ours about speculation."""

from __future__ import annotations

from collections.abc import Sequence

from specrouter_llm.chat.report import PROVIDER
from specrouter_llm.chat.values import ChatResult
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.telemetry import Attribute, Span


def chat_span(model: str, params: SamplingParams) -> Span:
    """Starts the span of a request."""
    asked: dict[str, Attribute] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": model,
        "gen_ai.request.temperature": params.temperature,
        "gen_ai.request.top_p": params.top_p,
        "gen_ai.request.top_k": params.top_k,
        "gen_ai.request.max_tokens": params.max_tokens,
        "gen_ai.request.choice.count": params.n,
        "gen_ai.request.stop_sequences": list(params.stop),
    }
    if params.seed is not None:
        asked["gen_ai.request.seed"] = params.seed
    return Span(f"chat {model}", asked)


def describe(
    span: Span,
    model: str,
    results: Sequence[ChatResult],
    num_prompt_tokens: int,
    others: Sequence[tuple[str, int]],
) -> None:
    """Adds what came of the request; counts are sums over its samples.

    Of `others`, that nobody has waited for, only the finish reason and the number of tokens that were delivered are known.
    """
    if not span.recording:
        return
    tokens = sum(result.completion.usage.completion_tokens for result in results)
    span.set(
        {
            "gen_ai.response.model": model,
            "gen_ai.response.finish_reasons": [
                *(result.finish_reason for result in results),
                *(reason for reason, _ in others),
            ],
            "gen_ai.usage.input_tokens": num_prompt_tokens,
            "gen_ai.usage.output_tokens": tokens + sum(number for _, number in others),
        }
    )
    if results:
        span.set(_counts(results))


def _counts(results: Sequence[ChatResult]) -> dict[str, Attribute]:
    """Of samples that have ended."""
    completions = [result.completion for result in results]
    stats = [completion.stats for completion in completions]
    drafted = sum(s.num_draft_tokens for s in stats)
    accepted = sum(s.num_accepted_draft_tokens for s in stats)
    steps = sum(s.num_target_steps for s in stats)
    return {
        "gen_ai.response.time_to_first_chunk": min(c.timings.time_to_first_token_s for c in completions),
        "gen_ai.usage.reasoning.output_tokens": sum(result.reasoning_tokens for result in results),
        "gen_ai.usage.cache_read.input_tokens": completions[0].usage.cached_tokens,
        "specrouter.speculative.num_draft_tokens": drafted,
        "specrouter.speculative.num_accepted_draft_tokens": accepted,
        "specrouter.speculative.num_spec_steps": sum(s.num_spec_steps for s in stats),
        "specrouter.speculative.num_target_steps": steps,
        "specrouter.speculative.draft_acceptance_rate": accepted / drafted if drafted else 0.0,
        "specrouter.speculative.mean_acceptance_length": (
            sum(s.num_committed_tokens for s in stats) / steps if steps else 0.0
        ),
        "specrouter.speculative.chain": list(dict.fromkeys(stage.model for s in stats for stage in s.chain)),
    }
