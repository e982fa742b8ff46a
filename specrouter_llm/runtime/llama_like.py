"""What the written-out forwards know of Llama-like models: which they are, and where their parts lie."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL_TYPES = frozenset({"llama", "mistral", "qwen2", "qwen3"})
"""Model types whose layers are norm, attention with rotation, norm and gated feed-forward, with a stream past each."""
SILU = frozenset({"silu", "swish"})
"""The gate that kernels have built in."""


def projections(module: Any) -> tuple[list[nn.Linear], list[nn.Linear], list[nn.Linear], list[nn.Linear]]:
    """A decoder layer's linear layers, those of one input together."""
    attention, mlp = module.self_attn, module.mlp
    first = [attention.q_proj, attention.k_proj, attention.v_proj]
    return first, [attention.o_proj], [mlp.gate_proj, mlp.up_proj], [mlp.down_proj]


def linear_groups(model: PreTrainedModel) -> list[list[nn.Linear]]:
    """All linear layers of a model, the output head last; those of one input together."""
    groups = [group for layer in model.model.layers for group in projections(layer)]
    return [*groups, [model.get_output_embeddings()]]


def window_of(attention: Any) -> int | None:
    """The layer's own window; Mistral's layers all take the config's, which says nothing about others."""
    if hasattr(attention, "sliding_window"):
        return attention.sliding_window  # type: ignore[no-any-return]  # modules are untyped
    return getattr(attention.config, "sliding_window", None) if attention.config.model_type == "mistral" else None
