"""A forward that is begun before it is asked for is used when it is the one asked for, and otherwise as if it had not been."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrouter_llm.executor import Executor
from specrouter_llm.runtime.batch import Span
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.state.manager import StateManager
from specrouter_llm.state.row import Row
from specrouter_llm.testing import ContextRunner, hashed_logits

V = 8
PLAIN, DRAFTED = Plan(("target",)), Plan.chain(["draft", "target"], [3])


class AheadContextRunner(ContextRunner):
    """Begins a forward at once, as a device does behind the one before."""

    begun = 0
    broken = False

    def ahead(self, spans, chosen):
        if self.broken:
            raise RuntimeError("out of memory")
        self.begun += 1
        ids = chosen.clamp_min(0).tolist()
        return self.forward([Span(s.slot, s.start, [i], 1) for s, i in zip(spans, ids, strict=True)])


class Bench:
    """A pool whose target runs ahead, and rows over it."""

    def __init__(self, num_slots=3, runner=AheadContextRunner):
        self.target = runner("target", hashed_logits(0, V), V, num_slots=num_slots)
        draft = ContextRunner("draft", hashed_logits(0, V, scale=1.0), V, num_slots=num_slots)
        runners = {"draft": draft, "target": self.target}
        self.state = StateManager(runners, num_slots)
        self.executor = Executor(self.state, runners, {}, "target")

    def row(self, prompt, params, seed, num_tokens=40):
        slot, _ = self.state.admit(prompt)
        sampler = RowSampler(params, seed=seed, prompt_ids=prompt)
        return Row(slot, self.state.tokens(slot), len(prompt), sampler, len(prompt) + num_tokens)

    def step(self, rows, plan):
        result = self.executor.step(rows, [plan] * len(rows))
        for outcome in result.outcomes:
            assert outcome.error is None
            self.executor.commit(outcome.row, outcome.token_ids)
        return result


def alone(prompt, params, seed, count):
    """The first tokens of a row by a target that runs nothing ahead."""
    bench = Bench(1, ContextRunner)
    row = bench.row(prompt, params, seed)
    for _ in range(count):
        bench.step([row], PLAIN)
    return row.output_ids


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_comes_next_the_tokens_are_the_same(data):
    """Rows join, pause, change places and leave their slot to others; chains change; settings differ from row to row."""
    bench = Bench()
    live, ended = [], []
    for seed in range(data.draw(st.integers(4, 25))):
        if len(live) < 3 and (not live or data.draw(st.booleans())):
            prompt = data.draw(st.lists(st.integers(0, V - 1), min_size=1, max_size=4))
            params = SamplingParams(temperature=data.draw(st.sampled_from([0.0, 0.0, 1.0])))
            live.append((bench.row(prompt, params, seed), prompt, params, seed))
        stepping = data.draw(st.one_of(st.just(live), st.permutations(live)))
        stepping = stepping[: data.draw(st.one_of(st.just(len(live)), st.integers(1, len(live))))]
        for _ in range(data.draw(st.integers(1, 4))):
            if all(row.remaining > 4 for row, *_ in stepping):
                bench.step([row for row, *_ in stepping], data.draw(st.sampled_from([PLAIN, PLAIN, DRAFTED])))
        if len(live) > 1 and data.draw(st.booleans()):
            gone = live.pop(data.draw(st.integers(0, len(live) - 1)))
            bench.state.release(gone[0].slot)
            ended.append((list(gone[0].output_ids), *gone[1:]))
    for tokens, *origin in [*ended, *((list(row.output_ids), *origin) for row, *origin in live)]:
        assert tokens == alone(*origin, len(tokens))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_plain_steps_of_the_same_rows_run_ahead(temperature):
    """Every forward but the first three is one that had been begun, and none is begun behind the last token."""
    bench = Bench()
    rows = [bench.row([1, 2, 3], SamplingParams(temperature=temperature), seed, num_tokens=12) for seed in range(2)]
    for _ in range(12):
        bench.step(rows, PLAIN)
    assert [row.remaining for row in rows] == [0, 0]
    assert (bench.target.num_forwards, bench.target.begun) == (12, 12 - 3)


def test_the_next_owner_of_a_slot_gets_logits_of_its_own():
    """It reuses what the slot holds, and feeds one token at the very position that was begun for the row before it."""
    bench = Bench(1)
    gone = bench.row([1, 2, 3], SamplingParams(), 0)
    for _ in range(6):
        bench.step([gone], PLAIN)
    bench.state.release(gone.slot)
    begun = bench.target.begun
    prompt = [*gone.token_ids[:-1], (gone.token_ids[-1] + 1) % V]
    row = bench.row(prompt, SamplingParams(), 1)
    assert bench.state.num_valid("target", row.slot) == len(prompt) - 1
    bench.step([row], PLAIN)
    assert (begun, bench.target.begun) == (4, 4)
    assert row.output_ids == alone(prompt, SamplingParams(), 1, 1)


@pytest.mark.parametrize(
    "params", [SamplingParams(repetition_penalty=1.3), SamplingParams(logit_bias={1: 2.0})], ids=str
)
def test_nothing_runs_ahead_of_a_row_whose_choices_need_the_host(params):
    """Alone or beside another row: its context adjusts its logits, for which the host waits anyway."""
    bench = Bench()
    rows = [bench.row([1, 2, 3], params, 0), bench.row([4, 5], SamplingParams(), 1)]
    for _ in range(6):
        bench.step(rows, PLAIN)
    assert bench.target.begun == 0


def test_a_row_that_breaks_is_the_only_one_that_fails():
    """Its choice is none, and what runs ahead of that is dropped."""
    bench = Bench()
    broken = bench.row([1, 2, 3], SamplingParams(), 0)
    row = bench.row([1, 2, 4], SamplingParams(), 1)
    function = bench.target._function
    bench.target._function = lambda context: (
        function(context) * (float("nan") if context[:3] == [1, 2, 3] and len(context) > 8 else 1.0)
    )
    errors = []
    for _ in range(10):
        live = [each for each in (broken, row) if each is row or not errors]
        for outcome in bench.executor.step(live, [PLAIN] * len(live)).outcomes:
            if outcome.error is not None:
                errors.append(outcome.row)
            else:
                bench.executor.commit(outcome.row, outcome.token_ids)
    assert errors == [broken]
    assert row.output_ids == alone([1, 2, 4], SamplingParams(), 1, 10)


def test_what_waits_for_a_forward_that_was_begun_in_vain_is_marked():
    """And what was begun in the step before; the time of neither is what it takes."""
    bench = Bench()
    rows = [bench.row([1, 2, 3], SamplingParams(), seed) for seed in range(2)]

    def shifted(rows, plan):
        return [(forward.level, forward.shifted) for forward in bench.step(rows, plan).forwards]

    assert [shifted(rows, PLAIN) for _ in range(3)] == [[("target", False)]] * 3
    assert shifted(rows, PLAIN) == [("target", True)]
    drafted = shifted(rows, DRAFTED)
    assert drafted[0] == ("draft", True)
    assert not any(mark for _, mark in drafted[1:])
    assert not any(mark for _, mark in shifted(rows, DRAFTED))
    for _ in range(3):
        shifted(rows, PLAIN)
    assert shifted(rows[:1], PLAIN) == [("target", True)]  # the other row has left
    assert shifted(rows[:1], PLAIN) == [("target", False)]


def test_nothing_runs_ahead_of_a_chain():
    bench = Bench()
    row = bench.row([1, 2, 3], SamplingParams(), 0)
    for _ in range(5):
        bench.step([row], DRAFTED)
    bench.step([row], PLAIN)
    assert bench.target.begun == 0


def test_where_it_fails_steps_are_run_when_they_are_asked_for(caplog):
    """The failure is in the log, once; no request sees it."""
    bench = Bench()
    bench.target.broken = True
    row = bench.row([1, 2, 3], SamplingParams(), 0)
    with caplog.at_level(logging.WARNING):
        for _ in range(8):
            bench.step([row], PLAIN)
    assert row.output_ids == alone([1, 2, 3], SamplingParams(), 0, 8)
    assert [record.getMessage() for record in caplog.records] == ["target: no forward is begun ahead any more"]
