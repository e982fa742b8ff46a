"""Choosing the shape of a widened model from a number of parameters."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specrouter_llm.config import WideShape
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.pool.widen import head_dim_of, shape_of

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

FAMILY_RATIO = (1.0, 0.157, 0.0097)
"""Parameters of Llama-2 7B : TinyLlama 1.1B : Llama-68m, the family of the SpecRouter paper, relative to the largest."""
FAMILY_LAYERS = (32, 22, 2)
"""Their layers: what a step of a small model costs, beside reading its weights, grows with its depth."""
TOLERANCE = 0.10
"""`shape_for` meets the number of parameters within this."""
_WIDTH_PER_LAYER = 96.0
"""Real families have about this width per layer: TinyLlama 2048 / 22 = 93, Llama-2 7B 4096 / 32 = 128, 13B 5120 / 40."""
_UNITS_PER_WIDTH = 8 / 3
"""MLP units per width in Llama."""
_FACTORS = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9}


def parse_parameters(value: int | str) -> int:
    """A number of parameters: an int, or text such as "150M" or "1.1B". Raises InvalidParameterError."""
    match = (
        re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([KMBkmb]?)\s*", str(value)) if not isinstance(value, bool) else None
    )
    if match is None or float(match[1]) <= 0:
        raise InvalidParameterError(f"a number of parameters must be an int or text such as '150M', got {value!r}")
    return round(float(match[1]) * _FACTORS[match[2].upper()])


def format_parameters(count: int) -> str:
    """`count` parameters for people: "5.9 M", "154 M", "1.1 B"."""
    for factor, unit in ((10**9, "B"), (10**6, "M"), (10**3, "K")):
        if count >= factor:
            return f"{count / factor:.0f} {unit}" if count >= 100 * factor else f"{count / factor:.1f} {unit}"
    return str(count)


@dataclass(frozen=True, slots=True)
class _Counter:
    """Counts parameters of one config in any shape; reading a config object thousands of times would take seconds."""

    head_dim: int
    embeddings_per_width: int
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def of(cls, config: PreTrainedConfig) -> _Counter:
        return cls(
            head_dim=head_dim_of(config),
            embeddings_per_width=config.vocab_size * (1 if config.tie_word_embeddings else 2),
            attention_bias=bool(getattr(config, "attention_bias", False)),
            mlp_bias=bool(getattr(config, "mlp_bias", False)),
        )

    def count(self, shape: WideShape) -> int:
        width = shape.hidden_size
        queries, keys = shape.num_heads * self.head_dim, shape.num_kv_heads * self.head_dim
        layer = width * (2 * queries + 2 * keys + 3 * shape.intermediate_size + 2)
        if self.attention_bias:
            layer += queries + 2 * keys + width
        if self.mlp_bias:
            layer += 2 * shape.intermediate_size + width
        return self.embeddings_per_width * width + shape.num_layers * layer + width


def parameters_of(config: PreTrainedConfig, shape: WideShape) -> int:
    """Number of parameters that a Llama `config` (its vocabulary, head size, biases, tying) has in `shape`."""
    return _Counter.of(config).count(shape)


def shape_for(config: PreTrainedConfig, num_parameters: int | str, *, num_layers: int | None = None) -> WideShape:
    """The shape of a model of about `num_parameters`, within 10 %, with the proportions of real families.

    Widths are multiples of the head size, grouping of heads is the model's. Where a shape of `num_layers` layers comes
    near enough it is one of them. Raises InvalidParameterError if the model is larger already or no shape comes close,
    UnsupportedModelError for anything but Llama.
    """
    wanted = parse_parameters(num_parameters)
    counter, own = _Counter.of(config), shape_of(config)
    if counter.count(own) > wanted * (1 + TOLERANCE):
        raise InvalidParameterError(
            f"widen: the model has {counter.count(own)} parameters, more than the {wanted} asked for; it can only grow"
        )
    near = list(_candidates(counter, own, wanted, num_layers))
    if not near:
        raise InvalidParameterError(f"widen: no larger shape of this model has about {wanted} parameters")
    fitting = [shape for shape in near if shape.num_layers == num_layers]
    return min(fitting or near, key=lambda shape: _strangeness(counter, shape, wanted))


def _candidates(counter: _Counter, own: WideShape, wanted: int, num_layers: int | None) -> Iterator[WideShape]:
    """Shapes within the tolerance; the MLP's size is what fills up the count for each width and depth.

    Depths are those that suit the width, and `num_layers`.
    """
    if abs(counter.count(own) - wanted) <= TOLERANCE * wanted:
        yield own
    group = own.num_heads // own.num_kv_heads
    step = counter.head_dim * group
    width = -(-max(own.hidden_size, own.num_heads * counter.head_dim) // step) * step
    while counter.embeddings_per_width * width < wanted and width * width < wanted:
        heads = width // counter.head_dim
        suiting = set(range(max(own.num_layers, width // 192), max(own.num_layers + 2, width // 48) + 1))
        asked = {num_layers} if num_layers is not None and num_layers >= own.num_layers else set()
        for layers in sorted(suiting | asked):
            bare = counter.count(WideShape(width, layers, 0, heads, heads // group))
            per_unit = counter.count(WideShape(width, layers, 1, heads, heads // group)) - bare
            units = max(round((wanted - bare) / per_unit / 32) * 32, own.intermediate_size)
            shape = WideShape(width, layers, units, heads, heads // group)
            if abs(counter.count(shape) - wanted) <= TOLERANCE * wanted:
                yield shape
        width += step


def _strangeness(counter: _Counter, shape: WideShape, wanted: int) -> float:
    """How far `shape` is from the proportions of real families; a miss of the count weighs as well."""
    aspect = math.log(shape.hidden_size / shape.num_layers / _WIDTH_PER_LAYER)
    units = math.log(shape.intermediate_size / shape.hidden_size / _UNITS_PER_WIDTH)
    miss = abs(counter.count(shape) - wanted) / wanted
    return abs(aspect) + 2 * abs(units) + 2 * miss


def family_shapes(configs: Sequence[PreTrainedConfig], target_parameters: int | str) -> tuple[WideShape | None, ...]:
    """Shapes that give a family (target, middle, draft; largest first) the proportions of `FAMILY_RATIO`.

    Drafters get depths in the proportions of `FAMILY_LAYERS`, where that can be. With two members they are the target and
    the draft. None stands for a member that is as large as its share already and stays as it is. Raises as `shape_for`.
    """
    if not 1 <= len(configs) <= len(FAMILY_RATIO):
        raise InvalidParameterError(f"a family has 1 to {len(FAMILY_RATIO)} members, got {len(configs)}")
    places = range(len(FAMILY_RATIO)) if len(configs) != 2 else (0, -1)
    wanted = parse_parameters(target_parameters)
    shapes: list[WideShape | None] = []
    depth: int | None = None
    for config, place in zip(configs, places, strict=False):
        share = round(wanted * FAMILY_RATIO[place])
        own = shape_of(config)
        layers = None if depth is None else max(own.num_layers, round(depth * FAMILY_LAYERS[place] / FAMILY_LAYERS[0]))
        shape = own if share <= parameters_of(config, own) else shape_for(config, share, num_layers=layers)
        depth = depth or shape.num_layers
        shapes.append(None if shape == own else shape)
    return tuple(shapes)
