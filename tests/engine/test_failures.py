"""Failures: one row's ends that row only, a drafter's ends nothing, and nothing of a failed row reaches the next one."""

from __future__ import annotations

import asyncio
import logging
import math
import time

import pytest
import torch

from specrouter_llm import FinishReason, Plan, SamplingParams
from specrouter_llm.errors import CallbackError, ModelFailure, NumericalError, RequestFailedError, SpecRouterError

GREEDY = SamplingParams(max_tokens=24)
SAMPLED = GREEDY.replace(temperature=1.0, seed=11, top_p=0.95, repetition_penalty=1.1)
PARAMS = {"greedy": GREEDY, "sampled": SAMPLED}
CHAINS = {
    "target": {"speculation": False},
    "2 levels": {"chain": ["draft"], "windows": [4]},
    "3 levels": {"chain": ["draft", "middle"], "windows": [3, 6]},
}
PROMPTS = [[i, 2 * i + 1, 3] for i in range(8)]
POISON = 5
BAD = {
    "nan": lambda logits: logits * math.nan,
    "one nan": lambda logits: torch.where(torch.arange(len(logits)) == 7, math.nan, logits),
    "+inf": lambda logits: torch.where(torch.arange(len(logits)) == 7, math.inf, logits),
    "-inf only": lambda logits: torch.full_like(logits, -math.inf),
}


def poisoned(function, spoil, prompt, at_length):
    """The function's logits, spoilt for contexts that begin with the prompt and have reached a length."""

    def spoilt(context):
        logits = function(context)
        hit = list(context[: len(prompt)]) == prompt and len(context) >= at_length
        return spoil(logits) if hit else logits

    return spoilt


def raising(error, when):
    """A hook that raises at forwards for which `when(number of forwards so far, spans)` holds."""

    def hook(runner, spans):
        if when(runner.num_forwards, spans):
            runner.num_forwards += 1
            raise error

    return hook


@pytest.fixture(scope="module")
def plain(tools):
    """Plain decoding by a healthy engine, one request at a time."""
    with tools.engine_of(tools.family(), max_batch=1, prefix_reuse=False) as engine:
        return {
            kind: [engine.generate([prompt], params, speculation=False)[0].token_ids for prompt in PROMPTS]
            for kind, params in PARAMS.items()
        }


def collect(handle, deltas):
    """Adds every delta to the list, which keeps them when the iteration raises."""
    for delta in handle:
        deltas.append(delta)


async def acollect(handle, deltas):
    async for delta in handle:
        deltas.append(delta)


def check_healthy(completions, expected):
    for completion in completions:
        completion.raise_for_error()
    assert expected == [completion.token_ids for completion in completions]
    assert {FinishReason.LENGTH} == {completion.finish_reason for completion in completions}


# ---------------------------------------------------------------- the target's logits


@pytest.mark.parametrize("kind", PARAMS)
@pytest.mark.parametrize("chain", CHAINS)
@pytest.mark.parametrize("bad", BAD)
def test_bad_logits_of_one_row_end_that_row_only(tools, plain, bad, chain, kind):
    """One of eight rows gets NaN, +inf or only -inf from the target: it fails with what it had, seven go on."""
    functions = tools.family()
    functions["target"] = poisoned(functions["target"], BAD[bad], PROMPTS[POISON], at_length=13)
    with tools.engine_of(functions, max_batch=8) as engine:
        completions = engine.generate(PROMPTS, PARAMS[kind], **CHAINS[chain])
        failed = completions.pop(POISON)
        check_healthy(completions, plain[kind][:POISON] + plain[kind][POISON + 1 :])
        assert FinishReason.ERROR == failed.finish_reason
        assert isinstance(failed.error, NumericalError)
        assert "the logits of 'target' held NaN or no finite value" in str(failed.error)
        assert (
            plain[kind][POISON][:10] == failed.token_ids
        )  # as in plain decoding: no token less for having looked ahead
        assert failed.usage.completion_tokens == len(failed.token_ids)
        with pytest.raises(NumericalError):
            failed.raise_for_error()
        tools.at_rest(engine)


