"""Mutants: bugs that engines like this one have had, put in on purpose. Each must be caught by a check that passes without it.

A check is a function that raises AssertionError. `test_checks_pass` runs every check on the package as it is;
`test_mutant_is_caught` runs the one named for a mutant, before and after the mutation.
"""

import copy
from collections import deque

import numpy as np
import pytest
import torch
from scipy.stats import chi2
from transformers import LlamaConfig, LlamaForCausalLM

from specrouter_llm.executor import Executor
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.cache import SlotCache
from specrouter_llm.runtime.runner import EagerRunner
from specrouter_llm.sampling import choice
from specrouter_llm.sampling.choice import Segment, choose
from specrouter_llm.sampling.noise import row_keys
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.state.manager import StateManager, common_prefix
from specrouter_llm.state.row import Row
from specrouter_llm.testing import ContextRunner, TableRunner, blended, hashed_logits
from specrouter_llm.verification import verify

V = 12
SLOTS = 4
PLAIN = Plan(("target",))
CHAINS = [
    Plan.chain(["draft", "target"], [3]),
    Plan.chain(["draft", "middle", "target"], [2, 5]),
    Plan.chain(["middle", "draft", "target"], [1, 3]),
    Plan.chain(["junk", "middle", "target"], [2, 3]),
]
PROMPTS = [[1, 2, 3], [4] * 9, [7, 8], [5, 6, 5, 6, 5, 6]]
SAMPLED = SamplingParams(temperature=1.0)
PENALISED = SamplingParams(
    temperature=1.0, top_p=0.95, repetition_penalty=1.4, frequency_penalty=1.5, presence_penalty=0.5, min_tokens=9
)
GREEDY = SamplingParams()


class Junk:
    """Repeats the last token."""

    name = "junk"

    def propose(self, row, hypothesis, max_tokens):
        return [[*row.token_ids, *hypothesis][-1]] * max_tokens


class World:
    """Models of the whole context with caches of their own, one StateManager and one Executor."""

    def __init__(self, *, drafter_weight=0.25, **state_options):
        target = hashed_logits(0, V)
        functions = {
            "draft": blended(target, hashed_logits(1, V), drafter_weight),
            "middle": blended(target, hashed_logits(2, V), drafter_weight / 2),
            "target": target,
        }
        self.runners = {name: ContextRunner(name, f, V, num_slots=SLOTS) for name, f in functions.items()}
        self.state = StateManager(self.runners, SLOTS, **state_options)
        self.executor = Executor(self.state, self.runners, {"junk": Junk()}, "target")

    def row(self, prompt, params, *, seed=7, sample=0, num_tokens=24):
        slot, _ = self.state.admit(prompt)
        sampler = RowSampler(params, seed=seed, sample=sample, prompt_ids=prompt, end_ids=[0])
        return Row(slot, self.state.tokens(slot), len(prompt), sampler, len(prompt) + num_tokens)

    def run(self, rows, plan_of):
        """Steps until all rows are full; `plan_of(row, step)` chooses the plans. Returns the answers."""
        step = 0
        while live := [row for row in rows if row.remaining]:
            for outcome in self.executor.step(live, [plan_of(row, step) for row in live]).outcomes:
                assert outcome.error is None, f"a healthy row failed: {outcome.error}"
                assert outcome.row.set_aside == {}, f"a healthy drafter was set aside: {outcome.row.set_aside}"
                self.executor.commit(outcome.row, outcome.token_ids)
            step += 1
        answers = [row.output_ids for row in rows]
        for row in rows:
            self.state.release(row.slot)
        return answers


def plain_answer(prompt, params, **row_options):
    """Target-only decoding of one row by itself in a fresh world."""
    world = World()
    return world.run([world.row(prompt, params, **row_options)], lambda row, step: PLAIN)[0]


# -------------------------------------------------------------------- checks


def check_equal_to_plain(params):
    """Ragged batches in which every row changes its chain at every step answer as plain decoding alone does."""
    expected = [plain_answer(prompt, params, seed=i) for i, prompt in enumerate(PROMPTS)]
    for shift in range(len(CHAINS)):
        world = World()
        rows = [world.row(prompt, params, seed=i) for i, prompt in enumerate(PROMPTS)]
        plans = [*CHAINS, PLAIN]
        answers = world.run(rows, lambda row, step: plans[(row.slot + step + shift) % len(plans)])  # noqa: B023 - called at once
        assert answers == expected


