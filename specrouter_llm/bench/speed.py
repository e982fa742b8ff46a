"""`specrouter bench speed`: plain decoding, static chains, the adaptive policy and transformers itself, one prompt at a time.

Every workload is a stream of prompts; `mix` interleaves all of them, so that no static chain suits every prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from specrouter_llm.bench.bootstrap import Interval
from specrouter_llm.bench.contest import (
    Contestant,
    Decoding,
    Job,
    differences,
    figures,
    jobs_of,
    route,
    speedup,
    take_turns,
    warm_up,
)
from specrouter_llm.bench.contestants import PLAIN, ROUTED, Chain, contestants_of
from specrouter_llm.bench.models import Models
from specrouter_llm.bench.peers import KINDS, REFERENCE
from specrouter_llm.bench.plots import new_figure, reach, save_figure
from specrouter_llm.bench.rivals import fastest, rival_table, rivals
from specrouter_llm.bench.workloads import MIX, Workload, in_turn
from specrouter_llm.engine.spec_router import SpecRouter

PER_WORKLOAD = "best chain of each workload"


def measure(
    models: Models,
    workloads: Sequence[Workload],
    *,
    apart: bool = True,
    mix: bool = True,
    chains: Sequence[Chain] | None = None,
    peers: Sequence[str] = KINDS,
    everything: bool = False,
    seed: int = 0,
    advance: Callable[[str], None] = lambda what: None,
) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The labels of the models, and one row per stream and contestant.

    Streams are the workloads one by one (`apart`), and all of them interleaved (`mix`).
    """
    with contestants_of(models, chains=chains, peers=peers, everything=everything) as (engine, contestants):
        jobs = [jobs_of(engine, workload, seed) for workload in workloads]
        streams = {workload.name: each for workload, each in zip(workloads, jobs, strict=True) if apart}
        if mix:
            streams[MIX] = in_turn(jobs)
        warm_up(contestants, jobs[0][:1])
        rows = []
        for name, stream in streams.items():
            found = take_turns(contestants, [[job] for job in stream], advance)
            rows += _rows(name, engine, stream, contestants, found)
        return engine.labels, rows


def _rows(
    name: str,
    engine: SpecRouter,
    stream: Sequence[Job],
    contestants: Sequence[Contestant],
    found: Mapping[str, Sequence[Decoding]],
) -> list[dict[str, Any]]:
    groups = [[job] for job in stream]
    greedy = all(job.params.greedy for job in stream)
    rows = []
    for contestant in contestants:
        mine = found[contestant.name]
        row: dict[str, Any] = {
            "workload": name,
            "contestant": contestant.name,
            "kind": contestant.kind,
            "prompts": len(stream),
            "temperatures": sorted({job.params.temperature for job in stream}),
            **figures(mine),
            "speedup": {other: speedup(mine, found[other]) for other in (REFERENCE, PLAIN) if other in found},
        }
        if greedy or contestant.kind != "peer":  # sampled, transformers draws other noise
            row |= differences(engine, groups, found[PLAIN], mine)
        if contestant.kind == "routed":
            row["route"] = route(mine)
            row["rivals"] = rivals(contestants, found) + _oracle(stream, contestants, found)
        rows.append(row)
    return rows


def _oracle(
    stream: Sequence[Job], contestants: Sequence[Contestant], found: Mapping[str, Sequence[Decoding]]
) -> list[dict[str, Any]]:
    """The routed contestant against the best static chain of each workload of a mixture."""
    ours = [contestant.name for contestant in contestants if contestant.kind in ("plain", "static")]
    by_workload = {
        workload: [i for i, job in enumerate(stream) if job.workload == workload]
        for workload in dict.fromkeys(job.workload for job in stream)
    }
    if len(by_workload) == 1:
        return []
    best_of = {
        workload: fastest({name: [found[name][i] for i in where] for name in ours}, ours)
        for workload, where in by_workload.items()
    }
    oracle = [found[best_of[job.workload]][i] for i, job in enumerate(stream)]
    chosen = ", ".join(f"{workload}: {best}" for workload, best in best_of.items())
    return [{"what": PER_WORKLOAD, "name": chosen, "of": len(ours), **speedup(found[ROUTED], oracle)}]


def table(rows: Sequence[Mapping[str, Any]]) -> Group:
    """Two tables: everyone, and the routed contestant against the best of the others."""
    shown = Table(title="Speed, one prompt at a time: speed-ups by decode time (95 % bootstrap intervals by prompt)")
    columns = ("workload", "contestant", "ms/token", "x hf generate", "x own plain", "x hf, with prefill")
    for column in (*columns, "tokens/step", "same/near/diff"):
        shown.add_column(column, justify="left" if column in ("workload", "contestant") else "right")
    last = None
    for row in rows:
        if last not in (None, row["workload"]):
            shown.add_section()
        last = row["workload"]
        over = row["speedup"]
        shown.add_row(
            row["workload"],
            row["contestant"],
            f"{row['ms_per_token']:.2f}",
            _interval(over.get(REFERENCE), "decode"),
            _interval(over.get(PLAIN), "decode"),
            _interval(over.get(REFERENCE), "end_to_end"),
            f"{row['tokens_per_target_step']:.2f}",
            f"{row['identical']}/{row['near_ties']}/{row['different']}" if "identical" in row else "-",
        )
    return Group(shown, rival_table(rows, "workload", "decode"))


def _interval(figure: Mapping[str, Any] | None, name: str) -> str:
    return str(Interval(**figure[name])) if figure is not None else "-"


_COLOURS = {"peer": "tab:gray", "plain": "tab:olive", "static": "tab:blue", "routed": "tab:red"}


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Speed-ups over transformers' generate, or over plain decoding without it: one panel per workload."""
    reference = REFERENCE if all(REFERENCE in row["speedup"] for row in rows) else PLAIN
    panels = {
        name: [row for row in rows if row["workload"] == name] for name in dict.fromkeys(r["workload"] for r in rows)
    }
    tallest = max(map(len, panels.values()))
    figure = new_figure(7, 1 + len(panels) * (0.5 + 0.22 * tallest))
    grid = figure.subplots(len(panels), squeeze=False, sharex=True)
    for axes, (workload, bars) in zip(grid[:, 0], panels.items(), strict=True):
        ratios = [row["speedup"][reference]["decode"] for row in bars]
        names, colours = zip(*((row["contestant"], _COLOURS[row["kind"]]) for row in bars), strict=True)
        axes.barh(names, [r["value"] for r in ratios], xerr=reach(ratios), height=0.7, color=colours)
        axes.invert_yaxis()
        axes.axvline(1, color="black", linewidth=0.8)
        axes.set_title(workload, loc="left", fontsize="medium")
    grid[-1, 0].set_xlabel(f"speed-up of decoding over {reference}")
    save_figure(figure, path)
