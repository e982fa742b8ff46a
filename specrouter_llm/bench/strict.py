"""`specrouter bench strict`: what it costs that bits do not depend on the batch, and what it gives.

Two engines, one of them strict, decode the same prompts in turn: plainly, and by the adaptive policy. Of each engine the
policy also sees the plain steps; that is the same for both. Answers are compared with plain decoding of the same engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from rich.table import Table

from specrouter_llm.bench.bootstrap import Interval
from specrouter_llm.bench.contest import differences, figures, jobs_of, speedup, take_turns, warm_up
from specrouter_llm.bench.contestants import PLAIN, ROUTED, EngineContestant
from specrouter_llm.bench.models import Models
from specrouter_llm.bench.workloads import Workload

DEFAULT, STRICT = "default", "strict"
_WAYS: Mapping[str, Mapping[str, Any]] = {PLAIN: {"speculation": False}, ROUTED: {}}


def measure(
    models: Models,
    workload: Workload,
    *,
    seed: int = 0,
    advance: Callable[[str], None] = lambda what: None,
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The labels of the models, and one row per mode and way to decode; `over_default` is how much faster than the default."""
    with ExitStack() as stack:
        engines = {
            mode: stack.enter_context(
                models.engine(max_batch=1, prefix_reuse=False, policy="adaptive", strict=mode == STRICT)
            )
            for mode in (DEFAULT, STRICT)
        }
        contestants = {
            (mode, way): EngineContestant(f"{way}, {mode}", way, engine, options)
            for mode, engine in engines.items()
            for way, options in _WAYS.items()
        }
        jobs = jobs_of(engines[DEFAULT], workload, seed)
        groups = [[job] for job in jobs]
        everyone = list(contestants.values())
        warm_up(everyone, jobs[:1])
        turns = take_turns(everyone, groups, advance)
        found = {key: turns[contestant.name] for key, contestant in contestants.items()}
        rows = [
            {
                "mode": mode,
                "way": way,
                "guarantee": engines[mode].guarantee,
                "prompts": len(jobs),
                **figures(mine),
                "over_default": speedup(mine, found[DEFAULT, way]),
                **differences(engines[mode], groups, found[mode, PLAIN], mine),
            }
            for (mode, way), mine in found.items()
        ]
        return engines[DEFAULT].labels, rows


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for people."""
    shown = Table(title="Strict mode: speed-ups over the default by decode time (95 % bootstrap intervals by prompt)")
    for column in ("mode", "decoding", "guarantee", "ms/token", "x default", "same/near/diff"):
        shown.add_column(column, justify="left" if column in ("mode", "decoding", "guarantee") else "right")
    for row in rows:
        shown.add_row(
            row["mode"],
            row["way"],
            row["guarantee"],
            f"{row['ms_per_token']:.2f}",
            str(Interval(**row["over_default"]["decode"])),
            f"{row['identical']}/{row['near_ties']}/{row['different']}",
        )
    return shown
