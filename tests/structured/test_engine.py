"""Structured output end to end: always valid, closed in time, and the same tokens however they are drafted."""

from __future__ import annotations

import json
import random

import jsonschema
import pytest
import torch

from specrouter_llm import FinishReason, SpecRouter
from specrouter_llm.config import EngineConfig
from specrouter_llm.errors import NumericalError
from specrouter_llm.testing import ContextRunner, blended, hashed_logits

WAYS = [
    {"speculation": False},
    {"chain": ["ngram"]},
    {"chain": ["draft0"], "windows": [5]},
    {"chain": ["ngram", "draft0", "draft1"], "windows": [3, 4, 5]},
]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


def in_all_ways(engine, prompt, ways=WAYS, **sampling):
    """One completion, after checking that every way of drafting, all in one batch, gives it."""
    handles = [engine.submit(prompt, **sampling, **way) for way in ways]
    completions = [handle.result()[0].raise_for_error() for handle in handles]
    assert {c.token_ids for c in completions} == {completions[0].token_ids}
    assert {(c.text, c.finish_reason, c.stop_reason) for c in completions} == {
        (completions[0].text, completions[0].finish_reason, completions[0].stop_reason)
    }
    assert not any(c.stats.fallback for c in completions)
    return completions[0]


def check_random_schemas(tools, engine, seeds, ways, prompt):
    """Random schemas, greedy and sampled, tight and wide budgets."""
    for seed in seeds:
        rng = random.Random(seed)
        schema = tools.random_schema(rng)
        shortest = len(tools.constraint(json_schema=schema)._grammar.shortest)
        for temperature in (0.0, 1.0):
            budget = shortest + rng.choice([1, 4, 25])
            options = {"structured": {"json_schema": schema}, "temperature": temperature, "seed": seed}
            completion = in_all_ways(engine, prompt, ways, max_tokens=budget, **options)
            assert completion.finish_reason is FinishReason.STOP
            assert completion.usage.completion_tokens <= budget
            jsonschema.validate(json.loads(completion.text), schema)