def test_nan_behind_a_rejected_token_is_nobodys_failure(tools):
    """A target that gives NaN only after a token which it would never choose: a draft of that token changes nothing."""
    base = tools.family()["target"]

    def target(context):
        logits = base(context).clone()
        logits[31] = -50.0
        return logits * math.nan if 31 in context else logits

    proposer = Proposals(lambda self, row, hypothesis, k: [31] * k)
    with tools.engine_of({"target": target}, max_batch=2, proposers=[proposer]) as engine:
        for params in PARAMS.values():
            expected = engine.generate(PROMPTS, params, speculation=False)
            check_healthy(engine.generate(PROMPTS, params, chain=["odd"]), [c.token_ids for c in expected])
    assert proposer.calls > 8


def test_minus_infinity_for_some_tokens_is_no_failure(tools):
    """Logits that forbid tokens by -inf are as good as any."""
    functions = tools.family()
    target = functions["target"]
    functions["target"] = lambda context: torch.where(torch.arange(tools.VOCAB) % 2 == 0, -math.inf, target(context))
    with tools.engine_of(functions, max_batch=2) as engine:
        for params in PARAMS.values():
            expected = engine.generate(PROMPTS, params, speculation=False)
            for chain in CHAINS.values():
                check_healthy(engine.generate(PROMPTS, params, **chain), [c.token_ids for c in expected])
            assert {1} == {token_id % 2 for completion in expected for token_id in completion.token_ids}


def test_deltas_before_a_failure_are_delivered(tools, plain):
    """Iteration gives everything up to the failure, then raises it once; result() carries it."""
    functions = tools.family()
    functions["target"] = poisoned(functions["target"], BAD["nan"], PROMPTS[0], at_length=13)
    with tools.engine_of(functions, max_batch=2) as engine:
        handle = engine.stream(PROMPTS[0], GREEDY, **CHAINS["3 levels"])
        deltas = []
        with pytest.raises(NumericalError, match="NaN"):
            collect(handle, deltas)
        token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
        assert plain["greedy"][0][:10] == tuple(token_ids)
        assert (FinishReason.ERROR, ()) == (deltas[-1].finish_reason, deltas[-1].token_ids)
        assert [] == list(handle)
        completion = handle.result()[0]
        assert tuple(token_ids) == completion.token_ids
        assert isinstance(completion.error, NumericalError)


async def test_async_iteration_raises_the_failure(tools):
    """`async for` raises the failure after the deltas; aresult() and agenerate() return it."""
    functions = tools.family()
    functions["target"] = poisoned(functions["target"], BAD["nan"], PROMPTS[0], at_length=8)
    with tools.engine_of(functions, max_batch=2) as engine:
        deltas = []
        handle = engine.astream(PROMPTS[0], GREEDY, speculation=False)
        with pytest.raises(NumericalError):
            await acollect(handle, deltas)
        token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
        assert tuple(token_ids) == (await handle.aresult())[0].token_ids
        assert 5 == len(token_ids)
        completions = await asyncio.wait_for(engine.agenerate(PROMPTS[:2], GREEDY), 30)
        assert [FinishReason.ERROR, FinishReason.LENGTH] == [completion.finish_reason for completion in completions]


@pytest.mark.parametrize("reuse", [True, False])
def test_nothing_of_a_failed_row_reaches_the_next(tools, plain, reuse):
    """The slot of a failed row is emptied in every model: the same prompt again reuses nothing and is right."""
    broken = [True]
    functions = tools.family()
    target = functions["target"]
    spoilt = poisoned(target, BAD["nan"], PROMPTS[0], at_length=13)
    functions["target"] = lambda context: (spoilt if broken else target)(context)
    with tools.engine_of(functions, max_batch=1, prefix_reuse=reuse) as engine:
        assert FinishReason.ERROR == engine.generate([PROMPTS[0]], GREEDY, **CHAINS["3 levels"])[0].finish_reason
        assert [{}] * 3 == [tools.runner_of(engine, name).cache[0] for name in functions]
        assert (1, 0) == (engine.stats.num_free_slots, engine.stats.num_cached_slots)
        broken.clear()
        for prompt in ([*PROMPTS[0], *plain["greedy"][0][:8]], PROMPTS[0]):
            completion = engine.generate([prompt], GREEDY, **CHAINS["3 levels"])[0]
            fresh = engine.generate([prompt], GREEDY, speculation=False)[0]
            check_healthy([completion], [fresh.token_ids])
        assert plain["greedy"][0] == completion.token_ids
        assert 0 == engine.generate([PROMPTS[1]], GREEDY)[0].usage.cached_tokens


