"""Bounds of numbers, written so that the backend keeps them, in what is parsed, too.

The backend compares decimals. Behind an exclusive bound it lets digits follow that a double does not hold (0.5 and 30
zeros and a 1 is more than 0.5 until it is parsed), and it takes the integer 0 for more than an exclusive 0 where the
other bound is less than 1. Bounds of more than 15 digits it may read as the next double. Two decimals of at most 15
digits are two doubles, so a bound becomes an inclusive one of so many digits that lies a little inside.

A bound that numbers grow towards is left as it is where it can be, and digits are counted instead (`multipleOf`): below
an inclusive 0.499999999 the backend would refuse "0.4" for want of a digit, and it is what a model would write.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from specrouter_llm.errors import UnsupportedSchemaError

_PLACES = 9
"""Digits behind the point, at most."""
_DIGITS = 15
"""Of a decimal that no other one of so many is parsed to the same double as."""
_STEP = 1e-9
_STEPPED = 10 ** (_DIGITS - _PLACES)
"""Numbers below have no more digits in front of the point than multiples of the step may have."""
_FARTHEST = 2**63 - 1024
"""The last double before 2**63, from where on the backend refuses bounds or takes the nearest that it can count to."""
_BOUNDS = (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1))
"""What it is called, what it becomes, which way is inside."""


def within_reach(node: dict[str, Any], name: str) -> dict[str, Any]:
    """One schema without what is inside it, whose bounds the backend can count to: a wider range becomes what it can reach.

    Raises:
        UnsupportedSchemaError: nothing is left of the range.
    """
    reached = {}
    for exclusive, inclusive, inward in _BOUNDS:
        for key in (exclusive, inclusive):
            bound: Any = node.get(key)
            if not _is_number(bound):
                continue
            if inward * bound > _FARTHEST:
                raise UnsupportedSchemaError(
                    f"{name}: this cannot be enforced: {key}={bound}; no number beyond {_FARTHEST} can be written"
                )
            reached[key] = inward * max(inward * bound, -_FARTHEST)
    return {**node, **reached}


def narrowed(node: dict[str, Any], name: str, *, steps: bool) -> dict[str, Any]:
    """One schema without what is inside it, `steps` if it may count digits. Integers, and what is no bound, stay as they are.

    Raises:
        UnsupportedSchemaError: nothing is left between two bounds.
    """
    asked = {key: node[key] for bound in _BOUNDS for key in bound[:2] if key in node}
    if not _may_be_fraction(node) or not all(_is_number(value) for value in asked.values()) or _is_empty(asked):
        return node
    written, reach = dict(node), dict(asked)
    for exclusive, inclusive, inward in _BOUNDS:
        if inclusive in asked and _is_long(asked[inclusive]):
            written[inclusive] = reach[inclusive] = _inside(asked[inclusive], inward, beyond=False)
        if exclusive not in asked:
            continue
        bound = reach.pop(exclusive)
        inside = _inside(bound, inward, beyond=True)
        reach[inclusive] = inward * max(inward * inside, inward * reach.get(inclusive, inside))
        if steps and inward * bound < 0 and abs(bound) < _STEPPED and not _is_long(bound):
            written["multipleOf"] = _STEP
        else:
            del written[exclusive]
            written[inclusive] = reach[inclusive]
    if len(reach) == 2 and reach["minimum"] > reach["maximum"]:
        bounds = " and ".join(f"{key}={value}" for key, value in asked.items())
        raise UnsupportedSchemaError(
            f"{name}: this cannot be enforced: no number of {_PLACES} decimals is within {bounds}"
        )
    return written


def _may_be_fraction(node: Mapping[str, Any]) -> bool:
    """Whether it is about numbers that are not listed one by one."""
    kinds = node.get("type", "number")
    listed = kinds if isinstance(kinds, list) else [kinds]
    return "number" in listed and "enum" not in node and "const" not in node


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_long(bound: float) -> bool:
    """Whether the backend may read it as the next double."""
    return Fraction(f"{bound:.{_DIGITS}g}") != Fraction(str(bound))


def _inside(bound: float, inward: int, *, beyond: bool) -> float:
    """The next decimal of `_PLACES`, or of `_DIGITS` if these are fewer: `beyond` a bound, or at it."""
    places = min(_PLACES, _DIGITS - len(str(int(abs(bound)))))
    step = Fraction(10) ** -places
    steps = inward * Fraction(str(bound)) / step
    number = inward * step * (math.floor(steps) + 1 if beyond else math.ceil(steps))
    return int(number) if number.denominator == 1 else float(number)


def _is_empty(asked: Mapping[str, float]) -> bool:
    """Whether an upper bound is not above a lower one; the backend finds that itself."""
    lower = [value for key, value in asked.items() if key.endswith("inimum")]
    return any(value <= max(lower) for key, value in asked.items() if lower and key.endswith("aximum"))
