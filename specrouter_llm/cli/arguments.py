"""Options that several subcommands share, each with one wording."""

from __future__ import annotations

from typing import Annotated

import typer

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
MaxTokens = Annotated[int, typer.Option(help="Longest answer, in tokens.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
Seed = Annotated[int | None, typer.Option(help="Makes a sampled answer reproducible.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]
