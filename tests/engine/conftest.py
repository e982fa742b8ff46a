"""Engines over scripted models: the target says exactly what a script holds, drafters agree with it where they are told to."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from types import SimpleNamespace

import pytest
import torch

from specrouter_llm import EngineConfig, SpecRouter
from specrouter_llm.runtime.batch import Span
from specrouter_llm.state.manager import SlotStatus
from specrouter_llm.testing import ContextRunner, blended, hashed_logits
from specrouter_llm.text.tokenizer import Tokenizer

VOCAB = 32


class HookedRunner(ContextRunner):
    """A ContextRunner that calls `hook(runner, spans)` before, and `after(runner, spans, logits)` after every forward."""

    hook: Callable | None = None
    after: Callable | None = None

    def forward(self, spans: Sequence[Span]) -> torch.Tensor:
        if self.hook is not None:
            self.hook(self, spans)
        logits = super().forward(spans)
        return logits if self.after is None else self.after(self, spans, logits)


class Script:
    """Logits that spell out `tokens` after `prompt`, and junk after anything else: a wrong context cannot go unnoticed."""

    def __init__(self, prompt: Sequence[int], tokens: Sequence[int], vocab_size: int) -> None:
        self._prompt, self._tokens, self._vocab_size = list(prompt), list(tokens), vocab_size

    def __call__(self, context: Sequence[int]) -> torch.Tensor:
        said = list(context[len(self._prompt) :])
        on_script = list(context[: len(self._prompt)]) == self._prompt and said == self._tokens[: len(said)]
        choice = self._tokens[len(said)] if on_script and len(said) < len(self._tokens) else sum(context) % 89
        return peak(choice % self._vocab_size, self._vocab_size)


def peak(token_id: int, vocab_size: int) -> torch.Tensor:
    """Logits that leave no doubt."""
    logits = torch.zeros(vocab_size, dtype=torch.float64)
    logits[token_id] = 50.0
    return logits


def doubtful(script: Callable, num_prompt: int, wrong_at: Callable[[int], bool], vocab_size: int) -> Callable:
    """A drafter that follows `script` but for the output positions that `wrong_at` picks, where it says the next id."""

    def function(context: Sequence[int]) -> torch.Tensor:
        logits = script(context)
        if not wrong_at(len(context) - num_prompt):
            return logits
        return peak((int(logits.argmax()) + 1) % vocab_size, vocab_size)

    return function


def engine_of(
    functions: dict[str, Callable],
    *,
    vocab_size: int = VOCAB,
    max_context: int = 512,
    tokenizer: Tokenizer | None = None,
    eos_token_ids: Sequence[int] = (),
    proposers: Sequence | None = None,
    policy: object = None,
    **config: object,
) -> SpecRouter:
    """An engine whose models are functions of the context; the last is the target."""
    settings = EngineConfig(**config)
    runners = {
        name: HookedRunner(name, function, vocab_size, num_slots=settings.max_batch, context_length=max_context)
        for name, function in functions.items()
    }
    return SpecRouter(
        runners,
        target=list(functions)[-1],
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids,
        max_context=max_context,
        config=settings,
        proposers=proposers,
        policy=policy,
    )


def family(vocab_size: int = VOCAB) -> dict[str, Callable]:
    """A random target, a draft and a middle that often agree with it."""
    target = hashed_logits(0, vocab_size)
    return {
        "draft": blended(target, hashed_logits(1, vocab_size), 0.3),
        "middle": blended(target, hashed_logits(2, vocab_size), 0.15),
        "target": target,
    }


def at_rest(engine: SpecRouter) -> None:
    """Nothing runs or waits, no slot is lost, every cache is a prefix of what was committed."""
    stats, state = engine.stats, engine._worker._state
    assert (stats.num_running, stats.num_waiting) == (0, 0)
    assert stats.num_free_slots + stats.num_cached_slots == engine.config.max_batch
    assert state.slots(SlotStatus.ACTIVE) == []
    state.check()


def runner_of(engine: SpecRouter, name: str) -> ContextRunner:
    """The engine's model of that name."""
    return engine._worker._executor._runners[name]


class Gate:
    """Holds an engine between two steps: give `on_step=gate` to a request."""

    def __init__(self, after: int = 1) -> None:
        self._after = after
        self._steps = 0
        self._reached, self._open = threading.Event(), threading.Event()

    def __call__(self, info: object) -> None:
        self._steps += 1
        if self._steps == self._after:
            self._reached.set()
            assert self._open.wait(30)

    def wait(self) -> None:
        """Returns when the engine stands in the callback of step `after`."""
        assert self._reached.wait(30)

    def open(self) -> None:
        self._open.set()


@pytest.fixture(scope="session")
def tools() -> SimpleNamespace:
    """The helpers above, for test modules (which cannot import a conftest)."""
    return SimpleNamespace(
        VOCAB=VOCAB,
        Gate=Gate,
        Script=Script,
        at_rest=at_rest,
        doubtful=doubtful,
        engine_of=engine_of,
        family=family,
        peak=peak,
        runner_of=runner_of,
    )
