"""Taking in a prompt in chunks: on a device a chunk has been taken in when that is said."""

import pytest

from specrouter_llm.errors import ModelFailure
from specrouter_llm.state.manager import StateManager
from specrouter_llm.testing import ContextRunner, hashed_logits
from specrouter_llm.verification import verify
from specrouter_llm.verification.verify import VerifyProcessor


@pytest.fixture
def prompt():
    """A processor over one model, and its state, in which slot 0 has 100 tokens to take in."""
    runners = {"target": ContextRunner("target", hashed_logits(7, 20), 20, num_slots=1)}
    state = StateManager(runners, 1)
    state.admit([i % 20 for i in range(100)])
    return VerifyProcessor(state, runners), state


def test_each_chunk_is_waited_for(prompt, monkeypatch):
    """Else all chunks of a prompt lie in a device's queue at once, before whatever comes: a new request, a cancellation."""
    processor, state = prompt
    seen = []
    monkeypatch.setattr(verify, "wait_for", lambda logits: seen.append(state.num_valid("target", 0)))
    while processor.prefill("target", [0], 40):
        pass
    assert [0, 40, 80] == seen
    assert 99 == state.num_valid("target", 0)


def test_what_fails_on_the_device_meanwhile_was_not_taken_in(prompt, monkeypatch):
    def broken(logits):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    processor, state = prompt
    monkeypatch.setattr(verify, "wait_for", broken)
    with pytest.raises(ModelFailure, match="illegal memory access"):
        processor.prefill("target", [0], 40)
    assert 0 == state.num_valid("target", 0)
