"""Files that commands write: their paths are checked before any work, for a result that cannot be written would be lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from specrouter_llm.errors import InvalidParameterError, SpecRouterError

PAGES = (".html", ".htm")


def checked_file(path: Path | None) -> Path | None:
    """A file that can be written, as far as that can be told before it is.

    Raises:
        InvalidParameterError: it is a folder, or cannot be made.
    """
    if path is None:
        return None
    if os.path.isdir(path):
        raise InvalidParameterError(f"{path} is a folder: give the name of a file to write")
    _check_writable(path)
    return path


def checked_folder(path: Path) -> Path:
    """A folder that files can be written to; it need not be there.

    Raises:
        InvalidParameterError: it is a file, or cannot be made.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        raise InvalidParameterError(f"{path} is a file: give a folder to write to")
    _check_writable(path)
    return path


def checked_plot(path: Path | None) -> Path | None:
    """A file that a plot can be drawn to. Raises as `checked_file` and `check_plot`."""
    from specrouter_llm.bench.plots import check_plot

    check_plot(path)
    return checked_file(path)


def checked_page(path: Path) -> Path:
    """A file for an HTML page; its ending is asked for, since who forgets the page gives a result in its place.

    Raises:
        InvalidParameterError: it is none, or cannot be written.
    """
    if path.suffix.lower() not in PAGES:
        raise InvalidParameterError(
            f"the page comes first, then the results: its name ends in {' or '.join(PAGES)}, got {path.name!r}"
        )
    checked_file(path)
    return path


def _check_writable(path: Path) -> None:
    """What is there of a path has to let files be made, or be written if it is one. `os.path` takes what may not be looked
    at for missing, where `Path` raises."""
    there = next(each for each in (path, *path.absolute().parents) if os.path.exists(each))
    if there != path and not os.path.isdir(there):
        raise InvalidParameterError(f"{path} cannot be written: {there} is not a folder")
    if not os.access(there, os.W_OK):
        raise InvalidParameterError(f"{path} cannot be written: no permission for {there}")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Around what writes a file: what the system refuses all the same is told in one line.

    Raises:
        SpecRouterError: it could not be written.
    """
    try:
        yield
    except OSError as error:
        raise SpecRouterError(f"{path} could not be written: {error.strerror or error}") from None
