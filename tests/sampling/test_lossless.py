"""Losslessness as statistics: the joint of the first tokens of speculative answers is the target's own, by chi-square.

Table models with context-dependent rows, the real Executor in batches, fixed seeds 0 ... N - 1, alpha 1e-6. That chains give
the tokens of plain decoding seed by seed is the stronger statement and is asserted too; the chi-square then says that the
rule which plain decoding follows samples the stated distribution.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from specrouter_llm.drafting.ngram import NgramProposer
from specrouter_llm.executor import Executor
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.state.manager import StateManager
from specrouter_llm.state.row import Row
from specrouter_llm.testing import TableRunner

ALPHA = 1e-6
NUM_TOKENS = 3
SLOTS = 100
PLAIN = Plan(("target",))
CHAINS = {
    "draft-target": Plan.chain(["draft", "target"], [2]),
    "draft-middle-target": Plan.chain(["draft", "middle", "target"], [1, 2]),
    "ngram-target": Plan.chain(["ngram", "target"], [2]),
    "garbage-target": Plan.chain(["garbage", "target"], [2]),
    "garbage-middle-target": Plan.chain(["garbage", "middle", "target"], [1, 2]),
}


class Garbage:
    """Proposes tokens that have nothing to do with the text, some of them outside of any vocabulary."""

    name = "garbage"

    def propose(self, row, hypothesis, max_tokens):
        start = row.sampler.seed * 7 + len(row.token_ids) + len(hypothesis)
        return [(start + i) * 2_654_435_761 % 37 - 1 for i in range(max_tokens)]


class Cell:
    """Models, parameters and a prompt; runs them, and knows the exact joint by enumeration in plain NumPy."""

    def __init__(self, vocab_size, prompt, params, drafter, *, n):
        generator = torch.Generator().manual_seed(vocab_size)
        draw = lambda: torch.randn(vocab_size, vocab_size, generator=generator, dtype=torch.float64)  # noqa: E731 - one line of drawing
        self.table = draw()
        noise, other = draw(), draw()
        draft = -self.table if drafter == "reversed" else self.table + 0.3 * noise
        tables = {"draft": draft, "middle": self.table + 0.6 * other, "target": self.table}
        self.runners = {name: TableRunner(name, table) for name, table in tables.items()}
        self.prompt, self.params, self.n = prompt, SamplingParams(**params), n
        self._plain = None

    def run(self, plan, n):
        """The first tokens of the answers to seeds 0 ... n - 1, [n, NUM_TOKENS]; and tokens drafted and accepted."""
        proposers = {"ngram": NgramProposer(min_match=1), "garbage": Garbage()}
        answers, drafted, accepted = [], 0, 0
        with torch.inference_mode():
            for first in range(0, n, SLOTS):
                state = StateManager(self.runners, SLOTS, prefix_reuse=False)
                executor = Executor(state, self.runners, proposers, "target")
                rows = [self._row(state, seed) for seed in range(first, min(first + SLOTS, n))]
                live = rows
                while live:
                    for outcome in executor.step(live, [plan] * len(live)).outcomes:
                        executor.commit(outcome.row, outcome.token_ids)
                        drafted += sum(trial.proposed for trial in outcome.trials)
                        accepted += sum(trial.accepted for trial in outcome.trials)
                    live = [row for row in live if row.remaining]
                answers.extend(row.output_ids for row in rows)
        return np.array(answers), drafted, accepted

    def _row(self, state, seed):
        slot, _ = state.admit(self.prompt)
        sampler = RowSampler(self.params, seed=seed, prompt_ids=self.prompt)
        return Row(slot, state.tokens(slot), len(self.prompt), sampler, len(self.prompt) + NUM_TOKENS)

    def plain(self, n):
        """Answers of target-only decoding, computed once."""
        if self._plain is None:
            self._plain = self.run(PLAIN, self.n)[0]
        return self._plain[:n]

    def joint(self):
        """Exact probability of every answer, [V] * NUM_TOKENS."""
        size = self.table.shape[0]
        joint = np.zeros((size,) * NUM_TOKENS)
        first = self._next([])
        for a in range(size):
            second = self._next([a]) if first[a] else np.zeros(size)
            for b in range(size):
                if first[a] * second[b]:
                    joint[a, b] = first[a] * second[b] * self._next([a, b])
        assert float(joint.sum()) == pytest.approx(1.0)
        return joint

    def _next(self, output):
        """The target's distribution after prompt + output, written out a second time."""
        p = self.params
        scores = self.table[[*self.prompt, *output][-1]].numpy().copy()
        for i in {*self.prompt, *output}:
            scores[i] = scores[i] / p.repetition_penalty if scores[i] > 0 else scores[i] * p.repetition_penalty
        for i in set(output):
            scores[i] -= p.presence_penalty + p.frequency_penalty * output.count(i)
        scores /= p.temperature
        if p.top_k:
            scores[np.argsort(-scores)[p.top_k :]] = -math.inf
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        order = np.argsort(-weights)
        before = np.cumsum(weights[order]) - weights[order]
        if p.top_p < 1:
            weights[order[before >= p.top_p]] = 0
        return weights / weights.sum()


