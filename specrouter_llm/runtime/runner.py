"""A runner: one model, one packed forward pass at a time, over its own masked slot cache."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from specrouter_llm.errors import SpecRouterError, UnsupportedModelError
from specrouter_llm.runtime.attention import ATTENTION_NAME, STORAGE_STEP
from specrouter_llm.runtime.batch import Span, packed_inputs
from specrouter_llm.runtime.cache import SlotCache
from specrouter_llm.runtime.packing import choose_padding, pack_linears, row_sizes
from specrouter_llm.runtime.parity import check_parity, native_logits, probe_inputs
from specrouter_llm.runtime.probe import is_bitwise
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
    token_sizes: Sequence[int]
    """The numbers of tokens that forwards are padded to, rising, as far as decoding goes; empty if they are not padded."""
    token_step: int
    """So many tokens share one pass over the weights, and one more costs another; 0 where costs rise evenly or are padded."""

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


@runtime_checkable
class AheadRunner(Protocol):
    """A runner whose forwards run on a device by themselves, over tokens that the host need not know."""

    def ahead(self, spans: Sequence[Span], chosen: Tensor) -> Tensor | None:
        """Begins the forward over `spans`, of one token each, whose ids are `chosen` [spans] on the device, not theirs.

        Returns what `forward` would, without waiting for it; None if the forward is not one that can be begun so. A negative
        id stands for any token.
        """
        ...


class EagerRunner:
    """An unmodified Hugging Face model called through its own forward; works on any device and with `device_map`."""

    def __init__(
        self, name: str, model: PreTrainedModel, *, num_slots: int, context_length: int, pack: bool = False
    ) -> None:
        """`model` answers through this runner only, until `close` gives it its own attention back.

        `pack=True` replaces its linear layers by packed ones for good (see `packing.packable`).

        Raises:
            UnsupportedModelError: it cannot be run through the cache, or its logits differ from its own there.
        """
        self.name = name
        self.context_length = context_length
        self.vocab_size: int = model.get_output_embeddings().out_features
        self.guarantee: Guarantee = "near-tie"
        self.token_sizes: Sequence[int] = ()
        self.token_step = 0
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._model = model
        self._device = model.get_input_embeddings().weight.device
        self._keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._num_layers: int = model.config.get_text_config().num_hidden_layers
        with _use_of(model):  # while another engine is still making it its own it is not what it will be
            if _lend(model):  # else another engine runs this very model, and has checked it
                self._make_own(model, pack)
        self._cache = self._new_cache(num_slots, context_length)

    def _make_own(self, model: PreTrainedModel, pack: bool) -> None:
        """Gives the model our attention, and packed linear layers if it is to have them, and checks what has become of it."""
        inputs = probe_inputs(self.vocab_size)
        try:
            model.set_attn_implementation("eager")  # the reference: others silently drop soft-capping in places
            expected = native_logits(model, inputs)
            model.set_attn_implementation(ATTENTION_NAME)
            packed = pack_linears(model) if pack else []
            self._cache = self._new_cache(len(inputs), STORAGE_STEP)
            check_parity(self.name, self.forward, inputs, expected, model.dtype)
        except (SpecRouterError, torch.OutOfMemoryError):
            _give_back(model)
            raise
        except Exception as error:
            _give_back(model)
            raise UnsupportedModelError(_unrunnable(self.name, model, error)) from error
        if packed:
            choose_padding(packed, lambda: self.forward([Span(0, 0, [0], 1)]))
            self.token_sizes = row_sizes(packed)
        if packed and all(linear.stable for linear in packed):
            stable = all(is_bitwise(self.forward, self.vocab_size, shape) for shape in head_shapes(model))
            self.guarantee = "bitwise" if stable else "near-tie"

    def _new_cache(self, num_slots: int, length: int) -> SlotCache:
        """An empty cache of slots of at most `length` positions, in place of the one before it."""
        return SlotCache(self._num_layers, num_slots, length)

    def forward(self, spans: Sequence[Span]) -> Tensor:
        with torch.inference_mode():
            return self._forward(spans)

    def _forward(self, spans: Sequence[Span]) -> Tensor:
        context = self._cache.begin(spans)
        ids, positions, wanted = packed_inputs(spans, self._device)
        output = self._model(
            input_ids=ids[None],
            position_ids=positions[None],
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


def _unrunnable(name: str, model: PreTrainedModel, error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    reason = f"model {name!r} ({type(model).__name__}) is not supported: on two short inputs its forward raises "
    reason += f"{type(error).__name__}: {lines[0]}"
    if model.dtype == torch.float64:
        return f"{reason} (mixtures of experts need model_kwargs={{'experts_implementation': 'eager'}} in float64)"
    return reason


def head_shapes(model: PreTrainedModel) -> list[tuple[int, int, int]]:
    """Query heads, key heads and head size, as the config states them; several where layers differ."""
    config = model.config.get_text_config()
    layers = getattr(config, "per_layer_config", None) or [config]
    return list(dict.fromkeys(map(_head_shape, layers)))


def _head_shape(layer: Any) -> tuple[int, int, int]:
    heads = layer.num_attention_heads
    key_heads = getattr(layer, "num_key_value_heads", None) or heads
    return heads, key_heads, getattr(layer, "head_dim", None) or layer.hidden_size // heads


_lent: WeakKeyDictionary[torch.nn.Module, tuple[str, int]] = WeakKeyDictionary()
"""Models in use: the attention that each came with, and how many runners have it. A loaded model may serve several."""
_uses: WeakKeyDictionary[torch.nn.Module, threading.RLock] = WeakKeyDictionary()
"""One lock for each of them, held by who changes its attention."""
_USES = threading.Lock()


def _use_of(model: PreTrainedModel) -> threading.RLock:
    with _USES:
        return _uses.setdefault(model, threading.RLock())


def _lend(model: PreTrainedModel) -> bool:
    """Notes one more user of a model; True if it is the first."""
    native, users = _lent.get(model, (str(model.config._attn_implementation), 0))
    _lent[model] = (native, users + 1)
    return not users


def _give_back(model: PreTrainedModel) -> None:
    with _use_of(model):
        native, users = _lent.pop(model)
        if users > 1:
            _lent[model] = (native, users - 1)
        else:
            model.set_attn_implementation(native)
