"""The ForwardAhead: a model's next plain forward, begun while the host still looks at the choices of the last one.

Between two steps the host fetches what was chosen, commits and delivers it, plans, and launches again, and a device is idle
meanwhile. Where plain steps of the same rows follow each other, all that the next forward needs is on the device once the
last choices are made, so it is begun right behind them. If another step comes instead, its logits are dropped, and what it
wrote lies behind what is valid: the price is one forward where rows end or a chain changes. (Serving engines call this
asynchronous scheduling.)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.runner import AheadRunner, Runner
from specrouter_llm.state.row import Row

logger = logging.getLogger(__name__)


class _Step(NamedTuple):
    """One token of each of some rows, in order. Rows are what they are, not alike: a slot has another one in time."""

    model: str
    rows: tuple[Row, ...]
    starts: tuple[int, ...]

    @classmethod
    def of(cls, model: str, rows: Sequence[Row], spans: Sequence[Span]) -> _Step | None:
        """None if it is not plain."""
        plain = all(len(span.token_ids) == span.num_logits == 1 for span in spans)
        return cls(model, tuple(rows), tuple(span.start for span in spans)) if plain else None

    def next(self) -> _Step:
        return self._replace(starts=tuple(start + 1 for start in self.starts))


class ForwardAhead:
    """Of the models whose runners can begin a forward over tokens that the host has not seen."""

    def __init__(self, runners: Mapping[str, Runner]) -> None:
        self._runners = {name: runner for name, runner in runners.items() if isinstance(runner, AheadRunner)}
        self._expected: _Step | None = None
        """The step that would continue the last one."""
        self._begun: tuple[_Step, Tensor] | None = None

    def take(self, model: str, rows: Sequence[Row], spans: Sequence[Span]) -> tuple[Tensor | None, bool]:
        """The logits of this step, if it is the one that was begun; and whether anything was, which is over now."""
        begun, self._begun = self._begun, None
        taken = begun is not None and begun[0] == _Step.of(model, rows, spans)
        return (begun[1] if begun is not None and taken else None), begun is not None

    def follows(self, model: str, rows: Sequence[Row], spans: Sequence[Span]) -> bool:
        """Whether a step can be begun behind this one: if this one was itself the one behind the last. Asked once a step."""
        step = _Step.of(model, rows, spans) if model in self._runners else None
        expected, self._expected = self._expected, step.next() if step is not None else None
        if step is None or step != expected:
            return False
        alike = len({row.sampler.warp for row in rows}) == 1  # else the device has their choices in another order
        # The host looks at a contextual row's logits first, and may then replace what is chosen.
        return alike and all(row.remaining > 1 and not row.sampler.contextual for row in rows)

    def begin(self, model: str, spans: Sequence[Span], chosen: Tensor) -> None:
        """Begins the step behind this one, whose forward, over `spans`, is launched.

        Args:
            chosen: its choices [rows] on the device, of which a negative one is none.
        """
        following = [Span(span.slot, span.end, [0], 1) for span in spans]
        try:
            logits = self._runners[model].ahead(following, chosen)
        except Exception:  # the step itself will say what is wrong, to whom it concerns
            logger.warning("%s: no forward is begun ahead any more", model, exc_info=True)
            del self._runners[model]
            return
        if logits is not None and self._expected is not None:
            self._begun = self._expected, logits