def assert_fits(answers, joint):
    """No answer outside of the support, and a chi-square of the joint below its limit; thin bins are merged."""
    counts = np.zeros_like(joint)
    np.add.at(counts, tuple(answers.T), 1)
    assert int(counts[joint == 0].sum()) == 0, "a token outside of the support"
    expected, observed = joint.ravel() * len(answers), counts.ravel()
    thick = expected >= 5
    expected = np.append(expected[thick], expected[~thick].sum())
    observed = np.append(observed[thick], observed[~thick].sum())
    observed, expected = observed[expected > 0], expected[expected > 0]
    assert len(expected) > 20, "too few bins to say anything"
    statistic = float(((observed - expected) ** 2 / expected).sum())
    limit = float(chi2.isf(ALPHA, len(expected) - 1))
    assert statistic < limit, f"chi-square {statistic:.0f}, limit {limit:.0f}, {len(expected)} bins"


def assert_marginals_fit(answers, joint):
    """The same for every position by itself and every pair: fewer bins see shifts that the joint dilutes."""
    for axes in itertools.chain(
        itertools.combinations(range(NUM_TOKENS), 1), itertools.combinations(range(NUM_TOKENS), 2)
    ):
        rest = tuple(set(range(NUM_TOKENS)) - set(axes))
        expected = joint.sum(axis=rest).ravel() * len(answers)
        counts = np.zeros([joint.shape[0]] * len(axes))
        np.add.at(counts, tuple(answers[:, list(axes)].T), 1)
        thick = expected >= 5
        statistic = float(((counts.ravel() - expected)[thick] ** 2 / expected[thick]).sum())
        assert statistic < float(chi2.isf(ALPHA, int(thick.sum()))), f"positions {axes}"


REVERSED = {"vocab_size": 16, "prompt": [3], "params": {"temperature": 1.0}, "drafter": "reversed", "n": 50_000}
TOP_K = {"vocab_size": 32, "prompt": [7], "params": {"temperature": 1.0, "top_k": 8}, "drafter": "close", "n": 50_000}
PENALTIES = {
    "vocab_size": 16,
    "prompt": [5, 9, 5],
    "params": {
        "temperature": 0.8,
        "top_p": 0.85,
        "repetition_penalty": 1.3,
        "presence_penalty": 0.4,
        "frequency_penalty": 0.5,
    },
    "drafter": "close",
    "n": 7_000,
}
CELLS = {"reversed": REVERSED, "top-k": TOP_K, "top-p with penalties": PENALTIES}


@pytest.fixture(scope="module", params=CELLS)
def cell(request):
    return Cell(**CELLS[request.param])


def test_plain_decoding_samples_the_exact_joint(cell):
    """The choice rule itself: the target alone, over its exact distribution."""
    answers, joint = cell.plain(cell.n), cell.joint()
    assert_fits(answers, joint)
    assert_marginals_fit(answers, joint)


@pytest.mark.parametrize("name", ["draft-target", "draft-middle-target"])
def test_a_chain_of_models_samples_the_exact_joint(cell, name):
    """Two and three levels, at full N, drafts both accepted and rejected; seed by seed the tokens of plain decoding."""
    answers, drafted, accepted = cell.run(CHAINS[name], cell.n)
    assert 0.02 * drafted < accepted < 0.98 * drafted
    joint = cell.joint()
    assert_fits(answers, joint)
    assert_marginals_fit(answers, joint)
    assert answers.tolist() == cell.plain(cell.n).tolist()


@pytest.mark.parametrize("name", ["ngram-target", "garbage-target", "garbage-middle-target"])
def test_any_proposer_gives_the_tokens_of_plain_decoding(cell, name):
    """Model-free proposers, sensible or not, out-of-vocabulary tokens included: seed by seed the same answers."""
    n = min(cell.n, 3000)
    answers, drafted, _ = cell.run(CHAINS[name], n)
    assert drafted > 0
    assert answers.tolist() == cell.plain(n).tolist()


@pytest.mark.parametrize("temperature", [0.95, 1.05])
def test_the_statistic_sees_a_small_bias(temperature):
    """The chi-square has power: N = 50,000 answers drawn at a temperature that is wrong by 5 % do not pass."""
    cell = Cell(**REVERSED)
    joint = cell.joint()
    cell.params = cell.params.replace(temperature=temperature)
    wrong = cell.joint()
    drawn = np.random.default_rng(0).choice(wrong.size, size=cell.n, p=wrong.ravel() / wrong.sum())
    answers = np.stack(np.unravel_index(drawn, wrong.shape), axis=1)
    assert_fits(answers, wrong)
    with pytest.raises(AssertionError, match="chi-square"):
        assert_fits(answers, joint)
