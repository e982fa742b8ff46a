"""Bounds of numbers: what the grammar lets through is within them, also after parsing to doubles."""

from __future__ import annotations

import json
import math
import re
from fractions import Fraction

import jsonschema
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from specrouter_llm.errors import UnsupportedSchemaError
from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.structured.backend import check_schema
from specrouter_llm.structured.schema import kept_by_backend

BOUNDS = st.one_of(
    st.integers(-3, 3),
    st.integers(-(10**17), 10**17),
    st.decimals(-2, 2, places=2).map(float),
    st.floats(-1e7, 1e7).filter(lambda bound: bound == 0 or abs(bound) > 1e-20),
    st.sampled_from([0.1, 0.5, -0.5, 1e-9, -1e-9, 1 / 3, 1e15, -1e16, 123456.789]),
)
DIGITS = "01459"


def accepts(compiler, schema, text):
    """Whether the grammar of a schema lets a text through, with tokens that write it byte by byte."""
    grammar = compiler.compile(StructuredOutput(json_schema=schema))
    ids = {text: i for i, text in enumerate(grammar.texts) if len(text) == 1}
    return grammar.start.copy().closes([ids[bytes([byte])] for byte in text.encode()])


def plain(number):
    """A number as a decimal without an exponent, to 40 places."""
    scaled = round(Fraction(str(number)) * 10**40)
    whole, part = divmod(abs(scaled), 10**40)
    return f"{'-' * (scaled < 0)}{whole}.{part:040}".rstrip("0").rstrip(".")


def near(bound):
    """Spellings of a bound and of decimals around it, closer than doubles lie and farther."""
    text = plain(bound)
    point = text if "." in text else f"{text}."
    spelled = [text, f"{point}0", f"{point}{'0' * 28}1", *(f"{point}{digit}" for digit in DIGITS)]
    gap = abs(Fraction(str(bound))) or 1
    around = [Fraction(str(bound)) + sign * gap / 10**places for sign in (-1, 1) for places in (1, 3, 6, 9, 12, 17, 24)]
    spelled += [plain(value) for value in around]
    return [*spelled, *(each.removeprefix("-") for each in spelled if not float(each))]


@given(low=BOUNDS, high=BOUNDS, kinds=st.sampled_from(["exclusive", "minimum", "maximum", "least", "most"]))
@settings(max_examples=300, deadline=None)
def test_nothing_beyond_a_bound_is_let_through(compiler, low, high, kinds):
    """Spellings of bounds and of what lies close to them are valid after parsing wherever the grammar accepts them."""
    low, high = sorted((low, high))
    schema = {
        "exclusive": {"exclusiveMinimum": low, "exclusiveMaximum": high},
        "minimum": {"exclusiveMinimum": low, "maximum": high},
        "maximum": {"minimum": low, "exclusiveMaximum": high},
        "least": {"exclusiveMinimum": low},
        "most": {"exclusiveMaximum": high},
    }[kinds]
    assume(kinds in ("least", "most") or high - low > 1e-6 * max(1, abs(low), abs(high)))
    schema = {"type": "number", **schema}
    for text in [*near(low), *near(high), "0", "-0", "0.0", "-0.0"]:
        if accepts(compiler, schema, text):
            jsonschema.validate(float(text), schema)
            jsonschema.validate(json.loads(text), schema)


@given(
    low=st.integers(-300, 300), size=st.integers(1, 300), part=st.integers(1, 99), places=st.sampled_from([1, 10, 100])
)
@settings(max_examples=200, deadline=None)
def test_what_is_well_inside_is_let_through(compiler, low, size, part, places):
    """With as many digits as the bounds have, and no 0 at the end: the backend's own ranges ask for both in places."""
    schema = {"type": "number", "exclusiveMinimum": low / places, "exclusiveMaximum": (low + size) / places}
    value = Fraction(low * 100 + size * part, places * 100)
    for digits in (2, 3, 4):
        number = math.floor(value * 10**digits) / 10**digits
        text = f"{number:.{digits}f}"
        if schema["exclusiveMinimum"] < number < schema["exclusiveMaximum"] and text[-1] != "0":
            assert accepts(compiler, schema, text)


@pytest.mark.parametrize(
    ("bounds", "refused", "accepted"),
    [
        (
            {"exclusiveMinimum": 0, "exclusiveMaximum": 0.5},
            ["0", "0.5", "0.49999999999999999999"],
            ["0.1", "0.4", "0.49"],
        ),
        ({"exclusiveMinimum": 0, "maximum": 0.5}, ["0", "-0", "0.0"], ["0.5", "0.01"]),
        ({"minimum": -0.5, "exclusiveMaximum": 0}, ["0", "-0", "-0.0"], ["-0.5", "-0.01"]),
        ({"exclusiveMinimum": 0.5}, ["0.5", "0.5000000000000000000000000001"], ["0.51", "3", "1234567.25"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 1}, ["0", "1", "1.0"], ["0.9", "0.99", "0.5"]),
        ({"exclusiveMaximum": 1e16}, ["9999999999999999"], ["9999999999999900", "1.5", "-3"]),
        ({"exclusiveMinimum": 0, "exclusiveMaximum": 0.5, "multipleOf": 0.1}, ["0", "0.5", "0.25"], ["0.3"]),
        ({"exclusiveMinimum": 0, "minimum": 2}, ["1"], ["2"]),
        ({"minimum": 0, "maximum": 9007200.095444795}, ["9007200.095444797"], ["9007200.09544479", "0", "0.5"]),
    ],
)
def test_bounds(compiler, bounds, refused, accepted):
    """Those that the backend keeps in decimals only, or not at all."""
    schema = {"type": "number", **bounds}
    assert [text for text in refused if accepts(compiler, schema, text)] == []
    assert [text for text in accepted if not accepts(compiler, schema, text)] == []


