"""Linear layers whose weights oneDNN has re-ordered once, at load, for the matrix shapes of decoding.

`torch.nn.functional.linear` re-reads a plain weight for every group of a few rows, so that verifying eight tokens costs
a multiple of one; with packed weights it costs little more than one. The operators are private to torch (inductor emits
them), hence `packable` and the plain path beside them.
"""

from __future__ import annotations

import ctypes
import math
import sys
import time
from collections.abc import Callable, Collection, Sequence
from functools import cache

import torch
from torch import Tensor, nn

_KERNEL_BYTES = 620 * 2**10
"""What oneDNN and torch keep for good for one shape of matrix and number of rows, whatever the size of the matrix: measured
with torch 2.13, 0.55 to 0.61 MiB in most cases."""
ROWS = (1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 40, 48, 64, 96, 128)
"""The numbers of rows that are ever run; others are padded to the next: each costs memory for good (_KERNEL_BYTES). They lie
close together where a row more costs little time, and no further apart than a third where it does."""
BLOCK_ROWS = ROWS[-1]
"""More rows are run in blocks of this many, each of which reads the weight anew: little beside the arithmetic of so many."""
_PACK_BATCH = 8
"""The number of rows that the memory layout is chosen for."""


class PackedLinear(nn.Module):  # type: ignore[misc]  # torch is untyped here
    """One or several plain linear layers of the same input as one packed matrix; outputs lie side by side."""

    def __init__(self, sources: Sequence[nn.Linear]) -> None:
        super().__init__()
        weight = torch.cat([linear.weight.detach() for linear in sources]) if len(sources) > 1 else sources[0].weight
        self.in_features = sources[0].in_features
        self.sizes = [linear.out_features for linear in sources]
        self.out_features = sum(self.sizes)
        self._bias = joined_bias(sources)
        self._weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach().contiguous(), _PACK_BATCH)
        least = least_rows(self._weight, self._bias, self.in_features, self.out_features, torch.get_num_threads())
        self.stable = least is not None
        """Whether a row's bits were found to be the same in every number of rows, from the least on."""
        self._least_rows = least or 1
        self.pad_to(1)

    def pad_to(self, rows: int) -> None:
        """Runs fewer rows as so many, which may be faster and changes no bits."""
        self._padded = _padded_rows(max(self._least_rows, rows))

    def rows_for(self, count: int) -> int:
        """How many rows `count` of them are run as; more than a block are padded in their last block only."""
        return self._padded[count] if count <= BLOCK_ROWS else count

    @property
    def weight(self) -> Tensor:
        """The plain weight [out, in], made anew: for modelling code that asks for its dtype or device."""
        return self._weight.to_dense()

    def forward(self, rows: Tensor) -> Tensor:
        """[..., n, in] -> [..., n, out]."""
        count = rows.shape[-2]
        if count > BLOCK_ROWS:
            return torch.cat([self.forward(block) for block in rows.split(BLOCK_ROWS, dim=-2)], dim=-2)
        if missing := self.rows_for(count) - count:
            return self._run(nn.functional.pad(rows, (0, 0, 0, missing)))[..., :count, :]
        return self._run(rows)

    def _run(self, rows: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(rows, self._weight, self._bias, "none", [], "")


def joined_bias(sources: Sequence[nn.Linear]) -> Tensor | None:
    """The layers' biases side by side, zeros for those without; None if no layer has one."""
    if all(linear.bias is None for linear in sources):
        return None
    parts = [
        linear.bias.detach() if linear.bias is not None else linear.weight.new_zeros(linear.out_features)
        for linear in sources
    ]
    return torch.cat(parts)


@cache
def _padded_rows(least: int) -> tuple[int, ...]:
    """The number of rows that 0, 1, ... BLOCK_ROWS of them are run as, at least `least`."""
    return tuple(next(rows for rows in ROWS if rows >= max(count, least)) for count in range(BLOCK_ROWS + 1))


_least: dict[tuple[int, int, bool, int], int | None] = {}


def least_rows(weight: Tensor, bias: Tensor | None, in_features: int, out_features: int, threads: int) -> int | None:
    """The smallest number of rows from which on a row's bits no longer depend on the number; None if there is none.

    oneDNN picks a kernel by the shape; a single row may be run by one that adds in another order. Found by running a
    random input through the packed `weight` in all of ROWS; remembered per shape, with a bias or not, and number of threads.
    """
    key = (in_features, out_features, bias is not None, threads)
    if key not in _least:
        _least[key] = _find_least_rows(weight, bias, in_features)
    return _least[key]


def _find_least_rows(weight: Tensor, bias: Tensor | None, in_features: int) -> int | None:
    rows = torch.randn(BLOCK_ROWS, in_features, generator=torch.Generator().manual_seed(0))

    def run(some: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(some, weight, bias, "none", [], "")

    with torch.inference_mode():
        reference = run(rows)
        unequal = [count for count in ROWS if not torch.equal(run(rows[:count]), reference[:count])]
    if not unequal:
        return 1
    return next((count for count in (2, 4) if count > unequal[-1]), None)


def kernel_bytes(shapes: Collection[tuple[int, int]]) -> frozenset[tuple[int, int, int]]:
    """(in, out, bytes): what is kept for good for packed matrices of each of these shapes."""
    return frozenset((inner, outer, len(ROWS) * _KERNEL_BYTES) for inner, outer in shapes)


@cache
def has_packing() -> bool:
    """Whether this build of torch can pack linear weights, and gets the right result with them."""
    try:
        linear = nn.Linear(16, 24)
        with torch.inference_mode():
            rows = torch.randn(3, 16)
            return bool(torch.allclose(PackedLinear([linear])(rows), linear(rows), atol=1e-5))
    except (
        AttributeError,
        RuntimeError,
        NotImplementedError,
    ):  # torch raises each of them where the operator is missing
        return False


def packable(model: nn.Module, device: str = "cpu") -> bool:
    """Whether all linear layers of a model are plain float32 ones on the CPU, and nobody watches over its modules.

    `device="meta"` asks it about a model of shapes alone, that will be loaded on a CPU.
    """
    return is_plain(model, device) and has_packing()


def is_plain(model: nn.Module, device: str = "cpu", dtype: torch.dtype = torch.float32) -> bool:
    """`packable`, but for whether torch can; and of another dtype, if it says one."""
    linears = plain_linears(model)
    plain = all(
        type(linear) is nn.Linear and linear.weight.dtype == dtype and linear.weight.device.type == device
        for linear in linears
    )
    return bool(linears) and plain and not is_watched(model)


def is_watched(model: nn.Module) -> bool:
    """Whether somebody sees or changes what passes through a module, so that its own `forward` must be called."""
    return any(
        hasattr(module, "_hf_hook") or module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
        for module in model.modules()
    )


def plain_linears(model: nn.Module) -> list[nn.Linear]:
    """All linear layers of a model."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)]


PADDINGS = (1, 4)
"""Numbers of rows to choose from for `PackedLinear.pad_to`: oneDNN may stream a large weight faster for a few rows."""


def choose_padding(layers: Sequence[PackedLinear], step: Callable[[], object]) -> None:
    """Sets the padding with which a step of one token takes the least time, found by trying: the best of five each."""
    best = dict.fromkeys(PADDINGS, math.inf)
    for rows in PADDINGS * 5:
        for layer in layers:
            layer.pad_to(rows)
        started = time.perf_counter()
        step()
        best[rows] = min(best[rows], time.perf_counter() - started)
    for layer in layers:
        layer.pad_to(min(best, key=lambda rows: best[rows]))


def row_sizes(layers: Sequence[PackedLinear]) -> tuple[int, ...]:
    """The numbers of rows, up to a block, that inputs of all these layers are run as."""
    return tuple(sorted({max(layer.rows_for(count) for layer in layers) for count in range(1, BLOCK_ROWS + 1)}))


def own_the_rest(model: nn.Module) -> None:
    """Gives what will not be packed memory of its own: it may be part of a mapped file, all of which it would keep there."""
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if type(module) is not nn.Linear or name != "weight":
                parameter.data = parameter.data.clone()


def drop_weights(sources: Sequence[nn.Linear]) -> None:
    """Frees the plain weights of layers that have been packed; the layers cannot be called any more."""
    for linear in sources:
        linear.weight = nn.Parameter(linear.weight.new_empty(0), requires_grad=False)


def pack_linears(model: nn.Module) -> list[PackedLinear]:
    """Replaces every linear layer of a model by a packed one, for good, and returns these."""
    packed: list[PackedLinear] = []
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                packed.append(PackedLinear([child]))
                setattr(parent, name, packed[-1])
    return packed


def return_freed_memory() -> None:
    """Gives the system back what packing has freed: glibc keeps blocks below 32 MiB, up to a third of a model's size."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
