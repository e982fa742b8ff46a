"""The compiled runner: a Llama-like model in float32 on a CPU, its forward one function that numba has compiled.

The same arithmetic as the Hugging Face modules, but for the order of sums. What it saves over torch's operators: a weight
is read once, at the speed of memory, for up to eight tokens, and nothing stands between two products but a barrier. The
check at load compares it with the model's own forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from specrouter_llm.runtime.attention import STORAGE_STEP
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.cache import SlotCache
from specrouter_llm.runtime.kernels import run_forward
from specrouter_llm.runtime.llama_like import projections, window_of
from specrouter_llm.runtime.openmp import run_in_team
from specrouter_llm.runtime.packing import drop_weights
from specrouter_llm.runtime.panels import Panels, panel_bytes
from specrouter_llm.runtime.parity import check_parity, native_logits, probe_inputs
from specrouter_llm.runtime.probe import is_stable_in
from specrouter_llm.runtime.records import LAYER, STEP
from specrouter_llm.runtime.tile import PANEL, ROWS
from specrouter_llm.types import Guarantee

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE_LENGTH = 80
"""Positions that the probe feeds: more than a panel of keys holds."""


@dataclass(frozen=True, slots=True)
class _Layer:
    """One decoder layer. Whatever has an address in the table of layers is kept alive here."""

    norms: tuple[Tensor | None, ...]
    """Input, inner, query and key norm."""
    matrices: tuple[Panels, ...]
    """Query, key and value; output; gate; up; down."""
    sizes: tuple[float, ...]
    """Window, the four norms' epsilons, scaling."""