# ---------------------------------------------------------------- the target raises


@pytest.mark.parametrize("kind", PARAMS)
@pytest.mark.parametrize("chain", CHAINS)
def test_a_target_that_raises_for_one_prompt(tools, plain, chain, kind):
    """A forward that raises whenever one certain row is in it: that row fails, the others go on as ever."""
    with tools.engine_of(tools.family(), max_batch=8) as engine:
        victim = []

        def when(number, spans):
            victim.extend(
                span.slot for span in spans if list(span.token_ids[:3]) == PROMPTS[POISON] and span.start == 0
            )
            return any(span.slot in victim and span.end > 11 for span in spans)

        tools.runner_of(engine, "target").hook = raising(RuntimeError("device-side assert"), when)
        completions = engine.generate(PROMPTS, PARAMS[kind], **CHAINS[chain])
        failed = completions.pop(POISON)
        check_healthy(completions, plain[kind][:POISON] + plain[kind][POISON + 1 :])
        assert isinstance(failed.error, ModelFailure)
        assert "model 'target' failed: RuntimeError: device-side assert" == str(failed.error)
        assert plain[kind][POISON][: len(failed.token_ids)] == failed.token_ids
        assert failed.token_ids
        tools.at_rest(engine)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), MemoryError("no room"), ValueError("odd shape")])
def test_a_target_that_raises_once_for_all(tools, plain, error):
    """A forward over all rows that raises is tried row by row: a passing failure ends nobody."""
    with tools.engine_of(tools.family(), max_batch=8) as engine:
        tools.runner_of(engine, "target").hook = raising(error, lambda number, spans: len(spans) > 4)
        for chain in CHAINS.values():
            check_healthy(engine.generate(PROMPTS, GREEDY, **chain), plain["greedy"])


def test_a_target_that_always_raises(tools, plain):
    """Every request fails with the model's own error, none hangs, and the engine serves again when the model does."""
    with tools.engine_of(tools.family(), max_batch=3) as engine:
        runner = tools.runner_of(engine, "target")
        runner.hook = raising(RuntimeError("no device"), lambda number, spans: True)
        for chain in CHAINS.values():
            completions = engine.generate(PROMPTS, GREEDY, **chain)
            assert {"model 'target' failed: RuntimeError: no device"} == {str(c.error) for c in completions}
            assert {()} == {completion.token_ids for completion in completions}
            tools.at_rest(engine)
        runner.hook = None
        check_healthy(engine.generate(PROMPTS, GREEDY, **CHAINS["3 levels"]), plain["greedy"])


def test_a_target_that_raises_during_prefill(tools, plain):
    """A chunk of a long prompt that fails ends that request; the rows beside it go on."""
    prompt = [i % 29 for i in range(60)]
    with tools.engine_of(tools.family(), max_batch=4, prefill_chunk=8) as engine:

        def when(number, spans):
            return any(not span.num_logits and span.start >= 16 for span in spans)

        tools.runner_of(engine, "target").hook = raising(RuntimeError("bad chunk"), when)
        completions = engine.generate([*PROMPTS[:3], prompt], GREEDY, **CHAINS["3 levels"])
        check_healthy(completions[:3], plain["greedy"][:3])
        assert "model 'target' failed: RuntimeError: bad chunk" == str(completions[3].error)
        assert () == completions[3].token_ids
        tools.at_rest(engine)


# ---------------------------------------------------------------- drafters


@pytest.mark.parametrize("kind", PARAMS)
@pytest.mark.parametrize("name", ["draft", "middle"])
@pytest.mark.parametrize("bad", BAD)
def test_bad_logits_of_a_drafter_set_it_aside(tools, plain, bad, name, kind):
    """A drafter's NaN for one row costs that row its drafter, and no row a token; the statistics say why."""
    functions = tools.family()
    functions[name] = poisoned(functions[name], BAD[bad], PROMPTS[POISON], at_length=9)
    with tools.engine_of(functions, max_batch=8) as engine:
        completions = engine.generate(PROMPTS, PARAMS[kind], **CHAINS["3 levels"])
        check_healthy(completions, plain[kind])
        expected = [None] * 8
        expected[POISON] = f"{name}: its logits held NaN or no finite value"
        assert expected == [completion.stats.fallback for completion in completions]
        other = "middle" if name == "draft" else "draft"
        assert {other, "target"} <= {stage.model for stage in completions[POISON].stats.chain}
        tools.at_rest(engine)
        again = engine.generate([PROMPTS[0]], PARAMS[kind], **CHAINS["3 levels"])[0]
        assert (plain[kind][0], None) == (again.token_ids, again.stats.fallback)


