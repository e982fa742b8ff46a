"""OpenMP's threads, given back by whoever does not need them now.

Each thread of a program that runs torch's parallel loops gets a team of helpers of its own, which stay until it ends. As
soon as there are more helpers than processors, GNU's OpenMP lets none of them wait actively, and every parallel loop has to
wake its helpers: 50 microseconds instead of 6 on a small machine, for ten loops in every layer. A model that was loaded
in one thread and runs in another, as ours do, is enough for that.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

_SOFT = 1
"""omp_pause_soft: all settings are kept."""


def release_team() -> None:
    """Ends the helpers of the calling thread; its next parallel loop makes new ones, in about 0.1 ms.

    Does nothing where torch's OpenMP is not found or is older than OpenMP 5.
    """
    pause = _pause()
    if pause is not None:
        pause(_SOFT)


@cache
def _pause() -> Callable[[int], int] | None:
    """`omp_pause_resource_all` of the OpenMP library that torch has loaded; no other is loaded for it."""
    if not hasattr(os, "RTLD_NOLOAD"):  # Windows
        return None
    libraries = Path(torch.__file__).with_name("lib")
    for path in sorted((*libraries.glob("libgomp*"), *libraries.glob("libomp*"), *libraries.glob("libiomp*"))):
        try:
            function = ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW).omp_pause_resource_all
        except (OSError, AttributeError):
            continue
        function.argtypes, function.restype = [ctypes.c_int], ctypes.c_int
        return function  # type: ignore[no-any-return]
    return None
