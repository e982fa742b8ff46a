"""Choosing the shape of a widened model from a number of parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from specrouter_llm.config import WideShape
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.pool.widen import head_dim_of, shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILY_RATIO = (1.0, 0.157, 0.0097)
"""Parameters of Llama-2 7B : TinyLlama 1.1B : Llama-68m, the family of the SpecRouter paper, relative to the largest."""
TOLERANCE = 0.10
"""`shape_for` meets the number of parameters within this."""
_WIDTH_PER_LAYER = 96.0
"""Real families have about this width per layer: TinyLlama 2048 / 22 = 93, Llama-2 7B 4096 / 32 = 128, 13B 5120 / 40."""
_UNITS_PER_WIDTH = 8 / 3
"""MLP units per width in Llama."""
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def parse_parameters(value: int | str) -> int:
    """A number of parameters: an int, or text such as "150M" or "1.1B". Raises InvalidParameterError."""
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMBkmb]?)\s*", str(value)) if not isinstance(value, bool) else None
    if match is None or float(match[1]) <= 0:
        raise InvalidParameterError(f"a number of parameters must be an int or text such as '150M', got {value!r}")
    return round(float(match[1]) * _FACTORS[match[2].upper()])


def format_parameters(count: int) -> str:
    """`count` parameters for people: "5.9 M", "154 M", "1.1 B"."""
    for factor, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= factor:
            return f"{count / factor:.0f} {unit}" if count >= 100 * factor else f"{count / factor:.1f} {unit}"
    return str(count)


def parameters_of(config: PreTrainedConfig, shape: WideShape) -> int:
    """Number of parameters that a Llama `config` (its vocabulary, head size, biases, tying) has in `shape`."""
    width, size = shape.hidden_size, head_dim_of(config)
    queries, keys = shape.num_heads * size, shape.num_kv_heads * size
    layer = width * (2 * queries + 2 * keys + 3 * shape.intermediate_size + 2)
    if getattr(config, "attention_bias", False):
        layer += queries + 2 * keys + width
    if getattr(config, "mlp_bias", False):
        layer += 2 * shape.intermediate_size + width
    embeddings = config.vocab_size * width * (1 if config.tie_word_embeddings else 2)
    return int(embeddings + shape.num_layers * layer + width)


def shape_for(config: PreTrainedConfig, num_parameters: int | str) -> WideShape:
    """The shape of a model of about `num_parameters`, within 10 %, with the proportions of real families.

    Widths are multiples of the head size, grouping of heads is the model's. Raises InvalidParameterError if the model is
    larger already or no shape comes close, UnsupportedModelError for anything but Llama.
    """
    wanted = parse_parameters(num_parameters)
    own = shape_of(config)
    own_count = parameters_of(config, own)
    if own_count > wanted * (1 + TOLERANCE):
        raise InvalidParameterError(
            f"widen: the model has {own_count} parameters, more than the {wanted} asked for; it can only grow"
        )
    best = min(_candidates(config, own, wanted), key=lambda shape: _strangeness(config, shape, wanted), default=None)
    if best is None:
        raise InvalidParameterError(f"widen: no larger shape of this model has about {wanted} parameters")
    return best


def _candidates(config: PreTrainedConfig, own: WideShape, wanted: int) -> Iterator[WideShape]:
    """Shapes within the tolerance; the MLP's size is what fills up the count for each width and depth."""
    if abs(parameters_of(config, own) - wanted) <= TOLERANCE * wanted:
        yield own
    group = own.num_heads // own.num_kv_heads
    step = head_dim_of(config) * group
    width = -(-max(own.hidden_size, own.num_heads * head_dim_of(config)) // step) * step
    while config.vocab_size * width < wanted and width * width < wanted:
        heads = width // head_dim_of(config)
        for layers in range(own.num_layers, max(own.num_layers, width // 16) + 1):
            bare = WideShape(width, layers, 0, heads, heads // group)
            per_unit = parameters_of(config, WideShape(width, layers, 1, heads, heads // group)) - parameters_of(config, bare)
            units = round((wanted - parameters_of(config, bare)) / per_unit / 32) * 32
            shape = WideShape(width, layers, max(units, own.intermediate_size), heads, heads // group)
            if units > 0 and abs(parameters_of(config, shape) - wanted) <= TOLERANCE * wanted:
                yield shape
        width += step


def _strangeness(config: PreTrainedConfig, shape: WideShape, wanted: int) -> float:
    """How far `shape` is from the proportions of real families; a miss of the count weighs as well."""
    aspect = math.log(shape.hidden_size / shape.num_layers / _WIDTH_PER_LAYER)
    units = math.log(shape.intermediate_size / shape.hidden_size / _UNITS_PER_WIDTH)
    miss = abs(parameters_of(config, shape) - wanted) / wanted
    return abs(aspect) + 2 * abs(units) + 2 * miss


def family_shapes(configs: Sequence[PreTrainedConfig], target_parameters: int | str) -> tuple[WideShape | None, ...]:
    """Shapes that give a family (target, middle, draft; largest first) the proportions of `FAMILY_RATIO`.

    With two members they are the target and the draft. None stands for a member that is as large as its share already
    and stays as it is. Raises as `shape_for`.
    """
    if not 1 <= len(configs) <= len(FAMILY_RATIO):
        raise InvalidParameterError(f"a family has 1 to {len(FAMILY_RATIO)} members, got {len(configs)}")
    ratios = FAMILY_RATIO if len(configs) != 2 else (FAMILY_RATIO[0], FAMILY_RATIO[-1])
    wanted = parse_parameters(target_parameters)
    shapes: list[WideShape | None] = []
    for config, ratio in zip(configs, ratios, strict=False):
        share = round(wanted * ratio)
        own = shape_of(config)
        shape = None if share <= parameters_of(config, own) else shape_for(config, share)
        shapes.append(None if shape == own else shape)
    return tuple(shapes)