@pytest.mark.parametrize("error", [RuntimeError("CUDA out of memory"), MemoryError("no room"), KeyError("layer")])
@pytest.mark.parametrize("name", ["draft", "middle"])
@pytest.mark.parametrize("forward", [0, 1, 2, 4, 9])
def test_a_level_that_raises_in_mid_step(tools, plain, forward, name, error):
    """A drafter or middle level that raises at any of its forwards is set aside; every answer goes on unchanged."""
    with tools.engine_of(tools.family(), max_batch=8) as engine:
        tools.runner_of(engine, name).hook = raising(error, lambda number, spans: number == forward)
        completions = engine.generate(PROMPTS, SAMPLED, **CHAINS["3 levels"])
        check_healthy(completions, plain["sampled"])
        assert {f"{name}: raised {type(error).__name__}: {error}"} == {c.stats.fallback for c in completions}
        tools.at_rest(engine)
        completions = engine.generate(PROMPTS, SAMPLED, **CHAINS["3 levels"])
        check_healthy(completions, plain["sampled"])
        assert {None} == {completion.stats.fallback for completion in completions}  # the next requests try again


def test_a_drafter_that_raises_after_it_wrote_its_cache(tools, plain):
    """What a failed forward left in the cache lies behind the mask: nobody reads it."""
    with tools.engine_of(tools.family(), max_batch=2) as engine:
        runner = tools.runner_of(engine, "draft")

        def after(runner, spans, logits):
            if runner.num_forwards % 7 == 3:
                raise RuntimeError("too late")
            return logits

        runner.after = after
        for _ in range(2):
            completions = engine.generate(PROMPTS, SAMPLED, **CHAINS["3 levels"])
            check_healthy(completions, plain["sampled"])
            assert "draft: raised RuntimeError: too late" in {completion.stats.fallback for completion in completions}


def test_all_drafters_fail(tools, plain):
    """With every level below the target gone, the answer is plain decoding, and both reasons are told."""
    with tools.engine_of(tools.family(), max_batch=4) as engine:
        for name in ("draft", "middle"):
            tools.runner_of(engine, name).hook = raising(
                RuntimeError(f"{name} is gone"), lambda number, spans: number > 3
            )
        completions = engine.generate(PROMPTS, GREEDY, **CHAINS["3 levels"])
        check_healthy(completions, plain["greedy"])
        for completion in completions:
            assert "draft: raised RuntimeError: draft is gone" in completion.stats.fallback
            assert "middle: raised RuntimeError: middle is gone" in completion.stats.fallback


def test_a_drafter_that_fails_while_it_catches_up(tools):
    """A drafter that raises on a chunk of a long prompt is set aside; the answer goes on."""
    prompt = [i % 29 for i in range(60)]
    with tools.engine_of(tools.family(), max_batch=2, prefill_chunk=8) as engine:
        expected = engine.generate([prompt], GREEDY, speculation=False)[0].token_ids
        tools.runner_of(engine, "draft").hook = raising(
            RuntimeError("bad chunk"), lambda number, spans: any(not span.num_logits for span in spans)
        )
        completion = engine.generate([prompt], GREEDY, **CHAINS["3 levels"])[0]
        check_healthy([completion], [expected])
        assert "draft: raised RuntimeError: bad chunk" == completion.stats.fallback
        assert 0 < completion.stats.num_accepted_draft_tokens


