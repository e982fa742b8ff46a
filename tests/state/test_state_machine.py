"""The masked cache under any sequence of events: what is valid is exactly what a fresh forward would have written.

Two state machines. The first is over fakes that record which token lies at which position, and injects failures; the
second over the real runtime, with contexts that cross the size at which slabs grow.
"""

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from transformers import LlamaConfig, LlamaForCausalLM

from specrouter_llm.executor import Executor
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.runner import EagerRunner
from specrouter_llm.sampling.noise import gumbel, row_keys
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.state.manager import SlotStatus, StateManager
from specrouter_llm.state.row import Row
from specrouter_llm.testing import ContextRunner, blended, hashed_logits

FREE, CACHED, ACTIVE = SlotStatus.FREE, SlotStatus.CACHED, SlotStatus.ACTIVE
VOCAB = 3  # few tokens: prompts overlap, proposals are accepted in part
SLOTS = 3
TOKENS = st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=10)
MODELS = ("draft", "middle", "target")
TARGET_LOGITS = hashed_logits(0, VOCAB)
FUNCTIONS = {
    "draft": blended(TARGET_LOGITS, hashed_logits(1, VOCAB), 0.5),
    "middle": blended(TARGET_LOGITS, hashed_logits(2, VOCAB), 0.3),
    "target": TARGET_LOGITS,
}
PLANS = st.sampled_from(
    [
        Plan(("target",)),
        Plan.chain(["draft", "target"], [3]),
        Plan.chain(["middle", "target"], [1]),
        Plan.chain(["draft", "middle", "target"], [2, 4]),
        Plan.chain(["middle", "draft", "target"], [3, 2]),
    ]
)


