"""The memory of a pool, summed before anything is loaded: weights of every member, and its cache for every slot.

    cache of a member = slots x tokens x (bytes per token and slot)
    bytes per token   = layers x (key heads x key size + value heads x value size) x bytes of one number

Caches are stored in multiples of `STORAGE_STEP` tokens. A member's cache is never longer than its own context. A packed
copy is what a runner packs and its model keeps as well: a matrix tied to the embedding, all of them in a model that the
caller loaded. Kernels are what oneDNN keeps for every shape of packed matrix and number of rows: little beside a large
model, not beside a small one. Runner buffers (CUDA graphs, activations, attention scores of a long prompt's chunk) are not in
the sum: they are what the 10 % of the default budget are for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psutil
import torch

from specrouter_llm.config import format_bytes
from specrouter_llm.errors import InvalidParameterError, MemoryBudgetError
from specrouter_llm.types import NO_PACKING, PackingBytes

STORAGE_STEP = 512
"""Tokens: caches grow, and attention runs, over multiples of this (see the design's section on bits)."""
DEFAULT_SHARE = 0.9
"""Part of the free memory that the default budget takes."""


@dataclass(frozen=True, slots=True)
class MemberNeeds:
    """What one member needs, known before it is loaded."""

    name: str
    device: str
    """Where it will be: "cpu", "cuda:0", or "" for spread over several devices."""
    weight_bytes: int
    cache_bytes_per_token: int
    """Bytes per token and slot, over all layers."""
    context_length: int
    packing: PackingBytes = NO_PACKING
    """What a runner that packs weights takes beside them."""


@dataclass(frozen=True, slots=True)
class MemberMemory:
    """One member's share of a `MemoryReport`."""

    name: str
    weight_bytes: int
    cache_bytes_per_token: int
    """Bytes per token and slot."""
    cache_tokens: int
    """Stored tokens per slot: a multiple of STORAGE_STEP."""
    packing: PackingBytes = NO_PACKING
    """What a runner that packs weights takes beside them."""


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The sum that decided the context length. `str()` shows it line by line."""

    members: tuple[MemberMemory, ...]
    slots: int
    max_context: int
    """Tokens per slot that the engine may use."""
    budget: int
    """Bytes."""

    def cache_bytes(self, member: MemberMemory) -> int:
        """Bytes of `member`'s cache over all slots."""
        return self.slots * member.cache_tokens * member.cache_bytes_per_token

    @property
    def total(self) -> int:
        """Bytes of all weights, what packing adds to them, and caches, as long as models are loading.

        Matrices in float32 that a CPU keeps in 16 bits take half of theirs later.
        """
        return self.fixed_bytes + sum(self.cache_bytes(member) for member in self.members)

    @property
    def kernel_bytes(self) -> int:
        """Bytes that packing keeps for the shapes of all members' matrices, each shape once."""
        kernels = frozenset[tuple[int, int, int]]().union(*(member.packing.kernels for member in self.members))
        return sum(size for _, _, size in kernels)

    @property
    def fixed_bytes(self) -> int:
        """Bytes of everything but the caches."""
        return self.kernel_bytes + sum(member.weight_bytes + member.packing.copies for member in self.members)

    def __str__(self) -> str:
        rows: list[tuple[str, str, int]] = []
        for member in self.members:
            rows.append((f"{member.name} weights", "", member.weight_bytes))
            if member.packing.copies:
                rows.append((f"{member.name} packed copy", "", member.packing.copies))
            factors = f"{self.slots} slots x {member.cache_tokens} tokens x {member.cache_bytes_per_token} B ="
            rows.append((f"{member.name} cache", factors, self.cache_bytes(member)))
        if self.kernel_bytes:
            rows.append(("kernels of all shapes", "", self.kernel_bytes))
        rows += [("total", "", self.total), ("budget", "", self.budget)]
        names, factors_width, numbers = (max(len(str(row[i])) for row in rows) for i in range(3))
        return "\n".join(
            f"  {name:<{names}}  {factors:<{factors_width}} {count:>{numbers}} B  ({format_bytes(count)})"
            for name, factors, count in rows
        )


def cache_bytes_per_token(config: Any, itemsize: int) -> int:
    """Bytes of keys and values that one token takes in all layers of one slot; `config` is the model's, `itemsize` in bytes."""
    text = config.get_text_config(decoder=True)
    layers = getattr(text, "per_layer_config", None) or [text] * text.num_hidden_layers
    return int(itemsize * sum(map(_cached_numbers, layers)))


def _cached_numbers(layer: Any) -> int:
    """Numbers that one token takes in a layer, of its own configuration where layers differ (Gemma 4)."""
    heads = layer.num_attention_heads
    key_heads: int = getattr(layer, "num_key_value_heads", None) or heads
    size: int = getattr(layer, "head_dim", None) or layer.hidden_size // heads
    return 2 * key_heads * size


def free_memory(device: str) -> int:
    """Free bytes on `device`; "" means all CUDA devices together (the CPU's if there are none)."""
    if device == "" and torch.cuda.is_available():
        return sum(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count()))
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    return int(psutil.virtual_memory().available)


