"""What the subcommands of `specrouter bench` share: options, the progress bar, and how a result is shown and kept."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specrouter_llm.cli.arguments import TEMPERATURE
from specrouter_llm.cli.outputs import checked_file, checked_plot, writing

if TYPE_CHECKING:
    from rich.progress import Progress

    from specrouter_llm.bench.texts import TextPrompt

app = typer.Typer(help="Measure the engine; docs/benchmarks says how to read the results.", no_args_is_help=True)

Prompts = Annotated[
    Path | None, typer.Option(help="JSONL, TSV or text file, FILE#CATEGORY of it; built-in prompts by default.")
]
Limit = Annotated[int, typer.Option(min=1, help="Number of prompts.")]
Seed = Annotated[int, typer.Option(min=0, help="Noise of the first prompt; the next ones count on.")]
Batch = Annotated[int, typer.Option(min=1, help="Rows decoded together.")]
Temperatures = Annotated[
    list[float] | None, typer.Option("--temperature", callback=TEMPERATURE, help="0 is greedy; may be repeated.")
]
Out = Annotated[
    Path | None,
    typer.Option(help="Write the result, with a description of the machine, as JSON.", callback=checked_file),
]
Plot = Annotated[
    Path | None, typer.Option(help="Write a plot (.png, .svg or .pdf); needs matplotlib.", callback=checked_plot)
]


def texts_of(prompts: Path | None, limit: int) -> list[TextPrompt]:
    """The first prompts of a file, or the built-in ones."""
    from specrouter_llm.bench.workloads import built_in_prompts, read_prompts

    return read_prompts(prompts, limit) if prompts is not None else built_in_prompts(limit)


def source_of(prompts: Path | None, texts: Sequence[TextPrompt]) -> dict[str, Any]:
    """Where prompts came from, for a result's settings."""
    return {"prompts": prompts.name if prompts is not None else "built-in", "num_prompts": len(texts)}


@contextmanager
def progress_bar(total: int | None) -> Iterator[Any]:
    """A bar on stderr, if that is a terminal; yields what advances it."""
    from rich.console import Console
    from rich.progress import Progress

    progress: Progress
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("Loading models", total=total)

        def advance(what: str) -> None:
            progress.update(task, description=what, advance=1)

        yield advance


def show(table: Any) -> None:
    """A table on stdout, wide enough where stdout is no terminal; brackets in it are no markup."""
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160, markup=False).print(table)


def finish(
    experiment: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], table: Any, out: Path | None
) -> None:
    """Shows a result, and writes it if asked to."""
    show(table)
    keep(experiment, settings, rows, out)


def keep(experiment: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], out: Path | None) -> None:
    """Writes a result, if asked to."""
    from specrouter_llm.bench.result import result, write_result

    if out is not None:
        with writing(out):
            write_result(out, result(experiment, settings, rows))


def draw(
    plot: Callable[[Sequence[Mapping[str, Any]], Path], None], rows: Sequence[Mapping[str, Any]], path: Path | None
) -> None:
    """Draws an experiment's plot, if asked to."""
    if path is not None:
        with writing(path):
            plot(rows, path)
