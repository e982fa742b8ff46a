"""Forcing and parsing agree: what a grammar lets through is read as valid calls of the given tools."""

from __future__ import annotations

import json
import random

import jsonschema
import llguidance
import llguidance.hf
import pytest

from specrouter_llm.chat.grammar import call_rules, final_answer, grammar, response_format
from specrouter_llm.chat.parser import ReplyParser
from specrouter_llm.chat.tool_formats import GENERIC, TOOL_FORMATS, detect
from specrouter_llm.chat.tools import checked_tools, closed
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.text.tokenizer import Tokenizer

HERMES, MISTRAL_ARGS, MISTRAL, LLAMA = TOOL_FORMATS
MARKERS = ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>")
FORMATS = [*TOOL_FORMATS, GENERIC]


class Machine:
    """A vocabulary in which markers are text or tokens, and matchers over it."""

    def __init__(self, hf):
        self.hf = hf
        self.tokenizer = Tokenizer(hf)
        self._inner = llguidance.hf.from_tokenizer(hf)

    def start(self, rules, first):
        text = grammar({"start": first, **rules})
        matcher = llguidance.LLMatcher(self._inner, text, log_level=0)
        assert not matcher.is_error(), (matcher.get_error(), text)
        return matcher

    def accepts(self, rules, first, text):
        matcher = self.start(rules, first)
        ids = self.hf.encode(text, add_special_tokens=False)
        return matcher.try_consume_tokens(ids) == len(ids) and matcher.is_accepting()

    def walk(self, rules, first, seed, limit=150):
        """A random text of the grammar; None if it did not end in time."""
        chance, matcher, ids = random.Random(seed), self.start(rules, first), []
        while len(ids) < limit:
            if matcher.is_accepting() and (matcher.is_stopped() or chance.random() < 0.5):
                return self.tokenizer.keeping(MARKERS).decode(ids)
            mask = matcher.compute_bitmask()
            allowed = [i for i in range(len(self.hf)) if mask[i >> 3] >> (i & 7) & 1 and i != self.hf.eos_token_id]
            ids.append(chance.choice(allowed))
            assert matcher.consume_token(ids[-1])
        return None


@pytest.fixture(scope="module", params=["markers are text", "markers are tokens"])
def machine(request, kit):
    if request.param == "markers are text":
        return Machine(kit.hf_tokenizer())
    return Machine(kit.hf_tokenizer(added=MARKERS[:2], special=MARKERS[2:]))


def rules_of(machine, tool_format, definitions, *, many=True):
    return call_rules(tool_format, checked_tools(definitions), machine.tokenizer.added_tokens, many=many)


def parsed(tool_format, definitions, text):
    parser = ReplyParser(tool_format, [tool["function"]["name"] for tool in definitions])
    pieces = parser.feed(text), parser.finish()
    return "".join(piece.content for piece in pieces), parser.tool_calls


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("many", [True, False])
def test_forced_calls_parse(machine, kit, tool_format, many):
    """Random texts of the grammar are nothing but calls, with arguments valid under the tool's schema."""
    schemas = {tool["function"]["name"]: closed(tool["function"]["parameters"]) for tool in kit.TOOLS}
    rules = rules_of(machine, tool_format, kit.TOOLS, many=many)
    texts = [text for seed in range(12) if (text := machine.walk(rules, "calls", seed))]
    assert len(texts) >= 6
    numbers = set()
    for text in texts:
        content, calls = parsed(tool_format, kit.TOOLS, text)
        assert ("", None) == (content, next((call.error for call in calls if call.error), None)), text
        for call in calls:
            jsonschema.validate(json.loads(call.arguments), schemas[call.name])
        numbers.add(len(calls))
    assert (max(numbers) > 1) == (many and tool_format.layout != "single")
    assert min(numbers) == 1


