"""The lean runner: a Llama-like model on a CPU, its forward written out over packed, fused linear layers.

The same arithmetic in the same order as the Hugging Face modules, with what a CPU wastes left out: weights are packed
(see `packing`), query, key and value projections are one matrix, gate and up projections another, rotary factors come
from a table, and no module is called between the layers. The check at load compares it with the model's own forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specrouter_llm.runtime.attention import STORAGE_STEP, RaggedContext
from specrouter_llm.runtime.batch import Span, packed_inputs
from specrouter_llm.runtime.cache import SlotCache
from specrouter_llm.runtime.llama_like import MODEL_TYPES, linear_groups, projections, window_of
from specrouter_llm.runtime.packing import PackedLinear, choose_padding, drop_weights, packable, row_sizes
from specrouter_llm.runtime.parity import check_parity, native_logits, probe_inputs
from specrouter_llm.runtime.probe import is_bitwise
from specrouter_llm.types import Guarantee

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Map: TypeAlias = Callable[[Tensor], Tensor]


def can_run_lean(model: PreTrainedModel, device: str = "cpu") -> bool:
    """Whether the lean runner knows the architecture and can pack its weights; for `device` see `packable`."""
    return model.config.model_type in MODEL_TYPES and packable(model, device)


def lean_shapes(model: PreTrainedModel) -> set[tuple[int, int]]:
    """(in, out) of the matrices that the lean runner makes of a model's layers."""
    return {(group[0].in_features, sum(linear.out_features for linear in group)) for group in linear_groups(model)}


@dataclass(frozen=True, slots=True)
class _Layer:
    """One decoder layer: norms, two fused matrices, two plain ones."""

    input_norm: Map
    query_key_value: PackedLinear
    query_norm: Map | None
    key_norm: Map | None
    output: PackedLinear
    inner_norm: Map
    gate_up: PackedLinear
    activation: Map
    down: PackedLinear
    scaling: float
    window: int | None