class FlakyRunner(ContextRunner):
    """Raises or answers NaN on demand; a forward that raises has written part of what it should."""

    raises = False
    nan_slots = frozenset()

    def forward(self, spans):
        if self.raises:
            super().forward(spans[: len(spans) // 2])
            first = spans[len(spans) // 2]
            super().forward([Span(first.slot, first.start, first.token_ids[:1], 0)])
            raise RuntimeError("injected")
        logits = super().forward(spans)
        owners = [span.slot for span in spans for _ in range(span.num_logits)]
        logits[[i for i, slot in enumerate(owners) if slot in self.nan_slots]] = torch.nan
        return logits


def target_choices(sampler, context, count):
    """The next tokens of plain decoding, from the definition: no cache, no batch, no chain."""
    chosen = []
    for _ in range(count):
        scores = TARGET_LOGITS([*context, *chosen])
        if sampler.params.temperature:
            key = row_keys(sampler.seed, sampler.sample, len(context) + len(chosen))
            scores = scores + gumbel([key], torch.arange(VOCAB, dtype=torch.int32))[0]
        chosen.append(int(scores.argmax()))
    return chosen


class CacheMachine(RuleBasedStateMachine):
    """Every public event of the StateManager and the Executor, in any order, against a mirror in plain Python."""

    @initialize(min_reuse=st.sampled_from([1, 4]))
    def start(self, min_reuse):
        self.runners = {
            name: FlakyRunner(name, function, VOCAB, num_slots=SLOTS, context_length=200)
            for name, function in FUNCTIONS.items()
        }
        self.state = StateManager(self.runners, SLOTS, min_reuse=min_reuse)
        self.executor = Executor(self.state, self.runners, {}, "target")
        self.rows = {}
        self.status = [FREE] * SLOTS
        self.committed = [[] for _ in range(SLOTS)]

    # ------------------------------------------------------------ events

    def _admit(self, prompt, temperature, seed):
        slot, reused = self.state.admit(prompt)
        assert self.status[slot] is not ACTIVE
        shared = 0
        if self.status[slot] is CACHED:
            old = self.committed[slot]
            while shared < min(len(old), len(prompt)) and old[shared] == prompt[shared]:
                shared += 1
        assert max(reused.values()) <= min(shared, len(prompt) - 1)
        sampler = RowSampler(SamplingParams(temperature=temperature), seed=seed, prompt_ids=prompt)
        self.rows[slot] = Row(slot, self.state.tokens(slot), len(prompt), sampler, len(prompt) + 40)
        self.status[slot], self.committed[slot] = ACTIVE, list(prompt)

    @precondition(lambda self: self.status.count(ACTIVE) < SLOTS)
    @rule(prompt=TOKENS, temperature=st.sampled_from([0.0, 1.0]), seed=st.integers(0, 3))
    def admit(self, prompt, temperature, seed):
        self._admit(prompt, temperature, seed)

    @precondition(lambda self: self.status.count(ACTIVE) < SLOTS and any(self.committed))
    @rule(data=st.data(), suffix=TOKENS)
    def admit_overlapping(self, data, suffix):
        """A prompt that begins as another row did: the second turn of a chat."""
        source = data.draw(st.sampled_from([tokens for tokens in self.committed if tokens]))
        cut = data.draw(st.integers(0, len(source)))
        self._admit([*source[:cut], *suffix], 0.0, 0)

    @precondition(lambda self: self.rows)
    @rule(model=st.sampled_from(MODELS), size=st.integers(1, 12), data=st.data())
    def prefill_chunk(self, model, size, data):
        rows = self._some_rows(data)
        lacking = sum(self.state.lag(model, row.slot) for row in rows)
        assert self.executor.prefill(model, rows, size) == min(size, lacking)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def step(self, data):
        """Any rows, any chains; models that are not in a row's chain fall behind. A stop may cut what was offered."""
        self._step(data)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), model=st.sampled_from(MODELS[:-1]))
    def step_with_a_raising_drafter(self, data, model):
        self.runners[model].raises = True
        self._step(data)
        self.runners[model].raises = False

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), model=st.sampled_from(MODELS), slot=st.integers(0, SLOTS - 1))
    def step_with_nan(self, data, model, slot):
        self.runners[model].nan_slots = frozenset([slot])
        self._step(data, failing=slot if model == "target" else None)
        self.runners[model].nan_slots = frozenset()

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def step_with_a_raising_target(self, data):
        """Nothing is committed, all lengths are as before."""
        rows = self._some_rows(data)
        before = self.state.snapshot(range(SLOTS))
        self.runners["target"].raises = True
        result = self.executor.step(rows, [data.draw(PLANS) for _ in rows])
        self.runners["target"].raises = False
        assert [outcome.error is not None for outcome in result.outcomes] == [True] * len(rows)
        assert self.state.snapshot(range(SLOTS)) == before

    def _some_rows(self, data):
        slots = data.draw(st.lists(st.sampled_from(sorted(self.rows)), min_size=1, unique=True))
        return [self.rows[slot] for slot in slots]

    def _step(self, data, failing=None):
        rows = self._some_rows(data)
        result = self.executor.step(rows, [data.draw(PLANS) for _ in rows])
        for row, outcome in zip(rows, result.outcomes, strict=True):
            row.set_aside.clear()
            if row.slot == failing:
                assert outcome.error is not None
                self.discard_slot(row.slot)
                continue
            assert outcome.error is None
            assert outcome.token_ids == target_choices(row.sampler, self.committed[row.slot], len(outcome.token_ids))
            kept = outcome.token_ids[: data.draw(st.integers(1, len(outcome.token_ids)))]
            self.executor.commit(row, kept)
            self.committed[row.slot].extend(kept)
            if not row.remaining:
                self.release_slot(row.slot)

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), proposal=TOKENS, restore=st.booleans(), poisoned=st.booleans())
    def feed_by_hand(self, data, proposal, restore, poisoned):
        """Models are fed hypotheses that differ from each other, several times over; then some of it is committed."""
        row = self._some_rows(data)[0]
        before = self.state.snapshot([row.slot])
        for model in data.draw(st.lists(st.sampled_from(MODELS), max_size=4)):
            hypothesis = [*proposal[: data.draw(st.integers(0, len(proposal)))], *data.draw(TOKENS)]
            wanted = data.draw(st.integers(1, len(hypothesis) + 1))
            span = self.state.span(model, row.slot, hypothesis, wanted)
            self.runners[model].forward([span])
            self.state.wrote(model, span)
            # All that the model now holds is committed + hypothesis.
            whole = [*self.committed[row.slot], *hypothesis]
            assert [self.runners[model].cache[row.slot][p] for p in range(len(whole))] == whole
        if poisoned:
            self.state.poison(data.draw(st.sampled_from(MODELS)), row.slot)
        if restore:
            self.state.restore(before)
            assert all(self.state.num_valid(m, s) <= length for (m, s), length in before.items())
            return
        size = min(row.remaining, len(proposal))
        self.executor.commit(row, proposal[:size])
        self.committed[row.slot].extend(proposal[:size])
        if not row.remaining:
            self.release_slot(row.slot)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def release(self, data):
        self.release_slot(data.draw(st.sampled_from(sorted(self.rows))))

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def fail(self, data):
        self.discard_slot(data.draw(st.sampled_from(sorted(self.rows))))

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), model=st.sampled_from(MODELS))
    def poison(self, data, model):
        slot = data.draw(st.sampled_from(sorted(self.rows)))
        self.state.poison(model, slot)
        assert self.state.num_valid(model, slot) == 0
        assert self.runners[model].cache[slot] == {}

    def release_slot(self, slot):
        self.state.release(slot)
        del self.rows[slot]
        self.status[slot] = CACHED

    def discard_slot(self, slot):
        self.state.discard(slot)
        del self.rows[slot]
        self.status[slot], self.committed[slot] = FREE, []
        assert [runner.cache[slot] for runner in self.runners.values()] == [{}] * len(MODELS)

    # ------------------------------------------------------------ what always holds

    @invariant()
    def every_slot_has_one_status(self):
        for status in SlotStatus:
            assert self.state.slots(status) == [slot for slot in range(SLOTS) if self.status[slot] is status]
        assert sum(len(self.state.slots(status)) for status in SlotStatus) == self.state.num_slots

    @invariant()
    def committed_tokens_are_kept(self):
        for slot in range(SLOTS):
            assert self.state.tokens(slot) == self.committed[slot]

    @invariant()
    def valid_content_is_committed_content(self):
        self.state.check()
        for slot in range(SLOTS):
            tokens = self.committed[slot]
            for model, runner in self.runners.items():
                valid = self.state.num_valid(model, slot)
                assert 0 <= valid <= max(0, len(tokens) - 1)
                assert [runner.cache[slot].get(p) for p in range(valid)] == tokens[:valid]


