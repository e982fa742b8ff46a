"""`specrouter calibrate`: what one forward of each model costs here, as a table, a plot, and a file for the adaptive policy."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rich.table import Table

from specrouter_llm.bench.plots import new_figure, save_figure
from specrouter_llm.cli.experiment import show
from specrouter_llm.cli.options import PoolOptions
from specrouter_llm.cli.outputs import writing
from specrouter_llm.engine.calibration import ROWS, Calibration, pool_runners
from specrouter_llm.scheduling.latency import GRID

REPEATS = 15
"""More than at start-up: here there is time."""
CONTEXTS = (128, 1024)
"""Positions that the table and the plot are for."""


def run(options: PoolOptions, *, seconds: float, out: Path | None, plot: Path | None, as_json: bool) -> None:
    """Measures, shows, and writes what was asked for."""
    quiet = as_json or not sys.stderr.isatty()
    pool = options.pool(max_batch=ROWS, progress=not quiet)
    runners = pool_runners(pool, num_slots=ROWS, pack=True)
    calibration = Calibration.of(pool, runners, seconds=seconds, rows=ROWS, repeats=REPEATS, progress=not quiet)
    for runner in runners.values():
        runner.close()
    pool.close()
    if as_json:
        print(json.dumps(_milliseconds(calibration)))
    else:
        show(_table(calibration))
    if out is not None:
        with writing(out):
            calibration.save(out)
    if plot is not None:
        with writing(plot):
            _plot(calibration, plot)
    if out is not None and not as_json:
        print(f"Written to {out.name}; use it with SpecRouter.from_pretrained(..., calibration=...)")


def _milliseconds(calibration: Calibration) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds by model, context and tokens."""
    latency = calibration.latency
    return {
        name: {
            str(context): {str(tokens): 1e3 * latency.seconds(name, tokens, context) for tokens in GRID}
            for context in CONTEXTS
        }
        for name in calibration.members
    }


def _table(calibration: Calibration) -> Table:
    threads = f"{calibration.threads} thread{'s' if calibration.threads > 1 else ''}"
    table = Table(title=f"Milliseconds of one forward over n tokens at context L; {threads}")
    table.add_column("model")
    table.add_column("L", justify="right")
    for tokens in GRID:
        table.add_column(f"n = {tokens}", justify="right")
    for name, contexts in _milliseconds(calibration).items():
        for i, (context, values) in enumerate(contexts.items()):
            label = calibration.members[name] if i == 0 else ""
            table.add_row(label, context, *(f"{value:.2f}" for value in values.values()))
    return table


def _plot(calibration: Calibration, path: Path) -> None:
    figure = new_figure(6.5, 4.5)
    axes = figure.subplots()
    styles = ("o-", "o--")
    for number, (name, contexts) in enumerate(_milliseconds(calibration).items()):
        for style, (context, values) in zip(styles, contexts.items(), strict=True):
            axes.plot(GRID, list(values.values()), style, color=f"C{number}", label=f"{name}, L = {context}")
    axes.set(xlabel="tokens per forward", ylabel="milliseconds", xscale="log", yscale="log", xticks=GRID)
    axes.set_xticklabels([str(tokens) for tokens in GRID])
    axes.legend(fontsize="small")
    save_figure(figure, path)
