"""`specrouter bench acceptance | recording | calibration | overhead | memory`: what the router counts, predicts, costs and
holds; and what levels choose, for its simulator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specrouter_llm.cli.arguments import Drafts, MaxTokens, Target, Temperature, Widen, number
from specrouter_llm.cli.expanded import DEMO, Family, expanded
from specrouter_llm.cli.experiment import (
    Batch,
    Limit,
    Out,
    Plot,
    Prompts,
    Seed,
    Temperatures,
    app,
    draw,
    finish,
    progress_bar,
    source_of,
    texts_of,
)
from specrouter_llm.cli.outputs import checked_file, writing

WIDE = Family(widen="150M")


@app.command()
@expanded
def acceptance(
    family: Family = DEMO,
    sources: Annotated[
        list[str] | None,
        typer.Option("--workload", help="Built-in name, FILE or FILE#CATEGORY; may be repeated; all built-in ones."),
    ] = None,
    limit: Limit = 24,
    temperatures: Temperatures = None,
    max_tokens: MaxTokens = 64,
    seed: Seed = 0,
    batch: Batch = 8,
    out: Out = None,
    plot: Plot = None,
) -> None:
    """What every level accepts of the level below, by workload; the match rate behind it, and the optimum 1 - TV."""
    from specrouter_llm.bench import acceptance as experiment
    from specrouter_llm.bench.texts import PROMPTS
    from specrouter_llm.bench.workloads import workload

    chosen = [workload(source, limit) for source in sources or PROMPTS]
    workloads = {each.name: each.prompts for each in chosen}
    with progress_bar(None) as advance:
        rows = experiment.measure(
            family.models(),
            workloads,
            temperatures=temperatures or [0.0, 1.0],
            max_tokens=max_tokens,
            seed=seed,
            batch=batch,
            advance=advance,
        )
    counts = {name: len(texts) for name, texts in workloads.items()}
    settings = {
        "target": family.target,
        "widen": family.widen,
        "max_tokens": max_tokens,
        "seed": seed,
        "workloads": counts,
    }
    finish("acceptance", settings, rows, experiment.table(rows), out)
    draw(experiment.plot, rows, plot)


@app.command()
@expanded
def recording(
    out: Annotated[Path, typer.Argument(help="Where to write it, as JSON.", show_default=False, callback=checked_file)],
    family: Family = DEMO,
    source: Annotated[str, typer.Option("--workload", help="Built-in name, FILE or FILE#CATEGORY.")] = "qa",
    limit: Limit = 32,
    max_tokens: MaxTokens = 64,
    seed: Seed = 0,
    batch: Batch = 8,
) -> None:
    """What every level chooses at every place of real answers, without their text: for the router's simulator."""
    from specrouter_llm.bench.recording import record
    from specrouter_llm.bench.workloads import workload
    from specrouter_llm.scheduling.recording import save

    with progress_bar(None) as advance:
        chosen = workload(source, limit, max_tokens=max_tokens)
        answers = record(family.models(), chosen, seed=seed, batch=batch, advance=advance)
    with writing(out):
        save(answers, out)
    typer.echo(f"{len(chosen.prompts)} answers to {out}")


@app.command()
@expanded
def calibration(
    family: Family = DEMO,
    prompts: Prompts = None,
    limit: Limit = 64,
    noise: Annotated[
        list[float] | None,
        typer.Option(
            callback=number(least=0), help="Noise on the drafters' weights, in parts of their own; may be repeated."
        ),
    ] = None,
    windows: Annotated[
        list[int] | None,
        typer.Option("--window", min=0, help="Windows to predict, 0 is plain decoding; may be repeated."),
    ] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens run for each prediction.")] = 400,
    max_tokens: MaxTokens = 64,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    out: Out = None,
    plot: Plot = None,
) -> None:
    """Predicted against observed: acceptance and time per token, for drafters with growing noise on their weights."""
    from specrouter_llm.bench import calibration as experiment

    texts = texts_of(prompts, limit)
    with progress_bar(None) as advance:
        rows = experiment.measure(
            family.models(),
            texts,
            noise=noise or experiment.NOISE,
            windows=windows or experiment.WINDOWS,
            tokens=tokens,
            max_tokens=max_tokens,
            temperature=temperature,
            seed=seed or 0,
            advance=advance,
        )
    settings = {
        "target": family.target,
        "widen": family.widen,
        "learn_tokens": experiment.LEARN_TOKENS,
        "tokens": tokens,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "seed": seed,
        "summary": experiment.summary(rows),
        **source_of(prompts, texts),
    }
    finish("calibration", settings, rows, experiment.table(rows), out)
    draw(experiment.plot, rows, plot)


@app.command()
@expanded
def overhead(
    family: Family = WIDE,
    prompts: Prompts = None,
    limit: Limit = 12,
    sizes: Annotated[
        list[int] | None,
        typer.Option("--models", min=1, help="Models of a simulated pool; may be repeated (4, 8, 16)."),
    ] = None,
    pools: Annotated[int, typer.Option(min=1, help="Simulated pools of each size.")] = 3,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens decoded in each simulated pool.")] = 2000,
    max_tokens: MaxTokens = 64,
    out: Out = None,
    plot: Plot = None,
) -> None:
    """What planning costs, by part and by number of models, and what the engine does between its forwards."""
    from specrouter_llm.bench import overhead as experiment

    texts = texts_of(prompts, limit)
    chosen = sizes or experiment.SIZES
    with progress_bar(pools * len(chosen) + len(texts) + 1) as advance:
        rows = experiment.measure_simulated(chosen, pools=pools, tokens=tokens, advance=advance)
        models = family.models()
        rows += experiment.measure_engine(models, texts, max_tokens=max_tokens, advance=advance)
    settings = {"target": family.target, "widen": family.widen, "max_tokens": max_tokens, **source_of(prompts, texts)}
    finish("overhead", settings, rows, experiment.table(rows), out)
    draw(experiment.plot, rows, plot)


@app.command()
def memory(
    target: Target = "demo",
    drafts: Drafts = None,
    prompts: Prompts = None,
    limit: Limit = 8,
    depths: Annotated[
        list[int] | None,
        typer.Option("--depth", min=0, help="Drafters under the target; may be repeated (0, 1, 2, 3)."),
    ] = None,
    batch: Batch = 4,
    max_tokens: MaxTokens = 32,
    steps: Annotated[
        int, typer.Option(min=0, help="Steps of the long run, over which nothing may grow; 0 leaves it out.")
    ] = 2000,
    widen: Widen = "150M",
    out: Out = None,
    plot: Plot = None,
) -> None:
    """What a pool holds against what it was accounted for, by depth of the chain, and whether anything grows."""
    from specrouter_llm.bench import memory as experiment

    texts, widen = texts_of(prompts, limit), None if widen == "none" else widen
    chosen = depths or experiment.DEPTHS
    with progress_bar(len(chosen)) as advance:
        rows = experiment.measure(
            target,
            drafts,
            texts,
            widen=widen,
            depths=chosen,
            max_batch=batch,
            max_tokens=max_tokens,
            steps=steps,
            advance=advance,
        )
    settings = {"target": target, "widen": widen, "batch": batch, "max_tokens": max_tokens, **source_of(prompts, texts)}
    finish("memory", settings, rows, experiment.table(rows), out)
    draw(experiment.plot, rows, plot)
