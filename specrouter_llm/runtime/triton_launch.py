"""Programmatic dependent launch: a kernel begins while the one before it still runs, and waits only where it needs it.

Between two kernels of a graph a device stands idle for about a microsecond, and a decoding step has hundreds of such borders.
Kernels of this package may be launched early (on Hopper and later); each of them calls `follow` before it touches anything
that the kernel before it writes, and is by then in its place. Every block of that kernel has waited for the end of all before
it when it lets this one begin (`follow` does it in this order, which matters): so what was written earlier than by it may be
read before the wait. FRESH, for a multiprocessor's own cache may still hold what stood there before.
"""
# Kernels have no Python types.
# ruff: noqa: ANN201
# mypy: disable-error-code="untyped-decorator,no-untyped-def"

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

FRESH = tl.constexpr(".cg")
"""The `cache_modifier` of what is read before `follow` and is written by any kernel at all: from the cache of the device."""
_HOPPER = (9, 0)


@triton.jit
def follow(EARLY: tl.constexpr):
    """Waits for all that was launched before, and lets the next kernel begin.

    The next one waits for the end of this one, which ends after the ones before: so nothing is read too early, and memory that
    is used again is not written too early.
    """
    if EARLY:
        gdc_wait()
        gdc_launch_dependents()


@functools.cache
def _early(device: torch.device) -> bool:
    if device.type != "cuda" or triton.knobs.runtime.interpret or torch.version.hip is not None:
        return False
    return bool(torch.cuda.get_device_capability(device) >= _HOPPER)


def launched_early(device: torch.device) -> dict[str, Any]:
    """What the launch of a kernel with a parameter EARLY is told, for kernels that call `follow`."""
    return {"EARLY": True, "launch_pdl": True} if _early(device) else {"EARLY": False}
