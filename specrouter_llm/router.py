"""The ChainRouter: turns what callers ask for, and what a policy chooses, into one executable plan per row and step."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from numbers import Integral

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
        self._failures: set[str] = set()
        """Ways in which the policy has failed: each is told of once, for it may come back at every step."""

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

    # What follows asks the policy, which may be a third party's: whatever it does, the answers go on.

    def plans(self, views: Sequence[RowView], forced: Sequence[Plan | None]) -> list[Plan]:
        """One plan per row: the forced one, or the policy's; plain decoding where it has none that can be run."""
        open_rows = [view for view, plan in zip(views, forced, strict=True) if plan is None]
        chosen = iter(self._choose(open_rows) if open_rows else ())
        return [plan if plan is not None else next(chosen) for plan in forced]

    def _choose(self, views: Sequence[RowView]) -> list[Plan]:
        policy = self._policy if self._policy is not None else FixedPolicy(self.default_plan())
        try:
            plans = [self._checked(plan) for plan in policy.plan(views)]
            if len(plans) != len(views):
                raise InvalidParameterError(f"a policy gives each of {len(views)} rows a plan, got {len(plans)}")
            return plans
        except BaseException:
            self._failed("chose no plans for a step, which decodes plainly")
            return [self.target_only] * len(views)

    def _checked(self, plan: Plan) -> Plan:
        """A policy's plan, or plain decoding if it cannot be run: only the target may have the last word."""
        try:
            if plan not in self._sound:
                self._check_plan(plan)
                self._sound.add(plan)
            return plan
        except (InvalidParameterError, TypeError):  # the latter of a plan that has lists in it
            self._failed("has a plan that cannot be run")
            return self.target_only

    def _check_plan(self, plan: Plan) -> None:
        if not isinstance(plan, Plan) or plan.top != self.target:
            raise InvalidParameterError(f"a plan must end with the target {self.target!r}, got {plan!r}")
        self._check_levels(plan.levels)
        sizes, numbers = (len(plan.windows) + 1, len(plan.rounds)), (*plan.windows, *plan.rounds)
        if set(sizes) != {len(plan.levels)} or not all(isinstance(number, Integral) for number in numbers):
            raise InvalidParameterError(
                f"a plan has a whole number for the window of each level below the target and for the rounds of each level, "
                f"got {plan!r}; Plan.chain makes such plans"
            )

    def reasons(self, row_id: int) -> Reasons:
        """Why a row was decoded as it was, if the policy can say so."""
        if not isinstance(self._policy, ExplainingPolicy):
            return Reasons()
        try:
            found = self._policy.reasons(row_id)
            if not isinstance(found, Reasons):
                raise InvalidParameterError(f"a policy's reasons are Reasons, got {found!r}")
            return found
        except BaseException:
            self._failed("could not explain a row")
            return Reasons()

    def reconsider(self) -> None:
        """Lets the policy think while the target's forward is on its way."""
        if self._deferring is not None:
            try:
                self._deferring.reconsider()
            except BaseException:
                self._failed("could not reconsider")

    def asides(self) -> Collection[str]:
        """Model-free levels that the policy wants to be asked in this step."""
        if self._asking is None:
            return ()
        try:
            return [name for name in self._asking.asides() if name in self._proposers]
        except BaseException:
            self._failed("could not say what to ask")
            return ()

    def observe(self, step: StepObservation) -> None:
        """Passes what a step did to the policy."""
        if self._policy is not None:
            try:
                self._policy.observe(step)
            except BaseException:
                self._failed("could not learn from a step")

    def _failed(self, how: str) -> None:
        """Logs how the policy has failed, with the error that is being handled."""
        if how not in self._failures:
            self._failures.add(how)
            logger.exception("the policy %s; this is told once", how)
