"""The promise, by plain equality in float64: any chain, batch and schedule commits the tokens of plain decoding."""

from __future__ import annotations

import copy
import itertools
import random
import threading

import pytest
import torch

from specrouter_llm import Plan, SamplingParams

GREEDY = SamplingParams(max_tokens=24)
SAMPLED = SamplingParams(
    max_tokens=24,
    temperature=1.0,
    top_p=0.9,
    repetition_penalty=1.1,
    presence_penalty=0.2,
    frequency_penalty=0.1,
    seed=11,
)
PARAMS = {"greedy": GREEDY, "sampled": SAMPLED}
CHAINS = {
    "target": ((), ()),
    "ngram": (("ngram",), (8,)),
    "2 levels": (("draft",), (4,)),
    "3 levels": (("draft", "middle"), (3, 6)),
    "4 levels": (("ngram", "draft", "middle"), (4, 4, 5)),
    "4 models": (("draft", "small", "middle"), (2, 3, 5)),
    "odd order": (("middle", "draft"), (3, 5)),
    "upside down": (("middle", "small", "draft"), (2, 2, 3)),
}


class RandomPolicy:
    """Changes its mind at every step, for every row."""

    def __init__(self, seed):
        self._random = random.Random(seed)
        self.used = set()

    def plan(self, rows):
        plans = []
        for _ in rows:
            models = self._random.sample(["draft", "small", "middle"], self._random.randint(0, 3))
            below = [*self._random.choice([[], ["ngram"]]), *models]
            self.used.add(tuple(below))
            plan = Plan.chain([*below, "target"], [self._random.randint(1, 6) for _ in below])
            if models and below != models and self._random.random() < 0.5:
                plan = Plan.either(Plan.chain(["ngram", "target"], plan.windows[:1]), plan.without(["ngram"]))
            plans.append(plan)
        return plans

    def asides(self):
        return self._random.choice([(), ("ngram",)])

    def observe(self, observations):
        pass


class Garbage:
    """Proposes random ids, some of which do not exist."""

    name = "garbage"

    def __init__(self):
        self._random = random.Random(3)

    def propose(self, row, hypothesis, max_tokens):
        return [self._random.randint(-2, 60) for _ in range(max_tokens + 2)]


class SecondBest:
    """Adversarial: proposes the target's second choice after what it would have chosen before."""

    name = "second_best"

    def __init__(self, model):
        self._model = model

    def propose(self, row, hypothesis, max_tokens):
        ids = [*row.token_ids, *hypothesis]
        with torch.inference_mode():
            logits = self._model(torch.tensor([ids])).logits[0, -1]
        return [int(logits.topk(2).indices[1])] * max_tokens


def tokens(completions):
    for completion in completions:
        completion.raise_for_error()
    return [completion.token_ids for completion in completions]


@pytest.fixture(scope="module")
def plain(family, prompts):
    """Plain decoding of the same engine, one request at a time."""
    with family.engine(max_batch=1, prefix_reuse=False) as engine:
        return {
            name: [tokens(engine.generate([prompt], params, speculation=False))[0] for prompt in prompts]
            for name, params in PARAMS.items()
        }


@pytest.mark.parametrize("kind", PARAMS)
@pytest.mark.parametrize("batch", [1, 3, 8])
def test_every_chain_commits_the_tokens_of_plain_decoding(family, prompts, plain, batch, kind):
    """Every chain in batches of rows of very different lengths; with prefix reuse, and once without."""
    proposed, accepted = 0, 0
    for reuse in (True, False) if batch == 3 else (True,):
        with family.engine(max_batch=batch, prefix_reuse=reuse) as engine:
            for name, (chain, windows) in CHAINS.items():
                options = {"chain": [*chain, "target"], "windows": list(windows)}
                completions = engine.generate(prompts, PARAMS[kind], **options)
                assert plain[kind] == tokens(completions), name
                for completion in completions:
                    proposed += completion.stats.num_draft_tokens
                    accepted += completion.stats.num_accepted_draft_tokens
    assert 0 < accepted < proposed


@pytest.mark.parametrize("kind", PARAMS)
def test_a_random_chain_at_every_step(family, prompts, plain, kind):
    """A policy that changes its mind for every row at every step changes no token."""
    policy = RandomPolicy(4)
    with family.engine(max_batch=3, policy=policy) as engine:
        completions = engine.generate(prompts, PARAMS[kind])
    assert plain[kind] == tokens(completions)
    assert len(policy.used) > 10
    accepted = sum(c.stats.num_accepted_draft_tokens for c in completions)
    assert 0 < accepted < sum(c.stats.num_draft_tokens for c in completions)


@pytest.mark.parametrize("kind", PARAMS)
def test_chunked_prefill(family, prompts, plain, kind):
    """Prompts that take in five tokens at a time, for the target and every drafter, give the same tokens."""
    with family.engine(max_batch=4, prefill_chunk=5) as engine:
        completions = engine.generate(prompts, PARAMS[kind], chain=["draft", "middle"], windows=[3, 5])
    assert plain[kind] == tokens(completions)
    assert sum(c.stats.num_accepted_draft_tokens for c in completions) > 0