class LeanRunner:
    """Runs a model of MODEL_TYPES; see `Runner` for the contract."""

    def __init__(
        self, name: str, model: PreTrainedModel, *, num_slots: int, context_length: int, keep: bool = True
    ) -> None:
        """`keep=False` frees the plain weights while packing: the model itself cannot be called any more then.

        Raises:
            UnsupportedModelError: the logits differ from the model's own.
        """
        config = model.config.get_text_config()
        self.name = name
        self.context_length = context_length
        self.vocab_size: int = model.get_output_embeddings().out_features
        self.dtype = str(model.dtype).removeprefix("torch.")
        self._head_dim: int = model.model.layers[0].self_attn.head_dim
        self._heads: int = config.num_attention_heads
        self._key_heads: int = config.num_key_value_heads
        inputs = probe_inputs(self.vocab_size)
        expected = native_logits(model, inputs)
        self._embedding: nn.Module = model.get_input_embeddings()
        self._rotary: nn.Module = model.model.rotary_emb
        self._norm = _norm(model.model.norm)
        self._layers = [_layer(layer, keep) for layer in model.model.layers]
        self._head = _pack([model.get_output_embeddings()], keep)
        self._kinds = [*_linears(self._layers[0]), self._head]
        """One matrix of each shape; those of one shape are run alike."""
        self._cos, self._sin = self._rotary_table(STORAGE_STEP)
        self._cache = SlotCache(len(self._layers), len(inputs), STORAGE_STEP)
        check_parity(name, self.forward, inputs, expected, model.dtype)
        choose_padding(self.matrices, lambda: self.forward([Span(0, 0, [0], 1)]))
        self.token_sizes: Sequence[int] = row_sizes(self._kinds)
        self.token_step = 0
        self.guarantee: Guarantee = "bitwise" if self._is_bitwise() else "near-tie"
        self._cache = SlotCache(len(self._layers), num_slots, context_length)

    def forward(self, spans: Sequence[Span]) -> Tensor:
        with torch.inference_mode():
            return self._forward(spans)

    def _forward(self, spans: Sequence[Span]) -> Tensor:
        context = self._cache.begin(spans)
        if self._cache.capacity > self._cos.shape[0]:
            self._cos, self._sin = self._rotary_table(self._cache.capacity)
        ids, positions, wanted = packed_inputs(spans)
        count = len(ids)
        # Padded once, not by every matrix. What stands in the rows behind reaches neither the cache nor other rows.
        padding = (0, max(linear.rows_for(count) for linear in self._kinds) - count)
        ids, positions = F.pad(ids, padding), F.pad(positions, padding)
        hidden = self._embedding(ids)
        cos, sin = self._cos[positions], self._sin[positions]
        for layer, slabs in zip(self._layers, self._cache.layers, strict=True):
            hidden = hidden + self._attention(layer, slabs, layer.input_norm(hidden), cos, sin, context, count)
            hidden = hidden + _feed_forward(layer, layer.inner_norm(hidden))
        logits: Tensor = self._head(self._norm(hidden[wanted]))
        return self._cache.without_broken(logits, spans)

    def _attention(
        self, layer: _Layer, slabs: Any, hidden: Tensor, cos: Tensor, sin: Tensor, context: RaggedContext, count: int
    ) -> Tensor:
        """[N, H] -> [N, H]; writes the layer's keys and values of the first `count` rows, which are not padding."""
        rotated = self._heads + self._key_heads
        states = layer.query_key_value(hidden).view(len(hidden), -1, self._head_dim)
        query_key = states[:, :rotated]
        if layer.query_norm is not None and layer.key_norm is not None:
            query, key = query_key.split([self._heads, self._key_heads], dim=1)
            query_key = torch.cat([layer.query_norm(query), layer.key_norm(key)], dim=1)
        turned = query_key.roll(self._head_dim // 2, dims=-1)
        query_key = query_key * cos + turned * sin
        query, key = query_key.split([self._heads, self._key_heads], dim=1)
        keys, values = slabs.write(key[:count], states[:count, rotated:])
        attended = context.attend(query.transpose(0, 1), keys, values, layer.scaling, layer.window)
        return layer.output(attended.flatten(1))

    def _rotary_table(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin [length, 1, D] by position; the sign of the rotated half is in sin: a roll does the rest."""
        with torch.inference_mode():
            like = torch.empty(1, dtype=torch.float32)
            cos, sin = self._rotary(like, torch.arange(length)[None])
            half = self._head_dim // 2
            signed = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
            return cos[0, :, None], signed[:, None]

    @property
    def matrices(self) -> list[PackedLinear]:
        """All packed matrices in the order in which a forward multiplies by them."""
        return [*(linear for layer in self._layers for linear in _linears(layer)), self._head]

    def _is_bitwise(self) -> bool:
        shape = (self._heads, self._key_heads, self._head_dim)
        return all(linear.stable for linear in self.matrices) and is_bitwise(self.forward, self.vocab_size, shape)

    def clear(self, slot: int) -> None:
        with torch.inference_mode():
            self._cache.clear(slot)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the slabs as they stand."""
        return self._cache.nbytes

    def close(self) -> None:
        """Drops the cache and the packed weights."""
        del self._cache, self._layers, self._head, self._kinds, self._embedding, self._norm, self._rotary


def _linears(layer: _Layer) -> list[PackedLinear]:
    return [layer.query_key_value, layer.output, layer.gate_up, layer.down]


def _feed_forward(layer: _Layer, hidden: Tensor) -> Tensor:
    gate, up = layer.gate_up(hidden).chunk(2, dim=-1)
    return layer.down(layer.activation(gate) * up)


def _layer(module: Any, keep: bool) -> _Layer:
    attention = module.self_attn
    query_key_value, output, gate_up, down = (_pack(group, keep) for group in projections(module))
    return _Layer(
        input_norm=_norm(module.input_layernorm),
        query_key_value=query_key_value,
        query_norm=_optional_norm(getattr(attention, "q_norm", None)),
        key_norm=_optional_norm(getattr(attention, "k_norm", None)),
        output=output,
        inner_norm=_norm(module.post_attention_layernorm),
        gate_up=gate_up,
        activation=module.mlp.act_fn,
        down=down,
        scaling=attention.scaling,
        window=window_of(attention),
    )


def _norm(module: Any) -> Map:
    """RMSNorm by torch's own operator: the same bits as the module's, in one call."""
    return partial(F.rms_norm, normalized_shape=module.weight.shape, weight=module.weight, eps=module.variance_epsilon)


def _optional_norm(module: Any) -> Map | None:
    return None if module is None else _norm(module)


def _pack(sources: Sequence[nn.Linear], keep: bool) -> PackedLinear:
    packed = PackedLinear(sources)
    if not keep:
        drop_weights(sources)
    return packed
