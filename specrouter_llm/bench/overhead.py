"""`specrouter bench overhead`: what routing costs, and what the engine does between its forwards.

Two parts. Simulated pools of growing size show the time of one plan, by part: observing, estimating and searching, and
the decision itself. The real engine shows how much of a step passes outside all forwards, and who takes it.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from rich.console import Group
from rich.table import Table

from specrouter_llm.bench.engines import calibrated_engine
from specrouter_llm.bench.models import Models, encode
from specrouter_llm.bench.plots import new_figure, save_figure
from specrouter_llm.bench.texts import TextPrompt
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.scheduling.adaptive import AdaptivePolicy
from specrouter_llm.scheduling.estimates import Estimates
from specrouter_llm.scheduling.latency import LatencyModel
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import RowView, StepObservation
from specrouter_llm.scheduling.search import StepChoice
from specrouter_llm.scheduling.simulation import Simulator
from specrouter_llm.scheduling.sweep import calibration, pace, random_pool, requests
from specrouter_llm.types import Completion

SIZES = (4, 8, 16)
REQUEST_TOKENS = 400
"""Of a simulated request."""

T = TypeVar("T")


class Times(NamedTuple):
    """Seconds of one step's parts."""

    choose: float
    """`plan`, all of it."""
    search: float
    """Of that: estimates and searches."""
    observe: float
    seen: StepObservation

    @property
    def step(self) -> float:
        """As the executor measures it."""
        return self.seen.seconds - self.seen.between

    @property
    def forwards(self) -> float:
        """Of that: forwards, and the choice of their tokens."""
        return sum(forward.seconds_together for forward in self.seen.forwards)


@dataclass(slots=True)
class Stopwatch:
    """Collects the parts of every step. It does little itself: that would count as the worker's."""

    clock: Callable[[], float]
    steps: list[Times] = field(default_factory=list)
    choose: float = 0.0
    search: float = 0.0
    """Of the running step."""

    def next(self, observe: float, step: StepObservation) -> None:
        self.steps.append(Times(self.choose, self.search, observe, step))
        self.choose = self.search = 0.0


class TimedPolicy(AdaptivePolicy):
    """The adaptive policy with a stopwatch on its parts."""

    def __init__(
        self, models: Sequence[str], proposers: Sequence[str], latency: LatencyModel, clock: Callable[[], float]
    ) -> None:
        super().__init__(models, proposers, latency)
        self.watch = Stopwatch(clock)
        self._searching = False

    def plan(self, rows: Sequence[RowView]) -> Sequence[Plan]:
        started = self.watch.clock()
        plans = super().plan(rows)
        self.watch.choose += self.watch.clock() - started
        return plans

    def observe(self, step: StepObservation) -> None:
        started = self.watch.clock()
        super().observe(step)
        self.watch.next(self.watch.clock() - started, step)

    def _estimates(self, rows: Sequence[RowView]) -> Estimates:
        return self._as_search(partial(super()._estimates, rows))

    def _searched_choice(self, estimates: Estimates, everything: bool) -> StepChoice:
        return self._as_search(partial(super()._searched_choice, estimates, everything))

    def _promising(self, *arguments: Any) -> Any:
        return self._as_search(partial(super()._promising, *arguments))

    def _as_search(self, call: Callable[[], T]) -> T:
        """Counts the outermost call."""
        if self._searching:
            return call()
        self._searching, started = True, self.watch.clock()
        try:
            return call()
        finally:
            self._searching = False
            self.watch.search += self.watch.clock() - started


