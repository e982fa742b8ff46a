"""SpecRouterLLM: what is configured, reported and refused."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import re
import subprocess
import sys
import threading

import pytest
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ToolCallBlock
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, RootModel

from llama_index.llms.specrouter import SpecRouterLLM
from specrouter_llm.chat import close_shared, shared_engine
from specrouter_llm.errors import ContextOverflowError, InvalidParameterError, UnsupportedSchemaError

HELLO = [ChatMessage(role="user", content="Hello?")]
THINKING_TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'].split('</think>')[-1] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


class Count(RootModel[int]):
    """Valid wherever it is cut."""


@pytest.fixture
def forget():
    yield
    close_shared()


# ---------------------------------------------------------------- loading


def test_importing_and_constructing_leaves_torch_out():
    """The models are loaded by the first call, not by the import and not by the constructor."""
    code = (
        "import sys; from llama_index.llms.specrouter import SpecRouterLLM; "
        "llm = SpecRouterLLM(model='no/such/model', drafts=['nor/this']); llm.to_payload(); "
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_equal_configurations_share_an_engine(forget):
    """And `close` gives it back; the next call loads it again."""
    first, second = (SpecRouterLLM("demo", max_tokens=n, engine_kwargs={"progress": False}) for n in (3, 4))
    assert first.complete("Hello").raw["usage"]["completion_tokens"] == 3
    assert first.engine is second.engine is shared_engine("demo", progress=False)
    engine = first.engine
    first.close()
    assert engine.closed
    assert not second.engine.closed


def test_context_window_reaches_the_engine(forget):
    llm = SpecRouterLLM("demo", drafts=[], context_window=300, engine_kwargs={"progress": False})
    assert llm.metadata.context_window == llm.engine.max_context == 300


def test_an_engine_that_was_handed_over_stays_open(scripted):
    llm = scripted("Hi.")
    llm.close()
    assert str(llm.complete("Hello")) == "Hi."
    assert llm.metadata.model_name == "scripted"


def test_pickling_leaves_the_engine_behind(forget):
    """The copy describes the same model and loads it when it is used."""
    llm = SpecRouterLLM("demo", temperature=0.5, drafts=["demo/draft"], engine_kwargs={"progress": False})
    assert llm.engine.levels[-1] == "demo/target"
    assert "chain_of_models" in llm.to_payload()
    copied = pickle.loads(pickle.dumps(llm))
    assert "chain_of_models" not in copied.to_payload()
    assert (copied.model, copied.temperature, copied.drafts) == ("demo", 0.5, ["demo/draft"])


def test_an_engine_that_was_handed_over_is_shared_by_copies_and_cannot_be_pickled(scripted):
    """Its name, which a pickled model would load, says nothing about its weights."""
    llm = scripted("Hi.")
    assert {copied.engine for copied in (copy.copy(llm), copy.deepcopy(llm), llm.model_copy())} == {llm.engine}
    with pytest.raises(TypeError, match=r"engine=.* cannot be pickled.*model="):
        pickle.dumps(llm)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "give model="),
        ({"model": "demo", "temperature": -1}, "temperature"),
        ({"model": "demo", "max_tokens": 0}, "max_tokens"),
        ({"model": "demo", "policy": "clever"}, "policy"),
        ({"model": "demo", "temprature": 0.5}, "no field 'temprature'"),
        ({"model": "demo", "template_kwargs": "enable_thinking"}, "template_kwargs"),
        ({"engine": "demo"}, "engine must be a SpecRouter, got str"),
        ({"model": "demo", "additional_kwargs": {"repetition": 2}}, "unknown sampling parameter 'repetition'"),
    ],
)
def test_impossible_configurations(fields, words):
    """They are refused before anything is loaded."""
    with pytest.raises(ValueError, match=words):
        SpecRouterLLM(**fields)


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("max_new_tokens", "use max_tokens"),
        ("model_name", "use model"),
        ("tokenizer_name", "leave it out, the model's own is used"),
        ("generate_kwargs", "name what it holds: max_tokens, temperature"),
        ("model_kwargs", "name what it holds"),
        ("stopping_ids", "use stop_token_ids"),
        ("is_chat_model", "leave it out, the model's chat template says it"),
        ("tokenizer_outputs_to_remove", "leave it out"),
        ("device_map", 'use engine_kwargs={"device_map": ...}'),
    ],
)
def test_fields_of_hugging_face_llm_are_answered_with_their_counterparts(scripted, name, advice):
    """In the constructor, in additional_kwargs, which it names, and in a call."""
    with pytest.raises(InvalidParameterError, match=rf"no field '{name}' \({name}: {re.escape(advice)}"):
        SpecRouterLLM(model="demo", **{name: 1})
    for refuses in (
        lambda given: SpecRouterLLM(model="demo", additional_kwargs=given),
        lambda given: scripted("Hi.").complete("Hello", **given),
    ):
        with pytest.raises(ValueError, match=rf"unknown sampling parameter '{name}'.* \({name}: {re.escape(advice)}"):
            refuses({name: 1})


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (
            {"temperature": 0.7, "additional_kwargs": {"temperature": 0.0}},
            "temperature is 0.7 as a field and 0.0 in add",
        ),
        ({"max_tokens": 20, "additional_kwargs": {"max_tokens": None}}, "max_tokens is 20 as a field and None in add"),
        ({"stop": ["a"], "additional_kwargs": {"stop": ["b"]}}, "stop is .*: leave one of them out"),
        ({"policy": "off", "engine_kwargs": {"policy": "fixed"}}, "policy is 'off' as a field and 'fixed' in engine_"),
        (
            {"context_window": 64, "engine_kwargs": {"max_context": 128}},
            "max_context is 64 as a field and 128 in engine_",
        ),
    ],
)
def test_fields_and_further_arguments_must_not_contradict_each_other(fields, words):
    """Neither is the one that is meant."""
    with pytest.raises(ValueError, match=words):
        SpecRouterLLM(model="demo", **fields)


def test_what_is_said_once_or_twice_the_same_is_fine():
    """A default is not said, and None says nothing."""
    for fields in ({}, {"max_tokens": 20}, {"temperature": None}):
        SpecRouterLLM(model="demo", additional_kwargs={"max_tokens": 20, "temperature": 0.5}, **fields)


def test_loading_options_of_a_loaded_engine(scripted):
    engine = scripted("Hi.").engine
    with pytest.raises(InvalidParameterError, match="drafts"):
        SpecRouterLLM(engine=engine, drafts=["small"])
    with pytest.raises(InvalidParameterError, match="serves 'scripted'"):
        SpecRouterLLM("other", engine=engine)


def test_a_copy_with_other_drafts_has_another_engine(forget):
    """Fields of the copy count, not those of the original."""
    llm = SpecRouterLLM("demo", max_tokens=3, engine_kwargs={"progress": False})
    assert "demo/draft" in llm.engine.levels
    copied = llm.model_copy(update={"drafts": []})
    assert "demo/draft" not in copied.engine.levels
    own = llm.engine
    assert "demo/draft" in own.levels
    llm.close()
    assert (own.closed, copied.engine.closed) == (True, False)


# ---------------------------------------------------------------- answers


def test_raw_is_small_and_plain(scripted):
    """Counts, reasons, speculation and times; nothing that a handler could keep alive."""
    raw = scripted("Hi there.").chat(HELLO).raw
    assert json.loads(json.dumps(raw)) == raw
    assert set(raw) == {"usage", "finish_reason", "model", "speculative_decoding", "timings"}
    assert raw["usage"]["total_tokens"] == raw["usage"]["prompt_tokens"] + raw["usage"]["completion_tokens"]
    assert raw["finish_reason"] == "stop"
    assert raw["speculative_decoding"]["chain"][-1]["model"] == "scripted"


def test_only_the_last_response_has_raw(scripted):
    responses = list(scripted("One two three four five.").stream_chat(HELLO))
    assert [response.raw is None for response in responses[:-1]] == [True] * (len(responses) - 1)
    assert responses[-1].raw["finish_reason"] == "stop"


@pytest.mark.parametrize("level", ["off", "summary", "detailed"])
def test_stats_levels(scripted, level):
    """Steps are listed in detail if wanted, and the caller's own callback sees them too."""
    seen = []
    llm = scripted("One two three four five.", stats=level, on_step=seen.append)
    raw = llm.chat(HELLO).raw
    assert ("speculative_decoding" in raw) == (level != "off")
    steps = raw.get("speculative_decoding", {}).get("steps", [])
    assert len(steps) == (len(seen) if level == "detailed" else 0)
    if steps:
        assert sum(step["committed"] for step in steps) == raw["usage"]["completion_tokens"]


