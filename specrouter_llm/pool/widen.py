"""Function-preserving widening of Llama models: the same logits from a larger shape.

A widened model is a small model in the clothes of a large one. A step costs what a model of that size costs, so that
timings, memory and scheduling can be studied where no trained large model is available; its answers, and how often it
agrees with other models, are the small model's. **A widened model is labelled "widened" wherever it is named**
(`PoolMember.label`), and no result obtained with one may be reported without that word.

How it works, for a width that grows from d to D = k d:

- Numbers d..D of the residual stream stay exactly zero: the embedding's new columns and the new output rows of every
  attention and MLP block are zero. What reads the stream may then hold anything in its new input columns; they are
  filled with noise, so that no kernel can profit from zeros.
- RMSNorm divides by the mean square over D instead of d numbers, which is k times smaller: its weights are multiplied
  by k^-1/2 and its epsilon divided by k.
- New heads and MLP units write through zero columns; new layers write through zero matrices.

In exact arithmetic the logits are equal. In practice they agree to about 1e-7 of their size, in float64 too, because
transformers computes RMSNorm in float32 (to 1e-14 with norms in float64). In 16 bit the scaled norm weights are rounded
anew as well, unless k is a power of 4.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch

from specrouter_llm.config import WideShape
from specrouter_llm.errors import InvalidParameterError, UnsupportedModelError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_SEED = 20_240_229
_FILL = 0.02
"""Standard deviation of the noise in weights that meet zeros."""


def shape_of(config: PreTrainedConfig) -> WideShape:
    """The dimensions that a Llama `config` has now. Raises UnsupportedModelError for other architectures."""
    if config.model_type != "llama":
        raise UnsupportedModelError(f"only Llama models can be widened, not {config.model_type!r}")
    return WideShape(
        hidden_size=config.hidden_size,
        num_layers=config.num_hidden_layers,
        intermediate_size=config.intermediate_size,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads,
    )


def head_dim_of(config: PreTrainedConfig) -> int:
    """Size of one attention head; widening keeps it."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def widened_config(config: PreTrainedConfig, shape: WideShape) -> PreTrainedConfig:
    """A copy of `config` in the larger `shape`. Raises InvalidParameterError if a dimension would shrink."""
    own = shape_of(config)
    for dimension in WideShape.__dataclass_fields__:
        if getattr(shape, dimension) < getattr(own, dimension):
            raise InvalidParameterError(
                f"widen: {dimension}={getattr(shape, dimension)} is smaller than the model's {getattr(own, dimension)}"
            )
    if (
        shape.num_heads % shape.num_kv_heads
        or shape.num_heads // shape.num_kv_heads < own.num_heads // own.num_kv_heads
    ):
        raise InvalidParameterError(
            f"widen: {shape.num_heads} heads on {shape.num_kv_heads} key-value heads do not hold the model's groups of "
            f"{own.num_heads // own.num_kv_heads}"
        )
    wide = copy.deepcopy(config)
    wide.head_dim = head_dim_of(config)  # before the width: it may have been derived from it
    wide.hidden_size = shape.hidden_size
    wide.num_hidden_layers = shape.num_layers
    wide.intermediate_size = shape.intermediate_size
    wide.num_attention_heads = shape.num_heads
    wide.num_key_value_heads = shape.num_kv_heads
    wide.rms_norm_eps = config.rms_norm_eps * config.hidden_size / shape.hidden_size
    return wide


def widen(model: PreTrainedModel, shape: WideShape) -> PreTrainedModel:
    """A new model in `shape` that computes the same function as `model`, on its device and in its dtype.

    `model` stays as it is. The filling is the same in every call (its own generator; one per kind of device).
    Raises UnsupportedModelError for anything but `LlamaForCausalLM`, InvalidParameterError for a smaller shape.
    """
    if type(model).__name__ != "LlamaForCausalLM":
        raise UnsupportedModelError(f"only LlamaForCausalLM can be widened, not {type(model).__name__}")
    config = widened_config(model.config, shape)
    with torch.device("meta"):
        wide: PreTrainedModel = type(model)._from_config(config, dtype=model.dtype)
    wide = wide.to_empty(device=model.device)
    wide.tie_weights()
    with torch.no_grad():
        _write_weights(wide, model)
    wide.generation_config = copy.deepcopy(model.generation_config)
    wide.eval()
    wide.requires_grad_(False)
    return wide


