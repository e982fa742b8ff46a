"""The demo's plot: which chain every step took, what was accepted, and what a token cost, while the policy learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from specrouter_llm.bench.plots import new_figure, save_figure
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.types import ChatMessage, StepInfo

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTH_STEPS = 12
"""Acceptance and time are shown as means over so many steps."""


@dataclass(frozen=True, slots=True)
class Leg:
    """The steps of one answer."""

    title: str
    steps: tuple[StepInfo, ...]


def record(
    engine: SpecRouter, prompts: Sequence[tuple[str, str | list[ChatMessage], dict[str, Any]]], max_tokens: int
) -> list[Leg]:
    """Answers (title, prompt, options) one after the other, chains left to the policy; the first step of each, the
    prefill, is left out."""
    legs = []
    for title, prompt, options in prompts:
        steps: list[StepInfo] = []
        handle = engine.submit(prompt, max_tokens=max_tokens, ignore_eos=True, on_step=steps.append, **options)
        handle.result()[0].raise_for_error()
        legs.append(Leg(title, tuple(steps[1:])))
    return legs


def plot(legs: Sequence[Leg], label: str, path: Path) -> None:
    """Three rows over the steps of the run."""
    steps = [step for leg in legs for step in leg.steps]
    chains = list(dict.fromkeys(step.chain for step in sorted(steps, key=lambda step: (len(step.chain), step.chain))))
    figure = new_figure(10, 7)
    figure.suptitle(f"Routing over time: {label}")
    top, middle, bottom = figure.subplots(3, 1, sharex=True, height_ratios=[max(1.5, 0.4 * len(chains)), 1.5, 1.5])
    for number, chain in enumerate(chains):
        taken = [i for i, step in enumerate(steps) if step.chain == chain]
        top.plot(taken, [number] * len(taken), "|", markersize=11, color=f"C{number % 10}")
    top.set_yticks(range(len(chains)), [" > ".join(chain) for chain in chains], fontsize="small")
    top.set_ylim(-0.6, len(chains) - 0.4)
    drafted = [float(step.levels[-1].drafted) if step.levels else 0.0 for step in steps]
    accepted = [float(step.levels[-1].accepted) if step.levels else 0.0 for step in steps]
    middle.plot(_ratio(accepted, drafted), color="C2")
    middle.set(ylabel="accepted / drafted\nat the target", ylim=(0, 1.05))
    times = _ratio([1e3 * step.seconds for step in steps], [float(len(step.committed)) for step in steps])
    bottom.plot(times, color="C3")
    bottom.set(ylabel="ms per token", xlabel="step")
    bottom.set_ylim(bottom=0)
    _mark(legs, (top, middle, bottom))
    save_figure(figure, path)


def _mark(legs: Sequence[Leg], rows: Sequence[Axes]) -> None:
    """A line where an answer begins, with its title over the first row."""
    start = 0
    for leg in legs:
        for axes in rows:
            axes.axvline(start - 0.5, color="black", linewidth=0.6, linestyle=":")
        rows[0].annotate(
            leg.title, (start, 1.0), xycoords=("data", "axes fraction"), xytext=(2, 3), textcoords="offset points",
            fontsize="small",
        )  # fmt: skip
        start += len(leg.steps)


def _ratio(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Sums of the last steps over each other; NaN where nothing was counted."""
    found = []
    for i in range(len(above)):
        window = slice(max(0, i - SMOOTH_STEPS + 1), i + 1)
        total = sum(below[window])
        found.append(sum(above[window]) / total if total else float("nan"))
    return found
