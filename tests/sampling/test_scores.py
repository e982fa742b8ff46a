"""Score processing: against plain oracles and transformers' own processors, inside proposals, in mixed batches."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from specrouter_llm.sampling.choice import Segment, choose, perturbed, processed
from specrouter_llm.sampling.noise import gumbel, row_keys
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler

STEADY = settings(deadline=None, derandomize=True)
V = 12
TOKEN = st.integers(0, V - 1)
TOKENS = st.lists(TOKEN, max_size=10)
PROMPT = st.lists(TOKEN, min_size=1, max_size=10)
SCORE_SEED = st.integers(0, 10**6)
CONTEXTUAL = st.fixed_dictionaries(
    {
        "repetition_penalty": st.sampled_from([1.0, 0.7, 1.3]),
        "presence_penalty": st.sampled_from([0.0, -0.6, 1.1]),
        "frequency_penalty": st.sampled_from([0.0, -0.3, 0.37]),
        "logit_bias": st.dictionaries(st.integers(0, V + 3), st.sampled_from([-50.0, -0.1, 0.3, 7.0]), max_size=3),
        "bad_words": st.lists(st.lists(TOKEN, min_size=1, max_size=3).map(tuple), max_size=3).map(tuple),
        "min_tokens": st.integers(0, 6),
    }
)
WARP = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0.3, 1.0, 1.7]),
        "top_k": st.sampled_from([0, 1, 3, V, V + 5]),
        "top_p": st.sampled_from([1.0, 0.9, 0.5, 0.05]),
        "min_p": st.sampled_from([0.0, 0.05, 0.4, 1.0]),
    }
)
END_IDS = (2, 5)


def logits_of(seed, rows=1, dtype=torch.float64):
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(3).to(dtype)


def sampler_of(values, prompt, seed=0, sample=0):
    params = SamplingParams(**values)
    return RowSampler(params, seed=seed, sample=sample, prompt_ids=prompt, end_ids=END_IDS, bad_words=params.bad_words)


def plain_adjust(row, values, prompt, output):
    """One position, in plain Python: repetition, presence and frequency penalty, bias, bad words, min_tokens."""
    scores = []
    for token_id, raw in enumerate(row):
        score, count = raw, output.count(token_id)
        if token_id in prompt or count:
            penalty = values.get("repetition_penalty", 1.0)
            score = score / penalty if score > 0 else score * penalty
        score -= values.get("presence_penalty", 0.0) if count else 0.0
        score -= values.get("frequency_penalty", 0.0) * count
        score += values.get("logit_bias", {}).get(token_id, 0.0)
        scores.append(score)
    for word in values.get("bad_words", ()):
        *start, last = word
        context = [*prompt, *output]
        if context[len(context) - len(start) :] == start and len(context) >= len(start):
            scores[last] = -math.inf
    if len(output) < values.get("min_tokens", 0):
        for token_id in END_IDS:
            scores[token_id] = -math.inf
    return scores


def plain_survivors(row, values):
    """Ids that remain after temperature, top-k, top-p and min-p, by sorting; and how near any id is to a cut."""
    scaled = [score / values["temperature"] for score in row]
    kept, nearest = set(range(len(row))), math.inf
    k = values["top_k"]
    if 0 < k < len(row):
        least = sorted(scaled, reverse=True)[k - 1]
        kept = {i for i in kept if scaled[i] >= least}
    if values["top_p"] < 1:
        ranked = sorted(kept, key=lambda i: (-scaled[i], i))
        weights = [math.exp(scaled[i] - scaled[ranked[0]]) for i in ranked]
        before = [math.fsum(weights[:j]) / math.fsum(weights) for j in range(len(ranked))]
        nearest = min(abs(b - values["top_p"]) for b in before)
        kept = {i for i, b in zip(ranked, before, strict=True) if b < values["top_p"]} | {ranked[0]}
    if values["min_p"] > 0:
        peak = max(scaled[i] for i in kept)
        ratios = {i: math.exp(scaled[i] - peak) for i in kept}
        nearest = min(nearest, *(abs(r - values["min_p"]) if r < 1 else 1.0 for r in ratios.values()))
        kept = {i for i in kept if ratios[i] >= values["min_p"]}
    return kept, nearest


def survivors(scores):
    return {i for i, score in enumerate(scores.tolist()) if score > -math.inf}


@STEADY
@given(seed=SCORE_SEED, values=CONTEXTUAL, prompt=PROMPT, output=TOKENS)
def test_adjusted_scores_equal_the_plain_oracle(seed, values, prompt, output):
    """Penalties, bias, bad words and min_tokens after committed tokens, against a loop over the vocabulary."""
    sampler = sampler_of(values, prompt)
    sampler.commit(output)
    logits = logits_of(seed)
    adjusted = sampler.adjust(logits, [])[0].tolist()
    assert adjusted == pytest.approx(plain_adjust(logits[0].tolist(), values, prompt, output), rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@STEADY
@given(seed=SCORE_SEED, values=CONTEXTUAL, prompt=PROMPT, output=TOKENS, hypothesis=TOKENS, data=st.data())
def test_positions_of_a_proposal_equal_committed_ones_bit_for_bit(
    dtype, seed, values, prompt, output, hypothesis, data
):
    """All rows over a hypothesis at once equal, in every bit, one row at a time with the tokens committed."""
    rows = data.draw(st.integers(1, len(hypothesis) + 1))
    logits = logits_of(seed, rows, dtype)
    together, stepwise = sampler_of(values, prompt), sampler_of(values, prompt)
    together.commit(output)
    first = len(hypothesis) - rows + 1
    stepwise.commit([*output, *hypothesis[:first]])
    before = logits.clone()
    at_once = together.adjust(logits, hypothesis)
    for row in range(rows):
        assert at_once[row].tolist() == stepwise.adjust(logits[row : row + 1], [])[0].tolist()
        stepwise.commit(hypothesis[first + row : first + row + 1])
    assert torch.equal(logits, before)


@STEADY
@given(seed=SCORE_SEED, prompt=PROMPT, output=TOKENS, penalty=st.sampled_from([0.5, 1.1, 1.9]))
def test_repetition_penalty_is_that_of_transformers(seed, prompt, output, penalty):
    """Prompt and output count alike, as in RepetitionPenaltyLogitsProcessor over prompt + output."""
    sampler = sampler_of({"repetition_penalty": penalty}, prompt)
    sampler.commit(output)
    logits = logits_of(seed)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([[*prompt, *output]]), logits.clone())
    assert sampler.adjust(logits, []).tolist() == theirs.tolist()


@STEADY
@given(seed=SCORE_SEED, values=WARP)
def test_survivors_of_the_cuts_equal_the_plain_oracle(seed, values):
    """top-k, then top-p of what is left, then min-p: the same ids remain, with their scores divided by T."""
    logits = logits_of(seed)
    expected, nearest = plain_survivors(logits[0].tolist(), values)
    assume(nearest > 1e-9)
    scores = processed(logits, Segment(sampler_of(values, [0]), 1, [], 1))[0]
    assert survivors(scores) == expected
    kept = sorted(expected)
    assert scores[kept].tolist() == (logits[0, kept] / values["temperature"]).tolist()


@STEADY
@given(seed=SCORE_SEED, values=WARP)
def test_survivors_of_the_cuts_equal_those_of_transformers(seed, values):
    """The same ids remain as after Temperature, TopK, TopP and MinP warpers in this order."""
    logits = logits_of(seed)
    assume(plain_survivors(logits[0].tolist(), values)[1] > 1e-9)
    theirs = TemperatureLogitsWarper(values["temperature"])(None, logits)
    if values["top_k"]:
        theirs = TopKLogitsWarper(values["top_k"])(None, theirs)
    if values["top_p"] < 1:
        theirs = TopPLogitsWarper(values["top_p"])(None, theirs)
    if values["min_p"]:
        theirs = MinPLogitsWarper(values["min_p"])(None, theirs)
    scores = processed(logits, Segment(sampler_of(values, [0]), 1, [], 1))
    assert survivors(scores[0]) == survivors(theirs[0])


@STEADY
@given(seed=SCORE_SEED, values=WARP, noise_seed=st.integers(0, 2**63 - 1), position=st.integers(1, 9999))
def test_the_choice_is_the_argmax_of_scores_plus_keyed_noise(seed, values, noise_seed, position):
    """The rule itself, from the processed scores and the noise of (seed, sample, position)."""
    logits = logits_of(seed)
    segment = Segment(sampler_of(values, [0], seed=noise_seed, sample=3), position, [], 1)
    noise = gumbel([row_keys(noise_seed, 3, position)], torch.arange(V, dtype=torch.int32))
    expected = processed(logits, segment) + noise
    assert choose(logits, [segment]) == [[int(expected.argmax())]]
    assert perturbed(logits, segment).tolist() == expected.tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 40, 1000, 32_000])
def test_greedy_ties_go_to_the_lowest_id(size, dtype):
    """Among equal scores the first id is chosen, at any vocabulary size and wherever the ties lie."""
    for low in (0, size // 3, size - 2):
        logits = torch.zeros(1, size, dtype=dtype)
        logits[0, low:] = 1.0
        assert choose(logits, [Segment(RowSampler(SamplingParams(), seed=0), 1, [], 1)]) == [[low]]


@pytest.mark.parametrize(
    ("words", "prompt", "output", "hypothesis", "banned"),
    [
        ([(4,)], [1], [], [], {4}),
        ([(4,)], [4], [4], [4, 4], {4}),
        ([(1, 2, 3)], [9, 1], [2], [], {3}),
        ([(1, 2, 3)], [9], [1], [2], {3}),
        ([(1, 2, 3)], [9, 1], [], [2], {3}),
        ([(1, 2, 3)], [9], [], [1, 2], {3}),
        ([(1, 2, 3)], [9], [2], [1], set()),
        ([(1, 2, 3)], [2], [], [], set()),
        ([(1, 2, 3), (2, 7), (8,)], [1], [2], [], {3, 7, 8}),
        ([(1, 99)], [1], [], [], set()),
    ],
)
def test_bad_words_are_cut_at_their_last_token(words, prompt, output, hypothesis, banned):
    """A word is stopped by its last token, wherever the border of prompt, output and proposal falls in it."""
    sampler = RowSampler(SamplingParams(), seed=0, prompt_ids=prompt, bad_words=words)
    sampler.commit(output)
    adjusted = sampler.adjust(torch.zeros(1, V), hypothesis)[0]
    assert set(range(V)) - survivors(adjusted) == banned


def test_min_tokens_bans_ends_position_by_position():
    """Inside one proposal the ends are banned exactly up to the position where min_tokens is reached."""
    sampler = sampler_of({"min_tokens": 4}, [1, 1])
    sampler.commit([3])
    adjusted = sampler.adjust(torch.zeros(5, V), [3, 3, 3, 3])
    assert [set(range(V)) - survivors(row) for row in adjusted] == [set(END_IDS)] * 3 + [set()] * 2


def test_min_tokens_needs_no_processing_once_reached():
    """A row whose minimum is behind it is as cheap as one that never had any."""
    sampler = sampler_of({"min_tokens": 2}, [1])
    assert sampler.contextual
    sampler.commit([3, 3])
    assert not sampler.contextual


def many_segments(data, count):
    """Rows with parameters, contexts and proposal lengths of their own, and logits for all of them."""
    segments, blocks = [], []
    for index in range(count):
        values = {**data.draw(CONTEXTUAL), **data.draw(WARP)}
        if data.draw(st.booleans()):
            values["temperature"] = 0.0
        prompt, hypothesis = data.draw(PROMPT), data.draw(TOKENS)
        segments.append((values, prompt, hypothesis, data.draw(st.integers(1, len(hypothesis) + 1)), index))
        blocks.append(logits_of(data.draw(SCORE_SEED), segments[-1][3]))
    return segments, blocks


def segment_of(values, prompt, hypothesis, count, seed):
    position = len(prompt) + len(hypothesis) - count + 1
    return Segment(sampler_of(values, prompt, seed=seed), position, hypothesis, count)


@STEADY
@given(data=st.data(), count=st.integers(2, 5))
def test_rows_get_in_a_batch_what_they_get_alone(data, count):
    """Rows with different parameters in one call choose what each chooses in a call of its own."""
    recipes, blocks = many_segments(data, count)
    alone = [choose(block, [segment_of(*recipe)])[0] for recipe, block in zip(recipes, blocks, strict=True)]
    assert choose(torch.cat(blocks), [segment_of(*recipe) for recipe in recipes]) == alone


@pytest.mark.parametrize("value", [math.nan, math.inf, "all -inf"])
@pytest.mark.parametrize("greedy", [True, False])
@STEADY
@given(data=st.data(), count=st.integers(2, 4))
def test_a_broken_row_fails_alone(value, greedy, data, count):
    """NaN, +inf or a row without a finite score gives None at its position; all others choose as without it."""
    recipes, blocks = many_segments(data, count)
    broken = data.draw(st.integers(0, count - 1))
    # No bans, so that the broken value is still there after processing.
    recipes[broken] = ({"temperature": 0.0 if greedy else 1.0}, *recipes[broken][1:])
    expected = choose(torch.cat(blocks), [segment_of(*recipe) for recipe in recipes])
    row = data.draw(st.integers(0, len(blocks[broken]) - 1))
    expected[broken] = [None if i == row else choice for i, choice in enumerate(expected[broken])]
    if value == "all -inf":
        blocks[broken][row] = -math.inf
    else:
        blocks[broken][row, data.draw(TOKEN)] = value
    assert choose(torch.cat(blocks), [segment_of(*recipe) for recipe in recipes]) == expected


def test_bans_that_leave_nothing_give_none():
    """A row whose every token is banned has no choice, and does not invent one."""
    words = [(token_id,) for token_id in range(V)]
    for temperature in (0.0, 1.0):
        sampler = RowSampler(SamplingParams(temperature=temperature), seed=0, bad_words=words)
        assert choose(torch.zeros(1, V), [Segment(sampler, 1, [], 1)]) == [[None]]


def test_noise_is_kept_for_all_levels_and_dropped_when_committed():
    """Levels that ask for one position share one row of noise, a wider vocabulary included; commits free it."""
    sampler = RowSampler(SamplingParams(temperature=1.0), seed=4, prompt_ids=[1, 2])
    choose(torch.zeros(3, 8), [Segment(sampler, 2, [5, 5], 3)])
    narrow = {position: row.tolist() for position, row in sampler.noise.items()}
    choose(torch.zeros(3, V), [Segment(sampler, 2, [5, 5], 3)])
    assert sorted(sampler.noise) == [2, 3, 4]
    assert {position: row[:8].tolist() for position, row in sampler.noise.items()} == narrow
    assert sampler.noise_at(3, [7, 0, 11]) == sampler.noise[3][[7, 0, 11]].tolist()
    sampler.commit([5, 5])
    assert sorted(sampler.noise) == [4]
