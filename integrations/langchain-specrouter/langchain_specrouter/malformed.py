"""The arguments of malformed calls, marked as what no object can be read from.

LangChain reads the arguments of merged chunks as if more of them were to come: it closes what is open, and half a call
would be a call that agents run. What follows a bracket that closes another kind than was opened it does not read.
"""

from __future__ import annotations

_MARK = '[}"[}'
"""Such brackets, wherever the text before ends: outside of a string, or within one, which the quote leads out of."""


def marked(arguments: str) -> str:
    """The arguments for LangChain's chunks."""
    return arguments + _MARK


def unmarked(arguments: str) -> str:
    """The arguments as the model wrote them."""
    return arguments.removesuffix(_MARK)
