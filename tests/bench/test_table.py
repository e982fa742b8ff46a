"""The documented commands of the benchmark tables: each is one that the command line takes, and each is documented."""

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.main import get_command

from specrouter_llm.bench.texts import PROMPTS
from specrouter_llm.cli.app import app

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def commands():
    """The arguments of every `specrouter bench`, by result, as `make` would run them."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    arguments = [
        "make",
        "-n",
        "-C",
        str(ROOT),
        "STAMP=",
        "RESULTS=no/such/folder",
        "DATA=data",
        "bench-table",
        "bench-peers",
    ]
    output = subprocess.run(arguments, capture_output=True, text=True, check=True).stdout
    found = [
        shlex.split(line.partition("specrouter ")[2]) for line in output.splitlines() if "specrouter bench" in line
    ]
    return {Path(each[-1]).stem: each for each in found if each[1] != "checkpoints"}  # those are no results


def test_every_command_is_understood(commands):
    """Parsed, not run: options that were renamed are found here and not in the middle of a night of measuring."""
    bench = get_command(app).commands["bench"]
    for name, (_, experiment, *arguments) in commands.items():
        context = bench.commands[experiment].make_context(experiment, arguments)
        for source in context.params.get("workloads") or ():
            assert source in (*PROMPTS, "mix") or source.partition("#")[0].startswith("data/"), name


def test_every_result_is_documented(commands):
    text = (ROOT / "docs" / "benchmarks" / "README.md").read_text(encoding="utf-8")
    table = text[text.index("| figure | result |") :].split("\n\n")[0]
    cells = (line.split("|")[2] for line in table.splitlines())
    assert set(commands) == {name for cell in cells for name in re.findall("`(.+?)`", cell)}
