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

_SOFT = 1
"""omp_pause_soft: all settings are kept."""
_PROCESS = os.getpid()


def release_team() -> None:
    """Ends the helpers of the calling thread; its next parallel loop makes new ones, in about 0.1 ms.

    Does nothing where torch's OpenMP is not GNU's, or is older than OpenMP 5, nor in a forked process, where the helpers
    that the library knows of do not exist.
    """
    pause = _pause()
    if pause is not None and os.getpid() == _PROCESS:
        pause(_SOFT)


def run_in_team(function: int, argument: int) -> None:
    """Calls a compiled function, by its address, in all threads of the caller's team, with the address of its argument.

    The team is torch's own: another one would share the processors with it.
    """
    import torch

    team_library().GOMP_parallel(function, argument, torch.get_num_threads(), 0)


@cache
def team_library() -> ctypes.CDLL:
    """GNU's OpenMP library, whose functions compiled code calls by name.

    Raises:
        ImportError: torch does not run on it.
    """
    library = _gnu_openmp()
    if library is None:
        raise ImportError("torch does not run on GNU's OpenMP here")
    library.GOMP_parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    library.GOMP_parallel.restype = None
    return library


@cache
def _pause() -> Callable[[int], int] | None:
    """`omp_pause_resource_all`, if the library has it.

    LLVM's and Intel's have it too, but it means something else there, and they have no such problem that we know of.
    """
    function = getattr(_gnu_openmp(), "omp_pause_resource_all", None)
    if function is not None:
        function.argtypes, function.restype = [ctypes.c_int], ctypes.c_int
    return function


@cache
def _gnu_openmp() -> ctypes.CDLL | None:
    """GNU's OpenMP library, if it is what torch has loaded; no other is loaded for it."""
    import torch  # not above: what only waits for answers is light

    if not hasattr(os, "RTLD_NOLOAD"):  # Windows
        return None
    for path in sorted(Path(torch.__file__).with_name("lib").glob("libgomp*")):
        try:
            return ctypes.CDLL(str(path), mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        except OSError:
            continue
    return None
