"""Public fakes: models without weights, for tests of this package and of what is built on it.

They stand in at the `Runner` seam, so everything above it (masked cache, choice rule, chains, batching, streaming) is real.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from specrouter_llm.config import EngineConfig
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.runtime.batch import Span
from specrouter_llm.text.tokenizer import Tokenizer
from specrouter_llm.types import Guarantee


class TableRunner:
    """A Markov model: the logits after a token are a row of a table [V, V]. Exact, fast, no cache."""

    guarantee: Guarantee = "bitwise"
    token_sizes: Sequence[int] = ()
    token_step = 0
    dtype = "float64"

    def __init__(self, name: str, table: Tensor, *, context_length: int = 4096) -> None:
        self.name = name
        self.vocab_size = int(table.shape[1])
        self.context_length = context_length
        self.num_forwards = 0
        self._table = table

    def forward(self, spans: Sequence[Span]) -> Tensor:
        self.num_forwards += 1
        ids = [i for span in spans for i in span.token_ids[len(span.token_ids) - span.num_logits :]]
        return self._table[ids]

    def clear(self, slot: int) -> None:
        """There is nothing to clear."""

    def close(self) -> None:
        """There is nothing to give back."""


class ContextRunner:
    """A model of the whole context: logits = function(all tokens so far), over a slot cache of its own that is
    written by position and never cleaned up, as a real one is. What it answers is wrong if anybody's bookkeeping is.
    """

    guarantee: Guarantee = "bitwise"
    token_sizes: Sequence[int] = ()
    token_step = 0
    dtype = "float64"

    def __init__(
        self,
        name: str,
        function: Callable[[Sequence[int]], Tensor],
        vocab_size: int,
        *,
        num_slots: int,
        context_length: int = 4096,
    ) -> None:
        self.name = name
        self.vocab_size = vocab_size
        self.context_length = context_length
        self.num_forwards = 0
        self.cache: list[dict[int, int]] = [{} for _ in range(num_slots)]
        """Physical content: position -> token id."""
        self._function = function

    def forward(self, spans: Sequence[Span]) -> Tensor:
        self.num_forwards += 1
        rows: list[Tensor] = []
        for span in spans:
            slot = self.cache[span.slot]
            for position, token_id in enumerate(span.token_ids, span.start):
                if not 0 <= token_id < self.vocab_size or position >= self.context_length:
                    raise IndexError(f"token {token_id} at position {position} does not exist for {self.name}")
                slot[position] = token_id
            ends = range(span.end - span.num_logits, span.end)
            rows.extend(self._function([slot[position] for position in range(end + 1)]) for end in ends)
        return torch.stack(rows) if rows else torch.empty(0, self.vocab_size)

    def clear(self, slot: int) -> None:
        self.cache[slot].clear()

    def close(self) -> None:
        self.cache.clear()


def hashed_logits(
    seed: int, vocab_size: int, *, scale: float = 2.0, order: int = 6
) -> Callable[[Sequence[int]], Tensor]:
    """A function for `ContextRunner`: random but fixed float64 logits [V] of the last `order` tokens and the length."""
    cache: dict[tuple[int, ...], Tensor] = {}

    def function(context: Sequence[int]) -> Tensor:
        key = (len(context), *context[-order:])
        if key not in cache:
            generator = torch.Generator().manual_seed(hash((seed, *key)) % 2**63)
            cache[key] = torch.randn(vocab_size, generator=generator, dtype=torch.float64) * scale
        return cache[key]

    return function


def blended(
    first: Callable[[Sequence[int]], Tensor], second: Callable[[Sequence[int]], Tensor], weight: float
) -> Callable[[Sequence[int]], Tensor]:
    """Logits between two functions: a drafter that is `weight` away from its target."""
    return lambda context: (1 - weight) * first(context) + weight * second(context)


def fake_engine(
    *,
    vocab_size: int = 32,
    num_drafters: int = 2,
    noise: float = 0.3,
    seed: int = 0,
    tokenizer: Tokenizer | None = None,
    eos_token_ids: Sequence[int] = (),
    max_context: int = 512,
    proposers: Any = None,
    policy: Any = None,
    **config: Any,
) -> SpecRouter:
    """An engine over `ContextRunner`s named draft0, draft1, ..., target; drafters get closer to the target in order."""
    settings = EngineConfig(**config)
    target = hashed_logits(seed, vocab_size)
    functions = {
        f"draft{i}": blended(target, hashed_logits(seed + 1 + i, vocab_size), noise / (i + 1))
        for i in range(num_drafters)
    }
    functions["target"] = target
    runners = {
        name: ContextRunner(name, f, vocab_size, num_slots=settings.max_batch, context_length=max_context)
        for name, f in functions.items()
    }
    return SpecRouter(
        runners,
        target="target",
        tokenizer=tokenizer,
        eos_token_ids=eos_token_ids,
        max_context=max_context,
        config=settings,
        proposers=proposers,
        policy=policy,
    )
