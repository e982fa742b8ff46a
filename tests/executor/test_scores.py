"""Hindsight: a level that catches up says, in passing, what it would have chosen where tokens are already committed."""

import pytest

from specrouter_llm import EngineConfig, SpecRouter
from specrouter_llm.scheduling.evidence import LEAST_SCORED, MOST_SCORED
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.testing import ContextRunner, blended, fake_engine, hashed_logits

PROMPT = [3, 1, 4, 1, 5]


class NowAndThen:
    """Plain decoding, and every few steps the drafter with window 2; keeps what it is told."""

    def __init__(self, every):
        self._every, self._steps, self.rows = every, 0, []

    def plan(self, rows):
        drafting = self._steps % self._every == self._every - 1
        return [Plan.chain(["draft", "target"], [2]) if drafting else Plan(("target",))] * len(rows)

    def observe(self, step):
        self._steps += 1
        self.rows.extend(step.rows)

    def scores(self):
        """(output tokens committed before the step, score) of all steps that had one."""
        found, committed = [], 0
        for row in self.rows:
            found.extend((committed, score) for score in row.scores)
            committed += row.committed
        return found


def run(draft, policy, **params):
    """The output, decoded under `policy` by an engine whose target is fixed."""
    target = hashed_logits(0, 32)
    functions = {"draft": draft, "target": target}
    runners = {name: ContextRunner(name, f, 32, num_slots=1, context_length=512) for name, f in functions.items()}
    with SpecRouter(
        runners, target="target", max_context=512, config=EngineConfig(max_batch=1), policy=policy
    ) as engine:
        return engine.generate(PROMPT, max_tokens=80, **params)[0].raise_for_error().token_ids


@pytest.mark.parametrize("every", [2, 6, 40])
def test_scores_count_what_the_drafter_would_have_chosen(every):
    """Greedy: its argmax after every committed prefix that it lacked, at most 32 of them; fewer than 4 are not asked for."""
    draft = blended(hashed_logits(0, 32), hashed_logits(1, 32), 0.4)
    policy = NowAndThen(every)
    output = run(draft, policy)
    scores = policy.scores()
    assert bool(scores) == (every > LEAST_SCORED)
    for committed, score in scores:
        assert LEAST_SCORED <= score.total <= min(MOST_SCORED, every + 2)
        places = range(committed - score.total, committed)
        own = [int(draft([*PROMPT, *output[:place]]).argmax()) for place in places]
        assert score.matched == sum(a == b for a, b in zip(own, (output[place] for place in places), strict=True))
    assert every != 40 or {score.total for _, score in scores} == {MOST_SCORED}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_drafter_that_is_the_target_matches_everywhere(temperature):
    """Sampling: the noise of positions long committed is the same again."""
    policy = NowAndThen(9)
    output = run(hashed_logits(0, 32), policy, temperature=temperature, seed=5)
    assert policy.scores()
    assert all(score.matched == score.total for _, score in policy.scores())
    assert output == run(hashed_logits(0, 32), None, temperature=temperature, seed=5, speculation=False)


def test_no_score_where_choices_depend_on_more_than_logits():
    """Penalties have moved on since: what the drafter would have said then cannot be asked now."""
    policy = NowAndThen(9)
    run(hashed_logits(0, 32), policy, repetition_penalty=1.2)
    assert policy.scores() == []


def test_logprobs_and_batches_are_as_without_scores():
    """What is asked in passing changes no other row and none of the reported logits."""
    params = {"max_tokens": 40, "logprobs": True, "temperature": 1.0, "seed": 3}
    prompts = [PROMPT, [7, 7], [9, 8, 7, 6]]

    class Turns(NowAndThen):
        def plan(self, rows):
            return [Plan.chain(["draft0", "target"], [3]) if p.levels != ("target",) else p for p in super().plan(rows)]

    with fake_engine(policy=Turns(7), max_batch=3) as engine:
        got = [(c.token_ids, c.logprobs) for c in engine.generate(prompts, **params)]
        plain = [(c.token_ids, c.logprobs) for c in engine.generate(prompts, speculation=False, **params)]
    assert got == plain