def test_arguments_of_a_call(scripted):
    """They override the fields for that call only."""
    llm = scripted("One two three four five.", max_tokens=50)
    assert llm.complete("x", max_tokens=2).raw["finish_reason"] == "length"
    assert str(llm.complete("x", stop=["three"])) == "One two "
    plain = llm.complete("x", speculation=False)
    assert plain.raw["speculative_decoding"]["num_draft_tokens"] == 0
    assert str(plain) == str(llm.complete("x")) == "One two three four five."


def test_sampling_is_repeatable(demo_engine):
    llm = SpecRouterLLM(engine=demo_engine, temperature=1.0, top_p=0.9, top_k=50, seed=3, max_tokens=20)
    assert str(llm.complete("Hello")) == str(llm.complete("Hello"))
    assert str(llm.complete("Hello")) != str(llm.complete("Hello", seed=4))


def test_thinking(scripted):
    """Thoughts come as a block of their own and as deltas beside the text."""
    llm = scripted("<think>\nThey greet me.\n</think>\n\nHi.", engine_options={"chat_template": THINKING_TEMPLATE})
    whole = llm.chat(HELLO)
    thinking, answer = whole.message.blocks
    assert (thinking.block_type, thinking.content.strip()) == ("thinking", "They greet me.")
    assert thinking.num_tokens == whole.raw["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
    assert answer.text.strip() == "Hi."
    responses = list(llm.stream_chat(HELLO))
    assert responses[-1].message == whole.message
    deltas = [response.additional_kwargs.get("thinking_delta", "") for response in responses]
    assert "".join(deltas) == thinking.content
    assert "".join(response.delta for response in responses) == whole.message.content


def test_tool_call_blocks(scripted):
    """A call is a block and an entry of `additional_kwargs`, and goes back to the template as it came."""
    llm = scripted('<tool_call>\n{"name": "add", "arguments": {"a": 1, "city": "Zürich"}}\n</tool_call>')
    tool = FunctionTool.from_defaults(lambda a, city: 1, name="add", description="Add.")
    response = llm.chat_with_tools([tool], user_msg="x")
    text, call = response.message.blocks
    assert isinstance(text, TextBlock)
    assert isinstance(call, ToolCallBlock)
    assert (call.tool_name, call.tool_kwargs) == ("add", {"a": 1, "city": "Zürich"})
    listed = response.message.additional_kwargs["tool_calls"]
    assert [entry["function"]["name"] for entry in listed] == ["add"]
    assert listed[0]["id"] == call.tool_call_id
    assert response.raw["finish_reason"] == "tool_calls"


@pytest.mark.parametrize("parallel", [True, False])
def test_several_calls(scripted, parallel):
    """They are kept if they are allowed; otherwise the first is."""
    call = '<tool_call>\n{"name": "add", "arguments": {"a": %d}}\n</tool_call>'
    llm = scripted(f"{call % 1}\n{call % 2}")
    tool = FunctionTool.from_defaults(lambda a: a, name="add", description="Add.")
    *_, streamed = llm.stream_chat_with_tools([tool], user_msg="x", allow_parallel_tool_calls=parallel)
    for response in (llm.chat_with_tools([tool], user_msg="x", allow_parallel_tool_calls=parallel), streamed):
        selected = [selection.tool_kwargs["a"] for selection in llm.get_tool_calls_from_response(response)]
        assert selected == ([1, 2] if parallel else [1])
        assert len(response.message.additional_kwargs["tool_calls"]) == len(selected)


def test_a_tool_choice_that_names_nothing(scripted):
    tool = FunctionTool.from_defaults(lambda a: a, name="add", description="Add.")
    with pytest.raises(InvalidParameterError, match="one of the tools: add"):
        scripted("x").chat_with_tools([tool], user_msg="x", tool_choice={"type": "function", "function": "add"})


def test_a_malformed_call_runs_nothing(scripted, monkeypatch):
    """It is an error for a direct caller; an agent gets a name that says what is wrong, and can tell the model."""
    monkeypatch.setitem(sys.modules, "llguidance", None)  # with it there would be no such call
    llm = scripted('<tool_call>\n{"name": "add", "arguments": {"a": }}\n</tool_call>')
    tool = FunctionTool.from_defaults(lambda a=1: a, name="add", description="Add.")
    response = llm.chat_with_tools([tool], user_msg="x")
    with pytest.raises(ValueError, match="malformed"):
        llm.get_tool_calls_from_response(response)
    (selection,) = llm.get_tool_calls_from_response(response, error_on_no_tool_call=False)
    assert selection.tool_name.startswith("add (malformed call: ")
    assert selection.tool_kwargs == {}


# ---------------------------------------------------------------- completion


def test_complete_is_a_chat_unless_formatted(scripted):
    """A prompt is a user's message; a formatted one reaches the model as it is."""
    llm = scripted(lambda prompt: prompt.replace("<|", "[").replace("|>", "]"))
    assert str(llm.complete("Hello")) == "[user]Hello[end][assistant]"
    raw = "Q: Hello<|assistant|>"
    assert str(llm.complete(raw, formatted=True)) == "Q: Hello[assistant]"
    assert str(asyncio.run(llm.acomplete(raw, formatted=True))) == "Q: Hello[assistant]"
    assert [response.text for response in llm.stream_complete(raw, formatted=True)][-1] == "Q: Hello[assistant]"


def test_completion_to_prompt_formats(scripted):
    """In place of the template, unless the prompt is formatted already."""
    llm = scripted(
        lambda prompt: prompt[: -len("<|assistant|>")], completion_to_prompt=lambda p: f"Q: {p}<|assistant|>"
    )
    assert str(llm.complete("Hello")) == "Q: Hello"
    assert str(llm.complete("Hello<|assistant|>", formatted=True)) == "Hello"


def test_a_model_without_template(scripted):
    """It completes text, says so, and refuses a chat in words."""
    llm = scripted(lambda prompt: prompt[: -len("<|assistant|>")], engine_options={"chat_template": ""})
    assert not llm.metadata.is_chat_model
    assert not llm.metadata.is_function_calling_model
    assert str(llm.complete("Hello<|assistant|>")) == "Hello"
    with pytest.raises(ValueError, match="template"):
        llm.chat(HELLO)


def test_chat_arguments_with_a_raw_prompt(scripted):
    with pytest.raises(InvalidParameterError, match=r"tools: not with a raw prompt; .* with a chat template"):
        scripted("x").complete("Hello", formatted=True, tools=[])


def test_a_raw_prompt_takes_a_response_format(scripted):
    """Or `structured`, which says the same, but not both."""
    llm = scripted('{"a":1}')
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"properties": {"a": {"type": "integer"}}}}}
    assert str(llm.complete("Hello<|assistant|>", formatted=True, response_format=form)) == '{"a":1}'
    with pytest.raises(InvalidParameterError, match="not both"):
        llm.complete("Hello", formatted=True, response_format=form, structured={"regex": "a"})


