"""The forward of a Llama-like model on a CUDA device, written out: four products a layer, attention, and three small launches.

Weights that share an input are joined into one matrix; the model's own parameters become views of it, so that nothing is
held twice and the model works as before. `GraphRunner` records this in place of the modules' forward where it can.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from specrouter_llm.runtime.cache import SlotCache
from specrouter_llm.runtime.llama_like import MODEL_TYPES, SILU, linear_groups, projections, window_of
from specrouter_llm.runtime.packing import is_watched, joined_bias
from specrouter_llm.runtime.static_batch import StaticBatch
from specrouter_llm.runtime.triton_layers import add_norm, rotate_and_write
from specrouter_llm.runtime.triton_products import product

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def can_fuse(model: PreTrainedModel) -> bool:
    """Whether the architecture is known, nobody watches its modules, and no linear layer is another kind of one."""
    config = model.config
    if config.model_type not in MODEL_TYPES or config.hidden_act not in SILU or is_watched(model):
        return False
    return all(
        type(linear) is nn.Linear and type(linear.weight.data) is Tensor and linear.weight.is_contiguous()
        for linear in itertools.chain.from_iterable(linear_groups(model))
    )


@dataclass(frozen=True, slots=True)
class _Matrix:
    """One or several linear layers of the same input."""

    weight: Tensor
    bias: Tensor | None

    gated: bool = False

    def __call__(self, rows: Tensor) -> Tensor:
        """See `product`."""
        return product(rows, self.weight, self.bias, gated=self.gated)


@dataclass(frozen=True, slots=True)
class _Layer:
    input_norm: tuple[Tensor, float]
    query_key_value: _Matrix
    head_norms: tuple[Tensor, float, Tensor, float] | None
    output: _Matrix
    inner_norm: tuple[Tensor, float]
    gate_up: _Matrix
    down: _Matrix
    scaling: float
    window: int | None


class FusedForward:
    """Logits of the tokens of a `StaticBatch`; see `can_fuse`."""

    def __init__(self, model: PreTrainedModel) -> None:
        config = model.config
        self._head_dim: int = model.model.layers[0].self_attn.head_dim
        self._key_heads: int = config.num_key_value_heads
        self._embedding: Tensor = model.get_input_embeddings().weight
        self._rotary: nn.Module = model.model.rotary_emb
        self._table = self._embedding.new_empty(2, 0, self._head_dim)
        self._layers = [_layer(layer) for layer in model.model.layers]
        self._norm = _norm(model.model.norm)
        self._head = _joined([model.get_output_embeddings()])

    def __call__(self, batch: StaticBatch, ids: Tensor, cache: SlotCache) -> Tensor:
        """Logits [tokens, V] of the ids [tokens] at the batch's places; writes the cache."""
        stream = F.embedding(ids, self._embedding)
        like = stream.new_empty(len(ids), self._key_heads, self._head_dim)  # of slabs that are not there yet
        cos, sin = self._angles(cache.capacity)
        index = batch.write_index(ids.device)
        added: Tensor | None = None
        for number, layer in enumerate(self._layers):
            stream, normed = add_norm(stream, added, *layer.input_norm)
            states = layer.query_key_value(normed).unflatten(2, (-1, self._head_dim))
            slabs = cache.layers[number]
            query = rotate_and_write(
                states, cos, sin, layer.head_norms, batch.positions, index, *slabs.rows(like, like)
            )
            if number == len(self._layers) - 1:  # a rotation keeps what is not finite
                keys = states[:, :, -2 * self._key_heads : -self._key_heads].sum(0)
                cache.mark(keys.to(stream.dtype), index)
            attended = batch.attend(query.transpose(0, 1), slabs.keys, slabs.values, layer.scaling, layer.window)
            stream, normed = add_norm(stream, layer.output(attended.flatten(1)), *layer.inner_norm)
            (opened,) = layer.gate_up(normed)
            added = layer.down(opened)
        logits = self._head(add_norm(stream, added, *self._norm)[1])
        return logits[0] if len(logits) == 1 else logits.sum(0).to(stream.dtype)

    def products(self, tokens: int) -> Callable[[], Tensor]:
        """What runs the matrix products of a forward over so many tokens, and nothing between them: for measurements."""
        layers = ((layer.query_key_value, layer.output, layer.gate_up, layer.down) for layer in self._layers)
        matrices = [*itertools.chain.from_iterable(layers), self._head]
        inputs = [matrix.weight.new_ones(tokens, matrix.weight.shape[1]) for matrix in matrices]

        def multiply() -> Tensor:
            return [matrix(rows) for matrix, rows in zip(matrices, inputs, strict=True)][-1]

        return multiply

    def _angles(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin [at least length, D] by position; made by the first run, which a recording begins with."""
        if self._table.shape[1] < length:
            positions = torch.arange(length, device=self._table.device)[None]
            self._table = torch.cat(self._rotary(self._table, positions))
        cos, sin = self._table.unbind()
        return cos, sin


def _layer(module: Any) -> _Layer:
    attention = module.self_attn
    query_key_value, output, gate_up, down = (_joined(group) for group in projections(module))
    gate_up = replace(gate_up, gated=True)
    norms = (*_norm(attention.q_norm), *_norm(attention.k_norm)) if hasattr(attention, "q_norm") else None
    return _Layer(
        input_norm=_norm(module.input_layernorm),
        query_key_value=query_key_value,
        head_norms=norms,
        output=output,
        inner_norm=_norm(module.post_attention_layernorm),
        gate_up=gate_up,
        down=down,
        scaling=attention.scaling,
        window=window_of(attention),
    )


def _norm(module: Any) -> tuple[Tensor, float]:
    return module.weight, module.variance_epsilon


def _joined(sources: Sequence[nn.Linear]) -> _Matrix:
    """One matrix of the layers' outputs side by side; each layer's own weight becomes a view of its part."""
    if len(sources) == 1:
        return _Matrix(sources[0].weight, sources[0].bias)
    weight = _already_joined(sources)
    if weight is None:
        weight = torch.cat([linear.weight.detach() for linear in sources])
        for linear, part in zip(sources, weight.split([linear.out_features for linear in sources]), strict=True):
            linear.weight.data = part
    return _Matrix(weight, joined_bias(sources))


def _already_joined(sources: Sequence[nn.Linear]) -> Tensor | None:
    """The matrix that these weights are parts of, in this order: another runner of the same model has joined them."""
    weights = [linear.weight.detach() for linear in sources]
    begin, rows = weights[0].data_ptr(), 0
    for weight in weights:
        one_storage = weight.untyped_storage().data_ptr() == weights[0].untyped_storage().data_ptr()
        if not (one_storage and weight.is_contiguous() and weight.data_ptr() == begin + rows * weight[0].nbytes):
            return None
        rows += len(weight)
    return weights[0].as_strided((rows, weights[0].shape[1]), weights[0].stride())