CacheMachine.TestCase.settings = settings(
    max_examples=200,
    stateful_step_count=50,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestEveryEvent = CacheMachine.TestCase


# ---------------------------------------------------------------- the real runtime

REAL_SLOTS = 2
REAL_VOCAB = 17
CONTEXT = 1100


def tiny_llama(seed, layers):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=REAL_VOCAB,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        initializer_range=0.4,
    )
    return LlamaForCausalLM(config).double().eval()


LLAMAS = {"draft": tiny_llama(1, 1), "target": tiny_llama(2, 2)}
BASE = [(7 * i * i + 3 * i) % REAL_VOCAB for i in range(CONTEXT)]


def slabs(runner, slot, length):
    """Keys and values of one slot at the first positions, all layers."""
    return [
        slab[slot, :length]
        for layer in runner._cache.layers
        if layer.keys is not None
        for slab in (layer.keys, layer.values)
    ]


class RuntimeMachine(RuleBasedStateMachine):
    """The same bookkeeping over slabs of real keys and values."""

    @initialize()
    def start(self):
        self.runners = {
            name: EagerRunner(name, model, num_slots=REAL_SLOTS, context_length=CONTEXT)
            for name, model in LLAMAS.items()
        }
        self.state = StateManager(self.runners, REAL_SLOTS, min_reuse=1)
        self.executor = Executor(self.state, self.runners, {}, "target")
        self.rows = {}

    @precondition(lambda self: len(self.rows) < REAL_SLOTS)
    @rule(
        shared=st.sampled_from([0, 3, 505, 511, 512, 513, 1020]),
        suffix=st.lists(st.integers(0, 16), min_size=1, max_size=5),
    )
    def admit(self, shared, suffix):
        prompt = [*BASE[:shared], *suffix]
        slot, _ = self.state.admit(prompt)
        sampler = RowSampler(SamplingParams(temperature=1.0), seed=shared, prompt_ids=prompt)
        self.rows[slot] = Row(slot, self.state.tokens(slot), len(prompt), sampler, len(prompt) + 30)

    @precondition(lambda self: self.rows)
    @rule(model=st.sampled_from(sorted(LLAMAS)), size=st.sampled_from([4, 100, 600]))
    def prefill_chunk(self, model, size):
        self.executor.prefill(model, list(self.rows.values()), size)

    @precondition(lambda self: self.rows)
    @rule(data=st.data())
    def step(self, data):
        plans = st.sampled_from([Plan(("target",)), Plan.chain(["draft", "target"], [3])])
        rows = list(self.rows.values())
        for outcome in self.executor.step(rows, [data.draw(plans) for _ in rows]).outcomes:
            assert outcome.error is None
            self.executor.commit(outcome.row, outcome.token_ids)
            if not outcome.row.remaining:
                self.state.release(outcome.row.slot)
                del self.rows[outcome.row.slot]

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), tokens=st.lists(st.integers(0, 16), min_size=1, max_size=9), restore=st.booleans())
    def feed_by_hand(self, data, tokens, restore):
        """Each model is fed a beginning of the tokens and something else; then they are committed, or the step aborted."""
        row = self.rows[data.draw(st.sampled_from(sorted(self.rows)))]
        before = self.state.snapshot([row.slot])
        for model, runner in self.runners.items():
            agreed = tokens[: data.draw(st.integers(0, len(tokens)))]
            span = self.state.span(model, row.slot, [*agreed, *data.draw(st.lists(st.integers(0, 16), max_size=6))], 1)
            runner.forward([span])
            self.state.wrote(model, span)
        if restore:
            self.state.restore(before)
        else:
            self.executor.commit(row, tokens[: row.remaining])
            if not row.remaining:
                self.state.release(row.slot)
                del self.rows[row.slot]

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), keep=st.booleans())
    def end(self, data, keep):
        slot = data.draw(st.sampled_from(sorted(self.rows)))
        if keep:
            self.state.release(slot)
        else:
            self.state.discard(slot)
            assert all(not part.any() for r in self.runners.values() for part in slabs(r, slot, CONTEXT))
        del self.rows[slot]

    @precondition(lambda self: self.rows)
    @rule(data=st.data(), model=st.sampled_from(sorted(LLAMAS)))
    def poison(self, data, model):
        """NaN reaches the whole slot; once poisoned, nothing of it is seen again."""
        slot = data.draw(st.sampled_from(sorted(self.rows)))
        used = self.runners[model]._cache._used[slot]
        with torch.inference_mode():
            for part in slabs(self.runners[model], slot, used):
                part.fill_(torch.nan)
        self.state.poison(model, slot)

    @invariant()
    def valid_keys_and_values_are_those_of_a_fresh_forward(self):
        self.state.check()
        for name, runner in self.runners.items():
            for slot in range(REAL_SLOTS):
                valid = self.state.num_valid(name, slot)
                tokens = tuple(self.state.tokens(slot)[:valid])
                if not valid:
                    continue
                actual = slabs(runner, slot, valid)
                for mine, fresh in zip(actual, fresh_slabs(name, tokens), strict=True):
                    torch.testing.assert_close(mine, fresh, rtol=0, atol=1e-9)