@pytest.mark.parametrize(
    ("tool_format", "text"),
    [
        (HERMES, '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>'),
        (MISTRAL, '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Oslo"}}]'),
        (MISTRAL, '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Oslo"}}]'),
        (MISTRAL_ARGS, '[TOOL_CALLS]get_weather[ARGS]{"city": "Oslo", "days": 3}'),
        (LLAMA, '{"name": "get_weather", "parameters": {"city": "Oslo"}}'),
        (GENERIC, '{"name": "get_weather", "arguments": {"city": "Oslo"}}'),
    ],
)
def test_the_model_s_own_spelling_is_legal(machine, kit, tool_format, text):
    assert machine.accepts(rules_of(machine, tool_format, kit.TOOLS), "calls", text)


@pytest.mark.parametrize("tool_format", FORMATS, ids=lambda f: f.name)
@pytest.mark.parametrize("many", [True, False])
def test_what_begins_freely_goes_on_as_if_forced(machine, kit, tool_format, many):
    """Random texts behind a begin marker parse as nothing but valid calls."""
    rules = rules_of(machine, tool_format, kit.TOOLS, many=many)
    texts = [text for seed in range(6) if (text := machine.walk(rules, "begun", seed))]
    assert texts
    for text in texts:
        content, calls = parsed(tool_format, kit.TOOLS, tool_format.begin + text)
        assert ("", None) == (content, next((call.error for call in calls if call.error), None)), text
        assert calls
        assert many or len(calls) == 1


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "other", "parameters": {}}',
        '{"name": "get_weather", "parameters": {}}',
        '{"name": "get_weather", "parameters": {"city": "Rome"}}',
        '{"name": "get_weather", "parameters": {"city": "Oslo", "extra": 1}}',
        '{"name": "place", "parameters": {"at": {"x": 1, "y": 2}}}',
        "Hello",
    ],
)
def test_what_is_no_valid_call_is_illegal(machine, kit, text):
    """Other names, missing, wrong and additional arguments (nested ones too), free text."""
    assert not machine.accepts(rules_of(machine, LLAMA, kit.TOOLS), "calls", text)


CITY = {"type": "object", "properties": {"city": {"enum": ["Oslo"]}}, "required": ["city"]}


@pytest.mark.parametrize(
    "parameters",
    [
        {"$ref": "#/$defs/City", "$defs": {"City": CITY}},
        {"anyOf": [CITY, {**CITY, "required": []}]},
        {"type": "object", "oneOf": [CITY, {"type": "object", "properties": {"n": {"const": 1}}, "required": ["n"]}]},
        {"allOf": [CITY]},
        {"additionalProperties": {"enum": ["Oslo"]}, "required": ["city"]},
    ],
    ids=lambda parameters: next(iter(parameters.keys() - {"type", "required", "$defs"})),
)
def test_arguments_that_others_describe(machine, kit, parameters):
    """The root of a tool's schema need not list its properties to be an object that has some."""
    rules = rules_of(machine, HERMES, [{"type": "function", "function": {"name": "f", "parameters": parameters}}])

    def call(arguments):
        return f'<tool_call>\n{{"name": "f", "arguments": {arguments}}}\n</tool_call>'

    assert machine.accepts(rules, "calls", call('{"city": "Oslo"}'))
    assert not machine.accepts(rules, "calls", call('{"city": "Rome"}'))
    assert not machine.accepts(rules, "calls", call('["Oslo"]'))


@pytest.mark.parametrize(
    ("form", "text"),
    [
        (StructuredOutput(json_schema={"type": "boolean"}), "true"),
        (StructuredOutput(regex="[a-c]/[0-9]"), "b/7"),
        (StructuredOutput(regex=r"[a-c]\/[0-9]"), "b/7"),
        (StructuredOutput(choice=("yes", 'n"o')), 'n"o'),
        (StructuredOutput(choice=("yes", "\x7f")), "\x7f"),
    ],
)
def test_calls_or_a_final_answer(machine, kit, form, text):
    rules = {**rules_of(machine, HERMES, [kit.WEATHER]), **final_answer(form)}
    call = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
    assert machine.accepts(rules, "calls | final", text)
    assert machine.accepts(rules, "calls | final", call)
    assert not machine.accepts(rules, "calls | final", call + text)


