"""Many inputs as one continuous batch: everything is in the engine's queue before the first answer is waited for.

LangChain's own `batch` runs as many threads as a machine has cores (plus four), and its `generate` of chats one call after
the other: both would leave the engine's slots empty. The runs stay separate, each with its own callbacks and its own error.
"""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, TypeVar

from langchain_core.callbacks import Callbacks
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import BaseMessage
from langchain_core.outputs import LLMResult, RunInfo
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import ContextThreadPoolExecutor, get_config_list

MAX_THREADS = 64
"""Calls of one `batch` that wait at the same time, unless `max_concurrency` says otherwise."""
MAX_TASKS = 512
"""The same for `abatch`: below what the engine's queue holds."""

T = TypeVar("T")


class ConcurrentRuns(Runnable[Any, Any]):
    """A model whose batches are as wide as the engine, not as the machine.

    They are `Runnable`'s, one run for each input: those of `BaseLLM` fail all inputs for one.
    """

    def batch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[Any]:
        return Runnable.batch(self, inputs, _bounded(config, len(inputs), MAX_THREADS), **kwargs)

    def batch_as_completed(self, inputs: Sequence[Any], config: Any = None, **kwargs: Any) -> Iterator[tuple[int, Any]]:
        return Runnable.batch_as_completed(self, inputs, _bounded(config, len(inputs), MAX_THREADS), **kwargs)

    async def abatch(self, inputs: list[Any], config: Any = None, **kwargs: Any) -> list[Any]:
        return await Runnable.abatch(self, inputs, _bounded(config, len(inputs), MAX_TASKS), **kwargs)

    def abatch_as_completed(
        self, inputs: Sequence[Any], config: Any = None, **kwargs: Any
    ) -> AsyncIterator[tuple[int, Any]]:
        return Runnable.abatch_as_completed(self, inputs, _bounded(config, len(inputs), MAX_TASKS), **kwargs)


class ConcurrentChats(ConcurrentRuns, BaseChatModel):
    """A chat model whose `generate` is as wide as its batches."""

    def generate(
        self,
        messages: list[list[BaseMessage]],
        stop: list[str] | None = None,
        callbacks: Callbacks = None,
        *,
        run_id: uuid.UUID | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        if len(messages) < 2:
            return super().generate(messages, stop, callbacks, run_id=run_id, **kwargs)
        run_one = super().generate  # `super()` has no meaning in another function

        def run(index: int) -> LLMResult:
            return run_one([messages[index]], stop, callbacks, run_id=run_id if index == 0 else None, **kwargs)

        with ContextThreadPoolExecutor(max_workers=min(len(messages), MAX_THREADS)) as executor:
            results = list(executor.map(run, range(len(messages))))
        output = LLMResult(
            generations=[answers for result in results for answers in result.generations],
            llm_output=self._combine_llm_outputs([result.llm_output for result in results]),
        )
        output.run = [info for result in results for info in _runs(result)]
        return output


def _bounded(config: Any, length: int, limit: int) -> list[RunnableConfig] | None:
    """A config for each input; the first, which LangChain asks, says how many may run at once."""
    if length == 0:
        return None
    configs = get_config_list(config, length)
    if configs[0].get("max_concurrency") is None:
        configs[0] = {**configs[0], "max_concurrency": min(length, limit)}
    return configs


def _runs(result: LLMResult) -> list[RunInfo]:
    return result.run or []
