"""Engines for the tests: the real one with the embedded models, and one over a model that follows a script.

The scripted model stands in at the `Runner` seam: chat template, grammar, choice rule, batching, streaming and parsing
are the real ones, only the competence is made up.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

import specrouter_llm
from langchain_specrouter import ChatSpecRouter
from specrouter_llm import EngineConfig, SpecRouter
from specrouter_llm.chat import close_shared
from specrouter_llm.testing import ContextRunner
from specrouter_llm.text.tokenizer import Tokenizer

os.environ.setdefault("LANGSMITH_TRACING", "false")  # nothing leaves the machine


THINKING = """{%- if tools %}<|system|>{{ tools | tojson }}<|end|>{%- endif %}
{%- for m in messages %}<|{{ m.role }}|>
{%- if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{%- endif %}{{ m.content }}
{%- for call in m.tool_calls or () %}<tool_call>{{ call.function | tojson }}</tool_call>{%- endfor %}<|end|>
{%- endfor %}<|assistant|>"""
"""A template of a model that thinks aloud, and is shown what it thought."""


class ScriptedModel:
    """Logits [V] that spell out `script(prompt)`, in whatever pieces and JSON spacing a grammar leaves it."""

    def __init__(self, tokenizer: Tokenizer, script: Callable[[str], str]) -> None:
        vocab = tokenizer.get_vocab()
        self._script = script
        self._size = len(tokenizer)
        self._start, self._end = vocab["<|assistant|>"], vocab["<|end|>"]
        letters = {letter: byte for byte, letter in bytes_to_unicode().items()}
        self._bytes = {
            token_id: token.encode() if token_id in tokenizer.special_ids else bytes(letters[c] for c in token)
            for token, token_id in vocab.items()
        }
        self._ids = {spelled: token_id for token_id, spelled in self._bytes.items() if token_id in tokenizer.text_ids}
        self._longest = max(map(len, self._ids))

    def __call__(self, context: Sequence[int]) -> torch.Tensor:
        logits = torch.zeros(self._size, dtype=torch.float64)
        logits[self._end] = 10.0
        at = max((i for i, token_id in enumerate(context) if token_id == self._start), default=None)
        if at is None:
            return logits
        rest = self._rest(self._script(self._spelled(context[:at]).decode()).encode(), self._spelled(context[at + 1 :]))
        for weight, spelling in ((20.0, rest.lstrip()), (30.0, rest)):
            for length in range(1, min(len(spelling), self._longest) + 1):
                if (token_id := self._ids.get(spelling[:length])) is not None:
                    logits[token_id] = weight + length / self._longest
        return logits

    def _spelled(self, ids: Sequence[int]) -> bytes:
        return b"".join(self._bytes[token_id] for token_id in ids)

    @staticmethod
    def _rest(answer: bytes, said: bytes) -> bytes:
        """What of the answer is still to be said, white space aside; nothing once something else was said."""
        i = 0
        for byte in said:
            while i < len(answer) and answer[i] != byte and answer[i : i + 1].isspace():
                i += 1
            if i < len(answer) and answer[i] == byte:
                i += 1
            elif not bytes([byte]).isspace():
                return b""
        return answer[i:]


class GatedRunner(ContextRunner):
    """Waits for `gate` before each forward, and sleeps `seconds` in it."""

    gate: threading.Event | None = None
    seconds = 0.0

    def forward(self, spans):
        if self.gate is not None:
            assert self.gate.wait(30)
        if self.seconds:
            time.sleep(self.seconds)
        return super().forward(spans)


def scripted_engine(
    script: Callable[[str], str],
    *,
    seconds: float = 0.0,
    gate: threading.Event | None = None,
    chat_template: str | None = None,
    **config,
) -> SpecRouter:
    """An engine whose only model, "scripted", answers as the script says."""
    tokenizer = demo_tokenizer(chat_template)
    settings = EngineConfig(**config)
    runner = GatedRunner(
        "scripted",
        ScriptedModel(tokenizer, script),
        len(tokenizer),
        num_slots=settings.max_batch,
        context_length=2048,
    )
    runner.gate, runner.seconds = gate, seconds
    return SpecRouter(
        {"scripted": runner},
        target="scripted",
        tokenizer=tokenizer,
        eos_token_ids=tokenizer.eos_token_ids,
        max_context=2048,
        config=settings,
    )


def demo_tokenizer(chat_template: str | None = None) -> Tokenizer:
    hf = AutoTokenizer.from_pretrained(Path(specrouter_llm.__file__).parent / "data/demo/target")
    hf.chat_template = chat_template or hf.chat_template
    return Tokenizer(hf)


def tool_text(name: str, **arguments) -> str:
    """A tool call as the embedded models' template writes it."""
    call = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{call}\n</tool_call>"


def settled(engine: SpecRouter, seconds: float = 5.0) -> bool:
    """Whether nothing runs or waits, now or within `seconds`."""
    end = time.monotonic() + seconds
    while (engine.stats.num_running, engine.stats.num_waiting) != (0, 0):
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
    return True


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The helpers above, for test modules (which cannot import a conftest)."""
    return SimpleNamespace(THINKING=THINKING, scripted_engine=scripted_engine, settled=settled, tool_text=tool_text)


@pytest.fixture
def scripted():
    """Makes chat models over scripts; closes their engines."""
    engines = []

    def make(script: Callable[[str], str] | str, *, engine: dict | None = None, **fields) -> ChatSpecRouter:
        function = script if callable(script) else lambda prompt: script
        engines.append(scripted_engine(function, **(engine or {})))
        return ChatSpecRouter(engine=engines[-1], **fields)

    yield make
    for made in engines:
        made.close()


@pytest.fixture(scope="session")
def demo_engine():
    """The embedded family, loaded once."""
    with SpecRouter.from_pretrained("demo", progress=False, max_batch=16) as engine:
        yield engine


@pytest.fixture
def demo(demo_engine) -> ChatSpecRouter:
    return ChatSpecRouter(engine=demo_engine, max_tokens=20)


@pytest.fixture(scope="session", autouse=True)
def _close_shared():
    yield
    close_shared()
