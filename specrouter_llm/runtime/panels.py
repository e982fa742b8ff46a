"""Weights as the compiled forward reads them: panels of outputs, one after the other in memory.

Most checkpoints are stored in 16 bits, and every number of those is one of float32 too. What a checkpoint's weights are in
float32 is kept in 16 bits again where nothing is lost by it: a step reads half as many bytes, and has the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from specrouter_llm.runtime.kernels import run_product
from specrouter_llm.runtime.openmp import run_in_team
from specrouter_llm.runtime.packing import joined_bias
from specrouter_llm.runtime.records import BFLOAT16, FLOAT16, FLOAT32, PRODUCT
from specrouter_llm.runtime.tile import FORMATS, LANES, PANEL

_TYPES = {FLOAT32: torch.float32, BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}
HELD = {_TYPES[stored]: stored for stored in FORMATS}
"""The format in which compiled code reads weights of each dtype as they are."""
_ROWS_AT_ONCE = 1024
"""Of a matrix, when it is looked through."""


def panel_bytes(sources: Sequence[nn.Linear]) -> int:
    """Bytes of the matrix of these layers, at most: in their own dtype."""
    outputs = sum(linear.out_features for linear in sources)
    return int(sources[0].weight.itemsize * -(-outputs // PANEL) * PANEL * sources[0].in_features)


def lossless_format(weights: Iterable[Tensor]) -> int:
    """The shortest format (see `records`) that holds all numbers of these float32 matrices [out, in] as they are; a NaN fits
    none."""
    left = [stored for stored in FORMATS if stored != FLOAT32]
    for weight in weights:
        for rows in weight.detach().split(_ROWS_AT_ONCE):
            left = [stored for stored in left if torch.equal(rows, rows.to(_TYPES[stored]).float())]
            if not left:
                return FLOAT32
    return left[0]


class Panels:
    """One or several plain linear layers of the same input as one matrix [panels, in, PANEL]."""

    def __init__(self, sources: Sequence[nn.Linear], stored: int = FLOAT32) -> None:
        """`stored` in a format that loses nothing; see `lossless_format`."""
        self.in_features = sources[0].in_features
        self.out_features = sum(linear.out_features for linear in sources)
        self.number = -(-self.out_features // PANEL)
        self.stored = stored
        # Compiled code reads these types, whatever torch's defaults are by now.
        shape = self.number, self.in_features, PANEL
        self._weight = torch.zeros(shape, dtype=_TYPES[stored], device="cpu")
        done = 0
        for linear in sources:
            self._write(linear.weight.detach(), done)
            done += linear.out_features
        if stored == BFLOAT16:
            _interleave(self._weight)
        bias = joined_bias(sources)
        padding = 0, self.number * PANEL - self.out_features
        self._bias = None if bias is None else nn.functional.pad(bias.float(), padding)

    def _write(self, weight: Tensor, first: int) -> None:
        """Puts weight [n, in] at outputs first, first + 1, ...: up to the next panel, whole panels, the rest."""
        rows = self._weight.transpose(1, 2)
        end = first + len(weight)
        while first < end:
            panel, lane = divmod(first, PANEL)
            whole = (end - first) // PANEL if lane == 0 else 0
            number = whole * PANEL or min(PANEL - lane, end - first)
            part, weight = weight[:number], weight[number:]
            if whole:
                rows[panel : panel + whole] = part.unflatten(0, (whole, PANEL))
            else:
                rows[panel, lane : lane + number] = part
            first += number

    @property
    def nbytes(self) -> int:
        """Of the weights."""
        return int(self._weight.nbytes)

    @property
    def weight_address(self) -> int:
        return int(self._weight.data_ptr())

    @property
    def bias_address(self) -> int:
        """0 without one."""
        return 0 if self._bias is None else self._bias.data_ptr()

    def __call__(self, rows: Tensor) -> Tensor:
        """[n, in] -> [n, out], without the bias."""
        rows = rows.contiguous()
        out = torch.empty(len(rows), self.number * PANEL, dtype=torch.float32, device="cpu")
        given = (rows.data_ptr(), len(rows), self.in_features, self.weight_address, self.stored)
        product = np.array([(*given, self.number, out.data_ptr())], PRODUCT)
        run_in_team(run_product.address, product.ctypes.data)
        return out[:, : self.out_features]


def _interleave(panels: Tensor) -> None:
    """Puts the two vectors of each input into one of 32 bits a lane: number i of the first in the lower half of lane i, that of
    the second in the upper half. From there both become float32 by one instruction each."""
    for panel in panels:
        panel.copy_(panel.unflatten(1, (2, LANES)).transpose(1, 2).flatten(1).clone())