@pytest.mark.parametrize(
    ("schema", "form"),
    [
        ({"properties": {"p": {"$ref": "#/$defs/P"}}, "$defs": {"P": "HERE"}, "required": ["p"]}, '{"p":%s}'),
        ({"properties": {"minimum": "HERE"}, "required": ["minimum"]}, '{"minimum":%s}'),
        ({"anyOf": [{"type": "string"}, "HERE"]}, "%s"),
        ({"type": "array", "items": "HERE"}, "[%s]"),
        ({"type": "array", "prefixItems": ["HERE"], "minItems": 1, "items": False}, "[%s]"),
        ({"type": "object", "additionalProperties": "HERE"}, '{"a":%s}'),
        ({"allOf": ["HERE", {"type": "number"}]}, "%s"),
    ],
)
@pytest.mark.parametrize("kinds", ["number", ["number", "null"], None])
def test_bounds_inside_of_a_schema(compiler, schema, form, kinds):
    """They are kept wherever a schema may be; values that are no schemas and other types are as they were."""
    here = {"exclusiveMinimum": 0, "exclusiveMaximum": 0.5} | ({"type": kinds} if kinds else {})
    schema = json.loads(json.dumps(schema).replace('"HERE"', json.dumps(here)))
    assert [text for text in ("0", "-0", "0.5", "0.25") if accepts(compiler, schema, form % text)] == ["0.25"]


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 5},
        {"enum": [{"exclusiveMinimum": 0}, 1], "default": {"exclusiveMinimum": 0}},
        {"properties": {"exclusiveMinimum": {"type": "string"}}},
        {"type": "number", "exclusiveMinimum": True, "minimum": 0},
        {"type": "number", "exclusiveMinimum": 5, "exclusiveMaximum": 3},
    ],
)
def test_what_is_left_alone(schema):
    """Integers, values, names, and what the backend refuses in its own words or leaves out."""
    assert kept_by_backend(schema, "it") == schema


@pytest.mark.parametrize(
    "bounds",
    [
        {"exclusiveMinimum": 0, "exclusiveMaximum": 1e-10},
        {"exclusiveMinimum": -1e-10, "maximum": -1e-12},
        {"minimum": 1.1e-10, "exclusiveMaximum": 1.9e-10},
    ],
)
def test_bounds_with_nothing_between_them_are_refused(compiler, bounds):
    """They are named, with the schema that they are in."""
    schema = {"properties": {"a": {"type": "number", **bounds}}}
    message = " and ".join(f"{key}={value}" for key, value in bounds.items())
    with pytest.raises(UnsupportedSchemaError, match=f"structured.json_schema: .* within {message}"):
        compiler.compile(StructuredOutput(json_schema=schema))
    with pytest.raises(UnsupportedSchemaError, match=f"the tool: .* within {message}"):
        check_schema(schema, "the tool")


@pytest.mark.parametrize("kind", ["integer", "number", ["integer", "null"], None])
@pytest.mark.parametrize("low", [-(2**63), -(10**20), -1e300, -1])
@pytest.mark.parametrize("high", [2**63, 2**64 - 1, 10**20, 1e300, 1])
def test_a_range_that_is_wider_than_the_backend_counts(compiler, kind, low, high):
    """Such as those of 64-bit integers: what it can count to is used of it."""
    for bounds in ({"minimum": low}, {"exclusiveMaximum": high}, {"exclusiveMinimum": low, "maximum": high}):
        schema = bounds | ({"type": kind} if kind else {})
        assert accepts(compiler, schema, "0")
        if not ({low, high} & {-1, 1}):
            assert accepts(compiler, schema, "1000000000000000000")


@pytest.mark.parametrize(
    "bounds", [{"minimum": 2**64, "maximum": 2**65}, {"exclusiveMaximum": -1e300}, {"maximum": -(2**63)}]
)
@pytest.mark.parametrize("kind", ["integer", "number"])
def test_a_range_beyond_what_the_backend_counts_is_refused(compiler, kind, bounds):
    """It would take the last number that it can count to, which is outside."""
    bound = "=".join(map(re.escape, map(str, next(iter(bounds.items())))))
    with pytest.raises(UnsupportedSchemaError, match=f"structured.json_schema: .* {bound}; no number beyond"):
        compiler.compile(StructuredOutput(json_schema={"type": kind, **bounds}))
