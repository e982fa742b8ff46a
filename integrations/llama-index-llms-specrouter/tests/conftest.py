"""Models for the tests: engines without weights that say what a function says, and the embedded family."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from transformers import AutoTokenizer

from llama_index.llms.specrouter import SpecRouterLLM
from specrouter_llm import EngineConfig, SpecRouter
from specrouter_llm.pool.demo import demo_folder
from specrouter_llm.testing import ContextRunner, blended, hashed_logits
from specrouter_llm.text.tokenizer import Tokenizer

Reply = Callable[[str], str]
"""From the rendered prompt to what the model says."""


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


class Script:
    """Logits that spell out `reply(prompt)`; behind anything else they end the answer."""

    def __init__(self, tokenizer: object, reply: Reply) -> None:
        self._hf = tokenizer
        self._reply = reply
        self._turn = tokenizer.convert_tokens_to_ids("<|assistant|>")
        self._end = tokenizer.eos_token_id
        self._replies: dict[tuple[int, ...], list[int]] = {}

    def __call__(self, context: Sequence[int]) -> torch.Tensor:
        turns = [i for i, token_id in enumerate(context) if token_id == self._turn]
        start = turns[-1] + 1 if turns else 0
        prompt, said = tuple(context[:start]), list(context[start:])
        if prompt not in self._replies:
            text = self._reply(self._hf.decode(prompt))
            self._replies[prompt] = [*self._hf.encode(text, add_special_tokens=False), self._end]
        script = self._replies[prompt]
        follows = said == script[: len(said)] and len(said) < len(script)
        logits = torch.zeros(len(self._hf), dtype=torch.float64)
        logits[script[len(said)] if follows else self._end] = 10.0
        return logits


def scripted_engine(
    reply: Reply, *, chat_template: str | None = None, max_context: int = 4096, gate: threading.Event | None = None
) -> SpecRouter:
    """An engine named "scripted" with a drafter that is mostly right; `gate` holds every step of the target until it is set."""
    hf = AutoTokenizer.from_pretrained(demo_folder("target"))
    hf.chat_template = (COMPACT if chat_template is None else chat_template) or None
    script = Script(hf, reply)

    def target(context: Sequence[int]) -> torch.Tensor:
        if gate is not None:
            gate.wait(30)
        return script(context)

    settings = EngineConfig(max_batch=4)
    functions = {"draft": blended(script, hashed_logits(1, len(hf), scale=30.0), 0.1), "scripted": target}
    return SpecRouter(
        {
            name: ContextRunner(name, f, len(hf), num_slots=settings.max_batch, context_length=max_context)
            for name, f in functions.items()
        },
        target="scripted",
        tokenizer=Tokenizer(hf),
        eos_token_ids=[hf.eos_token_id],
        max_context=max_context,
        config=settings,
    )


@pytest.fixture
def scripted() -> Iterator[Callable[..., SpecRouterLLM]]:
    """Makes models that answer `reply`: a text, or a function of the rendered prompt."""
    engines: list[SpecRouter] = []

    def make(reply, *, engine_options=None, **fields) -> SpecRouterLLM:
        function = reply if callable(reply) else lambda prompt: reply
        engines.append(scripted_engine(function, **(engine_options or {})))
        return SpecRouterLLM(engine=engines[-1], **fields)

    yield make
    for engine in engines:
        engine.close()


@pytest.fixture(scope="session")
def demo_engine() -> Iterator[SpecRouter]:
    with SpecRouter.from_pretrained("demo", progress=False) as engine:
        yield engine
