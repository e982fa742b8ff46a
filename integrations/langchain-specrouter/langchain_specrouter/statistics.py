"""What a message tells about how it was decoded: how much of it, and where it is put."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from langchain_core.callbacks import adispatch_custom_event, dispatch_custom_event

from langchain_specrouter.errors import SpecRouterInvalidRequestError
from specrouter_llm import Completion, StepInfo
from specrouter_llm.chat import logprobs, metadata

if TYPE_CHECKING:
    from specrouter_llm.text.tokenizer import Tokenizer

StatsLevel: TypeAlias = Literal["off", "summary", "detailed"]
StatsSink: TypeAlias = Literal["response_metadata", "additional_kwargs", "custom_event"]
SPECULATION = "speculative_decoding"
EVENT = "specrouter.speculative_decoding"


@dataclass(frozen=True, slots=True)
class StepLog:
    """Collects the steps of one request for the level "detailed"; hands them on to the user's own callback."""

    then: Callable[[StepInfo], None] | None
    steps: dict[int, list[dict[str, Any]]] = field(default_factory=dict)
    """By sample."""

    def __call__(self, info: StepInfo) -> None:
        steps = self.steps.setdefault(info.sample_index, [])
        steps.append(
            {
                "step": len(steps),  # not "index": LangChain would merge the entries of one list by it
                "chain": list(info.chain),
                "drafted": [level.drafted for level in info.levels],
                "accepted": [level.accepted for level in info.levels],
                "committed": len(info.committed),
                "seconds": info.seconds,
            }
        )
        if self.then is not None:
            self.then(info)


@dataclass(frozen=True, slots=True)
class Statistics:
    """Where one call's statistics go."""

    level: StatsLevel
    sinks: Collection[str]
    steps: StepLog | None = None

    @classmethod
    def of(cls, level: StatsLevel, sinks: Collection[str], options: dict[str, Any]) -> Statistics:
        """Hooks into the request's `options` where the level asks for every step.

        Raises SpecRouterInvalidRequestError for a level that does not exist.
        """
        if level not in (levels := get_args(StatsLevel)):
            raise SpecRouterInvalidRequestError(f"stats must be one of {', '.join(levels)}, got {level!r}")
        if level != "detailed":
            return cls(level, sinks)
        options["on_step"] = steps = StepLog(options.get("on_step"))
        return cls(level, sinks, steps)

    def report(
        self, completion: Completion, model: str, tokenizer: Tokenizer | None, finish_reason: str | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """(response_metadata, additional_kwargs) of one answer; `tokenizer` spells its tokens where logprobs are wanted."""
        told = metadata(completion, model, finish_reason=finish_reason)
        if (likely := logprobs(completion, tokenizer)) is not None:
            told["logprobs"] = likely
        speculation, timings = told.pop(SPECULATION), told.pop("timings")
        if self.level == "off":
            return told, {}
        if self.steps is not None:
            speculation["steps"] = self.steps.steps.get(completion.index, [])
        extra = {SPECULATION: speculation} if "additional_kwargs" in self.sinks else {}
        if "response_metadata" in self.sinks:
            told |= {SPECULATION: speculation, "timings": timings}
        return told, extra

    def dispatch(self, completion: Completion, model: str) -> None:
        """Sends the custom event to the handlers of the surrounding run, if that was asked for and there is one."""
        if self._sends_events:
            with contextlib.suppress(RuntimeError):  # no surrounding run
                dispatch_custom_event(EVENT, self._event(completion, model))

    async def adispatch(self, completion: Completion, model: str) -> None:
        """`dispatch` for asynchronous handlers."""
        if self._sends_events:
            with contextlib.suppress(RuntimeError):
                await adispatch_custom_event(EVENT, self._event(completion, model))

    @property
    def _sends_events(self) -> bool:
        return self.level != "off" and "custom_event" in self.sinks

    def _event(self, completion: Completion, model: str) -> dict[str, Any]:
        told = metadata(completion, model)
        return {"model_name": model, **told[SPECULATION]}
