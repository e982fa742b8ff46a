"""`python -m examples.train_family build --config examples/train_family/cpu.json --out FOLDER`, from the repository's root."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from examples.train_family.build import Build
from examples.train_family.cards import write_cards
from examples.train_family.config import read_config
from examples.train_family.evaluate import Family, agreement, losses, right_answers

app = typer.Typer(add_completion=False)
_DEFAULT = Path(__file__).parent / "cpu.json"


@app.callback()
def main() -> None:
    """Makes and judges the family of small models that the package embeds."""


@app.command()
def build(
    out: Annotated[Path, typer.Option(help="folder for the corpus, checkpoints and finished models")],
    config: Annotated[Path, typer.Option(help="settings; cpu.json and gpu.json stand beside this file")] = _DEFAULT,
    gsm8k: Annotated[Path | None, typer.Option(help="GSM8K's train.jsonl, if you have it")] = None,
    begin_with: Annotated[
        Path | None, typer.Option(help="a finished family of the same shapes, to train further")
    ] = None,
) -> None:
    """Corpus, tokenizer, target, drafters. Stopped, it goes on where it was when it is called again."""
    settings = read_config(config)
    given = {"gsm8k": gsm8k, "begin_with": begin_with}
    Build(settings.model_copy(update={name: value for name, value in given.items() if value is not None}), out).run()


@app.command()
def evaluate(
    family: Annotated[Path, typer.Argument(help="folder with the members target, middle and draft")],
    out: Annotated[Path, typer.Option(help="JSON file for the results")],
    count: Annotated[int, typer.Option(help="held-out dialogues per skill")] = 200,
) -> None:
    """Right answers, losses and agreement on dialogues from words that training never saw."""
    members = Family.of(family)
    results = {
        "right": right_answers(members, count),
        "nats_per_byte": losses(members, count),
        "agreement": agreement(members, max(1, count // 8)),
    }
    out.write_text(json.dumps(results, indent=1, ensure_ascii=False), encoding="utf-8")
    for skill, row in results["right"].items():
        typer.echo(f"{skill:16} {row['right']:4} of {row['asked']} right")
    for member, row in results["nats_per_byte"].items():
        typer.echo(f"{member:8} nats per byte: " + ", ".join(f"{skill} {value:.3f}" for skill, value in row.items()))


@app.command()
def cards(
    builds: Annotated[
        list[Path], typer.Argument(metavar="BUILD...", help="folders given to build --out, first to last")
    ],
    results: Annotated[Path, typer.Option(help="JSON file of evaluate")],
) -> None:
    """Writes a model card beside every member of the last build, and one for the family."""
    write_cards(builds[-1] / "family", builds, json.loads(results.read_text(encoding="utf-8")))


if __name__ == "__main__":
    app()
