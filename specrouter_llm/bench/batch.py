"""`specrouter bench batch`: tokens per second by batch size, and which chains the adaptive policy turns to."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from specrouter_llm.bench.bootstrap import LEAST, Interval, ratio_of_sums
from specrouter_llm.bench.contest import END_TO_END, Decoding, differences, jobs_of, route, take_turns, warm_up
from specrouter_llm.bench.contestants import PLAIN, Chain, contestants_of
from specrouter_llm.bench.models import Models
from specrouter_llm.bench.peers import GENERATE, REFERENCE
from specrouter_llm.bench.plots import new_figure, save_figure
from specrouter_llm.bench.rivals import rival_table, rivals
from specrouter_llm.bench.workloads import Workload

SIZES = (1, 2, 4, 8, 16, 32)


def measure(
    models: Models,
    workload: Workload,
    *,
    batches: Sequence[int] = SIZES,
    groups: int = 3,
    max_context: int | None = None,
    chains: Sequence[Chain] | None = None,
    peer: bool = True,
    seed: int = 0,
    advance: Callable[[str], None] = lambda what: None,
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The labels of the models, and one row per batch size and contestant. Each size decodes `groups` batches."""
    rows = []
    peers = (GENERATE,) if peer else ()
    entered = contestants_of(models, chains=chains, peers=peers, max_batch=max(batches), max_context=max_context)
    with entered as (engine, contestants):
        jobs = jobs_of(engine, workload, seed)
        for size in batches:
            supply = itertools.cycle(jobs)
            work = [list(itertools.islice(supply, size)) for _ in range(groups)]
            warm_up(contestants, work[0])
            found = take_turns(contestants, work, advance)
            for contestant in contestants:
                mine = found[contestant.name]
                row = {"batch": size, "contestant": contestant.name, "kind": contestant.kind, **_figures(mine, found)}
                if workload.temperature == 0 or contestant.kind != "peer":
                    row |= differences(engine, work, found[PLAIN], mine)
                if contestant.kind == "routed":
                    row["route"] = route(mine)
                    row["rivals"] = rivals(contestants, found, END_TO_END)
                rows.append(row)
        return engine.labels, rows


def _figures(mine: Sequence[Decoding], found: Mapping[str, Sequence[Decoding]]) -> dict[str, Any]:
    """Prefill included: rows of our engine begin to decode while others are still being taken in. Group by group too, so that
    a run that is unlike others can be read: whether steps were more, or dearer, and where."""
    seconds = [each.seconds for each in mine]
    rate = ratio_of_sums([float(each.num_tokens) for each in mine], seconds)
    over = {
        name: ratio_of_sums([each.seconds for each in found[name]], seconds)
        for name in (REFERENCE, PLAIN)
        if name in found
    }
    return {
        "groups": len(mine),
        "tokens_per_second": rate.as_dict(),
        "speedup": {name: interval.as_dict() for name, interval in over.items()},
        "seconds": [round(each, 4) for each in seconds],
        "target_steps": [each.target_steps for each in mine],
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Group:
    """Two tables: everyone, and the routed contestant against the best of the others."""
    shown = Table(
        title=f"Batches: tokens per second, prefill included (95 % bootstrap intervals by batch, of {LEAST} and more)"
    )
    for column in (
        "batch",
        "contestant",
        "tokens/s",
        "x hf generate",
        "x own plain",
        "same/near/diff",
    ):
        shown.add_column(column, justify="left" if column == "contestant" else "right")
    last = None
    for row in rows:
        if last not in (None, row["batch"]):
            shown.add_section()
        last = row["batch"]
        shown.add_row(
            str(row["batch"]),
            row["contestant"],
            f"{row['tokens_per_second']['value']:.1f}",
            *(str(Interval(**row["speedup"][name])) if name in row["speedup"] else "-" for name in (REFERENCE, PLAIN)),
            f"{row['identical']}/{row['near_ties']}/{row['different']}" if "identical" in row else "-",
        )
    return Group(shown, rival_table(rows, "batch", "end_to_end"))


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Tokens per second over the batch size, one line per contestant."""
    figure = new_figure(7, 4.5)
    axes = figure.add_subplot()
    for name in dict.fromkeys(row["contestant"] for row in rows):
        mine = [row for row in rows if row["contestant"] == name]
        sizes = [row["batch"] for row in mine]
        rates = [row["tokens_per_second"] for row in mine]
        axes.plot(sizes, [rate["value"] for rate in rates], marker="o", label=name)
        low, high = ([rate.get(end, rate["value"]) for rate in rates] for end in ("low", "high"))
        axes.fill_between(sizes, low, high, alpha=0.15)
    every = sorted({row["batch"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(every, [str(size) for size in every])
    axes.set_xlabel("batch")
    axes.set_ylabel("tokens/s")
    axes.legend()
    save_figure(figure, path)