def test_a_drafter_of_a_smaller_vocabulary(tools):
    """A row that holds a token unknown to a drafter goes on without it, and the reason is told."""
    functions = tools.family()
    functions["draft"] = lambda context, draft=functions["draft"]: draft(context)[:20]
    with tools.engine_of(functions, max_batch=2) as engine:
        expected = [c.token_ids for c in engine.generate(PROMPTS, SAMPLED, speculation=False)]
        tools.runner_of(engine, "draft").vocab_size = 20
        completions = engine.generate(PROMPTS, SAMPLED, **CHAINS["2 levels"])
        check_healthy(completions, expected)
        for completion in completions:
            assert "draft: its vocabulary of 20 lacks token" in completion.stats.fallback
        assert any(completion.stats.num_accepted_draft_tokens for completion in completions)


def test_a_full_drafter_context_concerns_its_row_only(tools):
    """A row at the end of a drafter's context gives the drafter up alone: its batch mate drafts on."""
    functions = {"draft": lambda context: tools.peak(2, 32), "target": lambda context: tools.peak(1, 32)}
    with tools.engine_of(functions, max_batch=2) as engine:
        tools.runner_of(engine, "draft").context_length = 14
        gate = tools.Gate()
        first = engine.submit([3] * 9, max_tokens=24, chain=["draft"], windows=[4], on_step=gate)
        gate.wait()
        mate = engine.submit([4], max_tokens=8, chain=["draft"], windows=[4])
        gate.open()
        assert None is mate.result()[0].stats.fallback
        assert "draft: its context of 14 tokens is full" == first.result()[0].stats.fallback


def test_a_drafter_is_never_fed_a_token_that_it_does_not_know(tools, plain):
    """A draft of 20 ids under a middle of 32 ids over two rounds: the middle's own tokens must not reach the draft."""
    functions = tools.family()
    functions["draft"] = lambda context, draft=functions["draft"]: draft(context)[:20]
    fed = []
    with tools.engine_of(functions, max_batch=8) as engine:
        runner = tools.runner_of(engine, "draft")
        runner.vocab_size = 20
        runner.hook = lambda runner, spans: fed.extend(token_id for span in spans for token_id in span.token_ids)
        completions = engine.generate(PROMPTS, SAMPLED, **CHAINS["3 levels"])
        check_healthy(completions, plain["sampled"])
        assert 19 == max(fed)  # on CUDA an id beyond the embedding is a device-side assert: the process is lost
        assert not any("raised" in (completion.stats.fallback or "") for completion in completions)


# ---------------------------------------------------------------- model-free proposers


class Proposals:
    """A proposer that offers what a function of (row, hypothesis, max_tokens) says."""

    name = "odd"

    def __init__(self, function):
        self._function = function
        self.calls = 0

    def propose(self, row, hypothesis, max_tokens):
        self.calls += 1
        return self._function(self, row, hypothesis, max_tokens)


def _raise(error):
    raise error


ODD = {
    "negative ids": lambda self, row, hypothesis, k: [-1] * k,
    "ids beyond the vocabulary": lambda self, row, hypothesis, k: [32] * k,
    "huge ids": lambda self, row, hypothesis, k: [2**70] * k,
    "garbage behind a good start": lambda self, row, hypothesis, k: [row.token_ids[-1], -5, 10**9],
    "too many": lambda self, row, hypothesis, k: list(range(10 * k + 100)),
    "nothing": lambda self, row, hypothesis, k: [],
    "a tuple": lambda self, row, hypothesis, k: (1, 2, 3),
    "a generator": lambda self, row, hypothesis, k: (i for i in range(k)),
}


@pytest.mark.parametrize("below", [["odd"], ["odd", "draft", "middle"]])
@pytest.mark.parametrize("odd", ODD)
def test_a_proposer_of_garbage(tools, plain, odd, below):
    """Ids that do not exist, too many of them or none at all change no token and raise nothing."""
    proposer = Proposals(ODD[odd])
    with tools.engine_of(tools.family(), max_batch=4, proposers=[proposer]) as engine:
        for kind, params in PARAMS.items():
            completions = engine.generate(PROMPTS, params, chain=below, windows=[3, 3, 5][: len(below)])
            check_healthy(completions, plain[kind])
            assert {None} == {completion.stats.fallback for completion in completions}
            assert max(completion.stats.num_spec_tokens for completion in completions) <= 5
    assert proposer.calls > 8


