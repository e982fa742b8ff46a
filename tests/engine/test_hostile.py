"""Code and devices that do their worst: every request still ends, and nobody hangs."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
import torch

from specrouter_llm import FinishReason, Plan
from specrouter_llm.errors import CallbackError, InvalidParameterError, InvalidPromptError

pytestmark = pytest.mark.timeout(15)


class Offers:
    """Proposes what it is told to."""

    name = "odd"

    def __init__(self, tokens):
        self._tokens = tokens

    def propose(self, row, hypothesis, max_tokens):
        return self._tokens


def broken(*args):
    raise RuntimeError("CUDA error: device-side assert triggered")


def test_a_device_that_is_gone_fails_all_requests_and_hangs_nobody(tools):
    """Where clearing a failed slot raises too (a sticky CUDA error), every request still ends with an error."""
    with tools.engine_of(tools.family(), max_batch=2) as engine:
        runner = tools.runner_of(engine, "target")
        runner.hook, runner.clear = broken, broken
        completions = engine.generate([[1], [2], [3]], max_tokens=5)
        assert {"model 'target' failed: RuntimeError: CUDA error: device-side assert triggered"} == {
            str(completion.error) for completion in completions
        }


def test_a_drafter_that_cannot_be_cleared_is_set_aside(tools):
    """NaN in a drafter whose clear() raises costs the drafter, not the answer."""
    functions = tools.family()
    functions["draft"] = lambda context: torch.full((32,), math.nan)
    with tools.engine_of(functions, max_batch=2) as engine:
        expected = engine.generate([[1]], max_tokens=9, speculation=False)[0].token_ids
        tools.runner_of(engine, "draft").clear = broken
        assert expected == engine.generate([[1]], max_tokens=9, chain=["draft"])[0].raise_for_error().token_ids


def test_closing_in_a_callback_that_then_raises(tools):
    """close() and an exception in on_step: everything ends, nothing hangs."""
    engine = tools.engine_of(tools.family(), max_batch=2)

    both = threading.Event()

    def on_step(info):
        both.wait()
        engine.close()
        raise ValueError("and then this")

    handles = [engine.submit([1], max_tokens=50, on_step=on_step), engine.submit([2], max_tokens=50)]
    both.set()
    assert [FinishReason.ERROR, FinishReason.CANCELLED] == [handle.result()[0].finish_reason for handle in handles]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_exits(tools, kind):
    """sys.exit() (or pytest.fail()) in on_step ends its row as any exception does; it must not kill the worker."""

    def on_step(info):
        raise kind("bye")

    with tools.engine_of(tools.family(), max_batch=2) as engine:
        handles = [engine.submit([1], max_tokens=50, on_step=on_step), engine.submit([2], max_tokens=5)]
        assert isinstance(handles[0].result()[0].error, CallbackError)
        assert 5 == len(handles[1].result()[0].token_ids)


@pytest.mark.parametrize("guess", [31, 30])
def test_nan_behind_a_rejected_token_is_nobodys_failure(tools, guess):
    """A target that gives NaN only after a token which it would never choose: plain decoding never sees it."""
    base = tools.family()["target"]

    def target(context):
        logits = base(context).clone()
        logits[[30, 31]] = -50.0
        return logits * math.nan if 31 in context else logits

    with tools.engine_of({"target": target}, max_batch=2, proposers=[Offers([guess] * 4)]) as engine:
        expected = engine.generate([[1, 2]], max_tokens=9, speculation=False)[0].raise_for_error()
        completion = engine.generate([[1, 2]], max_tokens=9, chain=["odd"])[0]
        assert expected.token_ids == completion.raise_for_error().token_ids


def test_a_failing_row_has_the_tokens_of_plain_decoding(tools):
    """A row whose target gives NaN from a position on ends there, with any chain; the tokens before it are kept."""
    functions = tools.family()
    target = functions["target"]
    functions["target"] = lambda context: target(context) * (math.nan if len(context) >= 12 else 1)
    with tools.engine_of(functions, max_batch=2) as engine:
        plain = engine.generate([[1, 2]], max_tokens=30, speculation=False)[0]
        assert 10 == len(plain.token_ids)
        for chain, windows in ((["draft"], [4]), (["draft", "middle"], [3, 6])):
            assert (
                plain.token_ids == engine.generate([[1, 2]], max_tokens=30, chain=chain, windows=windows)[0].token_ids
            )


@pytest.mark.parametrize("tokens", [["a"], "abc", [None], [[3]], [1.5]])
def test_a_proposer_of_things_that_are_no_ids(tools, tokens):
    """Whatever a proposer returns, the rows go on (it is set aside): here all rows of the batch die."""
    with tools.engine_of(tools.family(), max_batch=2, proposers=[Offers(tokens)]) as engine:
        expected = [c.token_ids for c in engine.generate([[1], [2]], max_tokens=9, speculation=False)]
        handles = [engine.submit([1], max_tokens=9, chain=["odd"]), engine.submit([2], max_tokens=9, speculation=False)]
        completions = [handle.result()[0].raise_for_error() for handle in handles]
        assert expected == [completion.token_ids for completion in completions]
        assert "odd: " in (completions[0].stats.fallback or "")


PLANS = {
    "an unknown level": Plan(("nope", "target"), (3,), (3, 1)),
    "a plan of another top": Plan(("draft",)),
    "the target below": Plan(("target", "draft"), (3,), (3, 1)),
    "None": None,
    "text": "target",
    "no windows": Plan(("draft", "target")),
    "too few rounds": Plan(("draft", "middle", "target"), (4, 4)),
    "half a token": Plan(("draft", "target"), (2.5,), (3, 1)),
    "words for numbers": Plan(("draft", "target"), ("4",), (3, 1)),
    "lists": Plan(["draft", "target"], [4], [4, 1]),
}


class Plans:
    """A policy that has one answer for everybody."""

    def __init__(self, answer):
        self._answer = answer

    def plan(self, rows):
        return self._answer(rows)

    def observe(self, step):
        pass


def check_harmless(tools, policy):
    """Rows of the policy are decoded as plainly as ever, and whoever forces a chain gets it."""
    with tools.engine_of(tools.family(), max_batch=4, policy=policy) as engine:
        expected = engine.generate([[1]], max_tokens=9, speculation=False)[0].token_ids
        handles = [engine.submit([1], max_tokens=9), engine.submit([1], max_tokens=9, chain=["draft"])]
        chosen, forced = (handle.result()[0].raise_for_error() for handle in handles)
        assert expected == chosen.token_ids == forced.token_ids
        assert ["target"] == [stage.model for stage in chosen.stats.chain]
        assert ["draft", "target"] == [stage.model for stage in forced.stats.chain]


@pytest.mark.parametrize("plan", PLANS)
def test_a_policy_of_impossible_plans(tools, plan, caplog):
    """Any policy leaves every output as it is: an impossible plan is plain decoding, for that row alone, and told of once."""
    check_harmless(tools, Plans(lambda rows: [PLANS[plan]] * len(rows)))
    assert 1 == len(caplog.records)


@pytest.mark.parametrize("answer", [lambda rows: [], lambda rows: None, lambda rows: 1 / 0])
def test_a_policy_without_plans_costs_no_forced_chain(tools, answer, caplog):
    """Its own rows decode plainly. A policy may fail at every step, so it is told of once."""
    check_harmless(tools, Plans(answer))
    assert 1 == len(caplog.records)


@pytest.mark.parametrize("reasons", [None, "because", ValueError("why?")])
def test_a_policy_without_reasons(tools, reasons):
    """Its rows end all the same, also while the engine is being closed: here the caller waits for ever."""

    class Policy(Plans):
        def reasons(self, row_id):
            if isinstance(reasons, Exception):
                raise reasons
            return reasons

    policy = Policy(lambda rows: [Plan.chain(["draft", "target"], [3])] * len(rows))
    engine = tools.engine_of(tools.family(), max_batch=2, policy=policy)
    assert () == engine.generate([[1]], max_tokens=9)[0].raise_for_error().stats.route.switches
    handles = [engine.submit([i], max_tokens=400) for i in range(1, 6)]
    engine.close()
    assert {FinishReason.CANCELLED} == {handle.result()[0].finish_reason for handle in handles}
    assert 0 == engine.stats.num_running


def test_a_policy_that_counts_with_numpy(tools):
    """Its whole numbers are whole numbers."""
    policy = Plans(lambda rows: [Plan(("draft", "target"), (np.int64(3),), (np.int64(3), 1))] * len(rows))
    with tools.engine_of(tools.family(), policy=policy) as engine:
        assert engine.generate([[1]], max_tokens=9)[0].raise_for_error().stats.num_draft_tokens


class Untold(Exception):
    """An error that cannot be told of."""

    def __str__(self):
        raise ValueError("no text")


@pytest.mark.parametrize("place", ["proposer", "drafter", "on_step"])
def test_an_error_whose_message_is_an_error(tools, place):
    """It costs what any other error there would."""

    class Speechless(Offers):
        def propose(self, row, hypothesis, max_tokens):
            raise Untold

    def raises(*arguments):
        raise Untold

    with tools.engine_of(tools.family(), max_batch=2, proposers=[Speechless([])]) as engine:
        expected = engine.generate([[1]], max_tokens=9, speculation=False)[0].token_ids
        other = engine.submit([1], max_tokens=9, speculation=False)
        if place == "drafter":
            tools.runner_of(engine, "draft").hook = raises
        options = {"on_step": raises} if place == "on_step" else {}
        answer = engine.generate([[1]], max_tokens=9, chain=["odd" if place == "proposer" else "draft"], **options)[0]
        assert expected == other.result()[0].raise_for_error().token_ids
        if place == "on_step":
            assert "on_step raised Untold" == str(answer.error)
        else:
            assert expected == answer.raise_for_error().token_ids
            assert (answer.stats.fallback or "").endswith("raised Untold")


@pytest.mark.parametrize(
    ("prompt", "options", "kind"),
    [
        (b"abc", {}, InvalidPromptError),  # taken for the ids 97, 98, 99
        ([1], {"timeout": "5"}, InvalidParameterError),  # TypeError
        ([1], {"timeout": True}, InvalidParameterError),  # one second
        ([1], {"on_step": 5}, InvalidParameterError),  # fails at the first step
        ([1], {"chain": 5}, InvalidParameterError),  # TypeError
        ([1], {"chain": ["draft"], "windows": 5}, InvalidParameterError),  # TypeError
        ([1], {"prediction": 3}, InvalidParameterError),  # silently the lookup is set aside
        ([1], {"draft_sources": [5]}, InvalidParameterError),
        ([1], {"draft_sources": 5}, InvalidParameterError),  # TypeError
        ([1], {"speculation": "no"}, InvalidParameterError),  # counts as True
        ([1], {"timeout": 10**400}, InvalidParameterError),  # OverflowError
        ([1], {"timeout": math.nan}, InvalidParameterError),  # never over
        ([1], {"draft_sources": None}, InvalidParameterError),  # TypeError
        ([1], {"keep_special_tokens": None}, InvalidParameterError),  # TypeError
        ([1], {"chain": iter(["draft"])}, InvalidParameterError),  # TypeError
        ([1], {"draft_sources": iter([[3]])}, InvalidParameterError),  # empty for all prompts but the first
        ([1], {"logit_bias": {200: 1.0}}, InvalidParameterError),  # silently ignored
        ([1], {"bad_words": [(3, 200)]}, InvalidParameterError),  # silently ignored
        ([1], {"logit_bias": {5: 1e39}}, InvalidParameterError),  # infinite in float32: the model seems broken
        ([1], {"logit_bias": {5: -1e39}}, InvalidParameterError),
    ],
)
def test_wrong_types_are_refused(tools, prompt, options, kind):
    """A value of the wrong type is refused before anything is queued."""
    with tools.engine_of(tools.family(200), vocab_size=200, max_batch=2) as engine:
        before = engine.stats
        with pytest.raises(kind):
            engine.submit(prompt, max_tokens=2, **options)
        assert before == engine.stats


def test_draft_sources_given_as_text(tools, tokenizer):
    """One document instead of a list of documents is one document (or refused), not one source per character."""
    size = len(tokenizer)
    with (
        tools.engine_of(tools.family(size), vocab_size=size, tokenizer=tokenizer, max_batch=1) as engine,
        pytest.raises(InvalidParameterError),
    ):
        engine.submit([1], max_tokens=2, draft_sources="a document")
