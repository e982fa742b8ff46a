"""Clear errors: each names the parameter, what was given and what to do, before anything is queued."""

from __future__ import annotations

import re

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import models
from transformers import PreTrainedTokenizerFast

from specrouter_llm import EngineConfig, ModelSpec, Plan, SamplingParams, SpecRouter
from specrouter_llm.errors import (
    ContextOverflowError,
    EngineClosedError,
    InvalidParameterError,
    InvalidPromptError,
    QueueFullError,
    SpecRouterError,
)
from specrouter_llm.text.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def engine(tools):
    """An engine without a tokenizer and with a context of 40 tokens."""
    with tools.engine_of(tools.family(), max_batch=2, max_context=40) as engine:
        yield engine


@pytest.fixture(scope="module")
def plain_tokenizer():
    """A tokenizer of three words, without a chat template."""
    backend = Backend(models.WordLevel({"<unk>": 0, "one": 1, "two": 2}, unk_token="<unk>"))
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))


@pytest.fixture(scope="module")
def talking(tools, plain_tokenizer):
    """An engine with that tokenizer."""
    with tools.engine_of(tools.family(), max_batch=2, max_context=40, tokenizer=plain_tokenizer) as engine:
        yield engine


CHAT = [{"role": "user", "content": "hello"}]
PROMPT_ERRORS = {
    "too long": (
        [1] * 50,
        ContextOverflowError,
        "the prompt has 50 tokens and this engine's context is 40 tokens, prompt and answer together; shorten the prompt",
    ),
    "no room for an answer": (
        [1] * 40,
        ContextOverflowError,
        "the prompt has 40 tokens and this engine's context is 40 tokens",
    ),
    "empty text": ("", InvalidPromptError, "the prompt is empty; give at least one token"),
    "an id that does not exist": (
        [1, 32, 2],
        InvalidPromptError,
        "token id 32 is outside the target's vocabulary of 32",
    ),
    "a negative id": ([1, -1], InvalidPromptError, "token id -1 is outside the target's vocabulary of 32"),
    "text": (
        "hello",
        InvalidPromptError,
        "text prompts need a tokenizer, and the target came without one; give token ids",
    ),
    "a chat": (CHAT, InvalidPromptError, "chats need a tokenizer, and the target came without one; give token ids"),
    "None": (None, InvalidPromptError, "got NoneType"),
    "a number": (3, InvalidPromptError, "got int"),
    "a float": (1.5, InvalidPromptError, "got float"),
    "a dict": ({"role": "user"}, InvalidPromptError, "got dict"),
    "a set": ({1, 2}, InvalidPromptError, "got set"),
}
LIST_ERRORS = {
    "no prompt": ([], InvalidPromptError, "there is no prompt: the list is empty"),
    "an empty prompt": ([[1], []], InvalidPromptError, "the prompt is empty; give at least one token"),
    "a bad one among good ones": (
        [[1], [2], [3, 99]],
        InvalidPromptError,
        "token id 99 is outside the target's vocabulary of 32",
    ),
    "one too long": (
        [[1], [1] * 41],
        ContextOverflowError,
        "the prompt has 41 tokens and this engine's context is 40 tokens",
    ),
    "a float id": (
        [[1, 2.0]],
        InvalidPromptError,
        "a prompt is text, a list of token ids or a list of chat messages, got list",
    ),
    "None among prompts": (
        [[1], None],
        InvalidPromptError,
        "a prompt is text, a list of token ids or a list of chat messages, got NoneType",
    ),
    "booleans": (
        [[True]],
        InvalidPromptError,
        "a prompt is text, a list of token ids or a list of chat messages, got list",
    ),
}
OPTION_ERRORS = {
    "negative temperature": (
        {"temperature": -0.5},
        "temperature: Input should be greater than or equal to 0, got -0.5",
    ),
    "infinite temperature": ({"temperature": float("inf")}, "temperature: .*finite.*, got inf"),
    "top_p above 1": ({"top_p": 1.5}, "top_p: Input should be less than or equal to 1, got 1.5"),
    "top_p of 0": ({"top_p": 0}, "top_p: Input should be greater than 0, got 0"),
    "no tokens": ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1, got 0"),
    "unknown parameter": ({"max_new_tokens": 5}, "unknown sampling parameter 'max_new_tokens'; known: .*max_tokens.*"),
    "greedy n": ({"n": 3}, "n > 1 with temperature 0 would give n copies of one answer; set temperature > 0"),
    "top_logprobs alone": ({"top_logprobs": 3}, "top_logprobs needs logprobs=True"),
    "min above max": ({"min_tokens": 9, "max_tokens": 5}, r"min_tokens \(9\) exceeds max_tokens \(5\)"),
    "empty stop": ({"stop": ""}, "stop: .*at least 1 character.*"),
    "negative stop id": ({"stop_token_ids": [-2]}, "stop_token_ids: .*greater than or equal to 0, got -2"),
    "negative seed": ({"seed": -1}, "seed: Input should be greater than or equal to 0, got -1"),
    "two problems": ({"top_k": -1, "min_p": 2}, "top_k: .*, got -1; min_p: .*, got 2"),
    "stop without tokenizer": (
        {"stop": "end"},
        "stop strings and bad words need a tokenizer, and this engine has none",
    ),
    "bad words without tokenizer": (
        {"bad_words": ["end"]},
        "stop strings and bad words need a tokenizer, and this engine has none",
    ),
    "text source without tokenizer": ({"draft_sources": ["text"]}, "text sources need a tokenizer, .*"),
    "text prediction without tokenizer": ({"prediction": "text"}, "text sources need a tokenizer, .*"),
    "unknown level": (
        {"chain": ["small", "target"]},
        r"unknown level 'small' in chain \['small', 'target'\]; this engine has: ngram, draft, middle, target",
    ),
    "a name for a chain": ({"chain": "draft"}, "chain must be a list, got 'draft'"),
    "target not last": (
        {"chain": ["target", "draft"]},
        r"the target 'target' must be the last level of a chain, got \['target', 'draft', 'target'\]",
    ),
    "lookup above a model": (
        {"chain": ["draft", "ngram"]},
        r"'ngram' uses no model, so it cannot verify: it must be the first level, got \['draft', 'ngram', 'target'\]",
    ),
    "a level twice": (
        {"chain": ["draft", "draft"]},
        r"a chain must not name a level twice: \['draft', 'draft', 'target'\]",
    ),
    "too few windows": (
        {"chain": ["draft", "middle"], "windows": [3]},
        "a chain of 3 levels needs 2 windows, one for each level below the target, got 1",
    ),
    "too many windows": (
        {"chain": ["draft", "target"], "windows": [3, 4]},
        "a chain of 2 levels needs 1 windows, one for each level below the target, got 2",
    ),
    "zero window": ({"chain": ["draft"], "windows": [0]}, "windows must be positive integers, got 0"),
    "negative window": ({"chain": ["draft"], "windows": [-1]}, "windows must be positive integers, got -1"),
    "half a window": ({"chain": ["draft"], "windows": [2.5]}, "windows must be positive integers, got 2.5"),
    "windows alone": ({"windows": [3]}, r"windows belong to a chain: give chain=\[\.\.\.\] too"),
    "a chain and no speculation": (
        {"chain": ["draft"], "speculation": False},
        "give either a chain or speculation=False, not both",
    ),
    "no time": ({"timeout": 0}, "timeout must be a positive number of seconds, got 0"),
    "negative time": ({"timeout": -1.5}, "timeout must be a positive number of seconds, got -1.5"),
    "NaN time": ({"timeout": float("nan")}, "timeout must be a positive number of seconds, got nan"),
    "params of a wrong type": ({"params": {"max_tokens": 3}}, "params must be SamplingParams, got dict"),
}


