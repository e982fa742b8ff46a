"""The ChainRouter: turns what callers ask for, and what a policy chooses, into one executable plan per row and step."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import (
    AskingPolicy,
    DeferringPolicy,
    ExplainingPolicy,
    FixedPolicy,
    Policy,
    Reasons,
    RowView,
    StepObservation,
)

logger = logging.getLogger(__name__)

DEFAULT_WINDOW = 4
DEFAULT_LOOKUP_WINDOW = 8


class ChainRouter:
    """Resolves chains by name. `models` are ordered from the smallest drafter to the target, which is last."""

    def __init__(self, models: Sequence[str], proposers: Collection[str], *, policy: Policy | None = None) -> None:
        self._models = tuple(models)
        self.target = self._models[-1]
        self.target_only = Plan((self.target,))
        """Plain decoding."""
        self._proposers = tuple(proposers)
        self._policy: Policy | None = None
        self._deferring: DeferringPolicy | None = None
        self._asking: AskingPolicy | None = None
        if policy is not None:
            self.use(policy)
        self._sound: set[Plan] = set()
        """Plans of the policy that have been checked."""

    def use(self, policy: Policy) -> None:
        """Plans of rows that do not force a chain come from this policy from now on."""
        self._policy = policy
        self._deferring = policy if isinstance(policy, DeferringPolicy) else None
        self._asking = policy if isinstance(policy, AskingPolicy) else None

    def resolve(
        self, chain: Sequence[str] | None, windows: Sequence[int] | None, speculation: bool | None
    ) -> Plan | None:
        """The plan that a caller forces, or None if the policy is to choose.

        `chain` lists levels lowest first; the target may be left out. Without windows each model drafts 4 tokens and
        each lookup 8.

        Raises:
            InvalidParameterError: unknown level, target not last, a model-free drafter above another level, windows that
                do not fit the chain, or a chain together with speculation=False.
        """
        if speculation is False:
            if chain is not None:
                raise InvalidParameterError("give either a chain or speculation=False, not both")
            return self.target_only
        if chain is None:
            if windows is not None:
                raise InvalidParameterError("windows belong to a chain: give chain=[...] too")
            return None
        levels = list(chain) if chain and chain[-1] == self.target else [*chain, self.target]
        self._check_levels(levels)
        if windows is None:
            windows = [DEFAULT_LOOKUP_WINDOW if name in self._proposers else DEFAULT_WINDOW for name in levels[:-1]]
        return Plan.chain(levels, windows)

    def _check_levels(self, levels: Sequence[str]) -> None:
        for position, level in enumerate(levels):
            if level not in self._models and level not in self._proposers:
                known = ", ".join([*self._proposers, *self._models])
                raise InvalidParameterError(
                    f"unknown level {level!r} in chain {list(levels)}; this engine has: {known}"
                )
            if level == self.target and position < len(levels) - 1:
                raise InvalidParameterError(
                    f"the target {level!r} must be the last level of a chain, got {list(levels)}"
                )
            if level in self._proposers and position > 0:
                raise InvalidParameterError(
                    f"{level!r} uses no model, so it cannot verify: it must be the first level, got {list(levels)}"
                )

    def default_plan(self) -> Plan:
        """The smallest drafter with a window of 4; n-gram lookup if there is no drafter; else plain decoding."""
        if len(self._models) > 1:
            return Plan.chain([self._models[0], self.target], [DEFAULT_WINDOW])
        if self._proposers:
            return Plan.chain([self._proposers[0], self.target], [DEFAULT_LOOKUP_WINDOW])
        return self.target_only

    def plans(self, views: Sequence[RowView], forced: Sequence[Plan | None]) -> list[Plan]:
        """One plan per row: the forced one, or the policy's."""
        open_rows = [view for view, plan in zip(views, forced, strict=True) if plan is None]
        chosen = iter(self._choose(open_rows))
        return [plan if plan is not None else next(chosen) for plan in forced]

    def _choose(self, views: Sequence[RowView]) -> Sequence[Plan]:
        if not views:
            return []
        policy = self._policy if self._policy is not None else FixedPolicy(self.default_plan())
        return [self._checked(plan) for plan in policy.plan(views)]

    def _checked(self, plan: Plan) -> Plan:
        """A policy's plan, or plain decoding if it cannot be run: only the target may have the last word."""
        if plan not in self._sound:
            try:
                if not isinstance(plan, Plan) or plan.top != self.target:
                    raise InvalidParameterError(f"a plan must end with the target {self.target!r}, got {plan!r}")
                self._check_levels(plan.levels)
            except InvalidParameterError as error:
                logger.warning("the policy's plan is not used: %s", error)
                return self.target_only
            self._sound.add(plan)
        return plan

    def reasons(self, row_id: int) -> Reasons:
        """Why a row was decoded as it was, if the policy can say so."""
        return self._policy.reasons(row_id) if isinstance(self._policy, ExplainingPolicy) else Reasons()

    def reconsider(self) -> None:
        """Lets the policy think while the target's forward is on its way. Never raises: the step must go on."""
        if self._deferring is not None:
            try:
                self._deferring.reconsider()
            except BaseException:  # a third party's policy
                logger.exception("the policy could not reconsider")

    def asides(self) -> Collection[str]:
        """Model-free levels that the policy wants to be asked in this step. Never raises."""
        if self._asking is None:
            return ()
        try:
            return [name for name in self._asking.asides() if name in self._proposers]
        except BaseException:  # a third party's policy
            logger.exception("the policy could not say what to ask")
            return ()

    def observe(self, step: StepObservation) -> None:
        """Passes what a step did to the policy."""
        if self._policy is not None:
            self._policy.observe(step)
