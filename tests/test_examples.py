"""Every example runs offline on the embedded family, and shows what it says."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
SHOWS = {
    "draft_from_documents.py": ["same tokens: True", "with lookup"],
    "async_streams.py": ["1: cancelled after", "0: Once upon a time", "num_running="],
    "langchain_agent.py": ["calls: [('get_weather', {'city': ", "tool: It is sunny in ", "demo: 2 calls, "],
    "langchain_rag.py": ["found: Anna works as a baker in Oslo", "answer: ", "target steps for"],
    "langchain_reasoning.py": [" tokens in ", " steps, accepted "],
    "llamaindex_agent.py": ["[multiply({'a': ", "answer: "],
    "llamaindex_rag.py": ["found: Anna works as a baker in Oslo", "answer: ", "target steps for"],
}


def test_every_example_is_tested():
    """No example without an expectation."""
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SHOWS)


@pytest.mark.parametrize("name", SHOWS)
def test_example(name, monkeypatch, capsys):
    """The example ends without an error and prints what it promises."""
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    printed = capsys.readouterr().out
    assert [words for words in SHOWS[name] if words not in printed] == []
