"""`specrouter bench match | rejection | off`: counts, and the cost of what is not used. The experiments are imported when
they run.
"""

from __future__ import annotations

from typing import Annotated

import typer

from specrouter_llm.cli.arguments import Device, Drafts, Dtype, MaxTokens, Target, Widen
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

    texts, chosen = texts_of(prompts, limit), temperatures or [0.0, 0.7, 1.0]
    with progress_bar(len(chosen) * (len(texts) + 1)) as advance:
        rows = experiment.measure(
            Models.of(target, drafts, dtype, device, widen),
            texts,
            temperatures=chosen,
            max_tokens=max_tokens,
            seed=seed,
            batch=batch,
            advance=advance,
        )
    settings = {"target": target, "widen": widen, "max_tokens": max_tokens, "seed": seed, **source_of(prompts, texts)}
    finish("match", settings, rows, experiment.table(rows), out)


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

    texts = texts_of(prompts, limit)
    with progress_bar(None) as advance:
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
    settings = {"target": label, "max_tokens": max_tokens, "seed": seed, "batch": batch, **source_of(prompts, texts)}
    finish("rejection", settings, rows, experiment.table(rows), out)


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

    texts, sizes = texts_of(prompts, limit), batches or [1, 4]
    with progress_bar(len(sizes) * (pairs + 2)) as advance:
        rows = experiment.measure(
            Models.of(target, drafts, dtype, device, widen),
            texts,
            batches=sizes,
            pairs=pairs,
            max_tokens=max_tokens,
            advance=advance,
        )
    settings = {"target": target, "widen": widen, "max_tokens": max_tokens, **source_of(prompts, texts)}
    finish("off", settings, rows, experiment.table(rows), out)
