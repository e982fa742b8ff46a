"""`specrouter bench speed | batch | step | strict`: times. The experiments are imported when they run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from specrouter_llm.cli.arguments import TEMPERATURE, Device, Dtype, Target, Widen
from specrouter_llm.cli.expanded import DEMO, Family, expanded
from specrouter_llm.cli.experiment import Out, Plot, Seed, app, draw, finish, progress_bar

if TYPE_CHECKING:
    from specrouter_llm.bench.contestants import Chain
    from specrouter_llm.bench.workloads import Workload

TargetOnly = Annotated[bool, typer.Option("--widen-target-only", help="Leave the drafters as they are.")]
Chains = Annotated[
    list[str] | None,
    typer.Option("--chain", help="A static chain, lowest level first: ngram@8,demo/draft@4; may be repeated."),
]
NoChains = Annotated[bool, typer.Option("--no-chains", help="No static chains, unless --chain names some.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Tokens of every answer (64).")]
Temperature = Annotated[
    float | None, typer.Option(callback=TEMPERATURE, help="0 is greedy; that of the workload by default.")
]


@app.command()
@expanded
def speed(
    family: Family = DEMO,
    workloads: Annotated[
        list[str] | None,
        typer.Option("--workload", "-w", help="Built-in name, FILE or FILE#CATEGORY, or mix of all; may be repeated."),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Prompts of each workload.")] = 8,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    chains: Chains = None,
    no_chains: NoChains = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Every window; the peers with every assistant and several lengths.")
    ] = False,
    peers: Annotated[
        list[str] | None,
        typer.Option(
            "--peer", help="generate, assisted, lookup, llama.cpp or none; may be repeated (all of transformers)."
        ),
    ] = None,
    seed: Seed = 0,
    widen_target_only: TargetOnly = False,
    out: Out = None,
    plot: Plot = None,
) -> None:
    """Plain decoding, static chains, the adaptive policy and transformers itself, on the same prompts in turn."""
    from specrouter_llm.bench import speed as experiment
    from specrouter_llm.bench.texts import PROMPTS
    from specrouter_llm.bench.workloads import MIX

    names = workloads or [*PROMPTS, MIX]
    chosen = _workloads([name for name in names if name != MIX] or list(PROMPTS), limit, temperature, max_tokens)
    with progress_bar(None) as advance:
        labels, rows = experiment.measure(
            family.models(target_only=widen_target_only),
            chosen,
            apart=names != [MIX],
            mix=MIX in names,
            chains=_chains(chains, no_chains),
            peers=_peers(peers),
            everything=everything,
            seed=seed,
            advance=advance,
        )
    settings = {"models": labels, "workloads": _described(chosen), "seed": seed, "dtype": family.dtype}
    finish("speed", settings, rows, experiment.table(rows), out)
    draw(experiment.plot, rows, plot)


@app.command()
@expanded
def batch(
    family: Family = DEMO,
    workload: Annotated[str, typer.Option("--workload", "-w", help="Built-in name, FILE or FILE#CATEGORY.")] = "cot",
    limit: Annotated[int, typer.Option(min=1, help="Prompts, which the batches repeat.")] = 32,
    batches: Annotated[
        list[int] | None, typer.Option("--batch", min=1, help="Rows decoded together; may be repeated (1 to 32).")
    ] = None,
    groups: Annotated[int, typer.Option(min=1, help="Batches of each size.")] = 3,
    max_context: Annotated[
        int | None,
        typer.Option(min=1, help="Longest prompt and answer; caches are smaller then (the model's context)."),
    ] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    chains: Chains = None,
    no_chains: NoChains = False,
    peer: Annotated[bool, typer.Option(help="Whether transformers' batched generate takes part.")] = True,
    seed: Seed = 0,
    widen_target_only: TargetOnly = False,
    out: Out = None,
    plot: Plot = None,
) -> None:
    """Tokens per second by batch size, and which chains the adaptive policy turns to."""
    from specrouter_llm.bench import batch as experiment

    (chosen,) = _workloads([workload], limit, temperature, max_tokens)
    with progress_bar(None) as advance:
        labels, rows = experiment.measure(
            family.models(target_only=widen_target_only),
            chosen,
            batches=batches or experiment.SIZES,
            groups=groups,
            max_context=max_context,
            chains=_chains(chains, no_chains),
            peer=peer,
            seed=seed,
            advance=advance,
        )
    settings = {"models": labels, "workloads": _described([chosen]), "seed": seed, "dtype": family.dtype}
    finish("batch", settings, rows, experiment.table(rows), out)
    draw(experiment.plot, rows, plot)


@app.command()
def step(
    target: Target = "demo",
    tokens: Annotated[
        list[int] | None, typer.Option("--tokens", min=1, help="Tokens of a forward; may be repeated (1, 2, 4, 8, 16).")
    ] = None,
    context: Annotated[int, typer.Option(min=1, help="Tokens before them.")] = 256,
    rounds: Annotated[int, typer.Option(min=1, help="Alternating rounds.")] = 30,
    peer: Annotated[bool, typer.Option(help="Whether transformers' forward takes part.")] = True,
    dtype: Dtype = None,
    device: Device = None,
    widen: Widen = None,
    out: Out = None,
    plot: Plot = None,
) -> None:
    """What verifying n tokens costs over one, and a plain step against reading the weights once."""
    from specrouter_llm.bench import step as experiment
    from specrouter_llm.bench.models import Models

    with progress_bar(None) as advance:
        floor, rows = experiment.measure(
            Models.of(target, None, dtype, device, widen),
            tokens=tokens or experiment.TOKENS,
            context=context,
            rounds=rounds,
            peer=peer,
            advance=advance,
        )
    finish("step", {**floor, "context": context, "rounds": rounds}, rows, experiment.table(rows), out)
    typer.echo(
        f"{floor['target']}: {floor['weight_bytes'] / 2**20:.0f} MiB of weights at {floor['read_gib_per_second']:.1f} GiB/s "
        f"(sum of a {floor['read_bytes'] / 2**20:.0f} MiB tensor, {floor['device']}): floor {floor['floor_ms']:.2f} ms"
    )
    draw(experiment.plot, rows, plot)


@app.command()
@expanded
def strict(
    family: Family = DEMO,
    workload: Annotated[str, typer.Option("--workload", "-w", help="Built-in name, FILE or FILE#CATEGORY.")] = "cot",
    limit: Annotated[int, typer.Option(min=1, help="Prompts.")] = 8,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    seed: Seed = 0,
    out: Out = None,
) -> None:
    """What strict mode costs on a CUDA device, and whether its outputs are the same bits; elsewhere a control."""
    from specrouter_llm.bench import strict as experiment

    (chosen,) = _workloads([workload], limit, temperature, max_tokens)
    with progress_bar(None) as advance:
        labels, rows = experiment.measure(family.models(), chosen, seed=seed, advance=advance)
    settings = {"models": labels, "workloads": _described([chosen]), "seed": seed, "dtype": family.dtype}
    finish("strict", settings, rows, experiment.table(rows), out)


def _workloads(sources: list[str], limit: int, temperature: float | None, max_tokens: int | None) -> list[Workload]:
    from specrouter_llm.bench.workloads import workload

    return [workload(source, limit, temperature=temperature, max_tokens=max_tokens) for source in sources]


def _described(workloads: list[Workload]) -> list[dict[str, Any]]:
    return [
        {
            "name": each.name,
            "prompts": len(each.prompts),
            "temperature": each.temperature,
            "max_tokens": each.max_tokens,
        }
        for each in workloads
    ]


def _chains(texts: list[str] | None, none: bool) -> list[Chain] | None:
    """None leaves it to the experiment."""
    from specrouter_llm.bench.contestants import Chain

    return [Chain.parse(text) for text in texts or ()] if texts or none else None


def _peers(names: list[str] | None) -> tuple[str, ...]:
    from specrouter_llm.bench.peers import KINDS

    return KINDS if not names else tuple(name for name in names if name != "none")
