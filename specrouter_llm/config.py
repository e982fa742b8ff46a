"""What a user may choose about models and the engine. Validated when made, never written to afterwards, no I/O."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from specrouter_llm.errors import InvalidParameterError

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class WideShape:
    """Dimensions of a widened model: the same function in a larger shape, so that a step costs what a larger model costs.

    See `specrouter_llm.pool.widen`. Every dimension must be at least the original's.
    """

    hidden_size: int
    num_layers: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One member of the pool: what to load and how. Most callers pass the name or the loaded model itself."""

    source: str | Path | PreTrainedModel
    """A local folder, a model name, a member of the embedded family (`demo`, `demo/middle`, ...), or a loaded model."""
    name: str | None = None
    """How chains and statistics call this member; the last part of the source by default."""
    tokenizer: PreTrainedTokenizerBase | None = None
    """A loaded tokenizer; by default the one that lies beside the weights."""
    dtype: str | None = None
    """`"auto"` (what the checkpoint says), `"float32"`, `"bfloat16"`, ...; the engine's choice by default."""
    device: str | None = None
    device_map: str | dict[str, Any] | None = None
    quantization_config: Any = None
    revision: str | None = None
    widen: WideShape | None = None
    model_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Passed on to `AutoModelForCausalLM.from_pretrained`."""


ModelSource: TypeAlias = "str | Path | ModelSpec | PreTrainedModel"

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(value: int | str) -> int:
    """Number of bytes of `value`: an int, or text such as "20GiB" or "1.5 GB". Raises InvalidParameterError."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return value
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([A-Za-z]*)\s*", value) if isinstance(value, str) else None
    unit = _UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise InvalidParameterError(f"memory_budget must be a number of bytes or text such as '20GiB', got {value!r}")
    return int(float(match[1]) * unit)


def format_bytes(count: int) -> str:
    """`count` bytes for people: "1.50 GiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.2f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """How the engine runs its pool."""

    max_batch: int = 8
    """Rows (samples) decoded together; also the number of cache slots."""
    max_context: int | None = None
    """Longest prompt + completion in tokens; the target's context, or what the budget allows, by default."""
    max_queue: int = 1024
    """Requests that may wait for a slot before `submit` raises QueueFullError."""
    prefill_chunk: int = 512
    """Prompt tokens that a model takes in between two steps, over all rows."""
    memory_budget: int | str | None = None
    """Bytes for weights and caches of the whole pool; by default 90 % of what is free on the device."""
    chain: tuple[str, ...] | None = None
    """Default chain, lowest level first, the target last (its name may be left out)."""
    windows: tuple[int, ...] | None = None
    """Tokens that each level below the target offers to the level above it."""
    speculation: bool = True
    prefix_reuse: bool = True
    pack: bool = True
    """Pack float32 weights on a CPU: much faster. A model that the caller loaded keeps its own weights beside them."""
    strict: bool = False
    """On a CUDA device, run every forward of the target so that its bits do not depend on chain and batch; `guarantee` says
    whether a probe found them equal. Costs time for long prompts, and for all forwards where they have to be padded."""
    generation_config: Literal["model", "ignore"] = "model"
    """Where sampling parameters come from that a request does not say: `"model"` takes what the target's generation config
    recommends, as transformers' `generate` does, and `SamplingParams`' own defaults for the rest; `"ignore"` takes only those.
    Its lengths (max_new_tokens, max_length) are not taken over, nor is the top_k of 50 that `generate` makes up for a model
    that samples and says none."""

    def __post_init__(self) -> None:
        for name in ("max_batch", "max_queue", "prefill_chunk"):
            _require_positive(name, getattr(self, name))
        if self.max_context is not None:
            _require_positive("max_context", self.max_context)
        for name in ("speculation", "prefix_reuse", "pack", "strict"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidParameterError(f"{name} must be True or False, got {getattr(self, name)!r}")
        if self.generation_config not in ("model", "ignore"):
            raise InvalidParameterError(
                f"generation_config must be 'model' or 'ignore', got {self.generation_config!r}"
            )
        if self.windows is not None and self.chain is None:
            raise InvalidParameterError("windows belong to a chain: give chain=[...] too")
        for name in ("chain", "windows"):
            if isinstance(getattr(self, name), (str, int)):
                raise InvalidParameterError(f"{name} must be a list, got {getattr(self, name)!r}")
        if self.memory_budget is not None:
            parse_bytes(self.memory_budget)


def _require_positive(name: str, value: object) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidParameterError(f"{name} must be a positive integer, got {value!r}")


def spec_of(source: ModelSource) -> ModelSpec:
    """`source` as a ModelSpec."""
    return source if isinstance(source, ModelSpec) else ModelSpec(source)


def default_name(spec: ModelSpec) -> str:
    """The name of a member: its explicit name, or the last part of where it came from."""
    if spec.name is not None:
        return spec.name
    if isinstance(spec.source, (str, Path)):
        text = str(spec.source)
        return text if text.split("/", 1)[0] == "demo" else os.path.basename(os.path.normpath(text))
    return os.path.basename(os.path.normpath(getattr(spec.source, "name_or_path", "") or type(spec.source).__name__))
