"""Groups of options: on the command line they are options like any other, in a command they are one value."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from specrouter_llm.cli.app import app
from specrouter_llm.cli.expanded import expanded


@dataclass(frozen=True)
class Pair:
    first: Annotated[str, typer.Option("-f", help="The first.")] = "a"
    second: Annotated[list[int] | None, typer.Option(help="The second.")] = None


LONE = Pair("b")


def test_fields_become_options_in_the_place_of_their_group():
    seen = []
    small = typer.Typer()

    @small.command()
    @expanded
    def command(word: Annotated[str, typer.Argument()], pair: Pair = LONE, last: int = 3) -> None:
        """Help of the command."""
        seen.append((word, pair, last))

    for arguments in (["w"], ["w", "-f", "c", "--second", "1", "--second", "2", "--last", "4"]):
        assert 0 == CliRunner().invoke(small, arguments, catch_exceptions=False).exit_code
    assert [("w", Pair("b"), 3), ("w", Pair("c", [1, 2]), 4)] == seen
    shown = CliRunner().invoke(small, ["--help"]).output
    assert all(words in shown for words in ("Help of the command.", "The first.", "The second."))


@pytest.mark.parametrize(
    "command", [["generate"], ["verify"], ["calibrate"], ["chat"], ["bench", "speed"], ["bench", "off"]]
)
def test_commands_still_take_the_models(command):
    shown = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"}).output
    assert all(option in shown for option in ("--target", "--draft", "--dtype", "--device", "--widen"))
