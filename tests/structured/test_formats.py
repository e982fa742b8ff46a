"""Formats of strings and other keywords: what says nothing is no obstacle, what is let through is read by Python's classes."""

from __future__ import annotations

import datetime
import json
import pathlib
import random

import pytest
from pydantic import SecretBytes, SecretStr, TypeAdapter, ValidationError

from specrouter_llm.errors import UnsupportedSchemaError
from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.structured.backend import check_schema
from specrouter_llm.structured.schema import kept_by_backend

MOMENTS = {"date": datetime.date, "date-time": datetime.datetime, "time": datetime.time}


def accepts(compiler, schema, value):
    """Whether the grammar of a schema lets the JSON of a value through, with tokens that write it byte by byte."""
    grammar = compiler.compile(StructuredOutput(json_schema=schema))
    ids = {text: i for i, text in enumerate(grammar.texts) if len(text) == 1}
    return grammar.start.copy().closes([ids[bytes([byte])] for byte in json.dumps(value, ensure_ascii=False).encode()])


def test_a_keyword_that_says_nothing_is_no_obstacle():
    """uniqueItems is false wherever nobody said it."""
    schema = {"properties": {"a": {"type": "array", "items": {"type": "integer"}, "uniqueItems": False}}}
    assert kept_by_backend(schema, "it") == {"properties": {"a": {"type": "array", "items": {"type": "integer"}}}}
    check_schema(schema, "the tool")


def test_a_property_may_be_called_like_a_keyword():
    schema = {
        "properties": {"uniqueItems": {"const": False}, "format": {"const": "path"}},
        "default": {"format": "path"},
    }
    assert kept_by_backend(schema, "it") == schema


@pytest.mark.parametrize("kind", [pathlib.Path, SecretStr, SecretBytes, bytes])
def test_a_format_that_no_string_violates_is_an_annotation(compiler, kind):
    """Any string is let through, and the class takes any."""
    adapter = TypeAdapter(kind)
    schema = adapter.json_schema()
    assert "format" in schema
    for text in ("", "a/b", "\x00", "\u00fc \ud7ff", 'a"b'):
        assert accepts(compiler, schema, text)
        assert adapter.validate_json(json.dumps(text)) is not None
    assert not accepts(compiler, schema, 1)
    assert not accepts(compiler, {**schema, "maxLength": 2}, "abc")


@pytest.mark.parametrize(
    "form", ["file-path", "directory-path", "base64", "base64url", "color", "regex", "uri-reference"]
)
def test_a_format_that_strings_may_violate_is_refused(form):
    """With what to do."""
    with pytest.raises(UnsupportedSchemaError, match=f"the tool: .* format '{form}'; leave it out .* pattern"):
        check_schema({"type": "string", "format": form}, "the tool")


@pytest.mark.parametrize(
    ("form", "text"),
    [
        *(
            ("date", text)
            for text in ("2024-02-29", "2023-02-28", "2000-02-29", "0001-01-01", "0004-02-29", "9999-12-31")
        ),
        *(("date", text) for text in ("1990-11-30", "1990-10-31", "0999-09-30", "2023-02-10", "2023-12-01")),
        *(("date-time", text) for text in ("2024-02-29T23:59:59Z", "0001-01-01t00:00:00.123+23:59")),
        *(("time", text) for text in ("23:59:59Z", "00:00:00.5-01:30")),
    ],
)
def test_moments_that_there_are_stay_legal(compiler, form, text):
    assert accepts(compiler, {"type": "string", "format": form}, text)
    assert TypeAdapter(MOMENTS[form]).validate_json(json.dumps(text))


@pytest.mark.parametrize(
    ("form", "text"),
    [
        *(
            ("date", text)
            for text in ("0000-01-01", "0000-02-29", "2023-02-29", "1900-02-29", "2023-02-30", "2023-13-01")
        ),
        *(("date", text) for text in ("2023-04-31", "2023-00-01", "2023-01-32", "2023-01-00")),
        *(("date-time", text) for text in ("0000-12-31T00:00:00Z", "2024-01-01T23:59:60Z", "2023-02-29T00:00:00Z")),
        ("time", "23:59:60Z"),
    ],
)
def test_moments_that_python_has_not_are_illegal(compiler, form, text):
    assert not accepts(compiler, {"type": "string", "format": form}, text)
    with pytest.raises(ValidationError):
        TypeAdapter(MOMENTS[form]).validate_json(json.dumps(text))


@pytest.mark.parametrize("form", sorted(MOMENTS))
def test_every_moment_that_is_let_through_is_read(compiler, form):
    """Random walks through the grammar, digits of the year 0 and of leap years first."""
    grammar = compiler.compile(StructuredOutput(json_schema={"type": "string", "format": form}))
    ids = {text: i for i, text in enumerate(grammar.texts) if len(text) == 1}
    for seed in range(60):
        chance, matcher, text = random.Random(seed), grammar.start.copy(), ""
        while not matcher.accepts:
            mask = matcher.allowed()
            options = sorted(symbol.decode() for symbol, i in ids.items() if mask[i >> 3] >> (i & 7) & 1)
            likely = [each for each in options if each in '0029TZ"'] if chance.random() < 0.8 else []
            text += chance.choice(likely or options)
            assert matcher.advance(ids[text[-1].encode()])
            if len(text) > 25 and "Z" in options:
                text += "Z"
                assert matcher.advance(ids[b"Z"])
        TypeAdapter(MOMENTS[form]).validate_json(text)


def test_a_pattern_of_one_s_own_stays(compiler):
    """Beside a format it is all that is asked for."""
    schema = {"type": "string", "format": "date", "pattern": "^20"}
    assert kept_by_backend(schema, "it") == schema
    assert accepts(compiler, schema, "2024-02-28")
    assert not accepts(compiler, schema, "1999-02-28")
