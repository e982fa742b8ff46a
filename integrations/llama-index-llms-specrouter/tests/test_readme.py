"""What the README shows can be run as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import llama_index.core
import pytest
from llama_index.core import Settings
from llama_index_instrumentation import get_dispatcher

from specrouter_llm.chat import close_shared

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module", autouse=True)
def _closed():
    handlers = list(get_dispatcher().event_handlers)
    settings, tokenizer = vars(Settings).copy(), llama_index.core.global_tokenizer
    yield
    vars(Settings).update(settings)
    llama_index.core.global_tokenizer = tokenizer
    get_dispatcher().event_handlers[:] = handlers
    close_shared()


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL))
def test_python_block(block):
    exec(compile(block, "README.md", "exec"), {"__name__": "readme"})


def test_all_fields_are_described():
    """No field of the class is missing in the table, and the table has no other."""
    from llama_index.core.llms.function_calling import FunctionCallingLLM

    from llama_index.llms.specrouter import SpecRouterLLM

    rows = re.findall(r"^\| (`.*?) \|", README, flags=re.MULTILINE)
    described = set(re.findall(r"`(\w+)`", " ".join(rows)))
    assert described == SpecRouterLLM.model_fields.keys() - FunctionCallingLLM.model_fields.keys()