def default_budgets(needs: Sequence[MemberNeeds], already_loaded: Mapping[str, int]) -> dict[str, int]:
    """90 % of what is free on each device of `needs`.

    `already_loaded` holds bytes per device that are in use by members the caller loaded: they are counted as weights in
    the sum, so they belong to the budget too. Devices are pooled under "" if any member is spread over several.
    """
    devices = [""] if any(member.device == "" for member in needs) else list(dict.fromkeys(m.device for m in needs))
    loaded = {"": sum(already_loaded.values())} if devices == [""] else already_loaded
    return {device: int(DEFAULT_SHARE * (free_memory(device) + loaded.get(device, 0))) for device in devices}


def plan_memory(
    needs: Sequence[MemberNeeds], *, slots: int, max_context: int | None, budgets: Mapping[str, int]
) -> MemoryReport:
    """The longest context that fits (the target is `needs[0]`), or a check of the one that was asked for.

    `budgets` gives bytes per device; a single key "" is one budget for everything. Raises MemoryBudgetError with the sum,
    or InvalidParameterError if `max_context` exceeds the target's own context.
    """
    target_context = needs[0].context_length
    if max_context is not None and max_context > target_context:
        raise InvalidParameterError(
            f"max_context={max_context} exceeds the context of the target {needs[0].name!r}, {target_context} tokens"
        )
    contexts = []
    for device, budget in budgets.items():
        group = [member for member in needs if device in ("", member.device)]
        contexts.append(_fit(group, slots, max_context, target_context, budget))
    return _report(needs, slots, min(contexts), sum(budgets.values()))


def _fit(group: Sequence[MemberNeeds], slots: int, asked: int | None, target_context: int, budget: int) -> int:
    """Tokens per slot that `group` can have within `budget`."""
    if asked is not None:
        report = _report(group, slots, asked, budget)
        if report.total > budget:
            raise MemoryBudgetError(_too_large(group, report, f"max_context={asked}"))
        return asked
    fitting = 0
    for tokens in range(STORAGE_STEP, _stored(target_context) + 1, STORAGE_STEP):
        if _report(group, slots, tokens, budget).total > budget:
            break
        fitting = tokens
    if fitting == 0:
        raise MemoryBudgetError(_too_large(group, _report(group, slots, STORAGE_STEP, budget), "the smallest context"))
    return min(fitting, target_context)


def _report(needs: Iterable[MemberNeeds], slots: int, context: int, budget: int) -> MemoryReport:
    members = tuple(
        MemberMemory(
            name=need.name,
            weight_bytes=need.weight_bytes,
            cache_bytes_per_token=need.cache_bytes_per_token,
            cache_tokens=_stored(min(context, need.context_length)),
            packing=need.packing,
        )
        for need in needs
    )
    return MemoryReport(members=members, slots=slots, max_context=context, budget=budget)


def _stored(tokens: int) -> int:
    """`tokens` rounded up to whole storage steps."""
    return -(-tokens // STORAGE_STEP) * STORAGE_STEP


def _too_large(group: Sequence[MemberNeeds], report: MemoryReport, what: str) -> str:
    weights = report.fixed_bytes
    hints = [f"raise memory_budget to {report.total} bytes"]
    per_slot = (report.total - weights) // report.slots
    rows = (report.budget - weights) // per_slot if weights < report.budget else 0
    if rows >= 1:
        hints.append(f"lower max_batch to {rows}")
    shorter = _longest(group, report)
    if shorter:
        hints.append(f"lower max_context to {shorter}")
    if weights >= report.budget:
        what_else = " with what packing adds to them" if weights > sum(m.weight_bytes for m in report.members) else ""
        hints.append(f"use smaller or fewer models: the weights alone{what_else} exceed the budget")
    if report.kernel_bytes:
        hints.append("set pack=False, which is slower")
    return (
        f"the pool does not fit its memory budget with {what} and max_batch={report.slots}:\n{report}\n"
        f"To change that: {'; or '.join(hints)}"
    )


def _longest(group: Sequence[MemberNeeds], report: MemoryReport) -> int:
    """The longest context in whole storage steps, shorter than the report's, that would fit; 0 if none."""
    for tokens in range(_stored(report.max_context) - STORAGE_STEP, 0, -STORAGE_STEP):
        if _report(group, report.slots, tokens, report.budget).total <= report.budget:
            return tokens
    return 0