@pytest.mark.parametrize("call", [1, 2, 7])
@pytest.mark.parametrize("error", [ValueError("broken"), MemoryError("no room"), StopIteration()])
def test_a_proposer_that_raises(tools, plain, call, error):
    """A proposer that raises is set aside for that row alone; the rest of its chain goes on."""

    def propose(self, row, hypothesis, max_tokens):
        return _raise(error) if self.calls == call else [row.token_ids[-1]] * max_tokens

    with tools.engine_of(tools.family(), max_batch=4, proposers=[Proposals(propose)]) as engine:
        completions = engine.generate(PROMPTS, SAMPLED, chain=["odd", "draft"], windows=[2, 4])
        check_healthy(completions, plain["sampled"])
        fallbacks = [completion.stats.fallback for completion in completions]
        assert 7 == fallbacks.count(None)
        assert f"odd: raised {type(error).__name__}: {error}" in fallbacks
        assert all(completion.stats.num_accepted_draft_tokens for completion in completions)


# ---------------------------------------------------------------- policies


class FlakyPolicy:
    """Raises in plan() or observe(), each time or now and then."""

    def __init__(self, plan, *, in_plan=None, in_observe=None):
        self._plan, self._in_plan, self._in_observe = plan, in_plan, in_observe
        self.plans = self.observed = 0

    def plan(self, rows):
        self.plans += 1
        if self._in_plan and self.plans % self._in_plan == 0:
            raise ZeroDivisionError("no plan")
        return [self._plan] * len(rows)

    def observe(self, step):
        self.observed += len(step.rows)
        if self._in_observe:
            raise KeyError("nothing learnt")


class ThinkingPolicy(FlakyPolicy):
    """Thinks while the target runs, as far as it gets, and takes its time to plan."""

    def __init__(self, plan, *, fails):
        super().__init__(plan)
        self._fails = fails
        self.thoughts, self.steps = [], []

    def plan(self, rows):
        time.sleep(0.002)
        return super().plan(rows)

    def reconsider(self):
        self.thoughts.append((self.plans, self.observed))
        if self._fails:
            raise OSError("no idea")

    def observe(self, step):
        super().observe(step)
        self.steps.append(step)


@pytest.mark.parametrize("fails", [False, True])
def test_a_policy_thinks_while_the_target_runs(tools, plain, fails, caplog):
    """Once a step, between its plan and what came of it; what it raises is nobody's failure. Planning is part of a step."""
    policy = ThinkingPolicy(Plan.chain(["draft", "target"], [3]), fails=fails)
    with caplog.at_level(logging.ERROR), tools.engine_of(tools.family(), max_batch=1, policy=policy) as engine:
        check_healthy(engine.generate(PROMPTS, SAMPLED), plain["sampled"])
    assert policy.thoughts == [(step + 1, step) for step in range(policy.plans)]
    assert ({OSError} if fails else set()) == {record.exc_info[0] for record in caplog.records}
    for step in policy.steps:
        assert step.seconds >= 0.002 + sum(forward.seconds_together for forward in step.forwards)


@pytest.mark.parametrize(
    "options", [{"in_plan": 1}, {"in_plan": 3}, {"in_observe": True}, {"in_plan": 2, "in_observe": True}]
)
def test_a_policy_that_raises(tools, plain, options, caplog):
    """Without a plan the step decodes plainly; what cannot be learnt is not learnt; the log has the traceback."""
    policy = FlakyPolicy(Plan.chain(["draft", "middle", "target"], [3, 5]), **options)
    with caplog.at_level(logging.ERROR), tools.engine_of(tools.family(), max_batch=4, policy=policy) as engine:
        completions = engine.generate(PROMPTS, SAMPLED)
        check_healthy(completions, plain["sampled"])
        assert (options.get("in_plan") != 1) == any(c.stats.num_draft_tokens for c in completions)
        assert {None} == {completion.stats.fallback for completion in completions}
    assert policy.plans > 1
    assert policy.observed == sum(completion.stats.num_target_steps for completion in completions)
    errors = {record.exc_info[0] for record in caplog.records}
    assert ({ZeroDivisionError} if "in_plan" in options else set()) | (
        {KeyError} if "in_observe" in options else set()
    ) == errors


