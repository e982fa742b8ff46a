"""The models of an engine: one target and its drafters, loaded, checked and within the memory budget."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from tqdm.auto import tqdm

from specrouter_llm.config import ModelSource, ModelSpec, default_name, parse_bytes, spec_of
from specrouter_llm.errors import EngineClosedError, InvalidParameterError
from specrouter_llm.pool.budget import MemoryReport, default_budgets, plan_memory
from specrouter_llm.pool.checks import check_vocabulary
from specrouter_llm.pool.demo import DEMO, DEMO_MEMBERS, full_demo_name
from specrouter_llm.pool.loading import freeze, quiet_transformers
from specrouter_llm.pool.placement import Placement, place
from specrouter_llm.pool.prepare import Defaults, Prepared, prepare
from specrouter_llm.pool.shapes import format_parameters
from specrouter_llm.types import Packing

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PoolMember:
    """One loaded model."""

    name: str
    model: PreTrainedModel
    """In eval mode, without gradients. Its weights may be in fewer bits than `dtype`, where `packing` said so."""
    dtype: torch.dtype
    """Of the arithmetic."""
    tokenizer: PreTrainedTokenizerBase | None
    vocab_size: int
    """Width of the logits. A drafter's may exceed the target's: ids from there on must not be proposed."""
    context_length: int
    """`max_position_embeddings` of the text config."""
    num_parameters: int
    """Tied weights counted once; of the widened model if it is one."""
    widened: bool
    label: str
    """How reports call it: the name, and if it was widened "demo/target (widened to 154 M)"."""
    eos_token_ids: frozenset[int]
    """End-of-sequence ids of the tokenizer and of the generation config together."""
    borrowed: bool = False
    """The caller loaded the model and may go on using it."""


class ModelPool:
    """A target and its drafters. Made by `load`; a pool is not changed afterwards, only closed."""

    def __init__(self, members: Iterable[PoolMember], memory: MemoryReport) -> None:
        """`members`: the target first."""
        self.memory = memory
        self.max_context = memory.max_context
        """Tokens per slot that the budget and the target allow."""
        self._members = {member.name: member for member in members}
        self._closed = False

    @classmethod
    def load(
        cls,
        target: ModelSource,
        drafts: Sequence[ModelSource] | None = None,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        device_map: str | dict[str, Any] | None = None,
        quantization_config: Any = None,
        revision: str | None = None,
        max_batch: int = 8,
        max_context: int | None = None,
        memory_budget: int | str | None = None,
        packing: Packing | None = None,
        progress: bool = True,
    ) -> ModelPool:
        """Check everything that can be checked, sum up the memory, then load.

        `drafts=None` means the rest of the embedded family for `target="demo"`, and none for other targets. `dtype`,
        `device`, `device_map` and `revision` apply to members whose `ModelSpec` does not say otherwise,
        `quantization_config` to the target only. The dtype is float32 on a CPU and the stored one elsewhere by default.
        A `PreTrainedModel` is used without a copy: it is set to eval mode and its gradients are switched off.
        `packing` says what runners that pack weights take beside the model's own, which is part of the sum; and which
        weights of 16 bits may stay so, though they are computed with in float32.

        Raises InvalidParameterError (duplicate names, contradictions) and the subclasses of ModelLoadError:
        ModelNotFoundError, UnsafeModelError, UnsupportedModelError, VocabularyMismatchError, MemoryBudgetError.
        """
        if not isinstance(max_batch, int) or max_batch < 1:
            raise InvalidParameterError(f"max_batch must be a positive integer, got {max_batch!r}")
        specs = _specs(target, drafts)
        placements = _placements(specs, device, device_map)
        with quiet_transformers(progress):
            defaults = Defaults(dtype, quantization_config, revision, packing)
            prepared = [
                prepare(spec, placement, defaults, is_target=index == 0)
                for index, (spec, placement) in enumerate(zip(specs, placements, strict=True))
            ]
            for draft in prepared[1:]:
                check_vocabulary(prepared[0].vocabulary, draft.vocabulary)
            memory = _plan(prepared, max_batch, max_context, memory_budget)
            return cls(_load_all(prepared, progress), memory)

    @property
    def members(self) -> Mapping[str, PoolMember]:
        """All members by name, the target first. Empty after `close`."""
        return MappingProxyType(self._members)

    @property
    def target(self) -> PoolMember:
        """The model whose choices are committed. Raises EngineClosedError after `close`."""
        if self._closed:
            raise EngineClosedError("the model pool was closed")
        return next(iter(self._members.values()))

    @property
    def drafts(self) -> tuple[PoolMember, ...]:
        """The other members, in the order given. Empty after `close`."""
        return tuple(self._members.values())[1:]

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The target's tokenizer; None if only token ids can be served."""
        return self.target.tokenizer

    def close(self) -> None:
        """Drop the models and give their memory back. May be called again. Members that a caller holds stay usable."""
        if self._closed:
            return
        on_cuda = any(member.model.device.type == "cuda" for member in self._members.values())
        self._members = {}
        self._closed = True
        gc.collect()
        if on_cuda:
            torch.cuda.empty_cache()


