"""What goes wrong in one row's sampling, grammar or text ends that row, with all that it had, and nothing else."""

from __future__ import annotations

import gc
import time
import weakref

import pytest
import torch

from specrouter_llm import FinishReason, SamplingParams
from specrouter_llm.errors import InvalidParameterError, ModelFailure, NumericalError, RequestFailedError
from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.text.detokenizer import Detokenizer

LONG = SamplingParams(max_tokens=64, ignore_eos=True)


def test_a_stop_token_that_no_model_knows_is_refused(tools):
    with tools.engine_of(tools.family()) as engine, pytest.raises(InvalidParameterError, match=r"stop_token_ids.*32"):
        engine.submit([1, 2], stop_token_ids=[5, 32])


def test_an_end_of_sequence_beyond_the_vocabulary_is_no_end(tools, tokenizer):
    """As some configurations name one; a grammar that may end looks at all of them."""
    size = len(tokenizer)
    with tools.engine_of(
        tools.family(size), vocab_size=size, tokenizer=tokenizer, eos_token_ids=[2, size + 9]
    ) as engine:
        completion = engine.generate("a", max_tokens=12, structured=StructuredOutput(regex="[a-z]+"))[0]
    assert completion.error is None


@pytest.mark.parametrize("chain", [None, ["draft"]])
def test_a_choice_that_fails_ends_its_row_only(tools, monkeypatch, chain):
    adjust = RowSampler.adjust

    def failing(self, logits, hypothesis):
        if self.params.seed == 13:
            raise IndexError("no such token")
        return adjust(self, logits, hypothesis)

    monkeypatch.setattr(RowSampler, "adjust", failing)
    with tools.engine_of(tools.family(), max_batch=3) as engine:
        seeds = (12, 13, 14)
        params = [LONG.replace(seed=seed, repetition_penalty=1.2, temperature=1.0) for seed in seeds]
        alone = [engine.generate([[1, 2]], each)[0].token_ids for each in (params[0], params[2])]
        handles = [engine.submit([1, 2], each, chain=chain) for each in params]
        found = [handle.result()[0] for handle in handles]
        assert isinstance(found[1].error, RequestFailedError)
        assert "no such token" in str(found[1].error)
        assert [found[0].token_ids, found[2].token_ids] == alone
        tools.at_rest(engine)


@pytest.mark.parametrize("stop", [(), ("zzz",)])
def test_text_that_cannot_be_had_ends_its_row_only(tools, tokenizer, monkeypatch, stop):
    """With its tokens; and whoever waits for it gets an end."""
    size = len(tokenizer)
    tell = Detokenizer.push_all, Detokenizer.push, Detokenizer.flush
    broken = set()

    def guarded(function):
        def call(self, *arguments):
            if id(self) in broken:
                raise ValueError("this id cannot be decoded")
            return function(self, *arguments)

        return call

    for name, function in zip(("push_all", "push", "flush"), tell, strict=True):
        monkeypatch.setattr(Detokenizer, name, guarded(function))
    with tools.engine_of(tools.family(size), vocab_size=size, tokenizer=tokenizer, max_batch=2) as engine:
        whole = engine.generate("ab", LONG, stop=stop)[0]
        other = engine.submit("ab", LONG, stop=stop)
        gate = tools.Gate(after=3)
        handle = engine.submit("cd", LONG, stop=stop, on_step=gate)
        gate.wait()
        sample = next(each for each in engine._worker._running if each.request.mailbox is handle._mailbox)
        broken.add(id(sample._stream._detokenizer))
        gate.open()
        (completion,) = handle.result()
        assert completion.finish_reason is FinishReason.ERROR
        assert "cannot be decoded" in str(completion.error)
        assert len(completion.token_ids) >= 3
        assert other.result()[0].token_ids == whole.token_ids
        tools.at_rest(engine)
        assert engine.generate("ab", LONG, stop=stop)[0].token_ids == whole.token_ids


def test_a_row_that_cannot_be_made_takes_no_slot(tools, monkeypatch):
    monkeypatch.setattr(RowSampler, "__init__", lambda self, *arguments, **options: 1 / 0)
    with tools.engine_of(tools.family(), max_batch=1) as engine:
        (completion,) = engine.generate([[1, 2]], LONG)
        assert isinstance(completion.error, RequestFailedError)
        tools.at_rest(engine)
        monkeypatch.undo()
        assert len(engine.generate([[1, 2]], LONG)[0].token_ids) == 64


class Activation(torch.Tensor):
    """A tensor that can be watched."""


def test_nothing_of_a_failed_forward_is_kept(tools):
    """Neither while its rows are tried alone, when memory may be what was lacking, nor by who keeps the failed completion."""
    alive, seen = [], []

    def hook(runner, spans):
        seen.append((len(spans), sum(ref() is not None for ref in alive)))
        activation = torch.zeros(4).as_subclass(Activation)
        alive.append(weakref.ref(activation))
        raise torch.OutOfMemoryError("no memory")

    engine = tools.engine_of(tools.family(), max_batch=3)
    tools.runner_of(engine, "target").hook = hook
    failed = engine.generate([[1, 2]], LONG.replace(n=3, temperature=1.0), speculation=False)
    assert all(isinstance(each.error, ModelFailure) for each in failed)
    assert max(number for number, _ in seen) == 3
    assert all(kept == 0 for _, kept in seen)
    runner = weakref.ref(tools.runner_of(engine, "target"))
    worker = weakref.ref(engine._worker)
    engine.close()
    del engine
    gc.collect()
    assert runner() is None
    assert worker() is None
    assert "in hook" in failed[0].error.__notes__[0]


def test_nothing_of_broken_logits_is_kept(tools):
    engine = tools.engine_of(tools.family())
    tools.runner_of(engine, "target").after = lambda runner, spans, logits: logits * float("nan")
    (completion,) = engine.generate([[1, 2]], LONG, speculation=False)
    assert isinstance(completion.error, NumericalError)
    worker = weakref.ref(engine._worker)
    engine.close()
    del engine
    gc.collect()
    assert worker() is None


def test_a_timeout_begins_when_the_request_is_queued(tools, monkeypatch):
    """Not while other prompts of the call are encoded."""
    with tools.engine_of(tools.family()) as engine:
        encode, late = engine._intake.encode, []

        def slow(*arguments):
            late.append(engine._intake)
            time.sleep(0.05)
            return encode(*arguments)

        monkeypatch.setattr(engine._intake, "encode", slow)
        found = engine.generate([[1, 2]] * 8, max_tokens=2, timeout=0.2)
        assert len(late) == 8
    assert {completion.finish_reason for completion in found} == {FinishReason.LENGTH}
    assert max(completion.timings.queue_s for completion in found) < 0.2
