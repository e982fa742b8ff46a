"""Chats with models that say what a script holds, and with the demo family."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase

import specrouter_llm
from specrouter_llm import EngineConfig, SpecRouter
from specrouter_llm.testing import ContextRunner
from specrouter_llm.text.tokenizer import Tokenizer

DEMO = Path(specrouter_llm.__file__).parent / "data/demo/target"
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Paris", "Oslo"]},
                "days": {"type": "integer", "minimum": 0, "maximum": 9},
            },
            "required": ["city"],
        },
    },
}
PLACE = {
    "type": "function",
    "function": {
        "name": "place",
        "parameters": {
            "type": "object",
            "properties": {"at": {"$ref": "#/$defs/Point"}, "quiet": {"type": "boolean"}},
            "required": ["at"],
            "$defs": {
                "Point": {
                    "type": "object",
                    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
                    "required": ["x"],
                }
            },
        },
    },
}
TOOLS = [WEATHER, PLACE]
QUESTION = [{"role": "user", "content": "How is the weather in Oslo?"}]


COMPACT = """{%- if tools %}<|system|>
You can call these tools:
{{ tools | tojson }}<|end|>
{%- endif %}{%- for m in messages %}<|{{ m['role'] }}|>
{%- if m.get('tool_calls') %}{%- for t in m['tool_calls'] %}<tool_call>
{{ (t.function if t.function is defined else t) | tojson }}
</tool_call>{%- endfor %}{%- else %}{{ m['content'] }}{%- endif %}<|end|>
{%- endfor %}{%- if add_generation_prompt %}<|assistant|>
{%- endif %}"""
"""A template without white space around what is said, so that scripts need not know any."""


def hf_tokenizer(
    template: str | None = None, *, added: Sequence[str] = (), special: Sequence[str] = ()
) -> PreTrainedTokenizerBase:
    """The demo's tokenizer with a compact template, or another, and perhaps further tokens."""
    tokenizer = AutoTokenizer.from_pretrained(DEMO)
    if added:
        tokenizer.add_tokens(list(added))
    if special:
        tokenizer.add_tokens(list(special), special_tokens=True)
    tokenizer.chat_template = COMPACT if template is None else template
    return tokenizer


class Scripted:
    """Logits that spell out an answer behind the last `<|assistant|>` of a context."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, opening: str) -> None:
        """`opening` is what the template writes behind `<|assistant|>`."""
        self._start = tokenizer.convert_tokens_to_ids("<|assistant|>")
        self._vocab_size = len(tokenizer)

        def encode(piece: str) -> list[int]:
            return list(tokenizer.encode(piece, add_special_tokens=False)) if piece else []

        self._said = [*encode(opening), *encode(text), tokenizer.eos_token_id]

    def __call__(self, context: Sequence[int]) -> torch.Tensor:
        start = len(context) - list(reversed(context)).index(self._start)
        said = list(context[start:])
        on_script = said == self._said[: len(said)] and len(said) < len(self._said)
        logits = torch.zeros(self._vocab_size, dtype=torch.float64)
        logits[self._said[len(said)] if on_script else self._said[-1]] = 50.0
        return logits


@pytest.fixture
def says() -> Iterator[Callable[..., SpecRouter]]:
    """`says(text)` makes an engine whose model answers every chat with `text`."""
    engines = []

    def make(
        text: str, *, opening: str = "", tokenizer: PreTrainedTokenizerBase | None = None, **options: object
    ) -> SpecRouter:
        hf = tokenizer if tokenizer is not None else hf_tokenizer()
        runner = ContextRunner(
            "target", Scripted(hf, text, opening), len(hf), num_slots=EngineConfig().max_batch, context_length=1024
        )
        engine = SpecRouter(
            {"target": runner},
            target="target",
            tokenizer=Tokenizer(hf),
            eos_token_ids=[hf.eos_token_id],
            max_context=1024,
            **options,
        )
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def demo() -> Iterator[SpecRouter]:
    with SpecRouter.from_pretrained("demo", progress=False, max_batch=4) as engine:
        yield engine


@pytest.fixture(scope="session")
def kit() -> SimpleNamespace:
    """The values above, for test modules, which cannot import a conftest."""
    return SimpleNamespace(WEATHER=WEATHER, TOOLS=TOOLS, QUESTION=QUESTION, hf_tokenizer=hf_tokenizer)
