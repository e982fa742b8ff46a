"""The examples of the README and of the docstrings run as they are."""

from __future__ import annotations

import doctest
import re
from pathlib import Path

import pytest

from langchain_specrouter import callbacks, chat_models, llms

README = Path(__file__).parents[2] / "README.md"


def test_the_readme_runs(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)
    names = {"__name__": "readme"}
    try:
        exec(compile("\n".join(blocks), str(README), "exec"), names)
    finally:
        names["model"].close()
    printed = capsys.readouterr().out
    assert len(blocks) == 5
    assert "get_weather" in printed
    assert "name=" in printed


@pytest.mark.parametrize("module", [callbacks, chat_models, llms])
def test_docstrings_run(module):
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)