@pytest.mark.parametrize("kind", PARAMS)
def test_garbage_is_rejected(family, prompts, plain, kind):
    """A proposer of garbage, alone and below a real chain, changes nothing."""
    with family.engine(max_batch=3, proposers=[Garbage()]) as engine:
        for chain, windows in ((["garbage"], [5]), (["garbage", "draft", "middle"], [3, 3, 4])):
            completions = engine.generate(prompts, PARAMS[kind], chain=chain, windows=windows)
            assert plain[kind] == tokens(completions)
            rejected = sum(c.stats.num_draft_tokens - c.stats.num_accepted_draft_tokens for c in completions)
            assert rejected > 0


def test_an_adversary_that_proposes_the_second_best_token(family, prompts, plain):
    """The most tempting wrong token at every position is never accepted in place of the best."""
    model = copy.deepcopy(family.models["target"])
    with family.engine(max_batch=3, proposers=[SecondBest(model)]) as engine:
        completions = engine.generate(prompts, GREEDY, chain=["second_best"], windows=[2])
    assert plain["greedy"] == tokens(completions)
    drafted = sum(c.stats.num_draft_tokens for c in completions)
    accepted = sum(c.stats.num_accepted_draft_tokens for c in completions)
    assert drafted > 100
    assert accepted < drafted * 0.2  # now and then the second best repeats into a right guess


@pytest.mark.parametrize("kind", PARAMS)
def test_rows_join_and_are_cancelled_midway(family, prompts, plain, kind):
    """Requests that start late, and neighbours that are cancelled after a few tokens, change nothing for the others."""
    with family.engine(max_batch=3) as engine:
        started = threading.Event()
        victims = [
            engine.submit(
                prompt, PARAMS[kind].replace(max_tokens=200), chain=["draft"], on_step=lambda info: started.set()
            )
            for prompt in prompts[:2]
        ]
        first = engine.submit(prompts[3], PARAMS[kind], chain=["draft", "middle"], windows=[3, 5])
        assert started.wait(60)
        victims[0].cancel()
        late = [engine.submit(prompt, PARAMS[kind], chain=["ngram", "middle"]) for prompt in prompts[4:]]
        for _ in range(3):
            next(victims[1])
        victims[1].cancel()
        completions = [*first.result(), *itertools.chain(*(handle.result() for handle in late))]
    assert plain[kind][3:] == tokens(completions)
    assert sum(c.stats.num_accepted_draft_tokens for c in completions) > 0


class Flaky:
    """A runner whose forward raises at some calls."""

    def __init__(self, runner, failing):
        self._runner = runner
        self._failing = failing
        self.calls = 0

    def __getattr__(self, name):
        return getattr(self._runner, name)

    def forward(self, spans):
        self.calls += 1
        logits = self._runner.forward(spans)
        if self.calls in self._failing:
            raise RuntimeError("out of memory")  # after the cache was written: the worst moment
        return logits


@pytest.mark.parametrize("kind", PARAMS)
@pytest.mark.parametrize("failing", ["draft", "middle"])
def test_a_drafter_that_raises_in_mid_step(family, prompts, plain, kind, failing):
    """A level that fails after writing its cache is set aside; the answer goes on and the statistics say so."""
    with family.engine(max_batch=3) as engine:
        executor = engine._worker._executor
        executor._verifying._runners[failing] = Flaky(executor._runners[failing], {4, 15, 40})
        completions = engine.generate(prompts, PARAMS[kind], chain=["draft", "middle"], windows=[3, 5])
    assert plain[kind] == tokens(completions)
    fallbacks = [c.stats.fallback for c in completions if c.stats.fallback]
    assert fallbacks
    assert all(f"{failing}: raised RuntimeError: out of memory" in fallback for fallback in fallbacks)


def test_growth_past_the_first_block(family):
    """Contexts that grow from below 512 to above it keep every token."""
    generator = torch.Generator().manual_seed(9)
    prompt = torch.randint(0, 48, (495,), generator=generator).tolist()
    with family.engine(max_batch=2) as engine:
        expected = tokens(engine.generate([prompt, prompt[:30]], GREEDY, max_tokens=40, speculation=False))
    with family.engine(max_batch=2) as engine:
        completions = engine.generate(
            [prompt, prompt[:30]], GREEDY, max_tokens=40, chain=["draft", "middle"], windows=[3, 5]
        )
    assert expected == tokens(completions)


def test_equals_transformers_generate(family, prompts):
    """Greedy decoding in float64 gives the tokens of transformers' own generate."""
    model = copy.deepcopy(family.models["target"])
    with family.engine(max_batch=4) as engine:
        ours = tokens(engine.generate(prompts, GREEDY, chain=["draft", "middle"], windows=[3, 5]))
    for prompt, mine in zip(prompts, ours, strict=True):
        ids = torch.tensor([prompt])  # the mask is given: generate would take the prompt's pad ids for padding
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False, eos_token_id=-1
        )
        assert tuple(output[0, len(prompt) :].tolist()) == mine
