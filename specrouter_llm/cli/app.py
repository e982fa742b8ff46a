"""Subcommands and their options. The work is done in the modules named after the commands, imported when they run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from specrouter_llm import __version__
from specrouter_llm.cli import bench, bench_gpu, bench_router, contests, experiment, results  # noqa: F401  # add to experiment.app
from specrouter_llm.cli.arguments import (
    Chain,
    Json,
    MaxTokens,
    ModelTemperature,
    Seed,
    Temperature,
    Windows,
    number,
)
from specrouter_llm.cli.expanded import expanded
from specrouter_llm.cli.options import PoolOptions, levels, numbers
from specrouter_llm.cli.outputs import checked_file, checked_plot

DEMO_POOL = PoolOptions()

app = typer.Typer(
    help="Lossless speculative decoding as a routing problem.", no_args_is_help=True, pretty_exceptions_enable=False
)
app.add_typer(experiment.app, name="bench")
app.command()(results.report)


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Lossless speculative decoding as a routing problem."""


@app.command()
@expanded
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; '-' reads standard input.")],
    pool: PoolOptions = DEMO_POOL,
    chain: Chain = None,
    windows: Windows = None,
    speculation: Annotated[bool, typer.Option(help="Whether to draft at all.")] = True,
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    document: Annotated[list[Path] | None, typer.Option(help="A text file the answer may quote.")] = None,
    max_tokens: MaxTokens = 256,
    temperature: ModelTemperature = None,
    top_p: Annotated[float | None, typer.Option(callback=number(above=0, most=1), help="Nucleus sampling.")] = None,
    top_k: Annotated[int | None, typer.Option(min=0, help="Keep the k most likely tokens; 0 keeps all.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the answer.")] = None,
    seed: Seed = None,
    as_json: Json = False,
) -> None:
    """Answer one prompt, streamed."""
    from specrouter_llm.cli.generate import run

    run(
        prompt,
        pool,
        chain=levels(chain, ", or draft nothing with --no-speculation"),
        windows=numbers(windows, "--windows"),
        speculation=speculation,
        raw=raw,
        system=system,
        documents=document or [],
        sampling={
            "max_tokens": max_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "top_k": top_k,
            "stop": tuple(stop) if stop else None,
            "seed": seed,
        },
        as_json=as_json,
    )


@app.command()
def demo(
    widen: Annotated[str, typer.Option(help="The larger shape of the second half; 'none' leaves it out.")] = "150M",
    max_tokens: MaxTokens = 96,
    plot: Annotated[
        Path | None,
        typer.Option(help="Also draw the adaptive routing over time (.png, .svg or .pdf).", callback=checked_plot),
    ] = None,
    as_json: Json = False,
) -> None:
    """Three answers, target-only beside speculative, on the embedded family as it is and widened."""
    from specrouter_llm.cli.demo import run

    raise typer.Exit(run(None if widen == "none" else widen, max_tokens=max_tokens, as_json=as_json, plot=plot))


@app.command()
@expanded
def chat(
    pool: PoolOptions = DEMO_POOL,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    policy: Annotated[str, typer.Option(help="Who chooses chains: adaptive, fixed or off.")] = "adaptive",
    chain: Chain = None,
    windows: Windows = None,
    max_tokens: MaxTokens = 512,
    temperature: ModelTemperature = None,
    seed: Seed = None,
) -> None:
    """Talk to the target; chain and acceptance are shown while it answers. Reads lines from a pipe, too."""
    from specrouter_llm.cli.chat import run

    run(
        pool,
        system=system,
        policy=policy,
        chain=levels(chain, ", or draft nothing with --policy off"),
        windows=numbers(windows, "--windows"),
        sampling={"max_tokens": max_tokens, "temperature": temperature, "seed": seed},
    )


@app.command()
@expanded
def calibrate(
    pool: PoolOptions = DEMO_POOL,
    seconds: Annotated[
        float, typer.Option(callback=number(above=0), help="Time for all models together, at most.")
    ] = 20.0,
    out: Annotated[
        Path | None, typer.Option(help="Write what calibration= of from_pretrained reads.", callback=checked_file)
    ] = None,
    plot: experiment.Plot = None,
    as_json: Json = False,
) -> None:
    """Measure what a forward of each model costs on this machine, for the adaptive policy to start from."""
    from specrouter_llm.cli.calibrate import run

    run(
        pool,
        seconds=seconds,
        out=out,
        plot=plot,
        as_json=as_json,
    )


@app.command()
@expanded
def verify(
    pool: PoolOptions = DEMO_POOL,
    prompts: Annotated[Path | None, typer.Option(help="JSONL or text file; some built-in prompts by default.")] = None,
    limit: experiment.Limit = 20,
    chains: Annotated[list[str] | None, typer.Option("--chain", help="Only this chain; may be repeated.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Do not apply the chat template.")] = False,
    max_tokens: MaxTokens = 64,
    temperature: Temperature = 0.0,
    seed: Seed = 0,
    batch: experiment.Batch = 8,
    epsilon: Annotated[
        float | None, typer.Option(callback=number(least=0), help="Largest logit difference put down to rounding.")
    ] = None,
    transformers: Annotated[
        bool, typer.Option("--transformers", help="Also compare with transformers' generate.")
    ] = False,
    as_json: Json = False,
    out: experiment.Out = None,
) -> None:
    """Compare the router and every chain with plain decoding on your models. Status 1 if anything but near-ties differs."""
    from specrouter_llm.cli.verify import run

    raise typer.Exit(
        run(
            pool,
            prompts=prompts,
            limit=limit,
            chains=[levels(chain, " for the router and every chain") or [] for chain in chains or ()] or None,
            raw=raw,
            sampling={"max_tokens": max_tokens, "temperature": temperature, "seed": seed},
            batch=batch,
            epsilon=epsilon,
            with_transformers=transformers,
            as_json=as_json,
            out=out,
        )
    )
