"""Panels: the linear layers they were made of, in any number of rows, and in 16 bits where nothing is lost by it."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from specrouter_llm.runtime.records import BFLOAT16, FLOAT16, FLOAT32

pytest.importorskip("numba")
pytest.importorskip("specrouter_llm.runtime.compiled", reason="torch does not run on GNU's OpenMP here")
from specrouter_llm.runtime.panels import Panels, lossless_format  # needs numba
from specrouter_llm.runtime.tile import FORMATS, PANEL, ROWS  # needs numba

ROUNDED = {BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}
"""To which numbers, all of which are float32 too."""


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_panels_are_the_linear_layers(data):
    """One or several layers side by side, of any size; a row's bits are the same among any number of rows."""
    inner = data.draw(st.integers(1, 70))
    sizes = data.draw(st.lists(st.integers(1, 3 * PANEL), min_size=1, max_size=3))
    torch.manual_seed(0)
    sources = [nn.Linear(inner, size, bias=False) for size in sizes]
    panels = Panels(sources)
    rows = torch.randn(data.draw(st.integers(0, 3 * ROWS)), inner)
    found = panels(rows)
    with torch.inference_mode():
        expected = torch.cat([source(rows) for source in sources], dim=-1)
    assert torch.allclose(expected, found, atol=1e-4)
    for count in range(len(rows)):
        assert torch.equal(panels(rows[:count]), found[:count])
        assert torch.equal(panels(rows[count:]), found[count:])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("stored", [stored for stored in ROUNDED if stored in FORMATS])
def test_panels_of_16_bits_have_the_bits_of_32(stored, data):
    """Numbers that either format holds give the same sums from either, in any number of rows."""
    inner = data.draw(st.integers(1, 70))
    sizes = data.draw(st.lists(st.integers(1, 3 * PANEL), min_size=1, max_size=3))
    torch.manual_seed(0)
    sources = [nn.Linear(inner, size, bias=False) for size in sizes]
    with torch.no_grad():
        for source in sources:
            source.weight.copy_(source.weight.to(ROUNDED[stored]))
            source.weight[0, 0] = data.draw(st.sampled_from([0.0, -0.0, 2.0**-24, -2.0, 2.0**10]))
    plain, short = Panels(sources), Panels(sources, stored)
    rows = torch.randn(data.draw(st.integers(0, 3 * ROWS)), inner)
    assert torch.equal(plain(rows), short(rows))
    assert plain.nbytes == 2 * short.nbytes


@given(data=st.data())
def test_no_format_loses_a_number(data):
    """The shortest that holds all of them; one number that does not fit is enough for float32."""
    rounded = data.draw(st.sampled_from([torch.float32, *ROUNDED.values()]))
    torch.manual_seed(0)
    matrices = [torch.randn(data.draw(st.integers(1, 3000)), 3).to(rounded).float() for _ in range(2)]
    odd = data.draw(st.sampled_from([None, 1 / 3, 65504.0, 1e30, math.inf, math.nan]))
    if odd is not None:
        matrices[1][-1, -1] = odd
    found = lossless_format(matrices)
    types = [torch.float32 if found == FLOAT32 else ROUNDED[found]]
    for matrix in matrices:
        assert found == FLOAT32 or torch.equal(matrix, matrix.to(types[0]).float())
    if odd is None:
        assert (
            found
            == {
                torch.float32: FLOAT32,
                torch.bfloat16: BFLOAT16,
                torch.float16: FLOAT16 if FLOAT16 in FORMATS else FLOAT32,
            }[rounded]
        )
    if odd in (1 / 3, math.nan):
        assert found == FLOAT32
