"""The adaptive policy on real weights: it measures, chooses and explains, and changes no token."""

from __future__ import annotations

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from specrouter_llm import SamplingParams, SpecRouter
from specrouter_llm.engine.calibration import Calibration
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import FixedPolicy

PROMPTS = [
    [
        {
            "role": "user",
            "content": "Sam buys 3 boxes of stickers. Each box holds 8 stickers. How many stickers is that?",
        }
    ],
    [{"role": "user", "content": "Tell me a short story."}],
    "Once upon a time",
]


@pytest.fixture(scope="module")
def engine():
    """The embedded family in float64, chains chosen by measurement."""
    with SpecRouter.from_pretrained("demo", dtype="float64", policy="adaptive", max_batch=2, progress=False) as engine:
        yield engine


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_adaptive_policy_changes_no_token(engine, temperature):
    """Whatever it tries and switches, the tokens are those of plain decoding."""
    params = SamplingParams(max_tokens=40, temperature=temperature, seed=4, ignore_eos=True)
    plain = engine.generate(PROMPTS, params, speculation=False)
    for _ in range(2):
        routed = engine.generate(PROMPTS, params)
        assert [c.token_ids for c in plain] == [c.token_ids for c in routed]


def test_it_explains_itself(engine):
    """Candidates with predicted times, plain decoding among them, and what was measured."""
    engine.generate(PROMPTS, max_tokens=40, ignore_eos=True)
    explanation = engine.explain()
    assert ("demo/target",) in {candidate.plan.levels for candidate in explanation.candidates}
    times = [candidate.seconds_per_token for candidate in explanation.candidates]
    assert sorted(times) == times
    assert times[0] > 0
    assert explanation.measured_seconds_per_token > 0
    assert all(plan.top == "demo/target" for plan in explanation.chosen)


def test_a_forced_chain_is_not_the_policys_business(engine):
    """A request that names its chain gets it."""
    completion = engine.generate(PROMPTS[2], max_tokens=12, chain=["demo/middle"], ignore_eos=True)[0]
    assert [stage.model for stage in completion.stats.chain] == ["demo/middle", "demo/target"]


def test_an_unknown_policy_is_refused():
    """The error says what a policy may be."""
    words = 'policy must be one of "adaptive", "fixed", "off", or an object with plan and observe'
    for policy in ("clever", 7):
        with pytest.raises(InvalidParameterError, match=words):
            SpecRouter.from_pretrained("demo", policy=policy, progress=False)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"policy": "off", "chain": ["ngram"]}, "leaves policy= nothing to do"),
        ({"policy": FixedPolicy(Plan(("demo/target",))), "chain": ["ngram"]}, "leaves policy= nothing to do"),
        ({"windows": [3]}, "windows belong to a chain"),
    ],
)
def test_options_that_exclude_each_other_are_refused_before_anything_is_loaded(options, words):
    with pytest.raises(InvalidParameterError, match=words):
        SpecRouter.from_pretrained("not/there", progress=False, **options)


def test_a_start_that_is_interrupted_gives_a_callers_model_back(monkeypatch):
    """Ctrl-C while the models are measured."""
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1))
    own = model.config._attn_implementation
    seen = []

    def interrupted(*args, **kwargs):
        seen.append(model.config._attn_implementation)
        raise KeyboardInterrupt

    monkeypatch.setattr(Calibration, "of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        SpecRouter.from_pretrained(model, max_batch=1, pack=False, progress=False)
    assert seen != [own]
    assert model.config._attn_implementation == own


def test_policies_by_name():
    """Adaptive where nothing is said, unless a chain is; with "off" nothing is drafted that a request does not ask for."""

    def used(engine, **options):
        stats = engine.generate(PROMPTS[0], max_tokens=12, ignore_eos=True, **options)[0].stats
        return [stage.model for stage in stats.chain]

    def load(**options):
        return SpecRouter.from_pretrained("demo", max_batch=1, progress=False, **options)

    with load() as adaptive:
        assert adaptive.explain() is not None
    with load(policy="fixed") as fixed, load(chain=["demo/middle"]) as one, load(policy="off") as off:
        assert [fixed.explain(), one.explain(), off.explain()] == [None] * 3
        assert used(fixed) == ["demo/draft", "demo/target"]
        assert used(one) == ["demo/middle", "demo/target"]
        assert used(off) == ["demo/target"]
        assert used(off, chain=["demo/draft"]) == ["demo/draft", "demo/target"]