def test_exclusive_bounds_hold_in_calls_and_in_final_answers(machine):
    """The backend takes 0 for a number above 0 and below 0.5."""
    share = {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 0.5}
    tool = {"type": "object", "properties": {"share": share}, "required": ["share"]}
    rules = {
        **rules_of(machine, HERMES, [{"type": "function", "function": {"name": "cut", "parameters": tool}}]),
        **final_answer(StructuredOutput(json_schema=share)),
    }
    for value, legal in [("0.25", True), ("0", False), ("-0", False), ("0.5", False)]:
        call = f'<tool_call>\n{{"name": "cut", "arguments": {{"share": {value}}}}}\n</tool_call>'
        assert machine.accepts(rules, "final", value) is legal
        assert machine.accepts(rules, "calls", call) is legal


def test_a_lark_grammar_cannot_be_mixed_in():
    with pytest.raises(InvalidParameterError, match="Lark grammar"):
        final_answer(StructuredOutput(lark='start: "a"'))


def test_response_formats():
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    given = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert StructuredOutput(json_schema={**schema, "additionalProperties": False}) == response_format(given)
    assert StructuredOutput(json_schema={"type": "object"}) == response_format({"type": "json_object"})
    assert response_format({"type": "text"}) is None
    for wrong in ({"type": "xml"}, {"type": "json_schema"}, {"json_schema": schema}, "json"):
        with pytest.raises(InvalidParameterError, match="response_format must be"):
            response_format(wrong)


def test_closing_schemas():
    """Objects that list properties are closed, everywhere but where schemas are merged or say what they want."""
    inner = {"type": "object", "properties": {"b": {}}}
    shut = {**inner, "additionalProperties": False}
    schema = {"properties": {"a": {"items": inner}}, "$defs": {"D": inner}, "anyOf": [inner], "default": inner}
    assert {
        "properties": {"a": {"items": shut}},
        "$defs": {"D": shut},
        "anyOf": [shut],
        "default": inner,
        "additionalProperties": False,
    } == closed(schema)
    for as_it_is in ({**inner, "additionalProperties": True}, {"allOf": [inner, inner]}, {"type": "object"}):
        assert as_it_is == closed(as_it_is)


def test_detection():
    """By the template first, then by the vocabulary."""
    assert HERMES == detect("...<tool_call>...", {"[TOOL_CALLS]": 5})
    assert MISTRAL == detect("", {"[TOOL_CALLS]": 5})
    assert MISTRAL == detect("[TOOL_CALLS][", {"[ARGS]": 5})
    assert MISTRAL_ARGS == detect("", {"[TOOL_CALLS]": 5, "[ARGS]": 6})
    assert MISTRAL_ARGS == detect("[TOOL_CALLS]name[ARGS]{}", {})
    assert LLAMA == detect("<|python_tag|>", {})
    assert GENERIC == detect("tools", {"<s>": 1})


@pytest.mark.parametrize(
    ("definitions", "message"),
    [
        ([{"name": "x"}], r"tools\[0\] must be"),
        ([{"type": "function", "function": {"name": 'a"b'}}], "needs a name"),
        ([{"type": "function", "function": {"name": "a", "parameters": []}}], "must be a JSON schema"),
        ([{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}], "type object"),
        ([{"type": "function", "function": {"name": "a"}}] * 2, "two tools are called 'a'"),
        ({"type": "function"}, "must be a list"),
    ],
)
def test_wrong_tools(definitions, message):
    with pytest.raises(InvalidParameterError, match=message):
        checked_tools(definitions)