def check_equal_sampled():
    """At T = 1."""
    check_equal_to_plain(SAMPLED)


def check_equal_greedy():
    """At T = 0."""
    check_equal_to_plain(GREEDY)


def check_equal_penalised():
    """With everything that depends on the context of each position."""
    check_equal_to_plain(PENALISED)


def check_joint():
    """First three tokens of plain decoding over a table model: chi-square of position pairs, alpha 1e-6, N = 2000."""
    size, n = 6, 2000
    table = torch.randn(size, size, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    runners = {"target": TableRunner("target", table)}
    answers = []
    for first in range(0, n, 100):
        state = StateManager(runners, 100, prefix_reuse=False)
        executor = Executor(state, runners, {}, "target")
        rows = []
        for seed in range(first, first + 100):
            slot, _ = state.admit([2])
            rows.append(Row(slot, state.tokens(slot), 1, RowSampler(SAMPLED, seed=seed, prompt_ids=[2]), 4))
        for _ in range(3):
            for outcome in executor.step(rows, [PLAIN] * len(rows)).outcomes:
                executor.commit(outcome.row, outcome.token_ids)
        answers.extend(row.output_ids for row in rows)
    p = table.softmax(1).numpy()
    second = p[2] @ p
    for joint, at in ((p[2][:, None] * p, (0, 1)), (second[:, None] * p, (1, 2))):
        counts = np.zeros((size, size))
        np.add.at(counts, tuple(np.array(answers)[:, at].T), 1)
        statistic = float(((counts - n * joint) ** 2 / (n * joint)).sum())
        assert statistic < float(chi2.isf(1e-6, size * size - 1)), f"positions {at}: {statistic:.0f}"


def check_alone_as_in_batch():
    """A row's plain answer does not depend on its place in the batch, nor on who else is in it."""
    alone = [plain_answer(prompt, SAMPLED) for prompt in PROMPTS]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 0]):
        world = World()
        rows = [world.row(PROMPTS[i], SAMPLED) for i in order]
        assert world.run(rows, lambda row, step: PLAIN) == [alone[i] for i in order]


def check_samples_differ():
    """The n samples of one prompt and seed are n different answers."""
    answers = [tuple(plain_answer(PROMPTS[0], SAMPLED, sample=sample)) for sample in range(4)]
    assert len(set(answers)) == len(answers)


def check_self_draft_is_accepted_whole():
    """A drafter that is the target itself: every step commits its whole window and the bonus token, and counts it so."""
    for params in (GREEDY, SAMPLED):
        world = World(drafter_weight=0.0)
        row = world.row(PROMPTS[0], params, num_tokens=20)
        plan = Plan.chain(["draft", "target"], [3])
        while row.remaining:
            (outcome,) = world.executor.step([row], [plan]).outcomes
            assert len(outcome.token_ids) == 4
            assert [(trial.proposed, trial.accepted) for trial in outcome.trials] == [(3, 3)]
            world.executor.commit(row, outcome.token_ids)
            assert [world.state.lag(name, row.slot) for name in ("draft", "target")] == [1, 0]


def check_valid_content():
    """Through steps of every chain, and where a stop cuts what a step offers, valid positions hold committed tokens."""
    world = World()
    rows = [world.row(prompt, SAMPLED, seed=i) for i, prompt in enumerate(PROMPTS)]
    step = 0
    while rows:
        plans = [CHAINS[(row.slot + step) % len(CHAINS)] for row in rows]
        for outcome in world.executor.step(rows, plans).outcomes:
            world.executor.commit(outcome.row, outcome.token_ids[: 1 + step % 4])
        assert_valid(world)
        rows = [row for row in rows if row.remaining]
        step += 1


def assert_valid(world):
    world.state.check()
    for name, runner in world.runners.items():
        for slot in range(SLOTS):
            tokens = world.state.tokens(slot)
            valid = world.state.num_valid(name, slot)
            assert [runner.cache[slot].get(p) for p in range(valid)] == tokens[:valid], f"{name}, slot {slot}"


def check_reuse():
    """Prompts that share beginnings with cached ones answer as in a fresh engine, and cached content is right."""
    world = World(min_reuse=1)
    prompts = [[1, 2, 3, 4, 5, 6], [1, 2, 3, 9, 9], [1, 2, 8, 4, 5, 6], [1, 2, 3, 4, 5, 6], [4, 4], [1, 2, 3]]
    for prompt in prompts:
        answer = world.run([world.row(prompt, SAMPLED)], lambda row, step: CHAINS[step % len(CHAINS)])
        assert answer == [plain_answer(prompt, SAMPLED)]
        assert_valid(world)


