"""`specrouter bench gpu`: what is asked of a GPU, in one call."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from specrouter_llm.cli.arguments import Device, Dtype, number
from specrouter_llm.cli.experiment import app, show
from specrouter_llm.cli.outputs import checked_folder

if TYPE_CHECKING:
    from specrouter_llm.bench.gpu import Outcome


@app.command()
def gpu(
    out: Annotated[
        Path,
        typer.Option(help="Folder for the result of every part, and gpu.json, the summary.", callback=checked_folder),
    ],
    tests: Annotated[Path | None, typer.Option(help="Also run the gpu-marked tests of this folder: tests/gpu.")] = None,
    size: Annotated[str, typer.Option(help="The family is widened to this; 'none' leaves it as it is.")] = "7B",
    device: Device = "cuda",
    dtype: Dtype = "bfloat16",
    workload: Annotated[str, typer.Option("--workload", "-w", help="Built-in name, FILE or FILE#CATEGORY.")] = "cot",
    limit: Annotated[int, typer.Option(min=1, help="Prompts of every part.")] = 8,
    max_tokens: Annotated[int, typer.Option(min=1, help="Tokens of every answer.")] = 64,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Rows decoded together; may be repeated (1 to 32).")
    ] = None,
    part: Annotated[
        list[str] | None,
        typer.Option(help="tests, identity, step, speed, strict or batch; may be repeated. All by default."),
    ] = None,
    seconds: Annotated[
        float, typer.Option(callback=number(above=0), help="Time of all parts; what is not done by then is left out.")
    ] = 570,
) -> None:
    """Tests, identity, steps, speed, strict mode and batches on a GPU, against aims. Status 1 unless every part ended well."""
    from specrouter_llm.bench import gpu as experiment

    widen = None if size == "none" else size
    chosen = experiment.parts(
        out,
        size=widen,
        device=device,
        dtype=dtype,
        workload=workload,
        limit=limit,
        max_tokens=max_tokens,
        batches=batches or (),
        tests=tests,
    )

    unknown = set(part or ()) - {each.name for each in chosen}
    if unknown:
        raise typer.BadParameter(f"no part {', '.join(sorted(unknown))}; there are {', '.join(p.name for p in chosen)}")
    chosen = [each for each in chosen if not part or each.name in part]

    def advance(outcome: Outcome) -> None:
        typer.echo(f"{outcome.part}: {outcome.state}, {outcome.seconds:.0f} s. {outcome.note}".rstrip())

    settings = {"size": widen, "device": device, "dtype": dtype, "limit": limit, "max_tokens": max_tokens}
    outcomes = experiment.run(chosen, out, seconds=seconds, settings=settings, advance=advance)
    typer.echo(f"Measured with: size {size}, device {device}, dtype {dtype}")
    show(experiment.table(experiment.figures(out)))
    raise typer.Exit(0 if all(outcome.state == experiment.DONE for outcome in outcomes) else 1)
