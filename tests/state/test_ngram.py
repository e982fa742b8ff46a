"""N-gram lookup: what it proposes, where it stops, how it chooses."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrouter_llm.drafting.ngram import NgramProposer
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.state.row import Row


def row_of(tokens, *, temperature=0.0, seed=0, end_ids=(), sources=()):
    sampler = RowSampler(SamplingParams(temperature=temperature), seed=seed, prompt_ids=tokens)
    return Row(0, list(tokens), len(tokens), sampler, 1000, end_ids=end_ids, draft_sources=sources)


def test_it_proposes_what_followed_before():
    """The continuation of the last words' earlier occurrence, as far as asked."""
    row = row_of([1, 2, 3, 4, 5, 6, 1, 2])
    assert NgramProposer().propose(row, [], 3) == [3, 4, 5]


def test_the_hypothesis_is_part_of_the_context():
    """Tokens proposed by a level above count as the last words."""
    row = row_of([1, 2, 3, 4, 5, 6, 1, 2])
    assert NgramProposer().propose(row, [3, 4], 2) == [5, 6]
    assert NgramProposer().propose(row, [9], 2) == []


def test_nothing_seen_before_proposes_nothing():
    """Without a match of min_match tokens there is no proposal."""
    assert NgramProposer().propose(row_of([1, 2, 3, 1]), [], 4) == []
    assert NgramProposer(min_match=1).propose(row_of([1, 2, 3, 1]), [], 2) == [2, 3]


def test_the_longest_match_decides():
    """A match further back in agreement beats a later, shorter one."""
    row = row_of([7, 1, 2, 8, 9, 9, 1, 2, 5, 5, 7, 1, 2])
    assert NgramProposer().propose(row, [], 1) == [8]


def test_greedy_takes_the_most_frequent_then_the_latest():
    """Counts first; among equals the continuation seen last."""
    assert NgramProposer().propose(row_of([1, 2, 4, 1, 2, 5, 1, 2, 4, 0, 1, 2]), [], 1) == [4]
    assert NgramProposer().propose(row_of([3, 1, 2, 4, 3, 1, 2, 5, 3, 1, 2]), [], 1) == [5]


def test_committed_tokens_are_taken_in_as_they_come():
    """The index follows the row: what the answer said is proposed later on."""
    row, proposer = row_of([1, 2, 3]), NgramProposer()
    assert proposer.propose(row, [], 2) == []
    row.token_ids.extend([8, 9, 2, 3])
    assert proposer.propose(row, [], 2) == [8, 9]


def test_sources_are_quoted():
    """Documents and predictions given with the request are proposed from, before the row repeats itself."""
    row = row_of([1, 2], sources=[[5, 5, 5], [0, 1, 2, 7, 8, 9]])
    assert NgramProposer().propose(row, [], 8) == [7, 8, 9]


def test_no_match_and_no_continuation_crosses_a_border():
    """The end of a document neither goes on in the next one nor forms a match with it."""
    row = row_of([3, 4], sources=[[3, 4], [5, 6]])
    assert NgramProposer().propose(row, [], 4) == []
    row = row_of([2, 3], sources=[[1, 2], [3, 9]])
    assert NgramProposer().propose(row, [], 4) == []


def test_agreement_does_not_reach_across_a_border():
    """A match at the start of a document is as long as the document allows."""
    row = row_of([6, 1, 2, 8, 6, 1, 2], sources=[[6], [1, 2, 7]])
    assert NgramProposer().propose(row, [], 1) == [8]


def test_it_stops_at_an_end_token():
    """An end of sequence is proposed, nothing after it."""
    row = row_of([1, 2, 3, 0, 5, 6, 1, 2], end_ids={0})
    assert NgramProposer().propose(row, [], 5) == [3, 0]


def test_the_row_may_continue_its_own_last_words():
    """A repetition that is still going on is followed to the end of the text, not beyond."""
    assert NgramProposer().propose(row_of([4, 4, 4, 4]), [], 9) == [4]


@pytest.mark.parametrize("size", [0, 1, 2])
def test_it_never_proposes_more_than_asked(size):
    """The limit holds, zero included."""
    assert NgramProposer().propose(row_of([1, 2, 3, 4, 1, 2]), [], size) == [3, 4][:size]


@settings(deadline=None, derandomize=True)
@given(followers=st.lists(st.integers(3, 9), min_size=1, max_size=12), seed=st.integers(0, 2**63 - 1))
def test_sampled_rows_choose_by_keyed_counts(followers, seed):
    """At T > 0 the proposal is argmax(log count + noise) with the noise of the row at that very position."""
    tokens = [token for follower in followers for token in (0, 1, 2, follower)] + [0, 1, 2]
    row = row_of(tokens, temperature=1.0, seed=seed)
    counts = {follower: followers.count(follower) for follower in followers}
    noise = dict(zip(counts, row.sampler.noise_at(len(tokens), list(counts)), strict=True))
    expected = max(counts, key=lambda token: math.log(counts[token]) + noise[token])
    # The longest match, 4 tokens back and more, may single out some occurrences: the barrier keeps them equal.
    proposal = NgramProposer(max_match=3).propose(row, [], 1)
    assert proposal == [expected]