FRESH = {}


def fresh_slabs(name, tokens):
    """Keys and values of one forward over the tokens in a new cache; kept, since most steps leave most slots alone."""
    if (name, tokens) not in FRESH:
        if len(FRESH) > 60:
            FRESH.clear()
        runner = EagerRunner(name, LLAMAS[name], num_slots=1, context_length=CONTEXT)
        runner.forward([Span(0, 0, list(tokens), 0)])
        FRESH[name, tokens] = slabs(runner, 0, len(tokens))
    return FRESH[name, tokens]


RuntimeMachine.TestCase.settings = settings(
    max_examples=20,
    stateful_step_count=20,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestRealRuntime = RuntimeMachine.TestCase


def test_growth_keeps_what_was_written():
    """One row crosses the capacity while the other is in the middle of its prompt: both keep their keys and values."""
    runner = EagerRunner("target", LLAMAS["target"], num_slots=2, context_length=CONTEXT)
    runner.forward([Span(0, 0, BASE[:510], 0), Span(1, 0, BASE[5:105], 0)])
    sizes = {runner._cache.capacity}
    runner.forward([Span(0, 510, BASE[510:516], 1), Span(1, 100, BASE[105:107], 1)])
    sizes.add(runner._cache.capacity)
    runner.forward([Span(1, 102, BASE[107:1035], 0)])
    sizes.add(runner._cache.capacity)
    assert sizes == {512, 1024, 1536}
    for slot, tokens in ((0, BASE[:516]), (1, BASE[5:1035])):
        for mine, fresh in zip(slabs(runner, slot, len(tokens)), fresh_slabs("target", tuple(tokens)), strict=True):
            torch.testing.assert_close(mine, fresh, rtol=0, atol=1e-9)
