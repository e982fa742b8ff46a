"""Calibration: what one forward of each model costs on this machine, measured before the first request."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from tqdm.auto import tqdm

from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.runner import Runner

GRID = (1, 2, 4, 8, 16, 32, 64)
"""Tokens per forward; those between are interpolated."""
_CONTEXTS = (64, 960)
_REPEATS = 3

Samples = Sequence[tuple[int, int, float]]


def measure(runners: Mapping[str, Runner], *, seconds: float = 2.0, progress: bool = True) -> dict[str, Samples]:
    """(tokens, context, seconds) of one-row forwards of every model, medians of three, choice of a token included.

    `seconds` is shared by the models; whoever is slow gets fewer points, but at least the first. Runs in slot 0, which
    must be free: what it writes there lies behind the mask.
    """
    samples: dict[str, Samples] = {}
    with tqdm(runners.items(), desc="Calibrating", unit="model", disable=not progress, leave=False) as bar:
        for name, runner in bar:
            bar.set_postfix_str(name)
            samples[name] = _measure_one(runner, seconds / len(runners))
    return samples


def _measure_one(runner: Runner, budget: float) -> Samples:
    deadline = time.perf_counter() + budget
    contexts = sorted({min(context, max(0, runner.context_length - GRID[-1])) for context in _CONTEXTS})
    points = [(tokens, context) for context in contexts for tokens in GRID if context + tokens <= runner.context_length]
    # Ends of the range first: if time runs out, what lies between is interpolated.
    points.sort(key=lambda point: (_order(point[0]), point[1]))
    samples: list[tuple[int, int, float]] = []
    _forward(runner, 1, 0)  # the first call allocates
    for tokens, context in points:
        if samples and time.perf_counter() > deadline:
            break
        times = sorted(_forward(runner, tokens, context) for _ in range(_REPEATS))
        samples.append((tokens, context + tokens, times[_REPEATS // 2]))
    return sorted(samples)


def _order(tokens: int) -> int:
    return (1, 8, 64, 4, 16, 2, 32).index(tokens)


def _forward(runner: Runner, tokens: int, context: int) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        ids = [(7 * i) % runner.vocab_size for i in range(tokens)]
        runner.forward([Span(0, context, ids, tokens)]).argmax(dim=-1).tolist()  # .tolist() waits for the device
    return time.perf_counter() - started