def measure_simulated(
    sizes: Sequence[int] = SIZES,
    *,
    pools: int = 3,
    tokens: int = 2000,
    advance: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """One row per number of models: microseconds of thread time per plan and per request, and the time saved."""
    rows = []
    for size in sizes:
        steps: list[Times] = []
        saved = 0.0
        for seed in range(pools):
            rng = random.Random(1000 * size + seed)
            pool = random_pool(rng, size, lookup=True)
            policy = TimedPolicy(list(pool.models), list(pool.lookups), calibration(pool), time.thread_time)
            simulator = Simulator(pool, requests(-(-tokens // REQUEST_TOKENS), REQUEST_TOKENS), slots=1, seed=seed)
            simulator.run(policy, tokens)
            steps += policy.watch.steps
            count = simulator.tokens
            plain = pace(pool, Plan((pool.target,)), partial(requests, 1, REQUEST_TOKENS), 1, REQUEST_TOKENS)
            saved += plain * count - simulator.seconds
            advance(f"{size} simulated models")
        number = pools * tokens / REQUEST_TOKENS
        spent = sum(each.choose + each.observe for each in steps)
        rows.append(
            {
                "part": "simulated",
                "models": size,
                "steps": len(steps),
                "plan_us": _spread([each.choose for each in steps]),
                "search_us": _spread([each.search for each in steps]),
                "decision_us": _spread([each.choose - each.search for each in steps]),
                "observe_us": _spread([each.observe for each in steps]),
                "scheduler_ms_per_request": 1e3 * spent / number,
                "saved_ms_per_request": 1e3 * saved / number,
            }
        )
    return rows


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, mean and 99th percentile in microseconds."""
    ordered = sorted(seconds)
    values = statistics.median(ordered), statistics.fmean(ordered), ordered[int(0.99 * (len(ordered) - 1))]
    return {
        name: round(1e6 * value, 2) for name, value in zip(("median", "mean", "percentile_99"), values, strict=True)
    }


def measure_engine(
    models: Models,
    texts: Sequence[TextPrompt],
    *,
    max_tokens: int = 64,
    seconds: float = 2.0,
    advance: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """One row per way to decode: adaptive, one drafter, plain. Answers take turns; the first ones warm up."""
    watches: list[Stopwatch] = []

    def policy(names: Sequence[str], lookups: Sequence[str], latency: LatencyModel) -> TimedPolicy:
        timed = TimedPolicy(names, lookups, latency, time.perf_counter)
        watches.append(timed.watch)
        return timed

    with calibrated_engine(models.pool(), policy, seconds=seconds) as engine:
        smallest = next(name for name in engine.levels if name in engine.labels)
        ways: dict[str, dict[str, Any]] = {"adaptive": {}, "plain": {"speculation": False}}
        if smallest != engine.target:
            ways["one drafter"] = {"chain": [smallest], "windows": [4]}
        found: dict[str, list[tuple[Completion, list[Times]]]] = {name: [] for name in ways}
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        for turn, text in enumerate([texts[0], *texts]):
            prompt = encode(engine, text)
            for name, options in ways.items():
                answer, steps = _timed_answer(engine, watches[0], prompt, params, options)
                if turn:
                    found[name].append((answer, steps))
            advance("the engine's steps")
        return [_engine_row(name, engine, answers, found["plain"]) for name, answers in found.items()]


def _timed_answer(
    engine: SpecRouter, watch: Stopwatch, prompt: Sequence[int], params: SamplingParams, options: Mapping[str, Any]
) -> tuple[Completion, list[Times]]:
    first = len(watch.steps)
    answer = engine.generate([list(prompt)], params, **options)[0].raise_for_error()
    return answer, watch.steps[first:]


def _engine_row(
    name: str,
    engine: SpecRouter,
    answers: Sequence[tuple[Completion, Sequence[Times]]],
    plain: Sequence[tuple[Completion, Sequence[Times]]],
) -> dict[str, Any]:
    """Shares of the time from the first token to the last: the first step (the prefill) is left out."""
    total = sum(answer.timings.decode_s for answer, _ in answers)
    later = [times for _, steps in answers for times in steps[1:]]
    forwards = sum(each.forwards for each in later)
    executor = sum(each.step for each in later) - forwards
    choose = sum(each.choose for each in later)
    observe = sum(each.observe for _, steps in answers for each in steps[:-1])
    parts = {
        "forwards": forwards,
        "executor": executor,
        "choose": choose,
        "observe": observe,
        "worker": total - forwards - executor - choose - observe,
    }
    saved = sum(answer.timings.decode_s for answer, _ in plain) - total
    return {
        "part": "engine",
        "way": name,
        "target": engine.labels[engine.target],
        "models": len(engine.labels),
        "requests": len(answers),
        "steps": len(later),
        "tokens": sum(len(answer.token_ids) for answer, _ in answers),
        "step_ms": 1e3 * total / max(1, len(later)),
        "share": {part: seconds / total for part, seconds in parts.items()},
        "outside_forwards": 1 - forwards / total,
        "us_per_step": {part: 1e6 * seconds / max(1, len(later)) for part, seconds in parts.items()},
        "scheduler_ms_per_request": 1e3 * (choose + observe) / len(answers),
        "saved_ms_per_request": 1e3 * saved / len(answers),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Group:
    """Two tables: simulated pools, and the engine."""
    simulated = Table(title="Scheduler, simulated pools, one row: microseconds (median / mean / 99 %)")
    columns = ("models", "plan", "of it search", "of it decision", "observe", "ms/request", "saved ms/request")
    for column in columns:
        simulated.add_column(column, justify="right")
    for row in rows:
        if row["part"] == "simulated":
            parts = [row[f"{part}_us"] for part in ("plan", "search", "decision", "observe")]
            simulated.add_row(
                str(row["models"]),
                *(f"{part['median']:.0f} / {part['mean']:.0f} / {part['percentile_99']:.0f}" for part in parts),
                f"{row['scheduler_ms_per_request']:.1f}",
                f"{row['saved_ms_per_request']:.0f}",
            )
    engine = [row for row in rows if row["part"] == "engine"]
    label = f", target {engine[0]['target']}, {engine[0]['models']} models" if engine else ""
    shown = Table(title=f"Where a step's time goes{label}: share (microseconds per step)")
    names = ("forwards", "executor", "choose", "observe", "worker")
    for column in ("decoding", "ms/step", *names, "outside forwards", "saved ms/request"):
        shown.add_column(column, justify="left" if column == "decoding" else "right")
    for row in engine:
        shown.add_row(
            row["way"],
            f"{row['step_ms']:.2f}",
            *(f"{100 * row['share'][name]:.2f} % ({row['us_per_step'][name]:.0f})" for name in names),
            f"{100 * row['outside_forwards']:.2f} %",
            f"{row['saved_ms_per_request']:.0f}",
        )
    return Group(*([simulated] if simulated.row_count else []), *([shown] if engine else []))


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Median time of a plan by number of models, and what a step spends outside its forwards."""
    figure = new_figure(9, 4)
    left, right = figure.subplots(1, 2)
    simulated = [row for row in rows if row["part"] == "simulated"]
    for part in ("plan", "observe"):
        left.plot([r["models"] for r in simulated], [r[f"{part}_us"]["median"] for r in simulated], "o-", label=part)
    left.set(xlabel="models", ylabel="microseconds, median", title="Scheduler")
    left.legend()
    engine = [row for row in rows if row["part"] == "engine"]
    bottom = [0.0] * len(engine)
    for part in ("executor", "choose", "observe", "worker"):
        heights = [100 * row["share"][part] for row in engine]
        right.bar([row["way"] for row in engine], heights, bottom=bottom, label=part)
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    right.set(ylabel="% of a step", title="Outside the forwards")
    right.legend()
    save_figure(figure, path)
