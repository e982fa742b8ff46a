"""Muon (K. Jordan et al., 2024) for many small matrices: those of one shape are orthogonalised in one batch.

`torch.optim.Muon` goes matrix by matrix, some forty kernels each, which for a small model on a GPU is most of what a step
launches. The update is the same up to rounding (a test holds them together).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the odd polynomial whose iteration brings singular values near 1."""
_ITERATIONS = 5


class BatchedMuon(torch.optim.Optimizer):
    """Momentum (Nesterov) whose direction is made orthogonal, with decoupled weight decay; for matrices alone."""

    def __init__(
        self, matrices: Iterable[Tensor], *, lr: float, weight_decay: float = 0.01, momentum: float = 0.95
    ) -> None:
        by_shape: dict[torch.Size, list[Tensor]] = {}
        for matrix in matrices:
            by_shape.setdefault(matrix.shape, []).append(matrix)
        groups = [{"params": alike} for alike in by_shape.values()]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # it calls none
        """One update from the gradients, which every matrix must have."""
        for group in self.param_groups:
            matrices: list[Any] = group["params"]
            gradients = torch.stack([matrix.grad for matrix in matrices])
            state = self.state[matrices[0]]
            if not state:
                state["momentum"] = torch.zeros_like(gradients)
            state["momentum"].lerp_(gradients, 1 - group["momentum"])
            updates = _orthogonal(gradients.lerp(state["momentum"], group["momentum"]))
            rows, columns = matrices[0].shape
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            torch._foreach_add_(matrices, list(updates.to(matrices[0].dtype).unbind()), alpha=-rate)


def _orthogonal(batch: Tensor) -> Tensor:
    """[n, rows, columns] with singular values near 1 in place of its own, in bfloat16 (Newton-Schulz, five iterations)."""
    tall = batch.shape[1] > batch.shape[2]
    states = (batch.mT if tall else batch).bfloat16()
    states = states / states.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = states @ states.mT
        states = a * states + (b * gram + c * (gram @ gram)) @ states
    return states.mT if tall else states
