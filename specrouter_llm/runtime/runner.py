"""A runner: one model, one packed forward pass at a time, over its own masked slot cache."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from specrouter_llm.errors import UnsupportedModelError
from specrouter_llm.runtime.attention import ATTENTION_NAME, extent
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.cache import SlotCache
from specrouter_llm.runtime.parity import check_parity, native_logits, probe_inputs
from specrouter_llm.types import Guarantee

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Runner(Protocol):
    """What the engine needs of a model. Stateless between calls but for the contents of its cache."""

    name: str
    vocab_size: int
    """Width of the logits; no larger token id may be fed."""
    context_length: int
    """No larger position may be fed."""
    dtype: str
    """What the weights are stored in: "float32", "bfloat16", ..."""
    guarantee: Guarantee

    def forward(self, spans: Sequence[Span]) -> Tensor:
        """Runs all spans in one pass; returns logits [sum of num_logits, V] in span order, float32 or float64.

        A token whose state is NaN or infinite breaks the logits at its own and later positions of its row, no others.
        """
        ...

    def clear(self, slot: int) -> None:
        """Zeroes the slot's cache after a failure."""
        ...

    def close(self) -> None:
        """Gives the cache's memory back."""
        ...


class EagerRunner:
    """An unmodified Hugging Face model called through its own forward; works on any device and with `device_map`."""

    guarantee: Guarantee = "near-tie"

    def __init__(self, name: str, model: PreTrainedModel, *, num_slots: int, context_length: int) -> None:
        """`model` answers through this runner only, until `close` gives it its own attention back.

        Raises:
            UnsupportedModelError: through the cache its logits differ from its own.
        """
        self.name = name
        self.context_length = context_length
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._model = model
        self._device = model.get_input_embeddings().weight.device
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        num_layers = model.config.get_text_config().num_hidden_layers
        if _lend(model):  # else another engine runs this very model, and has checked it
            inputs = probe_inputs(self.vocab_size)
            model.set_attn_implementation("eager")  # the reference: others silently drop soft-capping in places
            expected = native_logits(model, inputs)
            model.set_attn_implementation(ATTENTION_NAME)
            self._cache = SlotCache(num_layers, len(inputs), extent(1))
            try:
                check_parity(name, self.forward, inputs, expected, model.dtype)
            except UnsupportedModelError:
                _give_back(model)
                raise
        self._cache = SlotCache(num_layers, num_slots, context_length)

    def forward(self, spans: Sequence[Span]) -> Tensor:
        with torch.inference_mode():
            return self._forward(spans)

    def _forward(self, spans: Sequence[Span]) -> Tensor:
        context = self._cache.begin(spans)
        ids: list[int] = []
        positions: list[int] = []
        keep: list[int] = []
        for span in spans:
            ids.extend(span.token_ids)
            positions.extend(range(span.start, span.end))
            keep.extend(range(len(ids) - span.num_logits, len(ids)))
        inputs = torch.tensor([ids, positions], dtype=torch.long, device=self._device)
        wanted = torch.tensor(keep, dtype=torch.long, device=self._device)
        output = self._model(
            input_ids=inputs[:1],
            position_ids=inputs[1:],
            past_key_values=self._cache,
            use_cache=True,
            spec=context,
            **({"logits_to_keep": wanted} if self._keeps else {}),
        ).logits[0]
        logits: Tensor = output if self._keeps else output[wanted.to(output.device)]
        logits = logits if logits.dtype == torch.float64 else logits.float()
        return self._cache.without_broken(logits, spans)

    def clear(self, slot: int) -> None:
        with torch.inference_mode():
            self._cache.clear(slot)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the slabs as they stand."""
        return self._cache.nbytes

    def close(self) -> None:
        """Drops the cache and the model, which works on its own again when no other runner has it."""
        _give_back(self._model)
        del self._model, self._cache


_lent: WeakKeyDictionary[torch.nn.Module, tuple[str, int]] = WeakKeyDictionary()
"""Models in use: the attention that each came with, and how many runners have it. A loaded model may serve several."""


def _lend(model: PreTrainedModel) -> bool:
    """Notes one more user of a model; True if it is the first."""
    native, users = _lent.get(model, (str(model.config._attn_implementation), 0))
    _lent[model] = (native, users + 1)
    return not users


def _give_back(model: PreTrainedModel) -> None:
    native, users = _lent.pop(model)
    if users > 1:
        _lent[model] = (native, users - 1)
    else:
        model.set_attn_implementation(native)
