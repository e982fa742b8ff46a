"""`specrouter bench checkpoints`: a family as folders on disk, stored as most models are that people download: in 16 bits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from specrouter_llm.bench.models import Models

STORED = ("float16", "bfloat16", "float32")


def write_checkpoints(
    models: Models, folder: Path, stored: str, *, advance: Callable[[str], None] = lambda what: None
) -> list[Path]:
    """One folder for each model, the target first, its weights rounded to `stored`. Widened ones say so in their names.

    Raises:
        InvalidParameterError: `stored` is no dtype.
    """
    pool = replace(models, dtype=stored).pool()
    paths = []
    try:
        for member in pool.members.values():
            path = folder / (member.name.rpartition("/")[2] + ("-widened" if member.widened else ""))
            member.model.save_pretrained(path)
            if member.tokenizer is not None:
                member.tokenizer.save_pretrained(path)
            paths.append(path)
            advance(path.name)
    finally:
        pool.close()
    return paths
