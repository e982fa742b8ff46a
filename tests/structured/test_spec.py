"""The description: what contradicts itself is refused when it is made, what cannot be compiled when it is submitted."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tokenizers import Tokenizer, decoders

from specrouter_llm.errors import InvalidParameterError, MissingDependencyError, UnsupportedSchemaError
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.structured.backend import LlguidanceMatcher
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


@pytest.mark.parametrize("decoder", [decoders.Metaspace(), decoders.WordPiece()])
def test_a_tokenizer_that_the_backend_does_not_know_is_refused(tools, tokenizer, decoder):
    known = Tokenizer.from_str(tokenizer.to_json())
    known.decoder = decoder
    with pytest.raises(InvalidParameterError, match="no structured output with this tokenizer"):
        GrammarCompiler(known.to_str, tools.WIDTH, {1}).compile(StructuredOutput(choice=("yes", "no")))


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


@pytest.mark.parametrize(
    "text",
    [
        *("\x00", "a\x1fb", "\x7f", "\x80\x9f", "\u2028\ufeff\ud7ff\U0001f600", 'a"b', "\\u007f", "\\\x7f", "\r\n\t /"),
        *("a<tool_call>b", "<|user|>", "</tool_call><|end|>"),
    ],
)
def test_any_text_can_be_a_choice(tools, compiler, text):
    """Control characters are escaped for the grammar's lexer; names of special tokens are written like other text."""
    for options in ([text], [text, "ok"]):
        grammar = compiler.compile(StructuredOutput(choice=options))
        assert all(grammar.texts[i] for i in grammar.shortest)
        assert tools.tokenizer.decode(grammar.shortest) in options
    with tools.engine() as engine:
        assert engine.generate("x", structured={"choice": [text]})[0].text == text


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ({"regex": "a<tool_call>b"}, "a<tool_call>b"),
        ({"json_schema": {"enum": ["<|user|>"]}}, '"<|user|>"'),
        ({"lark": 'start: "</tool_call>" <tool_call>'}, "</tool_call>"),
    ],
)
def test_names_of_special_tokens_are_text(tools, compiler, spec, text):
    """In every kind of grammar; a Lark grammar that asks for the token gets the token."""
    grammar = compiler.compile(StructuredOutput(**spec))
    written, special = (
        [i for i in grammar.shortest if bool(grammar.texts[i]) == ordinary] for ordinary in (True, False)
    )
    assert tools.tokenizer.decode(written) == text
    assert special == ([tools.tokenizer.added_tokens["<tool_call>"]] if "lark" in spec else [])


def test_a_special_token_that_merges_lead_to_is_not_its_name(tokenizer, tools):
    """Some vocabularies were made of pieces that include the special ones."""
    changed = json.loads(tokenizer.to_json())
    vocab, merges = changed["model"]["vocab"], changed["model"]["merges"]
    ids = {text: vocab.pop(text) for text in ("or", "and")}
    vocab |= {"<t": ids["or"], "<t>": ids["and"]}
    merges[:] = [
        ["<", "t"],
        ["<t", ">"],
        *(pair for pair in merges if "".join(pair) in vocab and set(pair) <= set(vocab)),
    ]
    changed["added_tokens"].append(changed["added_tokens"][0] | {"id": vocab["<t>"], "content": "<t>"})
    compiler = GrammarCompiler(lambda: json.dumps(changed), tools.WIDTH, {1})
    grammar = compiler.compile(StructuredOutput(choice=("a<t>b",)))
    assert [grammar.texts[i] for i in grammar.shortest] == [b"a", b"<t", b">", b"b"]


def test_what_the_vocabulary_cannot_write_is_refused(tokenizer, monkeypatch):
    """With the likely reasons, and not as an endless search."""
    monkeypatch.setattr(LlguidanceMatcher, "allowed", lambda self: bytes(513))
    monkeypatch.setattr(LlguidanceMatcher, "forced", lambda self: [])
    grammar = GrammarCompiler(tokenizer.to_json, 4104, {1}).compile(StructuredOutput(choice=("a",)))
    with pytest.raises(InvalidParameterError, match="no ordinary token of this model writes"):
        grammar.check_budget(10)


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
