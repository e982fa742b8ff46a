"""`specrouter bench compare` and `specrouter report`: what is done with results that lie on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specrouter_llm.cli.experiment import app, show
from specrouter_llm.cli.outputs import checked_page, writing


@app.command()
def compare(
    first: Annotated[Path, typer.Argument(help="A result, as --out wrote it.")],
    second: Annotated[Path, typer.Argument(help="Another one of the same experiment.")],
) -> None:
    """Two results of the same experiment side by side, a ratio for every figure."""
    from specrouter_llm.bench import compare as comparison
    from specrouter_llm.bench.experiments import read_result, showing

    before, after = read_result(first), read_result(second)
    with showing(f"{first} or {second}"):
        rows = comparison.compare(before, after)
    show(comparison.table(rows))


def report(
    out: Annotated[Path, typer.Argument(help="The page to write, .html.", callback=checked_page)],
    results: Annotated[list[Path], typer.Argument(help="Results, as --out wrote them.")],
) -> None:
    """Join results into one HTML page with tables, plots, machine and versions."""
    from specrouter_llm.bench.experiments import read_result
    from specrouter_llm.bench.report import page

    text = page([(path, read_result(path)) for path in results])
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    typer.echo(f"{out}: {len(results)} results")
