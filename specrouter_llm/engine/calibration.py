"""Calibration: what one forward of each model costs on this machine, measured before the first request, or kept on disk."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from tqdm.auto import tqdm

from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.pool.pool import ModelPool
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.draft_loop import LoopingRunner
from specrouter_llm.runtime.graphs import GraphRunner
from specrouter_llm.runtime.packing import return_freed_memory
from specrouter_llm.runtime.processor import processor_name
from specrouter_llm.runtime.runner import Runner
from specrouter_llm.runtime.select import make_runner
from specrouter_llm.sampling.row import GREEDY
from specrouter_llm.scheduling.latency import GRID, LatencyModel

if TYPE_CHECKING:
    from specrouter_llm.pool.pool import PoolMember

FORMAT = 6
"""Since 3 products on a GPU are others; since 4 loops have curves of their own; since 5 compiled models have loops; since 6 it
is told how large the models are and which processor ran them."""
_CONTEXTS = (64, 960)
REPEATS = 3
"""Forwards per point; their median counts."""
ROWS = 16
"""Rows of a batch that is compared with one row, if there are so many: what fewer show is multiplied, their noise too."""
_ROWS_SHARE = 0.25
"""What that comparison may take, as a part of the time for everything else and on top of it."""

_IN_ORDER = (1, 8, 64, 4, 16, 2, 32)
"""GRID, the ends of the range first."""
_FAR_TOKENS = 16
"""How the context tells is measured up to so many tokens."""
_LOOP_SHARE = 0.25
"""Of a drafter's time, if it can loop."""
_LOOPED = 4
"""Tokens of a loop that is timed."""

