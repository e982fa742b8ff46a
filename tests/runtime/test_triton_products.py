"""Products of a few rows by kernels of our own: right, and with the same bits for any rows.

Without a CUDA device they can run in triton's interpreter, where triton is installed:

    TRITON_INTERPRET=1 pytest tests/runtime/test_triton_products.py
"""

from __future__ import annotations

import os

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1 from the start", allow_module_level=True)

from specrouter_llm.runtime.triton_products import Tiling, product, tiling_for

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float16, torch.float32, torch.float64] + [torch.bfloat16] * torch.cuda.is_available()
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-13}
SMALL = Tiling(columns=32, block=32, splits=1, stages=2, warps=4)


def numbers(*shape, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tiling", [None, SMALL, Tiling(32, 32, 3, 2, 4)], ids=["its own", "one part", "three parts"])
@pytest.mark.parametrize("tokens", [1, 3, 17, 130])
@pytest.mark.parametrize("biased", [False, True])
def test_it_is_the_product(dtype, tiling, tokens, biased):
    """Sizes that no block divides."""
    rows, weight = numbers(tokens, 400, dtype=dtype), 0.1 * numbers(88, 400, dtype=dtype, seed=1)
    bias = numbers(88, dtype=dtype, seed=2) if biased else None
    expected = F.linear(rows, weight, bias)
    parts = product(rows, weight, bias, tiling=tiling)
    assert len(parts) == (tiling.splits if tiling else tiling_for(88, 400, dtype, tokens=16, gated=False).splits)
    assert (parts.sum(0).to(dtype) - expected).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("biased", [False, True])
def test_a_gate_opens_the_second_half(dtype, biased):
    rows, weight = numbers(5, 112, dtype=dtype), 0.1 * numbers(88, 112, dtype=dtype, seed=1)
    bias = numbers(88, dtype=dtype, seed=2) if biased else None
    gate, up = F.linear(rows, weight, bias).chunk(2, dim=1)
    expected = F.silu(gate) * up
    with pytest.raises(ValueError, match="gate"):
        product(rows, weight, bias, gated=True, tiling=Tiling(32, 32, 3, 2, 4))
    (opened,) = product(rows, weight, bias, gated=True)
    assert (opened - expected).abs().max() <= 2 * TOLERANCE[dtype] * expected.abs().max()


@settings(max_examples=25, deadline=None)
@given(
    dtype=st.sampled_from(DTYPES),
    tokens=st.integers(1, 140),
    splits=st.integers(1, 3),
    block=st.sampled_from([16, 32, 64]),
    data=st.data(),
)
def test_a_row_has_the_same_bits_beside_any_others(dtype, tokens, splits, block, data):
    """However many, wherever it stands, and with blocks of any size; the numbers of splits is what bits may depend on."""
    size = data.draw(st.sampled_from([64, 400, 528]))
    rows, weight = numbers(tokens, size, dtype=dtype), numbers(40, size, dtype=dtype, seed=1)
    tiling = Tiling(32, 64, splits, 2, 4)
    together = product(rows, weight, tiling=tiling)
    row = data.draw(st.integers(0, tokens - 1))
    alone = product(rows[row : row + 1].contiguous(), weight, tiling=Tiling(32, block, splits, 2, 4))
    if DEVICE.type == "cuda":
        assert torch.equal(together[:, row], alone[:, 0])
    else:  # the interpreter's products are numpy's, whose bits are not ours
        assert torch.allclose(together[:, row], alone[:, 0], atol=1e-3 * size**0.5)


@pytest.mark.parametrize("columns", [896, 1664, 1920, 4032, 6720, 32000])
@pytest.mark.parametrize("size", [384, 1664, 4032, 4864, 10848])
@pytest.mark.parametrize("gated", [False, True])
def test_how_a_matrix_is_cut_does_not_depend_on_the_rows(columns, size, gated):
    """As far as it decides the order of a sum; and no part is empty."""
    splits = {
        tiling_for(columns, size, dtype, tokens=tokens, gated=gated).splits
        for dtype in (torch.float32, torch.bfloat16)
        for tokens in (16, 32, 64, 128)
    }
    assert len(splits) == 1
    (number,) = splits
    assert number == 1 or (not gated and (number - 1) * -(-size // (128 * number)) * 128 < size)
