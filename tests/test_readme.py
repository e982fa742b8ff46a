"""What the README shows can be run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


BLOCKS = [block for block in re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL) if "path/to" not in block]


@pytest.mark.parametrize(
    ("block", "shown"), list(zip(BLOCKS, ["StageStats(model='demo/target'", "name='get_weather'"], strict=True))
)
def test_python_blocks_run(block, shown, capsys):
    """The quick start answers and streams; a schema and a tool are obeyed."""
    exec(compile(block, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    assert len(printed.split()) > 5
    assert shown in printed


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!http)[^)]+)\)", README))
def test_links_lead_somewhere(target):
    """Every relative link of the README exists."""
    assert (ROOT / target).exists()


def test_the_two_commands_exist():
    """`make demo` and `make test` are targets of the Makefile, and CI runs the README's test command."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for command in re.findall(r"^make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE)
    assert "make test" in (ROOT / ".ci/run").read_text(encoding="utf-8")
