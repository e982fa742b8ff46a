"""Results on disk: one JSON object per run, with what it takes to judge it and to run it again."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from specrouter_llm.bench.machine import command_line, machine

FORMAT = 1


def result(
    experiment: str, settings: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], argv: Sequence[str] | None = None
) -> dict[str, Any]:
    """One run as plain JSON types: `rows` are what the table shows, `settings` what the run depended on."""
    return {
        "experiment": experiment,
        "format": FORMAT,
        "command": command_line(sys.argv if argv is None else argv),
        "machine": machine(),
        "settings": dict(settings),
        "rows": [dict(row) for row in rows],
    }


def write_result(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a result, making its folder if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