def _specs(target: ModelSource, drafts: Sequence[ModelSource] | None) -> list[ModelSpec]:
    """Specs of all members, the target first, with the demo's short name written out. Raises for duplicate names."""
    if isinstance(drafts, (str, bytes)):
        raise InvalidParameterError(f"drafts must be a list of models, got the text {drafts!r}")
    first = spec_of(target)
    if drafts is None:
        drafts = [f"{DEMO}/{name}" for name in DEMO_MEMBERS[1:]] if first.source == DEMO else []
    specs = [_named(spec_of(source)) for source in (first, *drafts)]
    seen: set[str] = set()
    for spec in specs:
        name = default_name(spec)
        if name in seen:
            raise InvalidParameterError(
                f"two models of the pool are called {name!r}; give one of them another name: ModelSpec(source, name=...)"
            )
        seen.add(name)
    return specs


def _named(spec: ModelSpec) -> ModelSpec:
    return replace(spec, source=full_demo_name(spec.source)) if isinstance(spec.source, str) else spec


def _placements(
    specs: Sequence[ModelSpec], device: str | torch.device | None, device_map: str | dict[str, Any] | None
) -> list[Placement]:
    num_cuda = torch.cuda.device_count() if torch.cuda.is_available() else 0
    placements = place(specs, device, device_map, num_cuda)
    nothing_asked = device is None and device_map is None
    return [
        Placement(None)  # a loaded model stays where it is
        if nothing_asked
        and isinstance(spec.source, torch.nn.Module)
        and spec.device is None
        and spec.device_map is None
        else placement
        for spec, placement in zip(specs, placements, strict=True)
    ]


def _plan(
    prepared: Sequence[Prepared], max_batch: int, max_context: int | None, memory_budget: int | str | None
) -> MemoryReport:
    needs = [each.needs for each in prepared]
    if memory_budget is not None:
        budgets = {"": parse_bytes(memory_budget)}
    else:
        loaded: dict[str, int] = {}
        for each in prepared:
            if each.model is not None:
                loaded[each.needs.device] = loaded.get(each.needs.device, 0) + each.needs.weight_bytes
        budgets = default_budgets(needs, loaded)
    return plan_memory(needs, slots=max_batch, max_context=max_context, budgets=budgets)


def _load_all(prepared: Sequence[Prepared], progress: bool) -> list[PoolMember]:
    members = []
    with tqdm(total=len(prepared), desc="Loading models", unit="model", disable=not progress) as bar:
        for each in prepared:
            bar.set_postfix_str(each.name)
            members.append(_member(each))
            bar.update()
    return members


def _member(prepared: Prepared) -> PoolMember:
    model = freeze(prepared.load())
    widened = prepared.spec.widen is not None
    suffix = f" (widened to {format_parameters(prepared.num_parameters)})" if widened else ""
    return PoolMember(
        name=prepared.name,
        model=model,
        dtype=prepared.dtype,
        tokenizer=prepared.tokenizer,
        vocab_size=_logits_width(model, prepared.vocabulary.size),
        context_length=prepared.needs.context_length,
        num_parameters=prepared.num_parameters,
        widened=widened,
        label=f"{prepared.name}{suffix}",
        eos_token_ids=_eos_token_ids(model, prepared.tokenizer),
        borrowed=model is prepared.model,
    )


def _logits_width(model: Any, vocab_size: int) -> int:
    head = model.get_output_embeddings()
    return int(getattr(head, "out_features", vocab_size))


def _eos_token_ids(model: Any, tokenizer: PreTrainedTokenizerBase | None) -> frozenset[int]:
    stated = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids = set(stated if isinstance(stated, (list, tuple)) else [stated])
    ids.add(None if tokenizer is None else tokenizer.eos_token_id)
    return frozenset(int(token_id) for token_id in ids if token_id is not None)