@pytest.fixture
def untouched(engine):
    """Fails a test that queued anything."""
    before = engine.stats
    yield
    assert before == engine.stats


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("case", PROMPT_ERRORS)
def test_bad_prompts(engine, case):
    """A prompt that cannot be served is refused with the numbers that explain it, by every entry point."""
    prompt, kind, message = PROMPT_ERRORS[case]
    for call in (engine.submit, engine.generate, engine.stream, engine.astream):
        with pytest.raises(kind, match=re.escape(message)):
            call(prompt, max_tokens=4)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("case", LIST_ERRORS)
def test_bad_lists_of_prompts(engine, case):
    """One bad prompt refuses the whole call: the good ones before it are not queued."""
    prompts, kind, message = LIST_ERRORS[case]
    with pytest.raises(kind, match=re.escape(message)):
        engine.generate(prompts, max_tokens=4)


@pytest.mark.usefixtures("untouched")
@pytest.mark.parametrize("case", OPTION_ERRORS)
def test_bad_options(engine, case):
    """A bad option is refused with its name and its value, by submit and by generate."""
    options, message = OPTION_ERRORS[case]
    for call, prompts in ((engine.submit, [1, 2]), (engine.generate, [[1], [2]])):
        with pytest.raises(InvalidParameterError, match=f"^{message}"):
            call(prompts, **options)


@pytest.mark.usefixtures("untouched")
async def test_bad_options_of_async_calls(engine):
    """agenerate() refuses what generate() refuses."""
    with pytest.raises(InvalidParameterError, match="unknown level 'small'"):
        await engine.agenerate([[1]], chain=["small"])
    with pytest.raises(ContextOverflowError, match=r"50 tokens .* 40 tokens"):
        await engine.agenerate([[1], [1] * 50])


def test_a_prompt_that_just_fits(engine):
    """One token of room is enough; the answer ends there."""
    completion = engine.generate([[1] * 39], max_tokens=10)[0]
    assert 1 == len(completion.token_ids)
    assert "length" == completion.finish_reason


def test_a_chat_without_a_template(talking):
    """A tokenizer without a chat template says what to do instead."""
    before = talking.stats
    with pytest.raises(InvalidPromptError, match="this tokenizer has no chat template: give the prompt as text"):
        talking.submit(CHAT)
    assert before == talking.stats


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ("", "the prompt is empty; give at least one token"),
        ("one \ud800", "the text is not valid Unicode"),
    ],
)
def test_bad_text(talking, prompt, message):
    """Text that is empty or not Unicode is refused."""
    with pytest.raises(InvalidPromptError, match=message):
        talking.generate(prompt)
    assert 0 == talking.stats.num_finished


