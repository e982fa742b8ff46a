"""`specrouter bench compare`: two results of the same experiment side by side, a ratio for every figure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from specrouter_llm.bench.experiments import KEYS, row_key
from specrouter_llm.errors import InvalidParameterError

_FIGURES = ({"value"}, {"value", "low", "high"})
"""The fields of a figure, without and with its interval."""


def compare(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row per figure that both results have: both values and second / first; whether their intervals are apart.

    Raises:
        InvalidParameterError: different experiments, or nothing in common.
    """
    experiment = first["experiment"]
    if experiment != second["experiment"]:
        raise InvalidParameterError(
            f"only results of one experiment can be compared, got {experiment!r} and {second['experiment']!r}"
        )
    before, after = (_figures(experiment, content["rows"]) for content in (first, second))
    rows = []
    for (key, name), old in before.items():
        new = after.get((key, name))
        if new is None:
            continue
        apart = None
        if isinstance(old, Mapping) and isinstance(new, Mapping) and "low" in old and "low" in new:
            apart = old["high"] < new["low"] or new["high"] < old["low"]
        a, b = (float(each["value"] if isinstance(each, Mapping) else each) for each in (old, new))
        rows.append(
            {"row": key, "figure": name, "first": a, "second": b, "ratio": b / a if a else None, "apart": apart}
        )
    if not rows:
        raise InvalidParameterError("the two results have no figure in common")
    return rows


def _figures(experiment: str, rows: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    """Numbers and intervals by (what the row is about, name)."""
    found: dict[tuple[str, str], Any] = {}
    for row in rows:
        key = row_key(experiment, row)
        for name, value in _leaves(row):
            if name in KEYS.get(experiment, ()):
                continue
            if (key, name) in found:
                raise InvalidParameterError(f"two rows of a {experiment} result are both about {key!r}")
            found[key, name] = value
    return found


def _leaves(value: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names of all numbers and intervals; lists and texts are no figures."""
    for name, each in value.items():
        if isinstance(each, Mapping) and set(each) not in _FIGURES:
            yield from _leaves(each, f"{prefix}{name}.")
        elif isinstance(each, (Mapping, int, float)) and not isinstance(each, bool):
            yield f"{prefix}{name}", each


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for people. A star marks intervals that do not touch."""
    shown = Table(title="Second result / first result; * where the two intervals do not touch")
    for column in ("row", "figure", "first", "second", "ratio"):
        shown.add_column(column, justify="left" if column in ("row", "figure") else "right")
    last = None
    for row in rows:
        ratio = "-" if row["ratio"] is None else f"{row['ratio']:.3f}{'*' if row['apart'] else ''}"
        about = row["row"] if row["row"] != last else ""
        last = row["row"]
        shown.add_row(about, row["figure"], f"{row['first']:g}", f"{row['second']:g}", ratio)
    return shown
