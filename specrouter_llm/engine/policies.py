"""Who chooses the chains of an engine: what `policy=` and `calibration=` stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from specrouter_llm.config import EngineConfig
from specrouter_llm.drafting.ngram import NgramProposer
from specrouter_llm.drafting.proposer import Proposer
from specrouter_llm.engine.calibration import Calibration, token_sizes
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.pool.pool import ModelPool
from specrouter_llm.runtime.graphs import GraphRunner
from specrouter_llm.runtime.runner import Runner
from specrouter_llm.scheduling.adaptive import AdaptivePolicy
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import FixedPolicy, Policy

PolicyName: TypeAlias = Literal["adaptive", "fixed", "off"]
CALIBRATION_SECONDS = 2.0
"""So long the models are measured at start-up, unless a few forwards of each take longer."""


def check_policy(policy: Policy | str, settings: EngineConfig) -> None:
    """Raises:
    InvalidParameterError: an unknown name, no policy, or one beside a chain that serves all requests.
    """
    names = get_args(PolicyName)
    methods = (getattr(policy, name, None) for name in ("plan", "observe"))
    known = policy in names if isinstance(policy, str) else all(callable(method) for method in methods)
    if not known:
        listed = ", ".join(f'"{name}"' for name in names)
        raise InvalidParameterError(
            f"policy must be one of {listed}, or an object with plan and observe, got {policy!r}"
        )
    if settings.chain is not None and policy not in ("adaptive", "fixed"):
        raise InvalidParameterError(
            "chain= is one chain for all requests, which leaves policy= nothing to do: give one"
        )


def known_calibration(path: str | Path | None, policy: Policy | str, settings: EngineConfig) -> Calibration | None:
    """What `calibration=` names, read; None if nothing is.

    Raises:
        InvalidParameterError: no such file, not a calibration, or none is wanted.
    """
    if path is None:
        return None
    if policy != "adaptive" or settings.chain is not None or not settings.speculation:
        raise InvalidParameterError(
            'calibration= is for policy="adaptive", which chooses chains; here one is given, or none is wanted: leave it out'
        )
    return Calibration.load(path)


def policy_of(
    policy: Policy | PolicyName,
    settings: EngineConfig,
    pool: ModelPool,
    runners: Mapping[str, Runner],
    known: Calibration | None,
    proposers: Sequence[Proposer] | None,
    *,
    progress: bool,
) -> Policy | None:
    """The policy of this name, or the one that was given; None for the one chain of the settings, or of the router."""
    if not isinstance(policy, str):
        return policy
    if policy == "off":
        return FixedPolicy(Plan((pool.target.name,)))
    if policy == "adaptive" and _leaves_a_choice(settings, runners, proposers):
        return _adaptive(pool, runners, known, proposers, rows=settings.max_batch, progress=progress)
    return None


def _leaves_a_choice(
    settings: EngineConfig, runners: Mapping[str, Runner], proposers: Sequence[Proposer] | None
) -> bool:
    return settings.chain is None and settings.speculation and len(runners) + len(proposers_of(proposers)) > 1


def _adaptive(
    pool: ModelPool,
    runners: Mapping[str, Runner],
    known: Calibration | None,
    proposers: Sequence[Proposer] | None,
    *,
    rows: int,
    progress: bool,
) -> AdaptivePolicy:
    """The adaptive policy over what was measured before, or is now."""
    if known is not None:
        known.check(pool, runners)
        known.latency.pad_to(token_sizes(runners))
    else:
        known = Calibration.of(pool, runners, seconds=CALIBRATION_SECONDS, rows=rows, progress=progress)
    names = [p.name for p in proposers_of(proposers)]
    waits = isinstance(runners[pool.target.name], GraphRunner)  # its forwards return before they are done
    return AdaptivePolicy(list(runners), names, known.latency, deferred=waits)


def proposers_of(given: Sequence[Proposer] | None) -> Sequence[Proposer]:
    """Model-free drafters: n-gram lookup, unless others are given."""
    return given if given is not None else [NgramProposer()]
