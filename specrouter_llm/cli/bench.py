"""`specrouter bench match | rejection | off`: counts, and the cost of what is not used; `checkpoints`: models to measure. The
experiments are imported when they run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specrouter_llm.cli.arguments import MaxTokens
from specrouter_llm.cli.expanded import DEMO, Family, expanded
from specrouter_llm.cli.experiment import (
    Batch,
    Limit,
    Out,
    Prompts,
    Seed,
    Temperatures,
    app,
    finish,
    progress_bar,
    source_of,
    texts_of,
)
from specrouter_llm.cli.outputs import checked_folder, writing


@app.command()
@expanded
def match(
    family: Family = DEMO,
    prompts: Prompts = None,
    limit: Limit = 48,
    temperatures: Temperatures = None,
    max_tokens: MaxTokens = 64,
    seed: Seed = 0,
    batch: Batch = 8,
    out: Out = None,
) -> None:
    """How often the levels agree: keyed choices, argmax, and the optimum 1 - TV."""
    from specrouter_llm.bench import match as experiment

    texts, chosen = texts_of(prompts, limit), temperatures or [0.0, 0.7, 1.0]
    with progress_bar(len(chosen) * (len(texts) + 1)) as advance:
        rows = experiment.measure(
            family.models(),
            texts,
            temperatures=chosen,
            max_tokens=max_tokens,
            seed=seed,
            batch=batch,
            advance=advance,
        )
    settings = {
        "target": family.target,
        "widen": family.widen,
        "max_tokens": max_tokens,
        "seed": seed,
        **source_of(prompts, texts),
    }
    finish("match", settings, rows, experiment.table(rows), out)


@app.command()
@expanded
def rejection(
    family: Family = DEMO,
    prompts: Prompts = None,
    limit: Limit = 24,
    temperatures: Temperatures = None,
    offers: Annotated[
        list[int] | None,
        typer.Option("--offer", min=1, help="Tokens offered to the target; may be repeated (4 and 8)."),
    ] = None,
    max_tokens: MaxTokens = 64,
    seed: Seed = 0,
    batch: Batch = 8,
    out: Out = None,
) -> None:
    """Early rejection: what a middle level spares the target, at the same number of tokens offered to it."""
    from specrouter_llm.bench import rejection as experiment

    texts = texts_of(prompts, limit)
    with progress_bar(None) as advance:
        label, rows = experiment.measure(
            family.models(),
            texts,
            temperatures=temperatures or [0.0, 1.0],
            max_tokens=max_tokens,
            seed=seed,
            batch=batch,
            offers=offers or experiment.OFFERS,
            advance=advance,
        )
    settings = {"target": label, "max_tokens": max_tokens, "seed": seed, "batch": batch, **source_of(prompts, texts)}
    finish("rejection", settings, rows, experiment.table(rows), out)


@app.command()
@expanded
def off(
    family: Family = DEMO,
    prompts: Prompts = None,
    limit: Limit = 64,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Rows decoded together; may be repeated.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Alternating pairs of generations.")] = 30,
    max_tokens: MaxTokens = 64,
    out: Out = None,
) -> None:
    """What drafters that are not used cost: speculation=False against an engine without drafters."""
    from specrouter_llm.bench import off as experiment

    texts, sizes = texts_of(prompts, limit), batches or [1, 4]
    with progress_bar(len(sizes) * (pairs + 2)) as advance:
        rows = experiment.measure(
            family.models(),
            texts,
            batches=sizes,
            pairs=pairs,
            max_tokens=max_tokens,
            advance=advance,
        )
    settings = {"target": family.target, "widen": family.widen, "max_tokens": max_tokens, **source_of(prompts, texts)}
    finish("off", settings, rows, experiment.table(rows), out)


@app.command()
@expanded
def checkpoints(
    folder: Annotated[Path, typer.Argument(help="Where the models go, each in a folder.", callback=checked_folder)],
    family: Family = DEMO,
    stored: Annotated[str, typer.Option(help="float16, bfloat16 or float32.")] = "bfloat16",
) -> None:
    """Write a family, widened or as it is, as checkpoints of 16 bits: what --target and --draft of the others can be."""
    from specrouter_llm.bench.checkpoints import STORED, write_checkpoints
    from specrouter_llm.errors import InvalidParameterError

    if stored not in STORED:
        raise InvalidParameterError(f"--stored is one of {', '.join(STORED)}, got {stored!r}")
    with progress_bar(None) as advance, writing(folder):
        paths = write_checkpoints(family.models(), folder, stored, advance=advance)
    for path in paths:
        typer.echo(path)
