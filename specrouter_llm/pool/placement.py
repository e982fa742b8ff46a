"""Where each member of a pool goes: one model per device if there are several."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from specrouter_llm.config import ModelSpec
from specrouter_llm.errors import InvalidParameterError, ModelLoadError


@dataclass(frozen=True, slots=True)
class Placement:
    """One device for a whole model, or a map that accelerate spreads it by."""

    device: str | None
    device_map: str | dict[str, Any] | None = None


def place(
    specs: Sequence[ModelSpec],
    device: str | torch.device | None,
    device_map: str | dict[str, Any] | None,
    num_cuda: int,
) -> list[Placement]:
    """The placement of each member; `specs[0]` is the target.

    A spec's own device or map wins, then the arguments (a map with module names can only mean the target). Otherwise
    the CPU without CUDA; with one CUDA device everything there; with several the target on the first, the drafters in
    turn on the others. Raises InvalidParameterError for contradictions and unknown devices, ModelLoadError for a CUDA
    device that is not among the `num_cuda` of this machine.
    """
    if device is not None and device_map is not None:
        raise InvalidParameterError("give either device or device_map, not both")
    common = None if device is None else _checked(device, num_cuda)
    placements = []
    for index, spec in enumerate(specs):
        if spec.device is not None and spec.device_map is not None:
            raise InvalidParameterError(f"model {spec.source!s}: give either device or device_map, not both")
        if spec.device is not None:
            placements.append(Placement(_checked(spec.device, num_cuda)))
        elif spec.device_map is not None:
            placements.append(Placement(None, spec.device_map))
        elif device_map is not None and (index == 0 or isinstance(device_map, str)):
            placements.append(Placement(None, device_map))
        else:
            placements.append(Placement(common or _default(index, num_cuda)))
        if placements[-1].device == "meta" and isinstance(spec.source, (str, Path)):
            raise InvalidParameterError("device 'meta' holds no weights: nothing can be computed there")
    return placements


def _default(index: int, num_cuda: int) -> str:
    if num_cuda == 0:
        return "cpu"
    return "cuda:0" if index == 0 or num_cuda == 1 else f"cuda:{1 + (index - 1) % (num_cuda - 1)}"


def _checked(device: str | torch.device, num_cuda: int) -> str:
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidParameterError(f"unknown device {device!r}: {str(error).splitlines()[0]}") from None
    if parsed.type != "cuda":
        return str(parsed)
    # With its index, so that members on "cuda" and "cuda:0" are counted as being on one device.
    index = parsed.index or 0
    if index >= num_cuda:
        build = "" if torch.version.cuda or torch.version.hip else " (this build of torch is for CPUs)"
        raise ModelLoadError(
            f"device {str(device)!r} is not there: torch finds {num_cuda} CUDA devices{build}; give another, or leave it out"
        )
    return f"cuda:{index}"
