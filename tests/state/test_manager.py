"""The StateManager by itself: which slot a row gets, what a model is fed, what is kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specrouter_llm.runtime.batch import Span
from specrouter_llm.state.manager import SlotStatus, StateManager, common_prefix
from specrouter_llm.testing import ContextRunner

FREE, CACHED, ACTIVE = SlotStatus.FREE, SlotStatus.CACHED, SlotStatus.ACTIVE


def manager(num_slots=3, **options):
    names = ("draft", "target")
    runners = {name: ContextRunner(name, lambda _: torch.zeros(99), 99, num_slots=num_slots) for name in names}
    return StateManager(runners, num_slots, **options), runners


def finished(state, tokens, **valid):
    """Admits, feeds each model so many of the tokens, and releases; returns the slot."""
    slot, _ = state.admit(tokens)
    for model, count in valid.items():
        feed(state, model, slot, count)
    state.release(slot)
    return slot


def feed(state, model, slot, count):
    """A prefill up to `count` tokens of the slot."""
    start = state.num_valid(model, slot)
    if count > start:
        state.wrote(model, Span(slot, start, state.tokens(slot)[start:count], 0))


@settings(deadline=None, derandomize=True)
@given(a=st.lists(st.integers(0, 2), max_size=8), b=st.lists(st.integers(0, 2), max_size=8))
def test_common_prefix_is_the_longest(a, b):
    """Equal up to the length given, different or ended there."""
    n = common_prefix(a, b)
    assert a[:n] == b[:n]
    assert n == min(len(a), len(b)) or a[n] != b[n]


def test_the_longest_prefix_wins():
    """Of two cached slots the one that shares more is taken, free slots notwithstanding."""
    state, _ = manager(min_reuse=2)
    first, second = state.admit([1, 2, 3, 4, 5])[0], state.admit([1, 2, 3, 9, 9])[0]
    for slot in (first, second):
        feed(state, "target", slot, 4)
        state.release(slot)
    slot, reused = state.admit([1, 2, 3, 9, 7, 7])
    assert slot == second
    assert reused == {"draft": 0, "target": 4}
    assert len(state.slots(FREE)) == 1


@pytest.mark.parametrize(("min_reuse", "evicted"), [(3, True), (4, False)])
def test_a_prefix_below_min_reuse_evicts_nobody_while_a_slot_is_free(min_reuse, evicted):
    """Three shared tokens are worth a cached slot only if three are enough."""
    state, _ = manager(2, min_reuse=min_reuse)
    cached = finished(state, [1, 2, 3, 4], target=3)
    slot, reused = state.admit([1, 2, 3, 8])
    assert (slot == cached) == evicted
    assert reused["target"] == (3 if evicted else 0)


def test_a_short_prefix_is_still_used_when_the_slot_is_taken_anyway():
    """With no slot free, what little is shared is not fed twice."""
    state, _ = manager(1, min_reuse=16)
    finished(state, [1, 2, 3, 4], target=3)
    assert state.admit([1, 2, 9])[1] == {"draft": 0, "target": 2}


def test_without_a_prefix_a_free_slot_goes_before_the_oldest():
    """Free slots first; then the slot released longest ago, whatever its index."""
    state, _ = manager(3)
    a, b = state.admit([1] * 4)[0], state.admit([2] * 4)[0]
    state.release(b)
    state.release(a)
    assert state.admit([5, 6])[0] not in (a, b)
    assert state.admit([7, 8])[0] == b
    assert state.admit([8, 9])[0] == a


def test_reuse_leaves_the_last_token_to_be_fed():
    """A prompt equal to the cached one, or a beginning of it, keeps its last token for the first step."""
    state, _ = manager(1, min_reuse=1)
    finished(state, [1, 2, 3, 4, 5], target=4, draft=2)
    assert state.admit([1, 2, 3, 4])[1] == {"draft": 2, "target": 3}
    state.release(0)
    assert state.admit([1])[1] == {"draft": 0, "target": 0}


def test_reuse_can_be_turned_off():
    """Without prefix reuse a released slot is free and starts from nothing."""
    state, _ = manager(1, prefix_reuse=False)
    finished(state, [1, 2, 3, 4], target=3)
    assert state.slots(FREE) == [0]
    assert state.admit([1, 2, 3, 4])[1] == {"draft": 0, "target": 0}


def test_no_slot_is_an_error():
    """Active rows are never evicted."""
    state, _ = manager(1)
    state.admit([1, 2])
    with pytest.raises(RuntimeError, match="no slot"):
        state.admit([1, 2])


def test_the_caller_keeps_its_prompt():
    """Commits do not grow the list that was admitted."""
    state, _ = manager(1)
    prompt = [1, 2]
    slot, _ = state.admit(prompt)
    state.commit(slot, [3])
    assert prompt == [1, 2]
    assert state.tokens(slot) == [1, 2, 3]


def test_a_span_feeds_catch_up_and_proposal_once():
    """From the end of what the model holds to the end of the hypothesis, logits for the last of it."""
    state, _ = manager()
    slot, _ = state.admit([1, 2, 3, 4, 5])
    feed(state, "target", slot, 2)
    assert state.lag("target", slot) == 2
    assert state.span("target", slot, [8, 9], 3) == Span(slot, 2, [3, 4, 5, 8, 9], 3)


def test_a_span_goes_on_after_the_agreed_tail():
    """Within a step: what the tail shares with the new hypothesis is not fed again, the rest is overwritten."""
    state, _ = manager()
    slot, _ = state.admit([1, 2])
    state.wrote("draft", state.span("draft", slot, [6, 7, 8], 1))
    assert state.span("draft", slot, [6, 7, 9, 9], 1) == Span(slot, 4, [9, 9], 1)
    assert state.span("draft", slot, [6, 7, 8, 9], 1) == Span(slot, 5, [9], 1)
    assert state.span("draft", slot, [5], 1) == Span(slot, 2, [5], 1)


def test_a_span_feeds_again_what_logits_are_wanted_for():
    """Logits need their tokens fed, even where the cache already holds them."""
    state, _ = manager()
    slot, _ = state.admit([1, 2])
    state.wrote("draft", state.span("draft", slot, [6, 7, 8], 1))
    assert state.span("draft", slot, [6, 7, 8], 3) == Span(slot, 2, [6, 7, 8], 3)


def test_prefill_stops_before_the_last_token():
    """Chunks cover the committed tokens but for the last, without logits, and end empty."""
    state, _ = manager()
    slot, _ = state.admit([1, 2, 3, 4, 5])
    spans = []
    while (span := state.prefill_span("target", slot, 3)).token_ids:
        spans.append(span)
        state.wrote("target", span)
    assert spans == [Span(slot, 0, [1, 2, 3], 0), Span(slot, 3, [4], 0)]
    assert state.lag("target", slot) == 0


@pytest.mark.parametrize(("committed", "valid"), [([6, 7, 8, 1], 5), ([6, 7, 1], 4), ([1], 2), ([6], 2), ([6, 7], 3)])
def test_commit_keeps_the_agreed_prefix(committed, valid):
    """What was fed and agrees with what was committed stays; the last committed token is never counted."""
    state, _ = manager()
    slot, _ = state.admit([1, 2])
    state.wrote("target", state.span("target", slot, [6, 7, 8], 4))
    state.commit(slot, committed)
    assert state.num_valid("target", slot) == valid
    assert state.num_valid("draft", slot) == 0
    state.check()


def test_restore_takes_a_step_back():
    """Lengths of all models are what they were, and the next span does as if nothing had been fed."""
    state, _ = manager()
    slot, _ = state.admit([1, 2, 3])
    feed(state, "draft", slot, 2)
    before = state.snapshot([slot])
    for model in ("draft", "target"):
        state.wrote(model, state.span(model, slot, [6, 7], 1))
    state.restore(before)
    assert state.snapshot([slot]) == before
    assert state.span("draft", slot, [6, 9], 1) == Span(slot, 2, [3, 6, 9], 1)
    state.check()


def test_restore_does_not_undo_a_poisoning():
    """A slot that was zeroed within the step stays empty in that model."""
    state, _ = manager()
    slot, _ = state.admit([1, 2, 3])
    for model in ("draft", "target"):
        feed(state, model, slot, 2)
    before = state.snapshot([slot])
    state.poison("draft", slot)
    state.restore(before)
    assert state.num_valid("draft", slot) == 0
    assert state.num_valid("target", slot) == 2


def test_discard_empties_the_slot_in_every_model():
    """Tokens, lengths and physical content are gone, and the slot is free."""
    state, runners = manager(1)
    slot, _ = state.admit([1, 2, 3])
    for model, runner in runners.items():
        span = state.prefill_span(model, slot, 9)
        runner.forward([span])
        state.wrote(model, span)
    state.discard(slot)
    assert [runner.cache[slot] for runner in runners.values()] == [{}, {}]
    assert state.slots(FREE) == [slot]
    assert state.tokens(slot) == []
    assert state.admit([1, 2, 3])[1] == {"draft": 0, "target": 0}


def test_check_reports_a_length_beyond_the_tokens():
    """The invariants at rest are really tested: a step that was neither committed nor restored is reported."""
    state, _ = manager()
    slot, _ = state.admit([1, 2, 3])
    state.wrote("target", state.span("target", slot, [4], 1))
    with pytest.raises(AssertionError, match="target slot"):
        state.check()