@pytest.mark.parametrize("answer", [KeyError("whom?"), ["nobody", "draft", "target"], None])
def test_a_policy_that_asks_whom_it_cannot(tools, plain, answer):
    """What it raises is nobody's failure, and models are not asked."""

    class Asking(FlakyPolicy):
        def asides(self):
            if isinstance(answer, Exception):
                raise answer
            return answer

    policy = Asking(Plan.chain(["draft", "target"], [3]))
    with tools.engine_of(tools.family(), max_batch=4, policy=policy) as engine:
        check_healthy(engine.generate(PROMPTS, SAMPLED), plain["sampled"])
    assert policy.observed


@pytest.mark.parametrize("number", [0, 1, 3])
def test_a_policy_that_plans_too_few_or_too_many_rows(tools, plain, number):
    """A policy that miscounts the rows slows the step down at worst."""

    class Miscounting(FlakyPolicy):
        def plan(self, rows):
            return super().plan(rows)[:1] * number

    policy = Miscounting(Plan.chain(["draft", "target"], [4]))
    with tools.engine_of(tools.family(), max_batch=2, policy=policy) as engine:
        check_healthy(engine.generate(PROMPTS, SAMPLED), plain["sampled"])


# ---------------------------------------------------------------- callbacks


@pytest.mark.parametrize("step", [1, 2, 5])
def test_a_callback_that_raises_ends_its_row_only(tools, plain, step):
    """on_step raises at some step: what was committed up to there is kept, the other rows go on."""
    calls = []

    def on_step(info):
        calls.append(info.committed)
        if len(calls) == step:
            raise LookupError("the user's own bug")

    with tools.engine_of(tools.family(), max_batch=8) as engine:
        handles = [
            engine.submit(prompt, SAMPLED, on_step=on_step if i == POISON else None, **CHAINS["3 levels"])
            for i, prompt in enumerate(PROMPTS)
        ]
        completions = [handle.result()[0] for handle in handles]
        failed = completions.pop(POISON)
        check_healthy(completions, plain["sampled"][:POISON] + plain["sampled"][POISON + 1 :])
        assert isinstance(failed.error, CallbackError)
        assert "on_step raised LookupError: the user's own bug" == str(failed.error)
        assert step == len(calls) == failed.stats.num_target_steps
        assert tuple(token_id for committed in calls for token_id in committed) == failed.token_ids
        assert plain["sampled"][POISON][: len(failed.token_ids)] == failed.token_ids
        tools.at_rest(engine)


def test_a_callback_that_raises_for_one_sample(tools):
    """n = 3: the sample whose callback raises fails, its siblings end as they should."""

    def on_step(info):
        if info.sample_index == 1:
            raise LookupError("not this one")

    with tools.engine_of(tools.family(), max_batch=3) as engine:
        params = SAMPLED.replace(n=3)
        expected = [c.token_ids for c in engine.generate([PROMPTS[0]], params)]
        handle = engine.stream(PROMPTS[0], params, on_step=on_step)
        with pytest.raises(CallbackError, match="not this one"):
            collect(handle, [])
        completions = handle.result()
        reasons = [completion.finish_reason for completion in completions]
        assert [FinishReason.LENGTH, FinishReason.ERROR, FinishReason.LENGTH] == reasons
        assert [expected[0], expected[1][:1], expected[2]] == [completion.token_ids for completion in completions]


def test_generate_returns_the_others_with_the_failed(tools, plain):
    """generate() raises nothing for one failed request among several: it is among the completions, in its place."""
    functions = tools.family()
    functions["target"] = poisoned(functions["target"], BAD["nan"], PROMPTS[2], at_length=3)
    with tools.engine_of(functions, max_batch=2) as engine:
        completions = engine.generate(PROMPTS, GREEDY)
        assert list(range(8)) == [completion.prompt_index for completion in completions]
        assert [2] == [i for i, completion in enumerate(completions) if completion.error is not None]
        assert [2] == [i for i, c in enumerate(completions) if c.finish_reason is FinishReason.ERROR]
        assert isinstance(completions[2].error, RequestFailedError)
        assert isinstance(completions[2].error, SpecRouterError)
        assert completions[0] is completions[0].raise_for_error()
        with pytest.raises(RequestFailedError):
            completions[2].raise_for_error()
        del completions[2]
        check_healthy(completions, plain["greedy"][:2] + plain["greedy"][3:])
