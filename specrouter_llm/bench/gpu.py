"""`specrouter bench gpu`: everything that is asked of a GPU, in one call, held against aims.

Every part is a command of its own in a process of its own: one that fails takes nothing along (an illegal access on a
device ends all later work of its process), one that hangs can be stopped, and its memory is free for the next. A part writes
its result when it ends; one that fails leaves its error in the same place.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.table import Table

from specrouter_llm.bench.contestants import PLAIN, ROUTED
from specrouter_llm.bench.experiments import read_result
from specrouter_llm.bench.peers import REFERENCE
from specrouter_llm.bench.result import result, write_result
from specrouter_llm.bench.step import STEP
from specrouter_llm.bench.strict import STRICT

SPECROUTER = (sys.executable, "-m", "specrouter_llm.cli")
PYTEST = (sys.executable, "-m", "pytest", "-o", "addopts=--import-mode=importlib")
"""Not strict about settings of plugins that the machine may not have."""
WORKERS = "8"
"""Processes of the tests, where pytest-xdist is there: most of their time is compiling kernels."""
TESTS = "tests"
DONE, FAILED, NOT_RUN = "done", "failed", "not run"
_ERROR_LINES = 40
_CONTEXT = 512
"""Of the batches, prompts included: caches of 32 rows at the family's own context would not fit beside the weights."""

Rows = Sequence[Mapping[str, Any]]
Figure = dict[str, Any]
"""`value`, perhaps the interval's `low` and `high`, and `of`: what it was measured on, if that says more."""


@dataclass(frozen=True, slots=True)
class Part:
    """One command. What it does not write itself is written for it: its last line, or its error."""

    name: str
    """Of its result, NAME.json."""
    command: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a part."""

    part: str
    state: str
    """done, failed, or not run because the time was up."""
    seconds: float = 0.0
    note: str = ""
    """The last line of what it printed if that is its result, or of its error."""


def parts(
    folder: Path,
    *,
    size: str | None,
    device: str | None,
    dtype: str | None,
    workload: str,
    limit: int,
    max_tokens: int,
    batches: Sequence[int] = (),
    tests: Path | None = None,
) -> list[Part]:
    """The parts of a run, the short ones first, the tests last; `size` None leaves the family as it is."""
    family = _options(widen=size, device=device, dtype=dtype)
    length = _options(limit=limit, max_tokens=max_tokens)
    contest = (*family, *length, *_options(workload=workload))
    commands = {
        "identity": ("verify", *family, *length),
        "step": ("bench", "step", *family, "--tokens", "1", "--tokens", "8"),
        "speed": ("bench", "speed", *contest, "--no-chains", "--peer", "generate"),
        "strict": ("bench", "strict", *contest),
        "batch": (
            *("bench", "batch", *contest, "--no-chains", "--no-peer", "--max-context", str(_CONTEXT)),
            *(word for batch in batches for word in ("--batch", str(batch))),
        ),
    }
    found = [
        Part(name, (*SPECROUTER, *command, "--out", str(folder / f"{name}.json"))) for name, command in commands.items()
    ]
    if tests:
        spread = ("-n", WORKERS) if find_spec("xdist") else ()
        found.append(Part(TESTS, (*PYTEST, "-q", *spread, "-m", "gpu", str(tests))))
    return found


def _options(**values: Any) -> tuple[str, ...]:
    given = ((name, value) for name, value in values.items() if value is not None)
    return tuple(word for name, value in given for word in (f"--{name.replace('_', '-')}", str(value)))


def run(
    parts: Sequence[Part],
    folder: Path,
    *,
    seconds: float,
    settings: Mapping[str, Any],
    advance: Callable[[Outcome], None],
) -> list[Outcome]:
    """Runs the parts one after the other, at most `seconds` altogether; the summary, gpu.json, is kept up to date.

    `settings` are the summary's. Results of an earlier run in `folder` are removed.
    """
    for part in parts:
        (folder / f"{part.name}.json").unlink(missing_ok=True)
    deadline = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for part in parts:
        outcomes.append(_run_one(part, folder / f"{part.name}.json", deadline))
        became = {each.part: {"state": each.state, "seconds": each.seconds, "note": each.note} for each in outcomes}
        write_result(folder / "gpu.json", result("gpu", {**settings, "parts": became}, figures(folder)))
        advance(outcomes[-1])
    return outcomes


def _run_one(part: Part, path: Path, deadline: float) -> Outcome:
    started = time.monotonic()
    if started >= deadline:
        return Outcome(part.name, NOT_RUN, note="the time was up")
    try:
        ended = subprocess.run(part.command, capture_output=True, timeout=deadline - started, check=False)
        status, output, errors = ended.returncode, ended.stdout, ended.stderr
        reason = f"exit status {status}"
    except subprocess.TimeoutExpired as stopped:
        status, output, errors = None, stopped.stdout or b"", stopped.stderr or b""
        reason = "stopped: the time was up"
    taken = round(time.monotonic() - started, 1)
    said = _lines(output)
    if status == 0:
        if path.exists():
            return Outcome(part.name, DONE, taken)
        summary = said[-1] if said else ""
        write_result(path, result(part.name, {}, [{"summary": summary}], part.command))
        ran = (
            part.name != TESTS or "passed" in summary
        )  # tests that are all skipped, for want of a device, end well too
        return Outcome(part.name, DONE if ran else FAILED, taken, summary)
    error = [*said, *_lines(errors), reason][-_ERROR_LINES:]
    if not path.exists():
        write_result(path, result(part.name, {"error": error}, [], part.command))
    return Outcome(part.name, FAILED, taken, "; ".join(error[-2:]))


def _lines(output: bytes) -> list[str]:
    return [line.rstrip() for line in output.decode("utf-8", "replace").splitlines() if line.strip()]


@dataclass(frozen=True, slots=True)
class Aim:
    """A figure that should be at least so large."""

    figure: str
    part: str
    least: float
    read: Callable[[Rows], Figure]
    """Of the part's rows."""


