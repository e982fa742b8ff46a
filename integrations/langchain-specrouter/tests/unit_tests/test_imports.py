"""The public surface, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys

import langchain_specrouter


def test_all_is_sorted_and_there():
    assert sorted(langchain_specrouter.__all__) == langchain_specrouter.__all__
    assert all(hasattr(langchain_specrouter, name) for name in langchain_specrouter.__all__)


def test_importing_and_making_a_model_leaves_torch_alone():
    """Weights and their library are loaded by the first call."""
    check = (
        "import sys; from langchain_specrouter import ChatSpecRouter, SpecRouterLLM\n"
        "ChatSpecRouter(model='demo').bind_tools([]); SpecRouterLLM(model='demo')\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    output = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