def check_restore():
    """A target that raises leaves all lengths as they were and nothing behind; the answer goes on as if it had not."""
    world = World()
    row = world.row(PROMPTS[0], SAMPLED)
    world.executor.commit(row, world.executor.step([row], [CHAINS[0]]).outcomes[0].token_ids)
    before = world.state.snapshot([row.slot])
    target = world.runners["target"]
    forward, target.forward = target.forward, lambda spans: (forward(spans), 1 / 0)[0]
    (outcome,) = world.executor.step([row], [CHAINS[1]]).outcomes
    assert outcome.error is not None
    assert world.state.snapshot([row.slot]) == before
    assert_valid(world)
    target.forward = forward
    answer = world.run([row], lambda row, step: CHAINS[step % 2])
    assert answer == [plain_answer(PROMPTS[0], SAMPLED)]


torch.manual_seed(0)
LLAMA = (
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=V,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
        )
    )
    .double()
    .eval()
)


def check_failed_slot_is_clean():
    """A slot that held NaN and was discarded, or poisoned in one model, gives its next row clean logits."""
    prompt = [1, 2, 3]
    clean = EagerRunner("target", LLAMA, num_slots=1, context_length=512).forward([Span(0, 0, prompt, 1)])
    for dispose in ("discard", "poison"):
        runner = EagerRunner("target", LLAMA, num_slots=1, context_length=512)
        state = StateManager({"target": runner}, 1)
        slot, _ = state.admit([5] * 30)
        runner.forward([state.prefill_span("target", slot, 99)])
        with torch.inference_mode():
            runner._cache.layers[0].keys[slot, :29] = torch.nan
            runner._cache.layers[0].values[slot, :29] = torch.nan
        if dispose == "discard":
            state.discard(slot)
        else:
            state.poison("target", slot)
            state.release(slot)
        slot, _ = state.admit(prompt)
        logits = runner.forward([state.span("target", slot, [], 1)])
        assert logits.tolist() == clean.tolist()


# -------------------------------------------------------------------- mutants


def noise_without_position(patch):
    patch.setattr(choice, "row_keys", lambda seed, sample, position: row_keys(seed, sample, 0))


def noise_relative_to_step(patch):
    def segment(sampler, position, hypothesis, count):
        start = len(sampler._prompt_ids) + len(sampler._output)
        sampler.noise.clear()
        return Segment(sampler, position - start, hypothesis, count)

    patch.setattr(verify, "Segment", segment)


def noise_by_batch_row(patch):
    def mutant(logits, segments, *rest):
        moved = []
        for index, segment in enumerate(segments):
            sampler = copy.copy(segment.sampler)
            sampler.seed, sampler.noise = sampler.seed + index, {}
            moved.append(Segment(sampler, segment.position, segment.hypothesis, segment.count))
        return choose(logits, moved, *rest)

    patch.setattr(verify, "choose", mutant)


def sample_forgotten(patch):
    patch.setattr(choice, "row_keys", lambda seed, sample, position: row_keys(seed, 0, position))


def recovered_token_redrawn(patch):
    fresh = deque()

    def also_fresh(logits, segments, *rest):
        redrawn = []
        for segment in segments:
            sampler = copy.copy(segment.sampler)
            sampler.seed, sampler.noise = sampler.seed + 10**6, {}
            redrawn.append(Segment(sampler, segment.position, segment.hypothesis, segment.count))
        fresh.extend(choose(logits, redrawn))
        return choose(logits, segments, *rest)

    def accept(proposal, choices, logits, score):
        other = fresh.popleft()
        n = common_prefix(list(proposal), choices)
        last = other[n] if n < len(proposal) else choices[n]
        return verify.Verification([*choices[:n], last], len(proposal), n, logits=logits, score=score)

    patch.setattr(verify, "choose", also_fresh)
    patch.setattr(verify, "_accept", accept)


def penalties_of_first_position_only(patch):
    original = RowSampler.adjust

    def adjust(self, scores, hypothesis):
        first = len(hypothesis) - scores.shape[0] + 1
        return torch.cat([original(self, row[None], hypothesis[:first]) for row in scores])

    patch.setattr(RowSampler, "adjust", adjust)


