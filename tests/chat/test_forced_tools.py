"""Evidence: whatever the tools and the prompts, forced calls are valid, and the same with and without speculation."""

from __future__ import annotations

import itertools
import json
import random

import jsonschema
import pytest
import torch

from specrouter_llm import SamplingParams, SpecRouter
from specrouter_llm.chat import ChatRequest, submit
from specrouter_llm.chat.tools import closed

WAYS = [{"speculation": False}, {"chain": ["demo/draft", "demo/middle"]}, {"chain": ["ngram"]}]
WORDS = ["weather", "book", "a", "table", "send", "report", "convert", "12", "miles", "Oslo", "tomorrow", "how", "many"]
ROOM = 200


def random_tools(rng, random_schema):
    """A few tools with random parameters."""
    tools = []
    for name in rng.sample(["get_weather", "send", "convert-units", "f", "näme", "search.web"], rng.randint(1, 3)):
        keys = rng.sample(["city", "unit", "a", "first_name", "n"], rng.randint(0, 3))
        parameters = {
            "type": "object",
            "properties": {key: random_schema(rng, depth=1) for key in keys},
            "required": [key for key in keys if rng.random() < 0.7],
        }
        tools.append({"type": "function", "function": {"name": name, "description": "", "parameters": parameters}})
    return tools


def check(result, tools, choice):
    """All calls are valid under their tools' schemas; the number of them."""
    schemas = {tool["function"]["name"]: closed(tool["function"]["parameters"]) for tool in tools}
    assert (result.content, result.finish_reason) == ("", "tool_calls")
    assert len(result.completion.token_ids) <= ROOM
    for call in result.tool_calls:
        assert call.error is None
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])
    if choice != "required":
        assert [call.name for call in result.tool_calls] == [choice]
    assert result.tool_calls
    return len(result.tool_calls)


@pytest.fixture(scope="module")
def engine():
    """In float64, where two lengths of proposal give the same choices."""
    with SpecRouter.from_pretrained("demo", dtype=torch.float64, progress=False, max_batch=12) as engine:
        yield engine


@pytest.mark.parametrize(
    "seeds",
    [range(3), pytest.param(range(200), marks=[pytest.mark.slow, pytest.mark.timeout(3600)])],
    ids=["few", "many"],
)
def test_random_tools(engine, random_schema, seeds):
    """Required and named, greedy and sampled, every way of drafting: valid calls, the same tokens."""
    num_calls = num_tokens = 0
    for seed in seeds:
        rng = random.Random(seed)
        tools = random_tools(rng, random_schema)
        messages = [{"role": "user", "content": " ".join(rng.choices(WORDS, k=rng.randint(1, 12)))}]
        cases = list(itertools.product(("required", rng.choice(tools)["function"]["name"]), (0.0, 1.0)))
        handles = []
        for (choice, temperature), way in itertools.product(cases, WAYS):
            params = SamplingParams(temperature=temperature, seed=seed, max_tokens=ROOM)
            ask = {"messages": messages, "tools": tools, "tool_choice": choice, "params": params, "options": way}
            handles.append(submit(engine, ChatRequest(**ask)))
        found = iter([handle.result()[0] for handle in handles])
        for choice, temperature in cases:
            results = [next(found) for _ in WAYS]
            assert len({result.completion.token_ids for result in results}) == 1, (seed, choice, temperature)
            num_calls += check(results[0], tools, choice)
            num_tokens += len(results[0].completion.token_ids)
    print(
        f"\n{len(seeds)} random sets of tools: {num_calls} forced calls, all valid; "
        f"{num_tokens} tokens, the same in {len(WAYS)} ways of decoding"
    )