Clock = Callable[[Runner, int, int], float]
"""Seconds of one row's forward of so many tokens behind so many others."""
Samples = Sequence[tuple[int, int, float]]
"""(tokens, context, seconds)"""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the forwards of one pool cost on one machine."""

    members: Mapping[str, str]
    """What each model is: label, size, dtype, runner and device, smallest first."""
    threads: int
    """Of torch, while it was measured."""
    latency: LatencyModel
    """The engine's own time per step is not in it: it is learnt from steps."""

    @classmethod
    def of(
        cls,
        pool: ModelPool,
        runners: Mapping[str, Runner],
        *,
        seconds: float,
        rows: int,
        repeats: int = REPEATS,
        progress: bool = True,
    ) -> Calibration:
        """Measures all models of a pool, which must not be in use; see `measure`. The runners have `rows` slots."""
        samples, loops = measure(runners, seconds=seconds, repeats=repeats, progress=progress)
        share = _ROWS_SHARE * seconds / len(runners)
        ratios = {
            name: _row_ratio(runner, count, 2 * repeats - 1, share)
            for name, runner in runners.items()
            if (count := min(rows, ROWS, runner.context_length)) > 1
        }
        latency = LatencyModel.fit(
            samples,
            overhead=0.0,
            sizes=token_sizes(runners),
            row_ratios=ratios,
            loops=loops,
            greedy_only=[name for name in loops if not _loops_sampled(runners[name])],
        )
        return cls(describe(pool, runners), torch.get_num_threads(), latency)

    def save(self, path: Path) -> None:
        """Writes what `load` reads."""
        content = {
            "format": FORMAT,
            "members": dict(self.members),
            "threads": self.threads,
            "latency": json.loads(self.latency.to_json()),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | Path) -> Calibration:
        """Raises:
        InvalidParameterError: no such file, or not one that `save` wrote.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise InvalidParameterError(
                    f"the calibration {path} is of format {content['format']!r}, this release reads {FORMAT}; "
                    "make it anew with `specrouter calibrate`"
                )
            members = {str(name): str(what) for name, what in content["members"].items()}
            return cls(members, int(content["threads"]), LatencyModel.from_json(json.dumps(content["latency"])))
        except InvalidParameterError:
            raise
        except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise InvalidParameterError(
                f"{path} is not a calibration that `specrouter calibrate --out` wrote: {error!r}"
            ) from None

    def check(self, pool: ModelPool, runners: Mapping[str, Runner]) -> None:
        """Raises:
        InvalidParameterError: it was measured on other models, or otherwise than they run now.
        """
        found = describe(pool, runners)
        for name, what in found.items():
            if name not in self.members or not self.latency.knows(name):
                raise InvalidParameterError(_misfit(f"it does not know {name!r}; it knows {', '.join(self.members)}"))
            if self.members[name] != what:
                raise InvalidParameterError(_misfit(f"{name!r} was measured as {self.members[name]!r}, it is {what!r}"))
        if self.threads != torch.get_num_threads():
            raise InvalidParameterError(
                _misfit(f"it was measured with {self.threads} threads, torch now has {torch.get_num_threads()}")
            )


def _misfit(reason: str) -> str:
    return (
        f"the calibration does not fit this pool: {reason}. Make a new one with `specrouter calibrate`, or leave it out"
    )


def describe(pool: ModelPool, runners: Mapping[str, Runner]) -> dict[str, str]:
    """What decides a model's speed, by name. A label is a folder's name: another folder may have the same."""
    return {
        member.name: f"{member.label}, {member.num_parameters} parameters, {_storage(runners[member.name])}, "
        f"{type(runners[member.name]).__name__} on {_device(member)}"
        for member in in_order(pool)
    }


def _storage(runner: Runner) -> str:
    """The dtype, and the bytes of the weights where they may be fewer than it says."""
    weight_bytes = getattr(runner, "weight_bytes", None)
    return runner.dtype if weight_bytes is None else f"{runner.dtype} in {weight_bytes} bytes"


def _device(member: PoolMember) -> str:
    device = member.model.device
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return f"cpu, {processor_name()}" if device.type == "cpu" else str(device.type)


def in_order(pool: ModelPool) -> list[PoolMember]:
    """The members as chains run through them: the smallest drafter first, the target last."""
    return [*sorted(pool.drafts, key=lambda member: member.num_parameters), pool.target]


def pool_runners(pool: ModelPool, *, num_slots: int, pack: bool, strict: bool = False) -> dict[str, Runner]:
    """A runner for every member, in order; `strict` is the target's.

    Raises:
        UnsupportedModelError: a model's logits through our cache differ from its own.
    """
    runners: dict[str, Runner] = {}
    try:
        for member in in_order(pool):
            runner = runners[member.name] = make_runner(
                member.name,
                member.model,
                num_slots=num_slots,
                context_length=min(member.context_length, pool.max_context),
                pack=pack,
                keep=member.borrowed,
                strict=strict and member is pool.target,
                dtype=member.dtype,
            )
            if isinstance(runner, GraphRunner):
                runner.record(loops=member is not pool.target)
            return_freed_memory()
    except BaseException:
        for runner in runners.values():
            runner.close()
        raise
    return runners


def token_sizes(runners: Mapping[str, Runner]) -> dict[str, Sequence[int]]:
    """What every model pads its forwards to."""
    return {name: runner.token_sizes for name, runner in runners.items()}


class Measured(NamedTuple):
    """Of each model by name."""

    forwards: dict[str, Samples]
    loops: dict[str, Samples]
    """Of one token of a loop."""


def measure(
    runners: Mapping[str, Runner], *, seconds: float, repeats: int = REPEATS, progress: bool = True
) -> Measured:
    """One-row forwards of every model, and the loops of those that can loop.

    Medians of `repeats`, choice of a token included. The last model is the target, which never loops. `seconds` is shared
    by the models; whoever is slow gets fewer points, but at least the first. Runs in slot 0, which must be free: what it
    writes there lies behind the mask.

    The time begins when the caches hold what is measured: making room in many slots once ate all of the target's, and what
    64 tokens cost was guessed from what one does.
    """
    forwards: dict[str, Samples] = {}
    loops: dict[str, Samples] = {}
    for runner in runners.values():
        _forward(runner, min(_FAR_TOKENS, GRID[-1], runner.context_length), _contexts(runner)[-1])
    deadline = time.perf_counter() + seconds
    with tqdm(runners.items(), desc="Calibrating", unit="model", disable=not progress, leave=False) as bar:
        for done, (name, runner) in enumerate(bar):
            bar.set_postfix_str(name)
            share = (deadline - time.perf_counter()) / (len(runners) - done)
            fits = done < len(runners) - 1 and runner.context_length >= _LOOPED
            if fits and isinstance(runner, LoopingRunner) and _can_loop(runner):
                loops[name] = _measure_one(runner, _loop, (1,), _LOOP_SHARE * share, repeats)
                share *= 1 - _LOOP_SHARE
            forwards[name] = _measure_one(runner, _forward, _sizes(runner), share, repeats)
    return Measured(forwards, loops)


def _sizes(runner: Runner) -> list[int]:
    """Numbers of tokens to measure, those first that matter most: what lies between them is interpolated.

    Where a runner pads, costs may jump from size to size, so every size is one. Where so many tokens share a pass, they jump
    behind each pass: both sides of the first two.
    """
    first = [next((size for size in runner.token_sizes if size >= tokens), tokens) for tokens in _IN_ORDER]
    step = runner.token_step
    jumps = [step, step + 1, 2 * step, 2 * step + 1] if step else []
    return list(
        dict.fromkeys(size for size in (*first, *jumps, *runner.token_sizes) if size <= GRID[-1] or size in first)
    )


def _contexts(runner: Runner) -> list[int]:
    """Where to measure, rising."""
    return sorted({min(context, max(0, runner.context_length - GRID[-1])) for context in _CONTEXTS})


def _measure_one(runner: Runner, clock: Clock, sizes: Sequence[int], budget: float, repeats: int) -> Samples:
    """Everything once before anything twice; how the context tells for few tokens only."""
    deadline = time.perf_counter() + budget
    near, *far = _contexts(runner)
    few = [tokens for tokens in sizes if tokens in GRID and tokens <= _FAR_TOKENS]
    points = [*((tokens, near) for tokens in sizes), *((tokens, context) for context in far for tokens in few)]
    points = [(tokens, context) for tokens, context in points if context + tokens <= runner.context_length]
    times: dict[tuple[int, int], list[float]] = {}
    for context in (*far, near):
        clock(runner, 1, context)
    last = clock(runner, 1, near)
    for turn in range(repeats):
        for point in points:
            last = min(times[point]) if point in times else last
            late = time.perf_counter() + last > deadline
            if late and not turn and times:
                break  # what comes is longer still, or matters less
            if late and times:
                continue
            if not turn and point[1] != near:
                clock(runner, *point)  # another length may have something to set up: a graph to record
            last = clock(runner, *point)
            times.setdefault(point, []).append(last)
    # Of two the less: the first call of a kind may have had something to set up.
    return sorted((n, context + n, sorted(taken)[(len(taken) - 1) // 2]) for (n, context), taken in times.items())


def _row_ratio(runner: Runner, rows: int, repeats: int, budget: float) -> tuple[int, int, float]:
    """(rows, context, ratio): rows of one token over one row of as many tokens, in turns; the median of the ratios.

    At least one, and no other after `budget` seconds.
    """
    deadline = time.perf_counter() + budget
    context = min(_CONTEXTS[0], max(0, runner.context_length - rows))
    together = [Span(slot, context, [slot % runner.vocab_size], 1) for slot in range(rows)]
    _timed(runner, together)  # the first call allocates
    ratios: list[float] = []
    while not ratios or (len(ratios) < repeats and time.perf_counter() < deadline):
        ratios.append(_timed(runner, together) / _forward(runner, rows, context))
    return rows, context + 1, statistics.median(ratios)


def _forward(runner: Runner, tokens: int, context: int) -> float:
    return _timed(runner, [Span(0, context, [(7 * i) % runner.vocab_size for i in range(tokens)], tokens)])


def _can_loop(runner: LoopingRunner) -> bool:
    return runner.loop([Span(0, 0, [0], 1)], _LOOPED, GREEDY, [[]]) is not None


def _loops_sampled(runner: Runner) -> bool:
    return isinstance(runner, LoopingRunner) and runner.loops(GREEDY._replace(temperature=1.0))


def _loop(runner: Runner, tokens: int, context: int) -> float:
    """Of one token of a loop."""
    assert isinstance(runner, LoopingRunner)
    started = time.perf_counter()
    chosen = runner.loop([Span(0, context, [0] * tokens, 1)], _LOOPED, GREEDY, [[]])
    assert chosen is not None, "a runner that can loop at the start of its context can loop in it"
    chosen.tolist()  # waits for the device
    return (time.perf_counter() - started) / _LOOPED


def _timed(runner: Runner, spans: Sequence[Span]) -> float:
    started = time.perf_counter()
    with torch.inference_mode():
        runner.forward(spans).argmax(dim=-1).tolist()  # .tolist() waits for the device
    return time.perf_counter() - started
