"""`specrouter verify`: the router and every chain against plain decoding on the user's own pool and prompts."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from specrouter_llm.bench.identity import Comparison
from specrouter_llm.bench.models import encode
from specrouter_llm.cli.experiment import keep, texts_of
from specrouter_llm.cli.options import PoolOptions
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.types import Completion
from specrouter_llm.verification.near_tie import usual_epsilon

ROUTED = "routed"
"""Whatever the adaptive policy chooses: what requests without a chain get."""


@dataclass(slots=True)
class Report:
    """What one way of decoding did on all prompts."""

    chain: str
    outputs: Comparison = field(default_factory=Comparison)
    drafted: int = 0
    accepted: int = 0

    def row(self) -> dict[str, Any]:
        """As plain values."""
        found = asdict(self.outputs)
        return {
            "chain": self.chain,
            "requests": self.outputs.requests,
            **found,
            "drafted": self.drafted,
            "accepted": self.accepted,
        }


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
    texts = texts_of(prompts, limit)
    asked = SamplingParams(**sampling)
    quiet = as_json or not sys.stderr.isatty()
    with pool.engine(progress=not quiet, max_batch=batch, policy="fixed" if chains else "adaptive") as engine:
        params = asked.over(engine.default_params)  # what acts is what a first difference is judged by
        dtype = engine.dtype
        bound = epsilon if epsilon is not None else usual_epsilon(dtype)
        ids = [encode(engine, text, raw=raw) for text in texts]
        chosen = [list(chain) for chain in chains] if chains else [None, *all_chains(engine)]
        reports = []
        with Progress(console=Console(stderr=True), disable=quiet) as progress:
            task = progress.add_task("Plain decoding", total=len(chosen) + 1 + with_transformers)
            plain = engine.generate(ids, params, speculation=False)
            progress.advance(task)
            for chain in chosen:
                name = " > ".join(chain) if chain else ROUTED
                progress.update(task, description=name)
                completions = engine.generate(ids, params, chain=chain)
                reports.append(compare(engine, ids, params, plain, completions, name, bound))
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
    rows = [report.row() for report in reports]
    if as_json:
        print(json.dumps({**head, "reports": rows}))
    else:
        _show(reports, head)
    keep("verify", head, rows, out)
    return 1 if any(report.outputs.different for report in reports) else 0


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
) -> Report:
    """Counts what is identical, and how near a tie every first difference is."""
    report = Report(name)
    for prompt, expected, other in zip(prompts, plain, others, strict=True):
        if isinstance(other, Completion):
            tokens = other.raise_for_error().token_ids
            report.drafted += other.stats.num_draft_tokens
            report.accepted += other.stats.num_accepted_draft_tokens
        else:
            tokens = other
        report.outputs.add(engine, prompt, params, expected, tokens, epsilon)
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


def _show(reports: Sequence[Report], head: Mapping[str, Any]) -> None:
    table = Table(title=f"{head['target']}, {head['dtype']}: against plain decoding of the same engine")
    for column in ("chain", "requests", "identical", "near-ties", "different", "largest margin", "accepted/drafted"):
        table.add_column(column, justify="left" if column == "chain" else "right")
    for r in reports:
        found = r.outputs
        size = f"{found.largest_margin:.2g}" if found.identical < found.requests else "-"
        counts = [str(n) for n in (found.requests, found.identical, found.near_ties, found.different)]
        table.add_row(r.chain, *counts, size, f"{r.accepted}/{r.drafted}" if r.drafted else "-")
    console = Console()
    console.print(table)
    console.print(
        f"A near-tie is a first difference that a change of the logits by at most {head['epsilon']:g} explains. "
        f"Reported guarantee: {head['guarantee']}."
    )
