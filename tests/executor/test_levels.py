"""What one level may do to the others: nothing. Each of these was a bug once."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from specrouter_llm.errors import InvalidParameterError, NumericalError
from specrouter_llm.executor import Executor
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.runner import EagerRunner
from specrouter_llm.sampling.choice import Segment, choose
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.state.manager import StateManager, common_prefix
from specrouter_llm.state.row import Row
from specrouter_llm.testing import ContextRunner, hashed_logits

V = 8
FUNCTION = hashed_logits(0, V)


class Sevens:
    """A drafter that can only say 7."""

    name = "sevens"

    def propose(self, row, hypothesis, max_tokens):
        return [7] * max_tokens


def drive(runners, plan, prompts, num_tokens):
    """Runs rows to their end, or to their first error; returns the rows and the error."""
    state = StateManager(runners, len(prompts))
    executor = Executor(state, runners, {"sevens": Sevens()}, "target")
    rows = []
    for seed, prompt in enumerate(prompts):
        slot, _ = state.admit(prompt)
        sampler = RowSampler(SamplingParams(), seed=seed, prompt_ids=prompt)
        rows.append(Row(slot, state.tokens(slot), len(prompt), sampler, len(prompt) + num_tokens))
    while live := [row for row in rows if row.remaining]:
        for outcome in executor.step(live, [plan] * len(live)).outcomes:
            if outcome.error is not None:
                return rows, outcome.error
            executor.commit(outcome.row, outcome.token_ids)
    return rows, None


def test_a_drafter_at_the_end_of_its_context_is_not_run_beyond_it():
    """One row's draft stops at the drafter's context; the other row keeps its drafter."""
    runners = {
        "draft": ContextRunner("draft", FUNCTION, V, num_slots=2, context_length=10),
        "target": ContextRunner("target", FUNCTION, V, num_slots=2),
    }
    rows, error = drive(runners, Plan.chain(["draft", "target"], [5]), [[1] * 8, [1, 2]], 6)
    assert error is None
    assert rows[1].set_aside == {}
    assert rows[0].set_aside == {"draft": "its context of 10 tokens is full"}


def test_a_middle_level_with_more_tokens_does_not_break_the_drafter_below():
    """A token of the middle level that the drafter does not know ends that row's draft, without a failure."""
    wide = hashed_logits(2, V)
    runners = {
        "draft": ContextRunner("draft", hashed_logits(1, 4), 4, num_slots=2),
        "middle": ContextRunner("middle", wide, V, num_slots=2),
        "target": ContextRunner("target", wide, V, num_slots=2),
    }
    rows, error = drive(runners, Plan.chain(["draft", "middle", "target"], [1, 6]), [[1, 2], [3, 3]], 4)
    assert error is None
    assert ["raised" in row.set_aside.get("draft", "") for row in rows] == [False, False]


def without_sevens(context):
    """Never says 7, and breaks down after one."""
    logits = FUNCTION(context).clone()
    logits[7] = -1e9
    return logits * float("nan") if context[-1] == 7 else logits


def test_nan_after_a_rejected_token_does_not_fail_the_row():
    """What the target would say after a token that it rejects may be anything."""
    runners = {"target": ContextRunner("target", without_sevens, V, num_slots=1)}
    (plain,), _ = drive(runners, Plan(("target",)), [[1, 2]], 6)
    (row,), error = drive(runners, Plan.chain(["sevens", "target"], [2]), [[1, 2]], 6)
    assert error is None
    assert row.output_ids == plain.output_ids
    assert row.num_draft_tokens == 0  # counted by the engine; here only the tokens matter


def test_a_row_fails_where_plain_decoding_fails():
    """Accepted tokens before a broken position are kept, and the error comes at the same token with any chain."""

    def target(context):
        logits = torch.zeros(V, dtype=torch.float64)
        logits[7] = 1.0
        return logits if len(context) < 6 else logits * float("nan")

    runners = {"target": ContextRunner("target", target, V, num_slots=1)}
    (plain,), plain_error = drive(runners, Plan(("target",)), [[1, 2]], 9)
    (row,), error = drive(runners, Plan.chain(["sevens", "target"], [3]), [[1, 2]], 9)
    assert plain.output_ids == [7] * 4
    assert row.output_ids == plain.output_ids
    assert isinstance(error, NumericalError)
    assert isinstance(plain_error, NumericalError)


def test_nan_of_rejected_tokens_does_not_stay_behind_the_mask():
    """A real model that breaks on one token decodes on after rejecting it."""
    torch.manual_seed(0)
    shape = {"vocab_size": V, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 512}
    model = LlamaForCausalLM(LlamaConfig(**shape, **heads)).double().eval()
    runner = EagerRunner("target", model, num_slots=1, context_length=512)
    with torch.no_grad():
        model.model.embed_tokens.weight[7] = torch.nan
    assert runner.forward([Span(0, 0, [1, 2], 1)]).isfinite().all()
    mixed = runner.forward([Span(0, 2, [3, 7, 7], 3)])  # the token before the broken ones sees nothing of them
    assert mixed.isfinite().all(dim=1).tolist() == [True, False, False]
    assert runner.forward([Span(0, 3, [3], 1)]).isfinite().all()


def test_a_drafter_that_failed_a_row_is_not_asked_again_in_the_same_step():
    """NaN in the first round sets the drafter aside at once: the context is fed to it only once."""

    class Broken(ContextRunner):
        fed = 0

        def forward(self, spans):
            self.fed += sum(len(span.token_ids) for span in spans)
            return super().forward(spans) * float("nan")

    runners = {
        "draft": Broken("draft", FUNCTION, V, num_slots=1),
        "middle": ContextRunner("middle", FUNCTION, V, num_slots=1),
        "target": ContextRunner("target", FUNCTION, V, num_slots=1),
    }
    _, error = drive(runners, Plan.chain(["draft", "middle", "target"], [1, 8]), [[1] * 50], 12)
    assert error is None
    assert runners["draft"].fed == 50


def test_a_banned_nan_still_breaks_the_choice():
    """A ban of the very token that is NaN does not hide that the row is broken."""
    sampler = RowSampler(SamplingParams(), seed=0, bad_words=[(3,)])
    logits = FUNCTION([1])[None].clone()
    logits[0, 3] = torch.nan
    assert choose(logits, [Segment(sampler, 1, [], 1)]) == [[None]]


def test_common_prefix_of_different_kinds_of_sequences():
    """A list and a tuple with the same tokens share all of them."""
    assert common_prefix([1, 2], (1, 2)) == 2
    assert common_prefix((1, 2, 3), [1, 2]) == 2


@pytest.mark.parametrize(
    "values",
    [
        {"logit_bias": {3: float("nan")}},
        {"logit_bias": {3: float("inf")}},
        {"temperature": 1e-320},
        {"repetition_penalty": 1e-320},
    ],
)
def test_values_that_would_break_every_choice_are_refused(values):
    """NaN and infinite biases and denormal divisors are errors at the call, not failed rows."""
    with pytest.raises(InvalidParameterError, match=next(iter(values))):
        SamplingParams(**values)
