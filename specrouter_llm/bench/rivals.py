"""Whom routing is held against: the fastest of every family of contestants, picked afterwards on the same runs.

That favours them, since a pick among equals takes the luckiest. A family is one way to decode with other settings: our
static chains (plain decoding is the one without drafts), assisted generation with other numbers of tokens, and so on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from specrouter_llm.bench.bootstrap import Interval
from specrouter_llm.bench.contest import DECODING, Contestant, Decoding, speedup


def rivals(
    contestants: Sequence[Contestant],
    found: Mapping[str, Sequence[Decoding]],
    seconds: Callable[[Decoding], float] = DECODING,
) -> list[dict[str, Any]]:
    """The routed contestant against the fastest of every family, and of all peers; `of` is among how many."""
    (routed,) = (each.name for each in contestants if each.kind == "routed")
    families: dict[str, list[str]] = {}
    for each in contestants:
        if each.kind != "routed":
            families.setdefault(each.family, []).append(each.name)
    families["peer"] = [each.name for each in contestants if each.kind == "peer"]
    best = {family: fastest(found, names, seconds) for family, names in families.items() if names}
    return [
        {"what": f"best {family}", "name": name, "of": len(families[family]), **speedup(found[routed], found[name])}
        for family, name in best.items()
    ]


def fastest(
    found: Mapping[str, Sequence[Decoding]],
    names: Sequence[str],
    seconds: Callable[[Decoding], float] = DECODING,
) -> str:
    """Who took the least time, of these."""
    return min(names, key=lambda name: sum(map(seconds, found[name])))


def rival_table(rows: Sequence[Mapping[str, Any]], about: str, clock: str) -> Table:
    """The rivals of routed rows for people: `about` names what a row is about, `clock` the figure of a speed-up."""
    shown = Table(title=f"Routed: time of the best of the others / its own ({clock}), and the chains it used")
    for column in (about, "against", "which", "x", "tokens by chain"):
        shown.add_column(column, justify="right" if column == "x" else "left")
    for row in rows:
        used = ", ".join(f"{name} {100 * share:.0f} %" for name, share in row.get("route", {}).items())
        for rival in row.get("rivals", ()):
            shown.add_row(str(row[about]), rival["what"], rival["name"], str(Interval(**rival[clock])), used)
            used = ""
    return shown