# ---------------------------------------------------------------- errors and ends


def test_context_overflow(scripted):
    """The error has the sizes; nothing was started."""
    llm = scripted("Hi.", engine_options={"max_context": 64})
    with pytest.raises(ContextOverflowError, match="64"):
        llm.complete("word " * 200)


def test_unsupported_schema(scripted):
    """The keyword is named, before anything runs."""
    schema = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(UnsupportedSchemaError, match="uniqueItems"):
        scripted("Hi.").chat(HELLO, response_format=form)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"temprature": 1}, "temprature"),
        ({"n": 2, "temperature": 1}, "n must be 1"),
        ({"template_kwargs": "enable_thinking"}, "template_kwargs must be a dict"),
    ],
)
def test_unknown_arguments(scripted, argument, words):
    with pytest.raises(InvalidParameterError, match=words):
        scripted("Hi.").chat(HELLO, **argument)


def test_an_error_on_the_way_is_raised(scripted):
    """What fails while it runs is raised by the endpoint, streamed or not."""

    def fail(step):
        raise KeyError("mine")

    llm = scripted("One two three.", on_step=fail)
    with pytest.raises(Exception, match="mine"):
        llm.chat(HELLO)
    with pytest.raises(Exception, match="mine"):
        list(llm.stream_chat(HELLO))


