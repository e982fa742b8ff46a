"""What can be done with the result of any experiment: read it, tell its rows apart, show it again.

An experiment is the module of this room that has its name; `table(rows)` shows it, `plot(rows, path)`, where there is one,
draws it.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from rich.table import Table

from specrouter_llm.bench.result import FORMAT
from specrouter_llm.errors import InvalidParameterError, SpecRouterError

KEYS: dict[str, tuple[str, ...]] = {
    "acceptance": ("workload", "temperature", "chain", "windows", "lower", "upper"),
    "batch": ("batch", "contestant"),
    "calibration": ("drafter", "noise", "temperature"),
    "gpu": ("figure",),
    "match": ("temperature", "lower", "upper"),
    "memory": ("depth",),
    "off": ("batch",),
    "overhead": ("part", "models", "way"),
    "rejection": ("temperature", "label"),
    "speed": ("workload", "contestant"),
    "step": ("runner", "tokens"),
    "strict": ("mode", "way"),
    "verify": ("chain",),
}
"""The fields that tell an experiment's rows apart; those that hold text, for other experiments."""


def read_result(path: Path) -> dict[str, Any]:
    """A result as `write_result` wrote it.

    Raises:
        InvalidParameterError: no such file, or not a result of this format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidParameterError(f"{path} cannot be read as a result: {error}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT or not _is_whole(content):
        raise InvalidParameterError(f"{path} is not a result of `specrouter bench` in format {FORMAT}")
    return content


_FIELDS = {"experiment": str, "command": str, "machine": dict, "settings": dict, "rows": list}


def _is_whole(content: Mapping[str, Any]) -> bool:
    """Whether every field is there, and of its kind."""
    kinds = all(isinstance(content.get(name), kind) for name, kind in _FIELDS.items())
    return kinds and all(isinstance(row, dict) for row in content["rows"])


@contextmanager
def showing(what: object) -> Iterator[None]:
    """Around what reads the rows of a result: another program, or hand, may have left fields out.

    Raises:
        InvalidParameterError: they are not what the experiment writes.
    """
    try:
        yield
    except SpecRouterError:
        raise
    except (LookupError, ArithmeticError, AttributeError, TypeError, ValueError) as error:
        raise InvalidParameterError(f"the rows of {what} cannot be shown: {error!r}") from None


def row_key(experiment: str, row: Mapping[str, Any]) -> str:
    """What a row is about, for people and for finding its like."""
    names = KEYS.get(experiment) or [name for name, value in row.items() if isinstance(value, str)]
    values = [row[name] for name in names if name in row]  # an experiment of two parts has two kinds of rows
    return ", ".join(" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values)


def module_of(experiment: str) -> ModuleType | None:
    """The experiment's module, if it still has one that can show its rows."""
    if not experiment.isidentifier():
        return None
    try:
        module = importlib.import_module(f"specrouter_llm.bench.{experiment}")
    except ModuleNotFoundError:
        return None
    return module if hasattr(module, "table") else None


def table_of(content: Mapping[str, Any]) -> Any:
    """A result as its experiment shows it, else its plain fields; an empty table of one that failed."""
    module = module_of(content["experiment"]) if content["rows"] else None
    return module.table(content["rows"]) if module is not None else _plain_table(content["rows"])


def _plain_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    names = [name for name, value in rows[0].items() if not isinstance(value, (dict, list))] if rows else []
    shown = Table()
    for name in names:
        shown.add_column(name)
    for row in rows:
        shown.add_row(*(str(row.get(name, "")) for name in names))
    return shown
