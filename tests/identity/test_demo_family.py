"""The promise on real weights: the embedded family in float64, text in, the same tokens out of every chain."""

from __future__ import annotations

import pytest

from specrouter_llm import SamplingParams, SpecRouter

DOCUMENT = "Anna works as a baker in Oslo and moved there in 1987. The shells in the shop of Tom cost 70 dollars each."
PROMPTS = [
    [
        {
            "role": "user",
            "content": "Sam buys 3 boxes of stickers. Each box holds 8 stickers. How many stickers is that?",
        }
    ],
    [{"role": "user", "content": f"Context:\n[1] {DOCUMENT}\n\nQuestion: Where does Anna work?"}],
    "Once upon a time",
    [{"role": "system", "content": "You tell stories."}, {"role": "user", "content": "Tell me a short story."}],
]
PARAMS = {
    "greedy": SamplingParams(max_tokens=28),
    "sampled": SamplingParams(
        max_tokens=28, temperature=1.0, top_p=0.95, top_k=200, repetition_penalty=1.05, frequency_penalty=0.1, seed=5
    ),
}
CHAINS = [
    (["ngram"], [8]),
    (["demo/draft"], [4]),
    (["demo/draft", "demo/middle"], [3, 6]),
    (["ngram", "demo/draft", "demo/middle"], [4, 4, 5]),
    (["demo/middle", "demo/draft"], [2, 4]),
]


@pytest.fixture(scope="module")
def engine():
    """The embedded family as a user gets it, but in float64."""
    with SpecRouter.from_pretrained("demo", dtype="float64", max_batch=3, progress=False) as engine:
        yield engine


@pytest.mark.parametrize("kind", PARAMS)
def test_every_chain_says_what_the_target_says(engine, kind):
    """Tokens, text and finish reasons of every chain equal those of plain decoding; something was accepted and rejected."""
    plain = engine.generate(PROMPTS, PARAMS[kind], speculation=False)
    for chain, windows in CHAINS:
        completions = engine.generate(PROMPTS, PARAMS[kind], chain=chain, windows=windows, draft_sources=[DOCUMENT])
        assert [c.token_ids for c in plain] == [c.token_ids for c in completions], chain
        assert [(c.text, c.finish_reason) for c in plain] == [(c.text, c.finish_reason) for c in completions]
        drafted = sum(c.stats.num_draft_tokens for c in completions)
        assert 0 < sum(c.stats.num_accepted_draft_tokens for c in completions) < drafted


def test_samples_of_one_prompt_differ_and_do_not_depend_on_the_chain(engine):
    """n = 3 gives three answers; drafting them changes none."""
    params = PARAMS["sampled"].replace(n=3)
    plain = engine.generate(PROMPTS[2], params, speculation=False)
    drafted = engine.generate(PROMPTS[2], params, chain=["demo/draft"])
    assert [c.token_ids for c in plain] == [c.token_ids for c in drafted]
    assert len({c.token_ids for c in plain}) == 3
