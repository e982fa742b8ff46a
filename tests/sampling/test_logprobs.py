"""Log-probabilities: of the raw distribution, in a defined order."""

import math

import pytest
import torch

from specrouter_llm.sampling.logprobs import token_logprobs


def plain_log_softmax(row):
    peak = max(row)
    total = math.log(math.fsum(math.exp(x - peak) for x in row)) + peak
    return [x - total for x in row]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_those_of_log_softmax(dtype):
    """Each token's value is the log-softmax of its own row of logits, summed in float64."""
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(0), dtype=dtype) * 5
    tokens = [3, 49, 0, 7]
    expected = [plain_log_softmax(row)[i] for row, i in zip(logits.tolist(), tokens, strict=True)]
    entries = token_logprobs(logits, tokens, 0)
    assert [entry.token_id for entry in entries] == tokens
    assert [entry.logprob for entry in entries] == pytest.approx(expected, rel=1e-12)
    assert [entry.top for entry in entries] == [()] * 4


def test_top_is_ordered_by_value_then_id():
    """The most likely tokens come first, equal ones by id, and the chosen one need not be among them."""
    logits = torch.tensor([[0.0, 2.0, 1.0, 2.0, -1.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    first, second = token_logprobs(logits, [4, 4], 3)
    assert [i for i, _ in first.top] == [1, 3, 2]
    assert [value for _, value in first.top] == pytest.approx(
        [plain_log_softmax(logits[0].tolist())[i] for i in (1, 3, 2)]
    )
    assert [i for i, _ in second.top] == [0, 1, 2]


def test_rows_beyond_the_tokens_are_ignored():
    """A step that was cut by a stop has more rows of logits than tokens: the first rows count."""
    logits = torch.randn(5, 8, generator=torch.Generator().manual_seed(1))
    assert token_logprobs(logits, [2, 6], 2) == token_logprobs(logits[:2], [2, 6], 2)


def test_top_is_no_longer_than_the_vocabulary():
    """Asking for more alternatives than there are tokens gives all of them."""
    entry = token_logprobs(torch.zeros(1, 3), [1], 20)[0]
    assert [i for i, _ in entry.top] == [0, 1, 2]
