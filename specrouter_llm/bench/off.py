"""`specrouter bench off`: what drafters that are not used cost: `speculation=False` against an engine without drafters.

Both engines run the same target object. A third engine, without drafters like the second, shows what the machine makes of
no difference at all. The three take turns, the order rotating from round to round, each round on prompts of its own.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

from rich.table import Table

from specrouter_llm.bench.bootstrap import Interval, median_of_ratios
from specrouter_llm.bench.models import Models, encode
from specrouter_llm.bench.texts import TextPrompt
from specrouter_llm.config import ModelSpec
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.pool.demo import DEMO, DEMO_MEMBERS
from specrouter_llm.pool.pool import ModelPool

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}


def measure(
    models: Models,
    texts: Sequence[TextPrompt],
    *,
    batches: Sequence[int] = (1, 4),
    pairs: int = 30,
    max_tokens: int = 64,
    advance: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """One row per batch size: ratios of times of with / without drafters, and without / without."""
    alone = ModelPool.load(
        models.target, [], dtype=models.dtype, device=models.device, max_batch=max(batches), progress=False
    )
    member = alone.target
    shared = replace(models, target=ModelSpec(member.model, name=member.name, tokenizer=member.tokenizer))
    drafts = models.drafts if models.drafts is not None else _family_of(models)
    rows = []
    for batch in batches:
        with ExitStack() as stack:
            engines = {
                "with": stack.enter_context(replace(shared, drafts=drafts).engine(max_batch=batch)),
                "without": stack.enter_context(replace(shared, drafts=()).engine(max_batch=batch)),
                "control": stack.enter_context(replace(shared, drafts=()).engine(max_batch=batch)),
            }
            prompts = [encode(engines["with"], text) for text in texts]
            rows.append(_measure_batch(engines, prompts, batch, pairs, max_tokens, advance))
    alone.close()
    return rows


def _family_of(models: Models) -> Sequence[Any] | None:
    """The drafters that `models` would get by default; a loaded target has no family any more."""
    return tuple(f"{DEMO}/{name}" for name in DEMO_MEMBERS[1:]) if models.target == DEMO else None


def _measure_batch(
    engines: Mapping[str, SpecRouter],
    prompts: Sequence[list[int]],
    batch: int,
    pairs: int,
    max_tokens: int,
    advance: Callable[[str], None],
) -> dict[str, Any]:
    supply = itertools.cycle(prompts)
    seconds: dict[str, dict[str, list[float]]] = {name: {clock: [] for clock in CLOCKS} for name in engines}
    outputs_differ = 0
    names = list(engines)
    for turn in range(-2, pairs):  # the first two rounds warm up
        work = list(itertools.islice(supply, batch))
        outputs = []
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            before = {clock: read() for clock, read in CLOCKS.items()}
            completions = engines[name].generate(work, max_tokens=max_tokens, ignore_eos=True, speculation=False)
            if turn >= 0:
                for clock, read in CLOCKS.items():
                    seconds[name][clock].append(read() - before[clock])
            outputs.append([completion.raise_for_error().token_ids for completion in completions])
        outputs_differ += any(output != outputs[0] for output in outputs)
        advance(f"batch {batch}")
    row: dict[str, Any] = {"batch": batch, "pairs": pairs, "tokens": max_tokens, "outputs_differ": outputs_differ}
    for clock in CLOCKS:
        without = seconds["without"][clock]
        row[clock] = {
            "with_over_without": median_of_ratios(seconds["with"][clock], without).as_dict(),
            "control": median_of_ratios(seconds["control"][clock], without).as_dict(),
            "seconds": {name: [round(value, 5) for value in seconds[name][clock]] for name in engines},
        }
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for people."""
    shown = Table(title="speculation=False with drafters loaded / an engine without drafters: median ratio of times")
    for column in ("batch", "pairs", "clock", "with / without", "control (without / without)"):
        shown.add_column(column, justify="right")
    for row in rows:
        for clock in CLOCKS:
            shown.add_row(
                str(row["batch"]),
                str(row["pairs"]),
                clock,
                str(Interval(**row[clock]["with_over_without"])),
                str(Interval(**row[clock]["control"])),
            )
    return shown
