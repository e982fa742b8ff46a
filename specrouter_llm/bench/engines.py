"""Engines of a pool that is already loaded, with a policy that is made from what its models cost."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specrouter_llm.config import EngineConfig
from specrouter_llm.drafting.ngram import NgramProposer
from specrouter_llm.drafting.proposer import Proposer
from specrouter_llm.engine.calibration import Calibration, in_order, pool_runners
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.pool.pool import ModelPool
from specrouter_llm.scheduling.latency import LatencyModel
from specrouter_llm.scheduling.policy import Policy
from specrouter_llm.text.tokenizer import Tokenizer

MakePolicy = Callable[[Sequence[str], Sequence[str], LatencyModel], Policy]
"""Of the models (smallest first, the target last), the model-free levels, and the costs."""


def calibrated_engine(
    pool: ModelPool, make_policy: MakePolicy, *, seconds: float, proposers: Sequence[Proposer] | None = None
) -> SpecRouter:
    """An engine of one row; it closes the pool. `seconds` are spent on measuring its models."""
    runners = pool_runners(pool, num_slots=1, pack=True)
    latency = Calibration.of(pool, runners, seconds=seconds, rows=1, progress=False).latency
    free = [NgramProposer()] if proposers is None else list(proposers)
    return SpecRouter(
        runners,
        target=pool.target.name,
        tokenizer=Tokenizer(pool.tokenizer) if pool.tokenizer is not None else None,
        eos_token_ids=pool.target.eos_token_ids,
        max_context=pool.max_context,
        config=EngineConfig(max_batch=1),
        proposers=free,
        policy=make_policy(list(runners), [proposer.name for proposer in free], latency),
        labels={member.name: member.label for member in in_order(pool)},
        memory=pool.memory,
        on_close=pool.close,
    )
