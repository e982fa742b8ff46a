"""`specrouter bench memory`: what a pool takes, against what it was accounted for, and whether anything grows.

Each depth (the target alone, then one drafter more) runs in a fresh process, which tells how much it holds before the
models are loaded, after they have answered, and at its peak. The deepest one goes on to answer for many steps, in turn
by the whole chain and as the router chooses.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table

from specrouter_llm.bench.models import encode
from specrouter_llm.bench.plots import new_figure, save_figure
from specrouter_llm.bench.texts import TextPrompt
from specrouter_llm.config import ModelSource, ModelSpec, format_bytes
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.errors import RequestFailedError
from specrouter_llm.pool.demo import DEMO, DEMO_MEMBERS
from specrouter_llm.pool.family import widened_family
from specrouter_llm.runtime.packing import return_freed_memory
from specrouter_llm.runtime.select import has_compiler
from specrouter_llm.types import StepInfo

DEPTHS = (0, 1, 2, 3)
MAX_CONTEXT = 512
"""One storage step: caches are as long as accounted from the first token on."""
PERIODS = 5
"""Equal parts of a long run; the first half of them is for warming up: the last 256 requests are remembered."""


@dataclass(frozen=True, slots=True)
class Task:
    """What one process does."""

    target: str
    drafts: list[str]
    """As many as the chain is deep; one that comes again is loaded again under another name."""
    widen: str | None
    prompts: list[TextPrompt]
    max_batch: int
    max_tokens: int
    steps: int
    """Of the long run after the first answers; 0 for none."""

    def sources(self) -> list[ModelSource]:
        """The target first."""
        family = list(dict.fromkeys(self.drafts))
        if self.widen is not None:
            specs = widened_family(self.target, family, self.widen)
        else:
            specs = [ModelSpec(name) for name in (self.target, *family)]
        target, *drafts = specs
        known = dict(zip(family, drafts, strict=True))
        named = [(self.target, target), *((f"{name} #{i}", known[name]) for i, name in enumerate(self.drafts, 1))]
        return [ModelSpec(spec.source, name=name, widen=spec.widen) for name, spec in named]


def measure(
    target: str,
    drafts: Sequence[str] | None,
    texts: Sequence[TextPrompt],
    *,
    widen: str | None = None,
    depths: Sequence[int] = DEPTHS,
    max_batch: int = 4,
    max_tokens: int = 32,
    steps: int = 2000,
    advance: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """One row per depth. Drafters repeat if there are fewer of them than the depth asks for."""
    given = list(drafts or ([f"{DEMO}/{name}" for name in DEMO_MEMBERS[1:]] if target == DEMO else []))
    whole = f"{DEMO}/{DEMO_MEMBERS[0]}" if target == DEMO else target
    rows = []
    for depth in depths if given else (0,):
        chosen = list(itertools.islice(itertools.cycle(given), depth))
        last = depth == max(depths) or not given
        task = Task(whole, chosen, widen, list(texts), max_batch, max_tokens, steps if last else 0)
        rows.append({"depth": depth, "drafters": chosen, **_in_a_process(task)})
        advance(f"target and {depth} drafters")
    return rows


def _in_a_process(task: Task) -> dict[str, Any]:
    """Runs `main` of this module in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-m", "specrouter_llm.bench.memory"],
        input=json.dumps(asdict(task)),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RequestFailedError(f"the measuring process failed: {done.stderr.strip()[-2000:]}")
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def main() -> None:
    """Reads a `Task` from standard input, prints what it measured as JSON."""
    print(json.dumps(measure_here(Task(**json.loads(sys.stdin.read())))))


def measure_here(task: Task) -> dict[str, Any]:
    """Bytes of this process before, after and at the peak of a pool's use."""
    _warm_up()
    before, peak_before = settled(), peak()
    target, *drafts = task.sources()
    with SpecRouter.from_pretrained(
        target,
        drafts,
        policy="adaptive",
        max_batch=task.max_batch,
        max_context=MAX_CONTEXT,
        generation_config="ignore",
        progress=False,
    ) as engine:
        levels = [name for name in engine.levels if name in engine.labels]
        chain = levels[:-1] or None
        windows = [2 * i + 2 for i in range(len(levels) - 1)] or None
        prompts = [encode(engine, text) for text in task.prompts]
        routed: dict[str, Any] = {"ignore_eos": True, "max_tokens": task.max_tokens}
        whole = {**routed, "chain": chain, "windows": windows}
        for answer in engine.generate([prompts[i % len(prompts)] for i in range(2 * task.max_batch)], **whole):
            answer.raise_for_error()
        after, highest = settled(), peak()
        report = engine.memory
        assert report is not None, "an engine of a pool knows its memory"
        return {
            "chain": levels,
            "labels": [engine.labels[name] for name in levels],
            "accounted": report.total,
            "weights": sum(member.weight_bytes for member in report.members),
            "packed_copies": sum(member.packing.copies for member in report.members),
            "kernels": report.kernel_bytes,
            "caches": sum(report.cache_bytes(member) for member in report.members),
            "resident_before": before,
            "resident": after - before,
            "peak": (highest if highest > peak_before else after) - before,
            "growth": run_long(engine, prompts, (whole, routed), task.steps) if task.steps else None,
        }