def test_a_timeout_of_a_structured_prediction_is_named(scripted):
    class Album(BaseModel):
        title: str

    gate = threading.Event()
    llm = scripted("x", timeout=0.05, engine_options={"gate": gate})
    threading.Timer(0.2, gate.set).start()
    with pytest.raises(ValueError, match="timeout passed before the Album was complete"):
        llm.structured_predict(Album, PromptTemplate("An album"))


@pytest.mark.parametrize("stream", [False, True])
def test_a_structured_prediction_that_others_end_is_no_prediction(scripted, stream):
    """A number that was cut off is valid JSON, but another number."""
    llm = scripted("1234567", max_tokens=40, on_step=lambda step: llm.engine.close())
    prompt = PromptTemplate("Count")
    with pytest.raises(ValueError, match="cancelled before the Count was complete"):
        list(llm.stream_structured_predict(Count, prompt)) if stream else llm.structured_predict(Count, prompt)


def test_timeout_keeps_what_there_is(scripted):
    """The first step takes longer than the caller waits."""
    gate = threading.Event()
    llm = scripted("One two three four.", timeout=0.05, engine_options={"gate": gate})
    threading.Timer(0.2, gate.set).start()
    assert llm.chat(HELLO).raw["finish_reason"] == "timeout"


def test_to_payload_has_the_chain_once_it_is_known(scripted):
    llm = scripted("Hi.", chain=["ngram"])
    assert llm.to_payload()["chain"] == ["ngram"]
    assert llm.to_payload()["chain_of_models"].endswith("scripted")
