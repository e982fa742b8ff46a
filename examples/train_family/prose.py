"""Text that is on every machine with Python: the documentation inside its standard library (PSF licence)."""

from __future__ import annotations

import ast
import re
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_SKIPPED = {"test", "tests", "idlelib", "lib2to3", "site-packages", "__pycache__", "turtledemo", "pydoc_data"}
_SENTENCE = re.compile(r"[A-Z][A-Za-z0-9 ,'()_-]{30,160}\.")


@cache
def docstrings() -> tuple[str, ...]:
    """Every docstring of the standard library's modules, classes and functions, in the order of its files."""
    return tuple(dict.fromkeys(text for path in _files() for text in _docstrings(path)))


@cache
def sentences() -> tuple[str, ...]:
    """The plain sentences in them: 30 to 160 characters, letters, digits and little punctuation."""
    found = (
        re.sub(r"\s+", " ", sentence)
        for text in docstrings()
        for sentence in _SENTENCE.findall(re.sub(r"\s+", " ", text))
    )
    return tuple(dict.fromkeys(found))


def _files() -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"])
    return sorted(path for path in root.rglob("*.py") if not _SKIPPED & set(path.relative_to(root).parts))


def _docstrings(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, OSError):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            text = ast.get_docstring(node)
            if text and 80 < len(text) < 1500 and text.isascii():
                yield text
