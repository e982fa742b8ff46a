"""Formats of strings, written so that what the backend lets through is what readers accept."""

from __future__ import annotations

from typing import Any

_ANNOTATIONS = frozenset({"path", "password", "binary"})
"""Formats that no string violates, and that the backend does not know: they say what a string is for.

path is pydantic's for `Path`, and every string is a path, there or not; password is OpenAPI's, and pydantic's for
`SecretStr` and `SecretBytes`, and asks forms to hide it; binary is OpenAPI's for any bytes, and pydantic's for `bytes`, which
takes the UTF-8 of the string (from a class that wants base64 comes another format). Nothing else is among them: file-path
asks for a file that is there, and base64, color, regex, uri-reference, ... for a text that not every string is.
"""
_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_FOURTHS = "(?:0[48]|[2468][048]|[13579][26])"
_LEAP_YEAR = f"(?:[0-9]{{2}}{_FOURTHS}|{_FOURTHS}00)"
_DATE = f"(?:{_YEAR}-(?:0[13-9]-..|1.-..|02-[01].|02-2[0-8])|{_LEAP_YEAR}-02-29)"
_SECONDS = "..:..:[0-5]"
_PATTERNS = {
    "date": f"^{_DATE}$",
    "date-time": f"^{_DATE}[tT]{_SECONDS}",
    "time": f"^{_SECONDS}",
}
"""What holds beside the format: the backend's has a year 0, a 29th of February each year, and a 60th second, none of which
Python's classes have."""


def spelled(node: dict[str, Any]) -> dict[str, Any]:
    """One schema without what is inside it."""
    form = node.get("format")
    if not isinstance(form, str):
        return node
    if form in _ANNOTATIONS:
        return {key: value for key, value in node.items() if key != "format"}
    if form in _PATTERNS and "pattern" not in node:
        return {**node, "pattern": _PATTERNS[form]}
    return node
