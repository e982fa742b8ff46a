"""Plots of results, written as PNG, SVG or PDF. matplotlib is optional: the extra `plots`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from specrouter_llm.errors import InvalidParameterError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")


def check_plot(path: Path | None) -> None:
    """Fails before a long run instead of after it.

    Raises:
        MissingDependencyError: matplotlib is not installed.
        InvalidParameterError: the file's ending says no known format.
    """
    if path is None:
        return
    if path.suffix.lower() not in ENDINGS:
        raise InvalidParameterError(f"a plot is written as one of {', '.join(ENDINGS)}, got {path.name!r}")
    try:
        import matplotlib  # noqa: F401  # is it installed?
    except ImportError:
        raise MissingDependencyError(
            "plots need matplotlib: pip install 'specrouter-llm[plots]', or leave --plot out"
        ) from None


def new_figure(width: float, height: float) -> Figure:
    """An empty figure, in inches, that no window belongs to."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def reach(figures: Sequence[Mapping[str, float]]) -> list[list[float]]:
    """How far the intervals of figures reach below and above them; nowhere where there are none."""
    values = [figure["value"] for figure in figures]
    below = [value - figure.get("low", value) for value, figure in zip(values, figures, strict=True)]
    above = [figure.get("high", value) - value for value, figure in zip(values, figures, strict=True)]
    return [below, above]


def save_figure(figure: Figure, path: Path) -> None:
    """Writes a figure, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=144)
