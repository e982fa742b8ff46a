"""A check at load: a model must give the same logits through our cache and attention as on its own.

Architectures keep inventing things that a packed ragged forward does not know (sinks, biases by position, state between
layers). What is known is refused by name; this catches the rest on two short inputs, before any request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from specrouter_llm.errors import UnsupportedModelError
from specrouter_llm.runtime.batch import Span

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Largest difference relative to the largest logit. Even float64 models normalise in float32.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.1
LENGTHS = (7, 4)
_AT_ONCE = 2**24
"""Numbers of a weight that become another dtype at a time."""


def probe_inputs(vocab_size: int, lengths: Sequence[int] = LENGTHS) -> list[list[int]]:
    """Two inputs, short by default, that spread over the vocabulary."""
    step = max(1, vocab_size // 13)
    return [[(3 + 5 * row + i * step) % vocab_size for i in range(length)] for row, length in enumerate(lengths)]


def native_logits(
    model: PreTrainedModel, inputs: Sequence[Sequence[int]], dtype: torch.dtype | None = None
) -> list[Tensor]:
    """Logits [n, V] of each input by the model as transformers runs it, in another dtype than its weights' if one is given."""
    device = model.get_input_embeddings().weight.device
    other = dtype is not None and dtype != model.dtype
    with torch.inference_mode(), _ComputeIn(dtype) if other else nullcontext():
        return [model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0] for ids in inputs]


class _ComputeIn(TorchFunctionMode):  # type: ignore[misc]  # torch is untyped here
    """Weights of linear layers and embeddings become another dtype where they are used, some rows at a time: there may be no
    memory for all of them twice. What is multiplied by other parameters is promoted by torch."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        options = kwargs or {}
        if function is F.linear:
            return self._linear(*args, **options)
        result = function(*args, **options)
        return result.to(self._dtype) if function is F.embedding else result

    def _linear(self, rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        parts = [F.linear(rows, some.to(self._dtype)) for some in weight.split(max(1, _AT_ONCE // weight.shape[1]))]
        product = torch.cat(parts, dim=-1)
        return product if bias is None else product + bias


def check_parity(
    name: str,
    forward: Callable[[Sequence[Span]], Tensor],
    inputs: Sequence[Sequence[int]],
    expected: Sequence[Tensor],
    dtype: torch.dtype,
) -> None:
    """Runs the inputs packed and in pieces through slots 0 and 1, and compares.

    Raises:
        UnsupportedModelError: the logits differ by more than rounding.
    """
    long, short = inputs
    cut = len(long) // 2
    first = forward([Span(0, 0, long[:cut], cut), Span(1, 0, short, len(short))])
    second = forward([Span(0, cut, long[cut:], len(long) - cut)])
    ours = torch.cat([first[:cut], second, first[cut:]])
    theirs = torch.cat(list(expected)).to(ours.device, ours.dtype)
    difference = float((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-6))
    if not difference <= _TOLERANCE.get(dtype, _HALF_TOLERANCE):
        raise UnsupportedModelError(
            f"{name}: through the slot cache its logits differ from those of transformers by {difference:.2g} of the "
            "largest; something in this architecture depends on more than tokens and positions, so it cannot be used"
        )