def _warm_up() -> None:
    """What any engine takes: libraries, the compiler among them, their pools, a tokenizer; no kernels, which are accounted
    for."""
    has_compiler()
    with SpecRouter.from_pretrained(
        f"{DEMO}/{DEMO_MEMBERS[-1]}", max_batch=1, pack=False, policy="off", progress=False
    ) as engine:
        engine.generate("Once upon a time", max_tokens=8)


def run_long(
    engine: SpecRouter, prompts: Sequence[Sequence[int]], ways: Sequence[Mapping[str, Any]], steps: int
) -> dict[str, Any]:
    """Answers until so many steps were run: what the process holds after each fifth, how often it rolled back, and what grew
    in the `growth_steps` behind the warming up.

    Args:
        ways: options of requests; each batch takes the next.
    """
    samples: list[dict[str, int]] = []
    first, rollbacks = engine.stats.num_steps, itertools.count()
    supply, options = itertools.cycle(prompts), itertools.cycle(ways)

    def count(step: StepInfo) -> None:
        if any(level.accepted < level.drafted for level in step.levels):
            next(rollbacks)

    for period in range(1, PERIODS + 1):
        while engine.stats.num_steps - first < steps * period // PERIODS:
            batch = [list(next(supply)) for _ in range(engine.config.max_batch)]
            for answer in engine.generate(batch, on_step=count, **next(options)):
                answer.raise_for_error()
        samples.append({"steps": engine.stats.num_steps - first, "resident": settled(), "objects": _objects()})
    warm, last = samples[PERIODS // 2], samples[-1]
    return {
        "steps": last["steps"],
        "growth_steps": last["steps"] - warm["steps"],
        "rollbacks": next(rollbacks),
        "resident_growth": last["resident"] - warm["resident"],
        "object_growth": last["objects"] - warm["objects"],
        "samples": samples,
    }


def _objects() -> int:
    """Objects that Python's collector knows."""
    return len(gc.get_objects())


def resident() -> int:
    """Bytes of this process in memory now."""
    return int(psutil.Process().memory_info().rss)


def settled() -> int:
    """The same, without what was freed and not yet given back."""
    gc.collect()
    return_freed_memory()
    return resident()


def peak() -> int:
    """The most bytes this process ever had in memory; what it has now where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return int(getattr(psutil.Process().memory_info(), "peak_wset", resident()))
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for people."""
    shown = Table(title="Memory of a pool beyond an idle engine's: measured / accounted")
    columns = (
        "chain",
        "weights",
        "packed copies",
        "kernels",
        "caches",
        "accounted",
        "resident",
        "peak",
        "growth over a long run",
    )
    for column in columns:
        shown.add_column(column, justify="left" if column == "chain" else "right")
    for row in rows:
        growth = row["growth"]
        told = "-"
        if growth:
            told = (
                f"{growth['resident_growth'] / 2**20:+.1f} MiB, {growth['object_growth']:+d} objects in the last "
                f"{_growth_steps(growth)} of {growth['steps']} steps with {growth['rollbacks']} rollbacks"
            )
        shown.add_row(
            " > ".join(row["labels"]),
            *(format_bytes(row[name]) for name in ("weights", "packed_copies", "kernels", "caches", "accounted")),
            *(
                f"{format_bytes(max(row[name], 0))} ({row[name] / row['accounted']:.3f})"
                for name in ("resident", "peak")
            ),
            told,
        )
    return shown


def _growth_steps(growth: Mapping[str, Any]) -> int:
    """The steps that growth was measured over; older results hold their samples only."""
    samples = growth["samples"]
    return int(growth.get("growth_steps", samples[-1]["steps"] - samples[PERIODS // 2]["steps"]))


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Accounted parts stacked, measured bytes as marks, by depth."""
    figure = new_figure(6, 4)
    axes = figure.subplots()
    places, bottom = [row["depth"] for row in rows], [0.0] * len(rows)
    for part in ("weights", "packed_copies", "kernels", "caches"):
        heights = [row[part] / 2**20 for row in rows]
        axes.bar(places, heights, bottom=bottom, width=0.6, label=part.replace("_", " "))
        bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
    for name, mark in (("resident", "o"), ("peak", "^")):
        axes.plot(places, [row[name] / 2**20 for row in rows], mark, color="black", label=f"{name}, measured")
    axes.set(xlabel="drafters", ylabel="MiB", xticks=places)
    axes.legend()
    save_figure(figure, path)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