def _write_weights(wide: Any, source: Any) -> None:
    # The frequencies are buffers that no checkpoint holds and `to_empty` has lost; the head size is the same.
    wide.model.rotary_emb = copy.deepcopy(source.model.rotary_emb)
    generator = torch.Generator(device=source.device).manual_seed(_SEED)
    for parameter in wide.parameters():
        parameter.normal_(0.0, _FILL, generator=generator)
    _copy_ends(wide, source)
    for index, layer in enumerate(wide.model.layers):
        _silence(layer)
        if index < len(source.model.layers):
            old = source.model.layers[index]
            _copy_attention(layer.self_attn, old.self_attn, source.config, wide.config)
            _copy_mlp(layer.mlp, old.mlp)
            _copy_norm(layer.input_layernorm, old.input_layernorm)
            _copy_norm(layer.post_attention_layernorm, old.post_attention_layernorm)


def _copy_ends(wide: Any, source: Any) -> None:
    """Embedding, final norm and output head."""
    width = source.config.hidden_size
    embedding = wide.model.embed_tokens.weight
    embedding.zero_()
    embedding[:, :width] = source.model.embed_tokens.weight
    if not source.config.tie_word_embeddings:
        wide.lm_head.weight[:, :width] = source.lm_head.weight
    _copy_norm(wide.model.norm, source.model.norm)


def _silence(layer: Any) -> None:
    """Make `layer` add exactly nothing to the residual stream."""
    for linear in (layer.self_attn.o_proj, layer.mlp.down_proj):
        linear.weight.zero_()
        if linear.bias is not None:
            linear.bias.zero_()
    for norm in (layer.input_layernorm, layer.post_attention_layernorm):
        norm.weight.fill_(1.0)


def _copy_norm(wide: Any, source: Any) -> None:
    width, new_width = source.weight.shape[0], wide.weight.shape[0]
    wide.weight.fill_(1.0)
    wide.weight[:width] = source.weight * (width / new_width) ** 0.5


def _copy_attention(wide: Any, source: Any, config: Any, new_config: Any) -> None:
    """Old query head r of group j becomes head r of the wider group j: new index j * new_group + r."""
    size = head_dim_of(config)
    kv_heads = config.num_key_value_heads
    group = config.num_attention_heads // kv_heads
    new_group = new_config.num_attention_heads // new_config.num_key_value_heads
    for name in ("k_proj", "v_proj"):
        _copy_block(getattr(wide, name), getattr(source, name), 0, 0, kv_heads * size)
    width = source.o_proj.weight.shape[0]
    for j in range(kv_heads):
        for r in range(group):
            new, old = (j * new_group + r) * size, (j * group + r) * size
            _copy_block(wide.q_proj, source.q_proj, new, old, size)
            wide.o_proj.weight[:width, new : new + size] = source.o_proj.weight[:, old : old + size]
    if source.o_proj.bias is not None:
        wide.o_proj.bias[:width] = source.o_proj.bias


def _copy_mlp(wide: Any, source: Any) -> None:
    width, units = source.down_proj.weight.shape
    _copy_block(wide.gate_proj, source.gate_proj, 0, 0, units)
    _copy_block(wide.up_proj, source.up_proj, 0, 0, units)
    wide.down_proj.weight[:width, :units] = source.down_proj.weight
    if source.down_proj.bias is not None:
        wide.down_proj.bias[:width] = source.down_proj.bias


def _copy_block(wide: Any, source: Any, new: int, old: int, rows: int) -> None:
    """Copy `rows` output rows of a linear layer, from row `old` to row `new`; new input columns keep their filling."""
    width = source.weight.shape[1]
    wide.weight[new : new + rows, :width] = source.weight[old : old + rows]
    if source.bias is not None:
        wide.bias[new : new + rows] = source.bias[old : old + rows]
