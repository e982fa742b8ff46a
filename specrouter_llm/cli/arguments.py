"""Options that several subcommands share, each with one wording, and the bounds of their numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, TypeVar

import typer

T = TypeVar("T", float | None, list[float] | None)


def number(*, above: float = -math.inf, least: float = -math.inf, most: float = math.inf) -> Callable[[T], T]:
    """A callback for options of one float or of several: they must be finite, and within bounds.

    typer's own `min` and `max` let nan pass.
    """
    bounds = {f"above {above:g}": above, f"at least {least:g}": least, f"at most {most:g}": most}
    wanted = " and ".join(["finite", *(words for words, bound in bounds.items() if math.isfinite(bound))])

    def checked(value: T) -> T:
        values = value if isinstance(value, list) else [value]
        for each in values:
            if each is not None and not (math.isfinite(each) and above < each and least <= each <= most):
                raise typer.BadParameter(f"must be {wanted}, got {each:g}")
        return value

    return checked


TEMPERATURE = number(least=0, most=100)

Target = Annotated[str, typer.Option("--target", "-t", help="Model name, local folder, or 'demo' (embedded).")]
Drafts = Annotated[
    list[str] | None, typer.Option("--draft", "-d", help="A smaller model with the same vocabulary; may be repeated.")
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16, float64 or auto.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ...")]
Widen = Annotated[
    str | None, typer.Option(help="Run the same function in a larger shape, for example 150M; reports say 'widened'.")
]
Chain = Annotated[str | None, typer.Option(help="Levels, lowest first, separated by commas: ngram,demo/draft.")]
Windows = Annotated[str | None, typer.Option(help="Tokens each level below the target offers: 8,4.")]
Budget = Annotated[str | None, typer.Option(help="Memory for weights and caches of the whole pool: 20GiB.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(callback=TEMPERATURE, help="0 is greedy.")]
ModelTemperature = Annotated[
    float | None,
    typer.Option(
        callback=TEMPERATURE, help="0 is greedy; what the model's generation config says, else 0, by default."
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="Makes a sampled answer reproducible.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
