"""Chats end to end: forced calls are valid ones, streams add up to results, and what is asked wrongly is an error."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time

import jsonschema
import pytest

from specrouter_llm import SamplingParams
from specrouter_llm.chat import ChatRequest, count_tokens, metadata, model_info, submit, usage
from specrouter_llm.chat.tools import closed
from specrouter_llm.errors import CallbackError, InvalidParameterError, UnsupportedSchemaError
from specrouter_llm.sampling.structured import StructuredOutput

ANSWER = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
FORMAT = {"type": "json_schema", "json_schema": {"name": "answer", "schema": ANSWER}}
CALL = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'


def streamed(handle):
    """(content, reasoning, calls as [id, name, arguments], finish reason) as the deltas add up."""
    content, reasoning, calls, reason = "", "", [], None
    for delta in handle:
        content += delta.content
        reasoning += delta.reasoning
        for piece in delta.tool_calls:
            if piece.index == len(calls):
                calls.append([piece.id, piece.name, ""])
            calls[piece.index][2] += piece.arguments
        reason = delta.finish_reason
    return content, reasoning, calls, reason


def same(stream, result):
    calls = [[call.id, call.name, call.arguments] for call in result.tool_calls]
    assert (result.content, result.reasoning, calls, result.finish_reason) == stream


# -------------------------------------------------------------------- tools and forms, by the demo family


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("choice", ["required", "get_weather", "place"])
@pytest.mark.parametrize("options", [{}, {"speculation": False}], ids=["default", "plain"])
def test_forced_calls_are_valid(demo, kit, temperature, choice, options):
    """At least one call, or exactly the named one; names and arguments as the definitions say; the stream adds up."""
    schemas = {tool["function"]["name"]: closed(tool["function"]["parameters"]) for tool in kit.TOOLS}
    for seed in range(3):
        request = ChatRequest(
            messages=kit.QUESTION,
            tools=kit.TOOLS,
            tool_choice=choice,
            params=SamplingParams(temperature=temperature, seed=seed, max_tokens=90),
            options=options,
        )
        handle = submit(demo, request)
        stream = streamed(handle)
        result = handle.result()[0]
        same(stream, result)
        assert ("", "tool_calls") == (result.content, result.finish_reason)
        assert result.tool_calls
        for call in result.tool_calls:
            assert call.error is None
            jsonschema.validate(json.loads(call.arguments), schemas[call.name])
        if choice != "required":
            assert [choice] == [call.name for call in result.tool_calls]


def test_speculation_changes_no_call(demo, kit):
    """The tokens of forced calls are those of plain decoding, with every chain."""
    texts = set()
    for options in ({"speculation": False}, {"chain": ["ngram"]}, {"chain": ["demo/draft", "demo/middle"]}):
        params = SamplingParams(temperature=1.0, seed=5, max_tokens=90)
        request = ChatRequest(
            messages=kit.QUESTION, tools=kit.TOOLS, tool_choice="required", params=params, options=options
        )
        texts.add(submit(demo, request).result()[0].completion.text)
    assert len(texts) == 1


def test_one_call_at_most(demo, kit):
    for seed in range(4):
        request = ChatRequest(
            messages=kit.QUESTION,
            tools=kit.TOOLS,
            tool_choice="required",
            parallel_tool_calls=False,
            params=SamplingParams(temperature=1.5, seed=seed, max_tokens=90),
        )
        assert len(submit(demo, request).result()[0].tool_calls) == 1


@pytest.mark.parametrize("form", [FORMAT, {"type": "json_object"}, StructuredOutput(json_schema=ANSWER)])
def test_a_form_without_tools(demo, kit, form):
    request = ChatRequest(messages=kit.QUESTION, response_format=form, params=SamplingParams(max_tokens=60))
    result = submit(demo, request).result()[0]
    assert isinstance(json.loads(result.content), dict)
    assert ((), "stop") == (result.tool_calls, result.finish_reason)


@pytest.mark.parametrize("text", [f"<tool_call>\n{CALL}\n</tool_call>", '{"ok":true}'])
def test_a_call_or_the_final_form(says, kit, text):
    """With tools and a form together the model decides which of the two comes."""
    engine = says(text)
    result = submit(engine, ChatRequest(messages=kit.QUESTION, tools=kit.TOOLS, response_format=FORMAT)).result()[0]
    if text.startswith("{"):
        assert (text, (), "stop") == (result.content, result.tool_calls, result.finish_reason)
    else:
        assert ("", "tool_calls") == (result.content, result.finish_reason)
        assert ["get_weather"] == [call.name for call in result.tool_calls]


def test_a_required_call_beats_the_form(says, kit):
    request = ChatRequest(messages=kit.QUESTION, tools=kit.TOOLS, tool_choice="required", response_format=FORMAT)
    result = submit(says('{"ok":true}'), request).result()[0]
    assert result.tool_calls
    assert result.content == ""


# -------------------------------------------------------------------- what a model says by itself


def test_free_choice(says, kit):
    """Text before a call, a call, and none of it where tools are not to be used."""
    engine = says(f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>")
    handle = submit(engine, ChatRequest(messages=kit.QUESTION, tools=kit.TOOLS))
    stream = streamed(handle)
    result = handle.result()[0]
    same(stream, result)
    assert ("Let me see.", "tool_calls") == (result.content, result.finish_reason)
    assert [("get_weather", '{"city": "Oslo"}', None)] == [(c.name, c.arguments, c.error) for c in result.tool_calls]
    assert result.tool_calls[0].id.startswith("call_")
    for request in (
        ChatRequest(messages=kit.QUESTION, tools=kit.TOOLS, tool_choice="none"),
        ChatRequest(messages=kit.QUESTION),
        ChatRequest(messages=kit.QUESTION, tool_choice="auto"),
    ):
        result = submit(engine, request).result()[0]
        assert (result.completion.text, (), "stop") == (result.content, result.tool_calls, result.finish_reason)


@pytest.mark.parametrize(
    "call",
    ["no", CALL.replace("Oslo", "Rome"), CALL.replace("get_weather", "nobody"), CALL.replace("{", "{ "), f"{CALL} and"],
)
def test_a_call_that_the_model_begins_is_a_valid_one(says, kit, call):
    """From its marker on the grammar holds, with names and arguments as the definitions say, and nothing after it."""
    text = f"Well.\n<tool_call>\n{call}\n</tool_call> and so on"
    result = submit(says(text), ChatRequest(messages=kit.QUESTION, tools=kit.TOOLS)).result()[0]
    assert ("Well.", "tool_calls") == (result.content, result.finish_reason)
    for made in result.tool_calls:
        assert made.error is None
        schema = next(t["function"]["parameters"] for t in kit.TOOLS if t["function"]["name"] == made.name)
        jsonschema.validate(json.loads(made.arguments), closed(schema))


@pytest.mark.parametrize("parallel", [True, False])
def test_how_many_calls_a_model_may_begin(says, kit, parallel):
    text = "\n".join([f"<tool_call>\n{CALL}\n</tool_call>"] * 2)
    request = ChatRequest(messages=kit.QUESTION, tools=kit.TOOLS, parallel_tool_calls=parallel)
    result = submit(says(text), request).result()[0]
    assert (1 + parallel, "tool_calls") == (len(result.tool_calls), result.finish_reason)


def test_free_choice_leaves_text_alone(demo, kit):
    """Without a call the tokens are those of an answer that may not call."""
    num_texts = 0
    for seed in range(8):
        results = []
        for choice in ("none", "auto"):
            params = SamplingParams(temperature=1.0, seed=seed, max_tokens=40)
            messages = [{"role": "user", "content": "Hello!"}]
            request = ChatRequest(messages=messages, tools=kit.TOOLS, tool_choice=choice, params=params)
            results.append(submit(demo, request).result()[0])
        none, auto = results
        if not auto.tool_calls:
            num_texts += 1
            assert (none.completion.token_ids, none.finish_reason) == (auto.completion.token_ids, auto.finish_reason)
    assert num_texts >= 3


def test_free_choice_does_not_need_a_grammar(says, kit, monkeypatch):
    """Without llguidance, or where the end of the sequence does not count, the model is free, and wrong at times."""
    engine = says("<tool_call>\nno\n</tool_call>")
    ask = {"messages": kit.QUESTION, "tools": kit.TOOLS}
    results = [submit(engine, ChatRequest(**ask, params=SamplingParams(ignore_eos=True, max_tokens=40))).result()[0]]
    monkeypatch.setitem(sys.modules, "llguidance", None)
    results.append(submit(engine, ChatRequest(**ask)).result()[0])
    assert ["length", "stop"] == [result.finish_reason for result in results]
    for result in results:
        assert "expected a JSON object" in result.tool_calls[0].error


def test_no_call_begins_that_has_no_room(says, kit):
    """An answer that is cut off holds no part of a call."""
    engine = says(f"<tool_call>\n{CALL}\n</tool_call>")
    for max_tokens in range(1, 60):
        params = SamplingParams(max_tokens=max_tokens)
        result = submit(engine, ChatRequest(messages=kit.QUESTION, tools=kit.TOOLS, params=params)).result()[0]
        if result.tool_calls:
            break
        assert "<tool_call>" not in result.completion.text
    assert 10 < max_tokens < 59
    assert ("tool_calls", None) == (result.finish_reason, result.tool_calls[0].error)


@pytest.mark.parametrize(
    ("template_mark", "text"),
    [
        ("[TOOL_CALLS]", f"[TOOL_CALLS][{CALL}]"),
        ("<|python_tag|>", '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Oslo"}}'),
    ],
)
def test_markers_that_are_special_tokens(says, kit, template_mark, text):
    """The engine shows them to the parser, and a forced call may be spelled with them or without, as the format says."""
    tokenizer = kit.hf_tokenizer(special=[template_mark])
    tokenizer.chat_template = tokenizer.chat_template.replace("<tool_call>", template_mark).replace("</tool_call>", "")
    engine = says(text, tokenizer=tokenizer)
    for choice in ("auto", "required"):
        request = ChatRequest(messages=kit.QUESTION, tools=[kit.WEATHER], tool_choice=choice)
        result = submit(engine, request).result()[0]
        assert ("", "tool_calls") == (result.content, result.finish_reason)
        assert ["get_weather"] == [call.name for call in result.tool_calls]


THINKING = (
    "{%- for m in messages %}<|{{ m.role }}|>{{ m.content.split('</think>')[-1] }}<|end|>{% endfor %}<|assistant|>"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n"
    "{% elif opened is defined %}<think>\n{% endif %}{# tools <tool_call> #}"
)


@pytest.mark.parametrize("added", [(), ("<think>", "</think>")], ids=["text", "tokens"])
@pytest.mark.parametrize("opened", [True, False])
def test_reasoning(says, kit, added, opened):
    """Whoever opens the think block; under a grammar, which holds only after it, too."""
    thought = "Is it {cold}?\n</think>\n\n"
    tokenizer = kit.hf_tokenizer(THINKING, added=added)
    variables = {"opened": True} if opened else {}
    for end, request in [
        ("Yes.", {}),
        ('{"ok":true}', {"response_format": FORMAT}),
        (f"<tool_call>\n{CALL}\n</tool_call>", {"tools": kit.TOOLS, "tool_choice": "required"}),
    ]:
        text = thought + end if opened else f"<think>\n{thought}{end}"
        engine = says(text, opening="<think>\n" if opened else "", tokenizer=tokenizer)
        handle = submit(engine, ChatRequest(messages=kit.QUESTION, template_kwargs=variables, **request))
        stream = streamed(handle)
        result = handle.result()[0]
        same(stream, result)
        assert "Is it {cold}?" == result.reasoning
        assert 0 < result.reasoning_tokens < len(result.completion.token_ids)
        if "tools" in request:
            assert ["get_weather"] == [call.name for call in result.tool_calls]
        else:
            assert (end, ()) == (result.content, result.tool_calls)


def test_a_marker_in_a_thought_begins_no_call(says, kit):
    """Models that think stay free when they may call."""
    engine = says("<think>\nOr <tool_call> x?\n</think>\n\nNo.", tokenizer=kit.hf_tokenizer(THINKING))
    result = submit(engine, ChatRequest(messages=kit.QUESTION, tools=kit.TOOLS)).result()[0]
    assert ("Or <tool_call> x?", "No.", ()) == (result.reasoning, result.content, result.tool_calls)


def test_thinking_that_the_prompt_has_closed(says, kit):
    engine = says("Yes.", opening="<think>\n\n</think>\n\n", tokenizer=kit.hf_tokenizer(THINKING))
    request = ChatRequest(messages=kit.QUESTION, template_kwargs={"enable_thinking": False}, response_format=None)
    result = submit(engine, request).result()[0]
    assert ("Yes.", "", 0) == (result.content, result.reasoning, result.reasoning_tokens)
    assert model_info(engine).supports_reasoning


# -------------------------------------------------------------------- quotes


def test_a_quoted_passage_is_drafted_from_the_messages(says, kit):
    """Context passages and tool outputs need no draft sources: n-gram lookup finds them in the prompt."""
    passage = "The bridge of Oslo opened on a rainy Tuesday and was painted green by nine brothers."
    engine = says(f'It says: "{passage}"')
    for message in ({"role": "user", "content": passage}, {"role": "tool", "tool_call_id": "1", "content": passage}):
        request = ChatRequest(messages=[*kit.QUESTION, message], options={"chain": ["ngram"], "windows": [6]})
        result = submit(engine, request).result()[0]
        assert passage in result.content
        assert result.completion.stats.num_accepted_draft_tokens > 5
        assert result.completion.stats.mean_acceptance_length > 1.5


# -------------------------------------------------------------------- the handle


def test_several_samples(demo, kit):
    params = SamplingParams(n=3, temperature=1.0, seed=1, max_tokens=10)
    handle = submit(demo, ChatRequest(messages=kit.QUESTION, params=params))
    contents = ["", "", ""]
    for delta in handle:
        contents[delta.index] += delta.content
    assert contents == [result.content for result in handle.result()]
    assert [0, 1, 2] == [result.completion.index for result in handle.result()]


async def test_async_twins(demo, kit):
    request = ChatRequest(messages=kit.QUESTION, params=SamplingParams(max_tokens=12))
    wanted = submit(demo, request).result()[0].content
    assert wanted == (await submit(demo, request).aresult())[0].content
    async with submit(demo, request) as handle:
        assert wanted == "".join([delta.content async for delta in handle])


def test_dropping_a_handle_ends_the_request(demo, kit):
    params = SamplingParams(max_tokens=1500, ignore_eos=True)
    next(submit(demo, ChatRequest(messages=kit.QUESTION, params=params)))
    gc.collect()
    deadline = time.monotonic() + 10
    while demo.stats.num_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert demo.stats.num_running == 0


async def test_cancelling_a_task_ends_the_request(demo, kit):
    params = SamplingParams(max_tokens=1500, ignore_eos=True)
    task = asyncio.create_task(submit(demo, ChatRequest(messages=kit.QUESTION, params=params)).aresult())
    await asyncio.sleep(0.05)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    for _ in range(1000):
        if not demo.stats.num_running:
            break
        await asyncio.sleep(0.01)
    assert demo.stats.num_running == 0


def test_a_cancelled_answer_keeps_what_it_has(demo, kit):
    handle = submit(demo, ChatRequest(messages=kit.QUESTION, params=SamplingParams(max_tokens=1500, ignore_eos=True)))
    next(handle)
    handle.cancel()
    result = handle.result()[0]
    assert ("cancelled", True) == (result.finish_reason, bool(result.completion.token_ids))


def test_a_failed_request_raises_every_time(demo, kit):
    def broken(info):
        raise RuntimeError("no")

    handle = submit(demo, ChatRequest(messages=kit.QUESTION, options={"on_step": broken}))
    for _ in range(2):
        with pytest.raises(CallbackError):
            handle.result()


# -------------------------------------------------------------------- errors before anything runs


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"tool_choice": "nope"}, r'"required" or the name of a tool \(get_weather, place\), got \'nope\''),
        ({"tools": [], "tool_choice": "required"}, "there are none"),
        ({"tools": "x"}, "tools must be a list"),
        ({"response_format": {"type": "xml"}}, "response_format must be"),
        ({"options": {"top_p": 1}}, "unknown option 'top_p' of a chat"),
        ({"response_format": FORMAT, "params": SamplingParams(structured={"regex": "a"})}, "not both"),
        ({"response_format": StructuredOutput(lark='start: "a"')}, "Lark grammar"),
        ({"response_format": StructuredOutput(regex="a", after="x")}, "`after` cannot be combined"),
        ({"tool_choice": "required", "params": SamplingParams(max_tokens=3)}, "raise max_tokens"),
    ],
)
def test_wrong_requests(demo, kit, request_, message):
    with pytest.raises(InvalidParameterError, match=message):
        submit(demo, ChatRequest(**{"messages": kit.QUESTION, "tools": kit.TOOLS, **request_}))
    assert (0, 0) == (demo.stats.num_running, demo.stats.num_waiting)


def test_a_schema_that_cannot_be_enforced(demo, kit):
    """It is an error where a call is forced, and no matter where it is not."""
    parameters = {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}}
    tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    for request in ({"tool_choice": "f"}, {"tool_choice": "required"}, {"response_format": FORMAT}):
        with pytest.raises(UnsupportedSchemaError, match=r"tool 'f'.*uniqueItems; use a list in place of a set"):
            submit(demo, ChatRequest(messages=kit.QUESTION, tools=[kit.WEATHER, tool], **request))
    submit(demo, ChatRequest(messages=kit.QUESTION, tools=[kit.WEATHER, tool], tool_choice="get_weather")).close()
    with pytest.raises(UnsupportedSchemaError, match="uniqueItems"):
        submit(demo, ChatRequest(messages=kit.QUESTION, response_format=StructuredOutput(json_schema=parameters)))
    submit(demo, ChatRequest(messages=kit.QUESTION, tools=[tool], params=SamplingParams(max_tokens=2))).result()


# -------------------------------------------------------------------- what is told


def test_what_is_told_about_an_answer(demo, kit):
    """Plain JSON under known names; the chain's stages add up."""
    request = ChatRequest(
        messages=kit.QUESTION, params=SamplingParams(max_tokens=30), options={"chain": ["demo/draft"]}
    )
    result = submit(demo, request).result()[0]
    told = metadata(result.completion, demo.target)
    assert told == json.loads(json.dumps(told))
    assert ("demo/target", "specrouter") == (told["model_name"], told["model_provider"])
    speculation = told["speculative_decoding"]
    assert speculation["num_draft_tokens"] == result.completion.stats.num_draft_tokens > 0
    assert ["draft", "target"] == [stage["role"] for stage in speculation["chain"]]
    assert {"fallback", "acceptance_histogram", "mean_acceptance_length"} <= speculation.keys()
    route = speculation["route"]
    assert sum(leg["tokens"] for leg in route["legs"]) <= len(result.completion.token_ids)
    assert ["demo/draft", "demo/target"] in [leg["levels"] for leg in route["legs"]]
    assert route["measured_seconds_per_token"] > 0
    assert "tool_calls" == metadata(result.completion, "m", finish_reason="tool_calls")["finish_reason"]
    counts = usage(result.completion, 3)
    assert counts["input_tokens"] == count_tokens(demo, ChatRequest(messages=kit.QUESTION))
    assert counts["total_tokens"] == counts["input_tokens"] + counts["output_tokens"]
    assert counts["reasoning_tokens"] == 3


def test_counting_tokens_includes_tools(demo, kit):
    plain = count_tokens(demo, ChatRequest(messages=kit.QUESTION))
    assert count_tokens(demo, ChatRequest(messages=kit.QUESTION, tools=kit.TOOLS)) > plain + 20


def test_model_info(demo):
    info = model_info(demo)
    assert ("demo/target", True, False) == (info.name, info.supports_tools, info.supports_reasoning)
    assert info.context_length == demo.max_context
    assert "ngram -> demo/draft -> demo/middle -> demo/target" == info.chain


def test_importing_the_chat_layer_does_not_import_torch():
    check = "import sys, specrouter_llm.chat; print([m for m in ('torch', 'transformers', 'llguidance') if m in sys.modules])"
    output = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True).stdout
    assert output.strip() == "[]"