def accepting(tokens):
    """A mutant of the acceptance rule: what is taken of (proposal, choices, number accepted)."""

    def mutate(patch):
        def accept(proposal, choices, logits, score):
            n = common_prefix(list(proposal), choices)
            return verify.Verification(tokens(list(proposal), choices, n), len(proposal), n, logits=logits, score=score)

        patch.setattr(verify, "_accept", accept)

    return mutate


def commit_with(kept):
    """A mutant of the rollback: what stays valid, of (length fed, length agreed)."""

    def mutate(patch):
        def commit(self, slot, token_ids):
            most = len(self._tokens[slot]) + len(token_ids) - 1
            for model, lengths in self._num_valid.items():
                lengths[slot] = min(kept(lengths[slot], self._agreed(model, slot, token_ids)), most)
                self._tail[model][slot] = []
            self._tokens[slot].extend(token_ids)

        patch.setattr(StateManager, "commit", commit)

    return mutate


def reuse_longer_by_one(patch):
    original = StateManager._shared_prefix

    def shared(self, slot, token_ids):
        length = original(self, slot, token_ids)
        return length + 1 if length else 0

    patch.setattr(StateManager, "_shared_prefix", shared)


def stale_tail_after_restore(patch):
    def restore(self, snapshot):
        for (name, slot), length in snapshot.items():
            self._num_valid[name][slot] = min(self._num_valid[name][slot], length)

    patch.setattr(StateManager, "restore", restore)


def stale_length_after_restore(patch):
    def restore(self, snapshot):
        for name, slot in snapshot:
            self._tail[name][slot] = []

    patch.setattr(StateManager, "restore", restore)


def slot_not_cleared(patch):
    patch.setattr(EagerRunner, "clear", lambda self, slot: None)


def values_not_cleared(patch):
    def clear(self, slot):
        for layer in self.layers:
            layer.keys[slot, : self._used[slot]].zero_()

    patch.setattr(SlotCache, "clear", clear)


MUTANTS = {
    "noise not keyed by position": (noise_without_position, check_joint),
    "noise keyed relative to the step": (noise_relative_to_step, check_equal_sampled),
    "noise keyed by batch row": (noise_by_batch_row, check_alone_as_in_batch),
    "sample index forgotten": (sample_forgotten, check_samples_differ),
    "recovered token redrawn": (recovered_token_redrawn, check_equal_sampled),
    "penalties of the first position only": (penalties_of_first_position_only, check_equal_penalised),
    "one token too many": (accepting(lambda proposal, choices, n: choices[: n + 2]), check_equal_sampled),
    "one token too many, greedy": (accepting(lambda proposal, choices, n: choices[: n + 2]), check_equal_greedy),
    "one token too few": (
        accepting(lambda proposal, choices, n: choices[: max(1, n)]),
        check_self_draft_is_accepted_whole,
    ),
    "first mismatch kept": (
        accepting(lambda proposal, choices, n: proposal[: n + 1] if n < len(proposal) else choices[: n + 1]),
        check_equal_sampled,
    ),
    "bonus from the wrong row": (
        accepting(lambda proposal, choices, n: [*choices[:n], choices[n - 1 if n and n == len(proposal) else n]]),
        check_equal_sampled,
    ),
    "mask not cleared": (commit_with(lambda fed, agreed: fed), check_valid_content),
    "rollback one short of enough": (commit_with(lambda fed, agreed: min(fed, agreed + 1)), check_valid_content),
    "rollback one too far": (commit_with(lambda fed, agreed: max(0, agreed - 1)), check_self_draft_is_accepted_whole),
    "reuse beyond the common prefix": (reuse_longer_by_one, check_reuse),
    "stale tail after restore": (stale_tail_after_restore, check_restore),
    "stale length after restore": (stale_length_after_restore, check_restore),
    "NaN slot not cleared": (slot_not_cleared, check_failed_slot_is_clean),
    "NaN in values not cleared": (values_not_cleared, check_failed_slot_is_clean),
}
CHECKS = sorted({check for _, check in MUTANTS.values()}, key=lambda check: check.__name__)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_checks_pass(check):
    """On the package as it is, every check passes."""
    check()


@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name, monkeypatch):
    """The check passes, the bug goes in, the same check fails."""
    mutate, check = MUTANTS[name]
    check()
    mutate(monkeypatch)
    with pytest.raises(AssertionError):
        check()