def test_every_error_has_the_base_class_and_is_a_value_error():
    """Callers may catch SpecRouterError, or ValueError for bad values."""
    for kind in (InvalidPromptError, ContextOverflowError, InvalidParameterError):
        assert issubclass(kind, SpecRouterError)
        assert issubclass(kind, ValueError)
    assert issubclass(QueueFullError, SpecRouterError)
    assert issubclass(EngineClosedError, SpecRouterError)


def test_unknown_sampling_parameters_without_an_engine():
    """SamplingParams itself refuses what it does not know, and cannot be changed afterwards."""
    with pytest.raises(
        InvalidParameterError, match="unknown sampling parameter 'temprature'; known: bad_words, frequency"
    ):
        SamplingParams(temprature=0.5)
    with pytest.raises(InvalidParameterError, match=r"temperature: .* got 'warm'"):
        SamplingParams().replace(temperature="warm")


def test_a_full_queue(tools):
    """The message has the numbers and the way out; nothing was queued."""
    with tools.engine_of(tools.family(), max_batch=1, max_queue=1) as engine:
        gate = tools.Gate()
        handles = [engine.submit([1], max_tokens=2, on_step=gate)]
        gate.wait()
        handles.append(engine.submit([2], max_tokens=2))
        before = engine.stats
        with pytest.raises(
            QueueFullError, match="1 samples are waiting and the queue holds 1; try again later, or raise max_queue"
        ):
            engine.submit([3], max_tokens=2)
        assert before == engine.stats
        gate.open()
        assert [2, 2] == [len(handle.result()[0].token_ids) for handle in handles]


async def test_a_closed_engine(tools):
    """After close() every entry point says so; closing again is fine."""
    engine = tools.engine_of(tools.family(), max_batch=1)
    assert not engine.closed
    engine.close()
    engine.close()
    assert engine.closed
    before = engine.stats
    for call, prompt in ((engine.submit, [1]), (engine.stream, [1]), (engine.astream, [1]), (engine.generate, [[1]])):
        with pytest.raises(EngineClosedError, match="the engine is closed; make a new one to go on"):
            call(prompt)
    with pytest.raises(EngineClosedError, match="the engine is closed"):
        await engine.agenerate([[1]])
    assert before == engine.stats


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batches": 4}, "unknown engine option 'max_batches'; known: calibration, chain, device, device_map"),
        ({"max_batch": 0}, "max_batch must be a positive integer, got 0"),
        ({"max_batch": True}, "max_batch must be a positive integer, got True"),
        ({"max_queue": -1}, "max_queue must be a positive integer, got -1"),
        ({"prefill_chunk": 1.5}, "prefill_chunk must be a positive integer, got 1.5"),
        ({"max_context": 0}, "max_context must be a positive integer, got 0"),
        ({"memory_budget": "lots"}, "memory_budget must be a number of bytes or text such as '20GiB', got 'lots'"),
    ],
)
def test_bad_engine_options(options, message):
    """An option that from_pretrained does not know, or cannot use, is refused before anything is loaded."""
    with pytest.raises(InvalidParameterError, match=f"^{re.escape(message)}"):
        SpecRouter.from_pretrained("/no/such/folder", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chain": ("small",)}, "unknown level 'small' in chain ['small', 'target']; this engine has: ngram, draft"),
        ({"chain": ("target", "draft")}, "the target 'target' must be the last level of a chain"),
        ({"chain": ("draft",), "windows": (1, 2)}, "a chain of 2 levels needs 1 windows"),
        ({"chain": ("draft",), "windows": (0,)}, "windows must be positive integers, got 0"),
    ],
)
def test_a_bad_default_chain(tools, options, message):
    """The engine's own chain is checked when it is made; no thread is left behind."""
    import threading

    threads = threading.active_count()
    with pytest.raises(InvalidParameterError, match=f"^{re.escape(message)}"):
        tools.engine_of(tools.family(), **options)
    assert threads == threading.active_count()


def test_configurations_and_plans_are_checked_when_made():
    """EngineConfig and Plan refuse what they cannot be, without an engine."""
    with pytest.raises(InvalidParameterError, match="max_batch must be a positive integer, got '8'"):
        EngineConfig(max_batch="8")
    with pytest.raises(InvalidParameterError, match="a chain needs at least one level"):
        Plan.chain([], [])


def test_a_model_with_the_name_of_a_proposer_is_refused(tools):
    """Before anything is loaded."""
    functions = tools.family()
    with pytest.raises(InvalidParameterError, match=r"'ngram'.*another name"):
        tools.engine_of({"ngram": functions["draft"], "target": functions["target"]})
    with pytest.raises(InvalidParameterError, match=r"'ngram'.*another name"):
        SpecRouter.from_pretrained("no/such/model", [ModelSpec("no/such/ngram")])
