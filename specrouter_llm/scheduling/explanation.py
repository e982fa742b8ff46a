"""Why the scheduler does what it does, as values."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.search import Candidate

logger = logging.getLogger("specrouter_llm.scheduling")

KEPT_SWITCHES = 64


@dataclass(frozen=True, slots=True)
class Switch:
    """A change of the standing plans."""

    step: int
    before: tuple[Plan, ...]
    """Distinct plans of the rows."""
    after: tuple[Plan, ...]
    reason: str
    predicted_gain: float
    """1 - predicted time per token after / before; 0 where there was nothing to compare."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """The scheduler at this moment."""

    step: int
    candidates: tuple[Candidate, ...]
    """Of the last search, best first; all rows together."""
    chosen: tuple[Plan, ...]
    """Distinct standing plans of the rows."""
    predicted_seconds_per_token: float
    measured_seconds_per_token: float | None
    """Since the standing plans were chosen; None before their first step."""
    switches: tuple[Switch, ...]
    """The last ones, oldest first."""
    probes: int
    probe_seconds: float
    """What probes cost so far beyond the standing plans."""


@dataclass(slots=True)
class Journal:
    """What `Explanation` tells, while it happens."""

    switches: deque[Switch] = field(default_factory=lambda: deque(maxlen=KEPT_SWITCHES))
    seconds: float = 0.0
    tokens: int = 0

    def switched(self, switch: Switch) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            logger.debug(
                "step %d: %s -> %s, because %s; predicted gain %.1f %%",
                switch.step,
                _in_words(switch.before),
                _in_words(switch.after),
                switch.reason,
                100 * switch.predicted_gain,
            )
        self.switches.append(switch)
        self.seconds, self.tokens = 0.0, 0

    def measured(self, seconds: float, tokens: int) -> None:
        self.seconds += seconds
        self.tokens += tokens

    @property
    def seconds_per_token(self) -> float | None:
        return self.seconds / self.tokens if self.tokens else None


def _in_words(plans: Sequence[Plan]) -> str:
    """`draft[3] > target`, different plans of a batch side by side."""
    return " | ".join(map(str, plans))
