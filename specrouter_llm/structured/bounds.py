"""Exclusive bounds of numbers, written so that the backend keeps them in what is parsed, too.

The backend compares decimals. Behind an exclusive bound it lets digits follow that a double does not hold (0.5 and 30
zeros and a 1 is more than 0.5 until it is parsed), and it takes the integer 0 for more than an exclusive 0 where the
other bound is less than 1. Bounds of more than 15 digits it may read as the next double. Two decimals of at most 15
digits are two doubles, so a bound becomes an inclusive one of so many digits that lies a little inside.

A bound that numbers grow towards is left as it is where it can be, and digits are counted instead (`multipleOf`): below
an inclusive 0.499999999 the backend would refuse "0.4" for want of a digit, and it is what a model would write.
"""

from __future__ import annotations

import json
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
_UNCOMPILED = 2**63
"""The backend refuses bounds from here on."""
_BOUNDS = (("exclusiveMinimum", "minimum", 1), ("exclusiveMaximum", "maximum", -1))
"""What it is called, what it becomes, which way is inside."""
_NO_SCHEMAS = frozenset({"const", "default", "enum", "examples", "not"})
"""Keywords that hold values; and of what must not be valid, less must not be left."""
_BY_NAME = frozenset({"$defs", "definitions", "dependentSchemas", "patternProperties", "properties"})
"""Keywords that hold schemas by names, which are no keywords."""


def kept_by_backend(schema: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A schema whose values are all valid under the given one, called `name` in messages, also after parsing to doubles.

    Raises:
        UnsupportedSchemaError: nothing is left between two bounds.
    """
    # The backend multiplies steps that meet in one number, and overflows without a word.
    return dict(_walked(dict(schema), name, steps='"multipleOf"' not in json.dumps(schema)))


def _walked(node: Any, name: str, *, steps: bool) -> Any:
    """A schema, a list of some, or something else, with everything inside."""
    if isinstance(node, list):
        return [_walked(each, name, steps=steps) for each in node]
    if not isinstance(node, dict):
        return node
    walked = {}
    for key, value in _narrowed(node, name, steps=steps).items():
        if key in _BY_NAME and isinstance(value, dict):
            walked[key] = {each: _walked(inner, name, steps=steps) for each, inner in value.items()}
        else:
            walked[key] = value if key in _NO_SCHEMAS else _walked(value, name, steps=steps)
    return walked


def _narrowed(node: dict[str, Any], name: str, *, steps: bool) -> dict[str, Any]:
    """One schema without what is inside it. What the backend will refuse, and integers, it gets as they are."""
    asked = {key: node[key] for bound in _BOUNDS for key in bound[:2] if key in node}
    if not _may_be_fraction(node) or not all(_is_bound(value) for value in asked.values()) or _is_empty(asked):
        return node
    narrowed, reach = dict(node), dict(asked)
    for exclusive, inclusive, inward in _BOUNDS:
        if inclusive in asked and _is_long(asked[inclusive]):
            narrowed[inclusive] = reach[inclusive] = _inside(asked[inclusive], inward, beyond=False)
        if exclusive not in asked:
            continue
        bound = reach.pop(exclusive)
        inside = _inside(bound, inward, beyond=True)
        reach[inclusive] = inward * max(inward * inside, inward * reach.get(inclusive, inside))
        if steps and inward * bound < 0 and abs(bound) < _STEPPED and not _is_long(bound):
            narrowed["multipleOf"] = _STEP
        else:
            del narrowed[exclusive]
            narrowed[inclusive] = reach[inclusive]
    if len(reach) == 2 and reach["minimum"] > reach["maximum"]:
        bounds = " and ".join(f"{key}={value}" for key, value in asked.items())
        raise UnsupportedSchemaError(
            f"{name}: this cannot be enforced: no number of {_PLACES} decimals is within {bounds}"
        )
    return narrowed


def _may_be_fraction(node: Mapping[str, Any]) -> bool:
    """Whether it is about numbers that are not listed one by one."""
    kinds = node.get("type", "number")
    listed = kinds if isinstance(kinds, list) else [kinds]
    return "number" in listed and "enum" not in node and "const" not in node


def _is_bound(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < _UNCOMPILED


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