def _floor(rows: Rows) -> Figure:
    over = next(row["over_floor"] for row in rows if row["runner"] == STEP)
    ends = {"value": "value", "low": "high", "high": "low"}
    return {end: 1 / over[other] for end, other in ends.items() if other in over}


def _routed_over(reference: str) -> Callable[[Rows], Figure]:
    def read(rows: Rows) -> Figure:
        (row,) = (row for row in rows if row["kind"] == ROUTED)
        return dict(row["speedup"][reference]["decode"])

    return read


def _worst_batch(rows: Rows) -> Figure:
    ratios = {row["batch"]: row["speedup"][PLAIN] for row in rows if row["kind"] == ROUTED}
    worst = min(ratios, key=lambda size: float(ratios[size]["value"]))
    return {**ratios[worst], "of": f"batch {worst} of {', '.join(map(str, ratios))}"}


def _strict_over_default(way: str) -> Callable[[Rows], Figure]:
    def read(rows: Rows) -> Figure:
        (row,) = (row for row in rows if (row["mode"], row["way"]) == (STRICT, way))
        return {**row["over_default"]["decode"], "of": f"guarantee: {row['guarantee']}"}

    return read


def _same(rows: Rows) -> Figure:
    """Of our own answers but plain decoding's: the share that is plain decoding's, or a near-tie away from it."""
    ours = [row for row in rows if row.get("kind") not in ("peer", PLAIN) and row.get("way") != PLAIN]
    counts = {name: sum(row[name] for row in ours) for name in ("identical", "near_ties", "different")}
    of = f"{counts['identical']} identical, {counts['near_ties']} near-ties, {counts['different']} different"
    return {"value": (counts["identical"] + counts["near_ties"]) / sum(counts.values()), "of": of}


AIMS = (
    Aim("floor of a step / our target-only step", "step", 0.85, _floor),
    Aim("routed / own target-only, batch 1", "speed", 2.0, _routed_over(PLAIN)),
    Aim("routed / Hugging Face generate, batch 1", "speed", 8.0, _routed_over(REFERENCE)),
    Aim("routed / own target-only, worst batch", "batch", 0.97, _worst_batch),
    Aim("strict / default, target-only", "strict", 0.9, _strict_over_default(PLAIN)),
    Aim("strict / default, routed", "strict", 0.9, _strict_over_default(ROUTED)),
    *(
        Aim(f"answers of plain decoding, or a near-tie away: {part}", part, 1.0, _same)
        for part in ("identity", "speed", "batch", "strict")
    ),
)
"""Of a family widened to 7B in bfloat16."""


def figures(folder: Path) -> list[dict[str, Any]]:
    """One row per aim, with what was measured; without `value` where a part has no result."""
    rows = []
    for aim in AIMS:
        path = folder / f"{aim.part}.json"
        found = read_result(path)["rows"] if path.exists() else []
        figure = aim.read(found) if found else {}
        met = {"met": figure["value"] >= aim.least} if figure else {}
        rows.append({"figure": aim.figure, "part": aim.part, "aim": aim.least, **figure, **met})
    return rows


def table(rows: Rows) -> Table:
    """The rows for people."""
    shown = Table(title="Against the aims for 7B in bfloat16 on a GPU (ratios of speeds, 95 % bootstrap intervals)")
    for column in ("figure", "aim", "measured", "interval", "met", "of"):
        shown.add_column(column, justify="right" if column in ("aim", "measured") else "left")
    for row in rows:
        measured = "value" in row
        shown.add_row(
            row["figure"],
            f">= {row['aim']:g}",
            f"{row['value']:.3f}" if measured else "-",
            f"[{row['low']:.3f}, {row['high']:.3f}]" if "low" in row else "",
            ("yes" if row["met"] else "no") if measured else "not measured",
            row.get("of", ""),
        )
    return shown