@pytest.mark.parametrize(
    "seeds", [range(12), pytest.param(range(12, 200), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_random_schemas_on_random_models(tools, seeds):
    """A model that says anything at all still gives valid JSON, the same with and without drafting."""
    with tools.engine() as engine:
        check_random_schemas(tools, engine, seeds, WAYS, [7, 8, 9])


@pytest.mark.parametrize("seeds", [range(4), pytest.param(range(4, 40), marks=pytest.mark.slow)], ids=["few", "many"])
def test_random_schemas_on_the_demo_family(tools, seeds):
    """Real forwards, where two lengths of proposal meet two shapes of matrices."""
    ways = [{"speculation": False}, {"chain": ["demo/draft", "demo/middle"]}]
    with SpecRouter.from_pretrained("demo", dtype=torch.float64, progress=False) as engine:
        check_random_schemas(tools, engine, seeds, ways, "The answer as JSON: ")


@pytest.mark.parametrize(
    "options",
    [
        {"repetition_penalty": 1.5, "presence_penalty": 1.0, "frequency_penalty": 0.5},
        {"bad_words": ["{", '{"', "}", "1", '":']},
        {"logit_bias": dict.fromkeys(range(4104), -float("inf"))},
        {"min_tokens": 30},
        {"top_k": 1},
        {"top_p": 0.01, "min_p": 0.9},
        {"stop_token_ids": [4, 92, 93, 94]},
        {"stop": ["{", "name", "}", '"']},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_grammar_wins(tools, options, temperature):
    """Other parameters steer the choice within the grammar and cannot break it."""
    with tools.engine(seed=3) as engine:
        completion = in_all_ways(
            engine,
            [5, 6, 7],
            structured={"json_schema": PERSON},
            max_tokens=40,
            temperature=temperature,
            seed=9,
            **options,
        )
    jsonschema.validate(json.loads(completion.text), PERSON)
    assert (completion.finish_reason, completion.stop_reason) == (FinishReason.STOP, None)


def test_bans_are_kept_where_the_grammar_leaves_a_choice(tools):
    """Digits that are forbidden do not occur."""
    banned = [tools.tokenizer.encode(digit)[-1] for digit in "0123456"]
    options = {"structured": {"regex": "[0-9]{12}"}, "logit_bias": dict.fromkeys(banned, -float("inf"))}
    with tools.engine() as engine:
        completion = in_all_ways(engine, [5], temperature=1.0, seed=1, **options)
    assert not set(completion.token_ids) & set(banned)
    assert len(completion.text) == 12


def test_min_tokens_holds_the_end_back(tools):
    """Where the grammar accepts and may go on, the end is forbidden before min_tokens and allowed after."""
    options = {"structured": {"regex": "[a-c]*"}, "logit_bias": {tools.EOS: 100.0}, "max_tokens": 30}
    with tools.engine() as engine:
        assert len(in_all_ways(engine, [5], **options).token_ids) == 1
        assert len(in_all_ways(engine, [5], min_tokens=9, **options).token_ids) == 10


def test_free_text_first(tools):
    """Free text is free, ends in time even if the model would not end it, and stop strings count in it."""
    spec = {"json_schema": PERSON, "after": "</think>"}
    with tools.engine(seed=1) as engine:
        for seed in range(4):
            options = {"structured": spec, "temperature": 1.0, "seed": seed}
            completion = in_all_ways(engine, [5, 6], max_tokens=50, stop=["}"], **options)
            if completion.stop_reason is None:
                thought, _, answer = completion.text.partition("</think>")
                assert thought
                jsonschema.validate(json.loads(answer), PERSON)
        stopped = engine.generate([5, 6], max_tokens=50, stop=["e", "a", " "], structured=spec, temperature=1.0, seed=1)
        assert stopped[0].stop_reason in ("e", "a", " ")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_tokens": 1},
        {"min_tokens": 12, "logit_bias": {1: 12.0}},
        {"logit_bias": {1: 9.0}},
        {"stop": ["e", "th"]},
        {"stop_token_ids": list(range(0, 4096, 64))},
        {"repetition_penalty": 1.3, "bad_words": ["a"], "logprobs": True},
    ],
    ids=lambda options: next(iter(options), "plain"),
)
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_optional_free_text_is_unconstrained(tools, options, temperature):
    """While `after` does not come nothing is different: tokens, reasons to end, log-probabilities."""
    spec = {"json_schema": PERSON, "after": "\x00never", "optional": True}
    with tools.engine(seed=2) as engine:
        for seed in range(2):
            asked = {"temperature": temperature, "seed": seed, "max_tokens": 40, **options}
            plain = engine.generate([5, seed], speculation=False, **asked)[0]
            lazy = in_all_ways(engine, [5, seed], structured=spec, **asked)
            assert plain.token_ids == lazy.token_ids
            assert (plain.text, plain.logprobs) == (lazy.text, lazy.logprobs)
            assert (plain.finish_reason, plain.stop_reason) == (lazy.finish_reason, lazy.stop_reason)


@pytest.mark.parametrize("after", ["e", "er", "<|user|>", "t<|user|>"])
def test_an_optional_grammar_holds_once_begun(tools, after):
    """Before `after` all is as without a grammar; behind it the text is valid and closed in time."""
    spec = {"json_schema": PERSON, "after": after, "optional": True}
    marker = [*tools.tokenizer.encode("t"), tools.tokenizer.added_tokens["<|user|>"]]
    bias = dict.fromkeys(marker, 8.0) if "user" in after else {}
    visible = tools.tokenizer.keeping(("<|user|>",))
    num_begun = 0
    with tools.engine(seed=1) as engine:
        for seed in range(8):
            asked = {"temperature": 1.0, "seed": seed, "max_tokens": 15 + 5 * seed, "logit_bias": bias}
            asked["keep_special_tokens"] = ["<|user|>"]
            plain = engine.generate([5, 6], speculation=False, **asked)[0]
            lazy = in_all_ways(engine, [5, 6], structured=spec, **asked)
            sizes = range(len(plain.token_ids) + 1)
            free = next((n - 1 for n in sizes if after in visible.decode(plain.token_ids[:n])), sizes[-1])
            assert lazy.token_ids[:free] == plain.token_ids[:free]
            _, begun, answer = lazy.text.partition(after)
            if begun:
                num_begun += 1
                jsonschema.validate(json.loads(answer), PERSON)
            assert lazy.finish_reason is (FinishReason.STOP if begun else plain.finish_reason)
    assert num_begun >= 2


def test_the_grammar_ends_the_text(tools):
    """A finished grammar needs no end-of-sequence token and nothing follows it, streaming or not."""
    with tools.engine() as engine:
        completion = in_all_ways(engine, [5, 6], structured={"choice": ["yes", "no"]})
        assert completion.text in ("yes", "no")
        assert tools.EOS not in completion.token_ids
        deltas = list(engine.submit([5, 6], structured={"choice": ["yes", "no"]}))
        assert "".join(delta.text for delta in deltas) == completion.text


def test_samples_have_grammars_of_their_own(tools):
    """n samples of one request run side by side."""
    with tools.engine() as engine:
        options = {"structured": {"json_schema": PERSON}, "temperature": 1.0, "seed": 4, "n": 4, "max_tokens": 40}
        completions = engine.generate([5], **options)
        alone = engine.generate([5], speculation=False, **options)
    assert [c.token_ids for c in completions] == [c.token_ids for c in alone]
    assert len({c.text for c in completions}) > 1
    for completion in completions:
        jsonschema.validate(json.loads(completion.text), PERSON)


@pytest.mark.parametrize("widths", [(4200, 4100), (4096, 4200), (300, 4104)], ids=str)
def test_drafters_may_have_another_width(tools, widths):
    """Padded logits of the drafter, the target, or a drafter that knows few of the tokens."""
    wide = max(widths)
    target, other = hashed_logits(0, wide), hashed_logits(1, wide)
    close = blended(target, other, 0.1)
    functions = {"draft": (lambda c: close(c)[: widths[0]], widths[0]), "target": (target, widths[1])}
    functions["target"] = (lambda c: target(c)[: widths[1]], widths[1])
    runners = {
        name: ContextRunner(name, function, width, num_slots=4, context_length=512)
        for name, (function, width) in functions.items()
    }
    options = {"structured": {"json_schema": PERSON}, "max_tokens": 40, "temperature": 1.0, "seed": 2}
    parts = {"target": "target", "tokenizer": tools.tokenizer, "eos_token_ids": [tools.EOS], "max_context": 512}
    with SpecRouter(runners, config=EngineConfig(), **parts) as engine:
        plain, drafted = (
            engine.generate([5, 6], **options, **way)[0] for way in ({"speculation": False}, {"chain": ["draft"]})
        )
    assert plain.token_ids == drafted.token_ids
    jsonschema.validate(json.loads(plain.text), PERSON)


def test_drafters_are_masked_and_forced_tokens_are_free(tools):
    """With a drafter that never agrees by itself, what the grammar forces is still accepted."""
    schema = {
        "type": "object",
        "properties": {"a_long_property_name": {"type": "boolean"}},
        "required": ["a_long_property_name"],
        "additionalProperties": False,
    }
    with tools.engine(noise=50.0) as engine:
        drafted = engine.generate([5], structured={"json_schema": schema}, chain=["draft0"], windows=[8])[0]
        looked_up = engine.generate([5], structured={"json_schema": schema}, chain=["ngram"])[0]
    for completion in (drafted, looked_up):
        assert completion.stats.num_accepted_draft_tokens >= len(completion.token_ids) // 2


def test_broken_logits_are_still_reported(tools):
    """A mask does not hide NaN."""
    with tools.engine(num_drafters=0) as engine:
        runner = engine._worker._executor._runners["target"]
        runner._function = lambda context: torch.full((tools.WIDTH,), torch.nan, dtype=torch.float64)
        completion = engine.generate([5], structured={"choice": ["yes", "no"]})[0]
    assert isinstance(completion.error, NumericalError)
