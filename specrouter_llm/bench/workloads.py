"""Workloads: prompts with a temperature and a length, built in or read from the published files of known data sets.

    GSM8K       JSONL, {"question": ...}                HumanEval   JSONL, {"prompt": ...}
    MT-Bench    JSONL, {"turns": [...], "category": ...}  MGSM      TSV, question<TAB>answer
    Spec-Bench  JSONL, {"turns": [...], "category": ...}  others    JSONL with a text field, or a prompt per line

Of a conversation the first turn is used: the later ones need answers. `FILE#CATEGORY` keeps one category of a file.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from specrouter_llm.bench.texts import PROMPTS, TextPrompt
from specrouter_llm.errors import InvalidParameterError

FIELDS = ("question", "prompt", "text", "turns")
MIX = "mix"
"""The name of all workloads of a run in one stream."""
_TEMPERATURES = {"stories": 1.0}
_MAX_TOKENS = 64

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Workload:
    """Prompts that are answered under the same conditions."""

    name: str
    prompts: tuple[TextPrompt, ...]
    """Text, or the messages of a chat."""
    temperature: float = 0.0
    max_tokens: int = _MAX_TOKENS


def workload(source: str, limit: int, *, temperature: float | None = None, max_tokens: int | None = None) -> Workload:
    """The first prompts of a built-in workload, or of FILE or FILE#CATEGORY; files are greedy unless told otherwise.

    Raises:
        InvalidParameterError: neither a built-in name nor a file with prompts.
    """
    if source in PROMPTS:
        name, prompts = source, list(PROMPTS[source][:limit])
    else:
        file, category = _located(source, f"; built-in workloads: {', '.join(PROMPTS)}, and {MIX} of all")
        name = f"{file.stem}#{category}" if category else file.stem
        prompts = read_prompts(source, limit)
    chosen = temperature if temperature is not None else _TEMPERATURES.get(source, 0.0)
    return Workload(name, tuple(prompts), chosen, max_tokens if max_tokens is not None else _MAX_TOKENS)


def built_in_prompts(limit: int) -> list[TextPrompt]:
    """Prompts of all built-in workloads, one of each in turn."""
    return in_turn(list(PROMPTS.values()))[:limit]


def in_turn(lists: Sequence[Sequence[T]]) -> list[T]:
    """The first of each, the second of each, ...; lists that have ended are passed over."""
    longest = max((len(each) for each in lists), default=0)
    return [each[i] for i in range(longest) for each in lists if i < len(each)]


def read_prompts(source: str | Path, limit: int) -> list[TextPrompt]:
    """The first prompts of FILE, or of one category with FILE#CATEGORY.

    Raises:
        InvalidParameterError: no such file, or nothing usable in it.
    """
    file, category = _located(source)
    lines = (line for line in read_text(file).split("\n") if line.strip())
    found = (_prompt_of(line, file.suffix.lower(), category) for line in lines)
    prompts: list[TextPrompt] = list(itertools.islice((text for text in found if text), limit))
    if not prompts:
        raise InvalidParameterError(f"{source} holds no prompts")
    return prompts


def read_text(file: Path) -> str:
    """All of a text file.

    Raises:
        InvalidParameterError: it cannot be read, or is not UTF-8.
    """
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InvalidParameterError(f"{file} is not UTF-8 text ({error}): convert it, or give another file") from None
    except OSError as error:
        raise InvalidParameterError(f"{file} cannot be read: {error.strerror or error}") from None


def _located(source: str | Path, hint: str = "") -> tuple[Path, str]:
    """The file and the category of FILE or FILE#CATEGORY."""
    name, category = str(source), ""
    if not Path(name).is_file() and "#" in name:
        name, _, category = name.rpartition("#")
    if not Path(name).is_file():
        raise InvalidParameterError(f"there is no prompt file {name}{hint}")
    return Path(name), category


def _prompt_of(line: str, suffix: str, category: str) -> str | None:
    """A line's prompt; None if it is of another category."""
    if suffix == ".tsv":
        return line.split("\t")[0].strip()
    if suffix not in {".jsonl", ".json"}:
        return line.strip()
    record = _record(line)
    if category and record.get("category") != category:
        return None
    for name in FIELDS:
        value = record.get(name)
        if value:
            return str(value[0] if isinstance(value, list) else value)
    raise InvalidParameterError(f"a line of the prompt file has none of the fields {', '.join(FIELDS)}: {line[:80]!r}")


def _record(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise InvalidParameterError(f"a line of the prompt file is not JSON ({error}): {line[:80]!r}") from None
    if not isinstance(record, dict):
        raise InvalidParameterError(f"a line of the prompt file is not a JSON object: {line[:80]!r}")
    return record