class CompiledRunner:
    """Runs a model of `select.can_compile`; see `Runner` for the contract."""

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
        self.token_sizes: Sequence[int] = ()
        self._heads: int = config.num_attention_heads
        self._key_heads: int = config.num_key_value_heads
        self._head_dim: int = model.model.layers[0].self_attn.head_dim
        inputs = probe_inputs(self.vocab_size)
        expected = native_logits(model, inputs)
        self._embedding: Tensor = model.get_input_embeddings().weight.detach()
        self._rotary: nn.Module = model.model.rotary_emb
        self._norm: Tensor = model.model.norm.weight.detach()
        self._layers = [_layer(layer, keep) for layer in model.model.layers]
        self._head = _pack([model.get_output_embeddings()], keep)
        self._table = np.array([_record(layer) for layer in self._layers], LAYER)
        self._step = np.zeros(1, STEP)
        self._describe(config, model.model.norm.variance_epsilon)
        self._cos, self._sin = self._rotary_table(STORAGE_STEP)
        self._cache = SlotCache(len(self._layers), len(inputs), STORAGE_STEP)
        self._placed = 0
        check_parity(name, self.forward, inputs, expected, model.dtype)
        sizes = (2 * ROWS + 1, 4 * ROWS)
        stable = is_stable_in(self.forward, self.vocab_size, _PROBE_LENGTH, sizes)
        self.guarantee: Guarantee = "bitwise" if stable else "near-tie"
        self._cache = SlotCache(len(self._layers), num_slots, context_length)
        self._placed = 0

    def _describe(self, config: Any, eps: float) -> None:
        """What is the same in all forwards."""
        step = self._step[0]
        step["hidden"], step["inner"], step["num_layers"] = (
            config.hidden_size,
            config.intermediate_size,
            len(self._layers),
        )
        step["heads"], step["key_heads"], step["head_size"] = self._heads, self._key_heads, self._head_dim
        step["layers"], step["embedding"] = self._table.ctypes.data, self._embedding.data_ptr()
        step["head"], step["head_panels"] = self._head.weight_address, self._head.number
        step["norm"], step["eps"] = self._norm.data_ptr(), eps

    def forward(self, spans: Sequence[Span]) -> Tensor:
        self._cache.expect(spans)
        if self._placed != self._cache.capacity:
            self._place()
        pieces = np.empty((len(spans), 4), np.int64)
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for number, span in enumerate(spans):
            pieces[number] = span.slot, len(ids), span.start, len(span.token_ids)
            ids.extend(span.token_ids)
            positions.extend(range(span.start, span.end))
            wanted.extend(range(len(ids) - span.num_logits, len(ids)))
        fed = np.array([*ids, *positions, *wanted], np.int64)
        count, step = len(ids), self._step[0]
        step["tokens"], step["num_wanted"], step["num_pieces"] = count, len(wanted), len(spans)
        begin = fed.ctypes.data
        step["ids"], step["positions"], step["wanted"] = begin, begin + 8 * count, begin + 16 * count
        step["pieces"] = pieces.ctypes.data
        room = self._room(count)
        logits = torch.empty(len(wanted), self._head.number * PANEL)
        step["logits"] = logits.data_ptr()
        run_in_team(run_forward.address, self._step.ctypes.data)
        del room
        return logits[:, : self.vocab_size]

    def _room(self, count: int) -> Tensor:
        """Memory for what a forward of `count` tokens hands from stage to stage."""
        states = (self._heads + 2 * self._key_heads) * self._head_dim
        wide, inner = _width(self._step["hidden"][0]), _width(self._step["inner"][0])
        widths = {"stream": wide, "normed": wide, "qkv": _width(states), "opened": inner}
        widths["attended"] = _width(self._heads * self._head_dim)
        scratch, threads = self._scratch_size(), torch.get_num_threads()
        room = torch.empty(count * sum(widths.values()) + threads * scratch)
        address = room.data_ptr()
        for name, width in widths.items():
            self._step[name] = address
            address += 4 * count * width
        self._step["scratch"], self._step["scratch_size"] = address, scratch
        return room

    def _scratch_size(self) -> int:
        """Numbers that one thread needs for attention: queries, results and scores of one tile of rows."""
        group = self._heads // self._key_heads
        rows = group * max(1, ROWS // group)
        return rows * (2 * self._head_dim + self._cache.capacity)

    def _place(self) -> None:
        """Tells the compiled code where the cache lies, which moves when it grows."""
        cache = self._cache
        if cache.capacity > len(self._cos):
            self._cos, self._sin = self._rotary_table(cache.capacity)
        like = torch.empty(0, self._key_heads, self._head_dim)
        for record, slabs in zip(self._table, cache.layers, strict=True):
            keys, values = slabs.rows(like, like)
            record["keys"], record["values"] = keys.data_ptr(), values.data_ptr()
        step = self._step[0]
        step["cos"], step["sin"] = self._cos.data_ptr(), self._sin.data_ptr()
        step["capacity"], step["broken"] = cache.capacity, cache.broken_slab(like.device).data_ptr()
        self._placed = cache.capacity

    def _rotary_table(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin [length, D] by position; the sign of the rotated half is in sin."""
        with torch.inference_mode():
            cos, sin = self._rotary(torch.empty(1, dtype=torch.float32), torch.arange(length)[None])
            half = self._head_dim // 2
            signed = torch.cat([-sin[0, :, :half], sin[0, :, half:]], dim=-1)
            return cos[0].contiguous(), signed.contiguous()

    @property
    def matrices(self) -> list[Panels]:
        """All packed matrices in the order in which a forward multiplies by them."""
        return [*(matrix for layer in self._layers for matrix in layer.matrices), self._head]

    def clear(self, slot: int) -> None:
        with torch.inference_mode():
            self._cache.clear(slot)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the slabs as they stand."""
        return self._cache.nbytes

    def close(self) -> None:
        """Drops the cache and the packed weights."""
        del self._cache, self._layers, self._head, self._table, self._step, self._embedding, self._norm, self._rotary


def compiled_bytes(model: PreTrainedModel) -> int:
    """Bytes of the matrices that a runner of this model holds; the model may be on `meta`."""
    groups = [group for layer in model.model.layers for group in _groups(layer)]
    return sum(map(panel_bytes, [*groups, [model.get_output_embeddings()]]))


def _groups(module: Any) -> tuple[list[nn.Linear], ...]:
    """The linear layers of each matrix of `_Layer`."""
    query_key_value, output, (gate, up), down = projections(module)
    return query_key_value, output, [gate], [up], down


def _width(outputs: int) -> int:
    return -(-int(outputs) // PANEL) * PANEL


def _layer(module: Any, keep: bool) -> _Layer:
    attention = module.self_attn
    norms = [module.input_layernorm, module.post_attention_layernorm]
    norms += [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return _Layer(
        norms=tuple(None if norm is None else norm.weight.detach() for norm in norms),
        matrices=tuple(_pack(group, keep) for group in _groups(module)),
        sizes=(
            window_of(attention) or 0,
            *(0.0 if norm is None else norm.variance_epsilon for norm in norms),
            attention.scaling,
        ),
    )


def _record(layer: _Layer) -> tuple[float, ...]:
    """A row of the table of layers; the cache's addresses come later."""
    norms = (0 if norm is None else norm.data_ptr() for norm in layer.norms)
    matrices = (address for matrix in layer.matrices for address in (matrix.weight_address, matrix.bias_address))
    window, *numbers = layer.sizes
    return (*norms, *matrices, 0, 0, window, *numbers, 0.0)


def _pack(sources: Sequence[nn.Linear], keep: bool) -> Panels:
    packed = Panels(sources)
    if not keep:
        drop_weights(sources)
    return packed
