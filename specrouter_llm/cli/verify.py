"""`specrouter verify`: every chain against plain decoding on the user's own pool and prompts."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from specrouter_llm.bench.identity import first_margin
from specrouter_llm.bench.models import encode
from specrouter_llm.bench.result import result, write_result
from specrouter_llm.bench.workloads import built_in_prompts, read_prompts
from specrouter_llm.cli.options import PoolOptions
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.types import Completion
from specrouter_llm.verification.near_tie import EPSILON


@dataclass(slots=True)
class ChainReport:
    """What one chain did on all prompts."""

    chain: str
    requests: int = 0
    identical: int = 0
    near_ties: int = 0
    different: int = 0
    largest_margin: float = 0.0
    """Largest change of the logits that a first difference needed."""
    drafted: int = 0
    accepted: int = 0


def run(
    pool: PoolOptions,
    *,
    prompts: Path | None,
    limit: int,
    chains: Sequence[Sequence[str]] | None,
    raw: bool,
    sampling: Mapping[str, Any],
    batch: int,
    epsilon: float | None,
    with_transformers: bool,
    as_json: bool,
    out: Path | None = None,
) -> int:
    """Prints a table (or JSON), and writes a result to `out`. Returns 0 if all is identical or a near-tie, else 1."""
    texts = read_prompts(prompts, limit) if prompts is not None else built_in_prompts(limit)
    params = SamplingParams(**sampling)
    quiet = as_json or not sys.stderr.isatty()
    with pool.engine(progress=not quiet, max_batch=batch, policy="fixed") as engine:
        dtype = engine.dtype
        bound = epsilon if epsilon is not None else EPSILON.get(dtype, EPSILON["bfloat16"])
        ids = [encode(engine, text, raw=raw) for text in texts]
        chosen = [list(chain) for chain in chains] if chains else all_chains(engine)
        reports = []
        with Progress(console=Console(stderr=True), disable=quiet) as progress:
            task = progress.add_task("Plain decoding", total=len(chosen) + 1 + with_transformers)
            plain = engine.generate(ids, params, speculation=False)
            progress.advance(task)
            for chain in chosen:
                progress.update(task, description=" > ".join(chain))
                completions = engine.generate(ids, params, chain=chain)
                reports.append(compare(engine, ids, params, plain, completions, " > ".join(chain), bound))
                progress.advance(task)
            if with_transformers:
                progress.update(task, description="transformers")
                theirs = _transformers_tokens(pool, engine, ids, params)
                reports.append(compare(engine, ids, params, plain, theirs, "transformers generate", bound))
        head = {
            "target": engine.labels[engine.target],
            "dtype": dtype,
            "guarantee": engine.guarantee,
            "epsilon": bound,
        }
    rows = [asdict(report) for report in reports]
    if out is not None:
        write_result(out, result("verify", head, rows))
    if as_json:
        print(json.dumps({**head, "reports": rows}))
    else:
        _show(reports, head)
    return 1 if any(report.different for report in reports) else 0


def all_chains(engine: SpecRouter) -> list[list[str]]:
    """Every combination of levels below the target, lowest first."""
    below = engine.levels[:-1]
    return [list(c) for n in range(1, len(below) + 1) for c in itertools.combinations(below, n)]


def compare(
    engine: SpecRouter,
    prompts: Sequence[list[int]],
    params: SamplingParams,
    plain: Sequence[Completion],
    others: Sequence[Completion | tuple[int, ...]],
    name: str,
    epsilon: float,
) -> ChainReport:
    """Counts what is identical, and how near a tie every first difference is."""
    report = ChainReport(name)
    for prompt, expected, other in zip(prompts, plain, others, strict=True):
        report.requests += 1
        if isinstance(other, Completion):
            tokens = other.raise_for_error().token_ids
            report.drafted += other.stats.num_draft_tokens
            report.accepted += other.stats.num_accepted_draft_tokens
        else:
            tokens = other
        if tokens == expected.token_ids:
            report.identical += 1
            continue
        size = first_margin(engine, prompt, params, expected, tokens)
        report.largest_margin = max(report.largest_margin, size)
        if size <= epsilon:
            report.near_ties += 1
        else:
            report.different += 1
    return report


def _transformers_tokens(
    pool: PoolOptions, engine: SpecRouter, prompts: Sequence[list[int]], params: SamplingParams
) -> list[tuple[int, ...]]:
    """Greedy `generate` of transformers on a model of its own, one prompt at a time."""
    import torch

    from specrouter_llm.errors import InvalidParameterError

    if not params.greedy:
        raise InvalidParameterError("--transformers compares greedy decoding: leave the temperature at 0")
    model = pool.target_model()
    results = []
    for prompt in prompts:
        output = model.generate(
            torch.tensor([prompt], device=model.device),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long, device=model.device),
            max_new_tokens=min(params.max_tokens, engine.max_context - len(prompt)),
            do_sample=False,
            pad_token_id=0,
        )
        results.append(tuple(output[0, len(prompt) :].tolist()))
    return results


def _show(reports: Sequence[ChainReport], head: Mapping[str, Any]) -> None:
    table = Table(title=f"{head['target']}, {head['dtype']}: against plain decoding of the same engine")
    for column in ("chain", "requests", "identical", "near-ties", "different", "largest margin", "accepted/drafted"):
        table.add_column(column, justify="left" if column == "chain" else "right")
    for r in reports:
        size = f"{r.largest_margin:.2g}" if r.identical < r.requests else "-"
        counts = [str(n) for n in (r.requests, r.identical, r.near_ties, r.different)]
        table.add_row(r.chain, *counts, size, f"{r.accepted}/{r.drafted}" if r.drafted else "-")
    console = Console()
    console.print(table)
    console.print(
        f"A near-tie is a first difference that a change of the logits by at most {head['epsilon']:g} explains. "
        f"Reported guarantee: {head['guarantee']}."
    )
