"""The description: what contradicts itself is refused when it is made, what cannot be compiled when it is submitted."""

from __future__ import annotations

import subprocess
import sys

import pytest

from specrouter_llm.errors import InvalidParameterError, MissingDependencyError, UnsupportedSchemaError
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.structured.grammar import GrammarCompiler


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "exactly one"),
        ({"regex": "a", "choice": ["b"]}, "got regex, choice"),
        ({"regexp": "a"}, "unknown field 'regexp'"),
        ({"choice": []}, "at least 1 item"),
        ({"choice": ["a", ""]}, "at least 1 character"),
        ({"regex": "a", "whitespace": True}, "whitespace belongs to json_schema"),
        ({"json_schema": {"const": float("nan")}}, "not plain JSON"),
        ({"regex": "a", "after": ""}, "after"),
        ({"regex": "a", "optional": True}, "optional belongs to after"),
    ],
)
def test_contradictions_are_refused(values, message):
    """By the description itself, and by the parameters that hold it."""
    with pytest.raises(InvalidParameterError, match=message):
        StructuredOutput(**values)
    with pytest.raises(InvalidParameterError, match=message):
        SamplingParams(structured=values)


def test_parameters_keep_it_when_others_change():
    """It survives `replace`, and contradicts ignore_eos."""
    params = SamplingParams(structured={"choice": ["a", "b"]}, max_tokens=3)
    assert params.replace(max_tokens=4).structured == StructuredOutput(choice=("a", "b"))
    with pytest.raises(InvalidParameterError, match="ignore_eos contradicts structured"):
        params.replace(ignore_eos=True)


def test_the_order_of_properties_counts_for_equality_of_grammars():
    """Properties come in the order of the schema, so two orders are two grammars; defaults make no difference."""
    ab, ba = ({"properties": {key: {} for key in keys}} for keys in ("ab", "ba"))
    assert StructuredOutput(json_schema=ab).key != StructuredOutput(json_schema=ba).key
    assert StructuredOutput(regex="a").key == StructuredOutput(regex="a", after=None, whitespace=False).key


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ({"json_schema": {"type": "array", "uniqueItems": True}}, UnsupportedSchemaError, "uniqueItems"),
        ({"json_schema": {"properties": {"a": {"if": {}}}}}, UnsupportedSchemaError, "if"),
        ({"json_schema": {"type": "string", "format": "colour"}}, UnsupportedSchemaError, "colour"),
        ({"json_schema": {"oneOf": [{"type": "string"}, {"minLength": 2}]}}, UnsupportedSchemaError, "oneOf"),
        ({"json_schema": {"type": "text"}}, InvalidParameterError, "Invalid type: text"),
        ({"json_schema": {"type": "integer", "minimum": 5, "maximum": 3}}, InvalidParameterError, "Unsatisfiable"),
        ({"regex": "("}, InvalidParameterError, "unclosed group"),
        ({"regex": "(?=a)b"}, InvalidParameterError, "look-around"),
        ({"lark": "start: nowhere"}, InvalidParameterError, "nowhere"),
        ({"lark": "start: nowhere", "after": "x"}, InvalidParameterError, "nowhere"),
    ],
)
def test_what_cannot_be_compiled_is_refused_at_submission(tools, spec, kind, message):
    """With the backend's words, and before anything is queued."""
    with tools.engine() as engine:
        with pytest.raises(InvalidParameterError, match=message) as caught:
            engine.submit("x", structured=spec)
        assert type(caught.value) is kind
        assert engine.stats.num_finished == 0


def test_what_the_engine_lacks_is_named(tools, tokenizer):
    """A tokenizer, an end-of-sequence token, room for the shortest output."""
    wanted = StructuredOutput(choice=("yes", "no"))
    with pytest.raises(InvalidParameterError, match="needs a tokenizer"):
        GrammarCompiler(lambda: None, tools.WIDTH, {1}).compile(wanted)
    with pytest.raises(InvalidParameterError, match="end-of-sequence token"):
        GrammarCompiler(tokenizer.to_json, tools.WIDTH, ()).compile(wanted)
    with tools.engine(max_context=12) as engine:
        long = {"regex": "(begin) [0-9]{20} end"}
        with pytest.raises(InvalidParameterError, match=r"4 tokens are left .* needs about \d\d; raise max_tokens"):
            engine.submit([5, 6], structured=long, max_tokens=4)
        with pytest.raises(InvalidParameterError, match="10 tokens are left"):
            engine.submit([5, 6], structured=long)
        with pytest.raises(InvalidParameterError, match=r"1 tokens are left .* needs at least 3; raise max_tokens"):
            engine.submit([5, 6], structured={"choice": ["(a)", "(the)"]}, max_tokens=1)


def test_grammars_are_compiled_once(compiler):
    """And shared by all requests that want the same."""
    first = compiler.compile(StructuredOutput(regex="[a-z]+x"))
    assert compiler.compile(StructuredOutput(regex="[a-z]+x")) is first


def test_without_llguidance_the_extra_is_named(monkeypatch, tokenizer):
    """A clear error, and only for those who ask for structured output."""
    monkeypatch.setitem(sys.modules, "llguidance", None)
    with pytest.raises(MissingDependencyError, match=r"specrouter-llm\[structured\]"):
        GrammarCompiler(tokenizer.to_json, 4096, {1}).compile(StructuredOutput(regex="a"))


def test_the_engine_does_not_load_llguidance_by_itself():
    """Importing the engine leaves the optional package alone."""
    check = "import sys, specrouter_llm.engine.spec_router; print('llguidance' in sys.modules)"
    output = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "False"
