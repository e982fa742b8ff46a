"""Weights as the compiled forward reads them: panels of outputs, one after the other in memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from specrouter_llm.runtime.kernels import run_product
from specrouter_llm.runtime.openmp import run_in_team
from specrouter_llm.runtime.packing import joined_bias
from specrouter_llm.runtime.records import PRODUCT
from specrouter_llm.runtime.tile import PANEL


def panel_bytes(sources: Sequence[nn.Linear]) -> int:
    """Bytes of the matrix of these layers."""
    outputs = sum(linear.out_features for linear in sources)
    return int(4 * -(-outputs // PANEL) * PANEL * sources[0].in_features)


class Panels:
    """One or several plain float32 linear layers of the same input as one matrix [panels, in, PANEL]."""

    def __init__(self, sources: Sequence[nn.Linear]) -> None:
        self.in_features = sources[0].in_features
        self.out_features = sum(linear.out_features for linear in sources)
        self.number = -(-self.out_features // PANEL)
        # Compiled code reads float32, whatever torch's defaults are by now.
        shape = self.number, self.in_features, PANEL
        self._weight = torch.zeros(shape, dtype=torch.float32, device="cpu")
        done = 0
        for linear in sources:
            self._write(linear.weight.detach(), done)
            done += linear.out_features
        bias = joined_bias(sources)
        self._bias = None if bias is None else nn.functional.pad(bias, (0, self.number * PANEL - self.out_features))

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
        numbers = (rows.data_ptr(), len(rows), self.in_features, self.weight_address, self.number, out.data_ptr())
        product = np.array([numbers], PRODUCT)
        run_in_team(run_product.address, product.ctypes.data)
        return out[:, : self.out_features]
