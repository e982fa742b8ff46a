"""`specrouter bench ...`: one subcommand per experiment. The experiments are imported when they run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from specrouter_llm.cli.arguments import Device, Drafts, Dtype, MaxTokens, Target, Widen

if TYPE_CHECKING:
    from rich.progress import Progress

app = typer.Typer(help="Measure the engine; docs/benchmarks says how to read the results.", no_args_is_help=True)

Prompts = Annotated[Path | None, typer.Option(help="JSONL or text file; some built-in prompts by default.")]
Limit = Annotated[int, typer.Option(help="Number of prompts.")]
Seed = Annotated[int, typer.Option(help="Noise of the first prompt; the next ones count on.")]
Batch = Annotated[int, typer.Option(help="Rows decoded together.")]
Temperatures = Annotated[list[float] | None, typer.Option("--temperature", help="0 is greedy; may be repeated.")]
Out = Annotated[Path | None, typer.Option(help="Write the result, with a description of the machine, as JSON.")]


@app.command()
def match(
    target: Target = "demo",
    drafts: Drafts = None,
    prompts: Prompts = None,
    limit: Limit = 48,
    temperatures: Temperatures = None,
    max_tokens: MaxTokens = 64,
    seed: Seed = 0,
    batch: Batch = 8,
    dtype: Dtype = None,
    device: Device = None,
    widen: Widen = None,
    out: Out = None,
) -> None:
    """How often the levels agree: keyed choices, argmax, and the optimum 1 - TV."""
    from specrouter_llm.bench import match as experiment
    from specrouter_llm.bench.models import Models

    texts, chosen = _texts(prompts, limit), temperatures or [0.0, 0.7, 1.0]
    with _progress(len(chosen) * (len(texts) + 1)) as advance:
        rows = experiment.measure(
            Models.of(target, drafts, dtype, device, widen),
            texts,
            temperatures=chosen,
            max_tokens=max_tokens,
            seed=seed,
            batch=batch,
            advance=advance,
        )
    settings = {"target": target, "widen": widen, "max_tokens": max_tokens, "seed": seed, **_source(prompts, texts)}
    _report("match", settings, rows, experiment.table(rows), out)


@app.command()
def rejection(
    target: Target = "demo",
    drafts: Drafts = None,
    prompts: Prompts = None,
    limit: Limit = 24,
    temperatures: Temperatures = None,
    offers: Annotated[
        list[int] | None, typer.Option("--offer", help="Tokens offered to the target; may be repeated (4 and 8).")
    ] = None,
    max_tokens: MaxTokens = 64,
    seed: Seed = 0,
    batch: Batch = 8,
    dtype: Dtype = None,
    device: Device = None,
    widen: Widen = None,
    out: Out = None,
) -> None:
    """Early rejection: what a middle level spares the target, at the same number of tokens offered to it."""
    from specrouter_llm.bench import rejection as experiment
    from specrouter_llm.bench.models import Models

    texts = _texts(prompts, limit)
    with _progress(None) as advance:
        label, rows = experiment.measure(
            Models.of(target, drafts, dtype, device, widen),
            texts,
            temperatures=temperatures or [0.0, 1.0],
            max_tokens=max_tokens,
            seed=seed,
            batch=batch,
            offers=offers or experiment.OFFERS,
            advance=advance,
        )
    settings = {"target": label, "max_tokens": max_tokens, "seed": seed, "batch": batch, **_source(prompts, texts)}
    _report("rejection", settings, rows, experiment.table(rows, label), out)


@app.command()
def off(
    target: Target = "demo",
    drafts: Drafts = None,
    prompts: Prompts = None,
    limit: Limit = 64,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", help="Rows decoded together; may be repeated.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Alternating pairs of generations.")] = 30,
    max_tokens: MaxTokens = 64,
    dtype: Dtype = None,
    device: Device = None,
    widen: Widen = None,
    out: Out = None,
) -> None:
    """What drafters that are not used cost: speculation=False against an engine without drafters."""
    from specrouter_llm.bench import off as experiment
    from specrouter_llm.bench.models import Models

    texts, sizes = _texts(prompts, limit), batches or [1, 4]
    with _progress(len(sizes) * (pairs + 2)) as advance:
        rows = experiment.measure(
            Models.of(target, drafts, dtype, device, widen),
            texts,
            batches=sizes,
            pairs=pairs,
            max_tokens=max_tokens,
            advance=advance,
        )
    settings = {"target": target, "widen": widen, "max_tokens": max_tokens, **_source(prompts, texts)}
    _report("off", settings, rows, experiment.table(rows), out)


def _texts(prompts: Path | None, limit: int) -> list[str]:
    from specrouter_llm.cli.options import read_prompts
    from specrouter_llm.cli.verify import BUILT_IN_PROMPTS

    return read_prompts(prompts, limit) if prompts is not None else list(BUILT_IN_PROMPTS[:limit])


def _source(prompts: Path | None, texts: Sequence[str]) -> dict[str, Any]:
    return {"prompts": prompts.name if prompts is not None else "built-in", "num_prompts": len(texts)}


@contextmanager
def _progress(total: int | None) -> Iterator[Any]:
    """A bar on stderr, if that is a terminal; yields what advances it."""
    from rich.console import Console
    from rich.progress import Progress

    progress: Progress
    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task("Loading models", total=total)

        def advance(what: str) -> None:
            progress.update(task, description=what, advance=1)

        yield advance


def _report(
    experiment: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], table: Any, out: Path | None
) -> None:
    from rich.console import Console

    from specrouter_llm.bench.result import result, write_result

    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if out is not None:
        write_result(out, result(experiment, settings, rows))
