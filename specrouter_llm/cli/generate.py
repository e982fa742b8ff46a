"""`specrouter generate`."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specrouter_llm.bench.workloads import read_text
from specrouter_llm.cli.options import PoolOptions, said
from specrouter_llm.types import Completion


def run(
    prompt: str,
    pool: PoolOptions,
    *,
    chain: Sequence[str] | None,
    windows: Sequence[int] | None,
    speculation: bool,
    raw: bool,
    system: str | None,
    documents: Sequence[Path],
    sampling: Mapping[str, Any],
    as_json: bool,
) -> None:
    """Streams the answer to stdout and its statistics to stderr."""
    text = sys.stdin.read() if prompt == "-" else prompt
    sources = [read_text(path) for path in documents]
    policy = "adaptive" if chain is None and speculation else "off"  # else there is nothing to measure models for
    with pool.engine(progress=not as_json and sys.stderr.isatty(), max_batch=1, policy=policy) as engine:
        plain = raw or engine.tokenizer is None or engine.tokenizer.chat_template is None
        messages = [*([{"role": "system", "content": system}] if system else []), {"role": "user", "content": text}]
        handle = engine.stream(
            text if plain else messages,
            chain=chain,
            windows=windows,
            speculation=None if speculation else False,
            draft_sources=sources,
            **said(sampling),
        )
        for delta in handle:
            if not as_json:
                sys.stdout.write(delta.text)
                sys.stdout.flush()
        completion = handle.result()[0]
    if as_json:
        print(json.dumps(as_dict(completion)))
    else:
        sys.stdout.write("\n")
        print(summary(completion), file=sys.stderr)


def as_dict(completion: Completion) -> dict[str, Any]:
    """A completion as plain JSON types."""
    plain = {name: getattr(completion, name) for name in ("text", "token_ids", "finish_reason", "stop_reason", "seed")}
    stats = dataclasses.asdict(completion.stats)
    stats["draft_acceptance_rate"] = completion.stats.draft_acceptance_rate
    stats["mean_acceptance_length"] = completion.stats.mean_acceptance_length
    usage = {**dataclasses.asdict(completion.usage), "total_tokens": completion.usage.total_tokens}
    timings = dataclasses.asdict(completion.timings)
    return {
        **plain,
        "guarantee": completion.guarantee,
        "usage": usage,
        "speculative_decoding": stats,
        "timings": timings,
    }


def summary(completion: Completion) -> str:
    """One line about how an answer came about."""
    stats, timings = completion.stats, completion.timings
    stages = ", ".join(f"{s.model} {s.accepted}/{s.proposed}" for s in stats.chain[:-1]) or "none"
    return (
        f"{completion.usage.completion_tokens} tokens, {timings.tokens_per_second:.1f} tokens/s, "
        f"{stats.mean_acceptance_length:.2f} tokens per target step; accepted/drafted: {stages}; "
        f"ended by {completion.finish_reason}, seed {completion.seed}"
    )
