"""The compiled runner: a Llama-like model on a CPU, its forward in float32 one function that numba has compiled.

The same arithmetic as the Hugging Face modules, but for the order of sums. What it saves over torch's operators: a weight
is read once, at the speed of memory, for up to ROWS tokens, and nothing stands between two products but a barrier. The
check at load compares it with the model's own forward.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from specrouter_llm.runtime.attention import STORAGE_STEP
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.buckets import launches
from specrouter_llm.runtime.cache import SlotCache
from specrouter_llm.runtime.draft_loop import Keys
from specrouter_llm.runtime.kernels import run_forward, run_loop
from specrouter_llm.runtime.llama_like import projections, window_of
from specrouter_llm.runtime.openmp import run_in_team
from specrouter_llm.runtime.packing import drop_weights
from specrouter_llm.runtime.panels import HELD, Panels, lossless_format, panel_bytes
from specrouter_llm.runtime.parity import check_parity, native_logits, probe_inputs
from specrouter_llm.runtime.probe import is_stable_in
from specrouter_llm.runtime.records import LAYER, STEP
from specrouter_llm.runtime.tile import PANEL, ROWS
from specrouter_llm.sampling.row import Warp
from specrouter_llm.types import Guarantee

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PROBE_LENGTH = 80
"""Positions that the probe feeds: more than a panel of keys holds."""
_ROOM = 256
"""Tokens that the compiled code takes in at once: as many as there is memory for between its stages. More at once are
not faster."""


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
    """Runs a model of `select.make_runner`; see `Runner` for the contract."""

    def __init__(
        self, name: str, model: PreTrainedModel, *, num_slots: int, context_length: int, keep: bool = True
    ) -> None:
        """`keep=False` frees the plain weights while packing: the model itself cannot be called any more then.

        Whatever the model's dtype (see `panels.HELD`), its weights are numbers of float32, and so is all arithmetic.

        Raises:
            UnsupportedModelError: the logits differ from the model's own.
        """
        config = model.config.get_text_config()
        self.name = name
        self.context_length = context_length
        self.vocab_size: int = model.get_output_embeddings().out_features
        self.dtype = "float32"
        self.token_sizes: Sequence[int] = ()
        self.token_step = ROWS
        self._heads: int = config.num_attention_heads
        self._key_heads: int = config.num_key_value_heads
        self._head_dim: int = model.model.layers[0].self_attn.head_dim
        inputs = probe_inputs(self.vocab_size)
        expected = native_logits(model, inputs, torch.float32)
        self._embedding: Tensor = model.get_input_embeddings().weight.detach().contiguous()
        self._rotary: nn.Module = model.model.rotary_emb
        self._norm = _floats(model.model.norm)
        stored = lossless_format(_weights(model)) if model.dtype == torch.float32 else HELD[model.dtype]
        self._layers = [_layer(layer, stored, keep) for layer in model.model.layers]
        self._head = _pack([model.get_output_embeddings()], stored, keep)
        self._table = np.array([_record(layer) for layer in self._layers], LAYER)
        self._step = np.zeros(1, STEP)
        self._step_address: int = self._step.ctypes.data
        self._room_shape = (0, 0)
        self._describe(config, model.model.norm.variance_epsilon)
        self._cos, self._sin = self._rotary_table(STORAGE_STEP)
        self._cache = SlotCache(len(self._layers), len(inputs), STORAGE_STEP)
        self._placed = 0
        check_parity(name, self.forward, inputs, expected, torch.float32)
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
        step["stored"] = self._head.stored
        step["layers"] = self._table.ctypes.data
        step["embedding"], step["embedded"] = self._embedding.data_ptr(), HELD[self._embedding.dtype]
        step["head"], step["head_panels"] = self._head.weight_address, self._head.number
        step["norm"], step["eps"], step["vocab"] = self._norm.data_ptr(), eps, self.vocab_size

    def forward(self, spans: Sequence[Span]) -> Tensor:
        self._prepare(spans)
        logits = self._new_logits(sum(span.num_logits for span in spans))
        address = logits.data_ptr()
        for block in launches(spans, _ROOM):
            self._run(run_forward.address, block, address)
            address += sum(span.num_logits for span in block) * logits.stride(0) * logits.itemsize
        return logits[:, : self.vocab_size]

    def loops(self, warp: Warp) -> bool:
        """Greedily: noise is drawn in Python."""
        return warp.temperature == 0.0

    def loop(self, spans: Sequence[Span], count: int, warp: Warp, keys: Sequence[Keys]) -> Tensor | None:
        """See `LoopingRunner`."""
        if not self.loops(warp) or sum(len(span.token_ids) for span in spans) > _ROOM:
            return None
        self._prepare([replace(span, token_ids=[*span.token_ids, *[0] * (count - 1)]) for span in spans])
        logits = self._new_logits(len(spans))
        chosen = torch.empty(len(spans), count, dtype=torch.int64, device="cpu")
        self._step[0]["count"], self._step[0]["chosen"] = count, chosen.data_ptr()
        self._run(run_loop.address, spans, logits.data_ptr())
        return chosen

    def _prepare(self, spans: Sequence[Span]) -> None:
        """The cache has room for all positions, and the compiled code knows where it lies."""
        placed, self._placed = self._placed, 0  # should the cache fail to grow, some of its addresses are of no use
        self._cache.expect(spans)
        if placed != self._cache.capacity:
            self._place()
        self._placed = self._cache.capacity
        self._make_room()

    def _new_logits(self, count: int) -> Tensor:
        return torch.empty(count, self._head.number * PANEL, dtype=torch.float32, device="cpu")

    def _run(self, function: int, spans: Sequence[Span], logits: int) -> None:
        """Calls compiled code, whose logits go to an address."""
        pieces: list[int] = []
        ids: list[int] = []
        positions: list[int] = []
        wanted: list[int] = []
        for span in spans:
            pieces += span.slot, len(ids), span.start, len(span.token_ids)
            ids += span.token_ids
            positions += range(span.start, span.end)
            wanted += range(len(ids) - span.num_logits, len(ids))
        step, lists = self._step[0], (pieces, ids, positions, wanted)
        given = np.array([*pieces, *ids, *positions, *wanted], np.int64)
        address = given.ctypes.data
        for name, values in zip(("pieces", "ids", "positions", "wanted"), lists, strict=True):
            step[name] = address
            address += 8 * len(values)
        step["tokens"], step["num_wanted"], step["num_pieces"] = len(ids), len(wanted), len(spans)
        step["logits"] = logits
        run_in_team(function, self._step_address)

    def _make_room(self) -> None:
        """Memory for what _ROOM tokens hand from stage to stage, and for the attention of every thread."""
        shape = self._cache.capacity, torch.get_num_threads()
        if shape == self._room_shape:
            return
        step, threads = self._step[0], shape[1]
        queries, keys = self._heads * self._head_dim, self._key_heads * self._head_dim
        widths = {"stream": step["hidden"], "normed": step["hidden"], "qkv": queries + 2 * keys}
        widths |= {"opened": step["inner"], "attended": queries}
        sizes = {name: _ROOM * _width(width) for name, width in widths.items()}
        scratch = self._scratch_size()
        self._room = torch.empty(sum(sizes.values()) + threads * scratch, dtype=torch.float32, device="cpu")
        address = self._room.data_ptr()
        for name, size in sizes.items():
            step[name] = address
            address += 4 * size
        step["scratch"], step["scratch_size"] = address, scratch
        self._room_shape = shape

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
        like = torch.empty(0, self._key_heads, self._head_dim, dtype=torch.float32, device="cpu")
        for record, slabs in zip(self._table, cache.layers, strict=True):
            keys, values = slabs.rows(like, like)
            record["keys"], record["values"] = keys.data_ptr(), values.data_ptr()
        step = self._step[0]
        step["cos"], step["sin"] = self._cos.data_ptr(), self._sin.data_ptr()
        step["capacity"], step["broken"] = cache.capacity, cache.broken_slab(like.device).data_ptr()

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

    @property
    def weight_bytes(self) -> int:
        """Bytes of these, all of which a forward reads."""
        return sum(matrix.nbytes for matrix in self.matrices)

    def clear(self, slot: int) -> None:
        with torch.inference_mode():
            self._cache.clear(slot)

    @property
    def cache_bytes(self) -> int:
        """Bytes of the slabs as they stand."""
        return self._cache.nbytes

    def close(self) -> None:
        """Drops the cache and the packed weights."""
        del self._cache, self._layers, self._head, self._table, self._step, self._room
        del self._embedding, self._norm, self._rotary, self._cos, self._sin


def compiled_bytes(model: PreTrainedModel) -> int:
    """Bytes of the matrices that a runner of this model holds, at most; the model may be on `meta`."""
    return sum(map(panel_bytes, _all_groups(model)))


def _all_groups(model: PreTrainedModel) -> list[list[nn.Linear]]:
    groups = [group for layer in model.model.layers for group in _groups(layer)]
    return [*groups, [model.get_output_embeddings()]]


def _weights(model: PreTrainedModel) -> Iterator[Tensor]:
    """All matrices of a forward, the head first: it is what most often has a format of its own."""
    return (linear.weight for group in reversed(_all_groups(model)) for linear in group)


def _groups(module: Any) -> tuple[list[nn.Linear], ...]:
    """The linear layers of each matrix of `_Layer`."""
    query_key_value, output, (gate, up), down = projections(module)
    return query_key_value, output, [gate], [up], down


def _width(outputs: int) -> int:
    return -(-int(outputs) // PANEL) * PANEL


def _layer(module: Any, stored: int, keep: bool) -> _Layer:
    attention = module.self_attn
    norms = [module.input_layernorm, module.post_attention_layernorm]
    norms += [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return _Layer(
        norms=tuple(None if norm is None else _floats(norm) for norm in norms),
        matrices=tuple(_pack(group, stored, keep) for group in _groups(module)),
        sizes=(
            window_of(attention) or 0,
            *(0.0 if norm is None else norm.variance_epsilon for norm in norms),
            attention.scaling,
        ),
    )


def _floats(norm: nn.Module) -> Tensor:
    return norm.weight.detach().float().contiguous()


def _record(layer: _Layer) -> tuple[float, ...]:
    """A row of the table of layers; the cache's addresses come later."""
    norms = (0 if norm is None else norm.data_ptr() for norm in layer.norms)
    matrices = (address for matrix in layer.matrices for address in (matrix.weight_address, matrix.bias_address))
    window, *numbers = layer.sizes
    return (*norms, *matrices, 0, 0, window, *numbers, 0.0)


def _pack(sources: Sequence[nn.Linear], stored: int, keep: bool) -> Panels:
    packed = Panels(sources, stored)
    if not keep:
        drop_weights(sources)
    return packed
