"""A start from which a small model can copy: a previous-token head, an induction head, and words that know themselves.

To go on with a text as it went on before, a head must find where the last token stood earlier and say what followed
it there (Olsson et al., "In-context learning and induction heads", 2022). A model of this size does not find that
circuit in the tokens that two cores can show it. It is known, so the first two layers begin with it; training keeps,
sharpens and bends it as it likes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from examples.train_family.tokenizer import SPACE

_CONSTANT = 0.1
"""What dimension 0 of every embedding begins as, for queries and keys that depend on nothing but position."""
_SHARP = 8.0
"""By how many nats the previous token is preferred to every other."""
_MATCH = 10.0
"""Attention logit of a key that was preceded by the query's token; others have about zero."""
_CARRIED, _COPIED = 0.04, 0.3
"""Scale of what the previous-token head and the induction head write."""
_FAST = 6
"""So many of the fastest rotations tell positions apart; ..."""
_SLOW = 0.02
"""... those below this many radians a token hardly turn within a prompt, and compare contents."""
_ALIKE = 0.8
"""Cosine of the embeddings of a word with and without a space before it."""


@torch.no_grad()
def begin_with_twins(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Gives a word nearly one embedding with and without a space before it.

    What a sentence says of " Anna", JSON must spell "Anna"; as tokens the two have nothing in common.
    """
    embedding = model.model.embed_tokens.weight
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    twins = [token for token in vocabulary if token[0] == SPACE and token[1:] in vocabulary]
    bare, spaced = [vocabulary[token[1:]] for token in twins], [vocabulary[token] for token in twins]
    embedding[spaced] = _ALIKE * embedding[bare] + math.sqrt(1 - _ALIKE**2) * embedding[spaced]


@torch.no_grad()
def begin_with_induction(model: LlamaForCausalLM) -> None:
    """Overwrites one head per key-value head in each of the first two layers of a freshly made model.

    Layer 0 writes a projection of token j - 1 into the residual stream of position j, layer 1 looks for the positions
    whose predecessor is the current token and writes their token where the tied output layer reads it. A model of a
    single layer stays as it is.
    """
    if len(model.model.layers) < 2:
        return
    config = model.config
    size, width = config.hidden_size, config.head_dim
    groups = config.num_attention_heads // config.num_key_value_heads
    embedding = model.model.embed_tokens.weight
    element = float(embedding[:, 1:].std())
    embedding[:, 0] = _CONSTANT
    rank = min(width, size // 4)
    first, second = (layer.self_attn for layer in model.model.layers[:2])
    turns = config.rope_parameters["rope_theta"] ** (-torch.arange(width // 2) / (width // 2))
    slow = torch.nonzero(turns < _SLOW).flatten()
    compared = torch.cat([slow, slow + width // 2])[:rank]
    before = _rms(element, size)
    carried = _CARRIED * element / before
    after = math.sqrt(before**2 + config.num_key_value_heads * rank * carried**2 / size)
    for index in range(config.num_key_value_heads):
        head = index * groups
        query, pair = slice(head * width, (head + 1) * width), slice(index * width, (index + 1) * width)
        read, written, said = (_directions(rank, size) for _ in range(3))
        _look_back(first.q_proj.weight[query], first.k_proj.weight[pair], turns, _CONSTANT / before)
        _move(first.v_proj.weight[pair], first.o_proj.weight[:, query], read, _CARRIED * written)
        scale = math.sqrt(_MATCH * math.sqrt(width) / (len(compared) * (element / after) * (carried / after)))
        second.q_proj.weight[query] = _rows(compared, scale * read, width)
        second.k_proj.weight[pair] = _rows(compared, scale * written, width)
        _move(second.v_proj.weight[pair], second.o_proj.weight[:, query], said, _COPIED * said)


def _rms(element: float, size: int) -> float:
    """Root mean square of an embedding whose elements but the first have the standard deviation `element`."""
    return math.sqrt((_CONSTANT**2 + (size - 1) * element**2) / size)


def _directions(count: int, size: int) -> Tensor:
    """`count` orthonormal rows [count, size] that leave dimension 0 alone."""
    basis, _ = torch.linalg.qr(torch.randn(size - 1, count))
    return torch.cat([torch.zeros(count, 1), basis.T], dim=1)


def _look_back(query: Tensor, key: Tensor, turns: Tensor, constant: float) -> None:
    """Query and key weights [width, size] that read only the `constant` and meet best one position apart."""
    half = len(turns)
    fast = turns[:_FAST]
    elsewhere = torch.arange(1, 512)[:, None] * fast
    lead = _FAST - float(elsewhere.cos().sum(1).max())
    amplitude = math.sqrt(_SHARP * math.sqrt(2 * half) / lead) / constant
    query.zero_()
    key.zero_()
    query[:_FAST, 0] = amplitude
    key[:_FAST, 0] = amplitude * fast.cos()
    key[half : half + _FAST, 0] = amplitude * fast.sin()


def _move(value: Tensor, output: Tensor, read: Tensor, written: Tensor) -> None:
    """Value [width, size] and output [size, width] weights that move what `read` sees to `written`, both [rank, size]."""
    value.zero_()
    output.zero_()
    value[: len(read)] = read
    output[:, : len(read)] = written.T


def _rows(indices: Tensor, rows: Tensor, width: int) -> Tensor:
    """A weight [width, size] with the first of `rows` at `indices` and zeros elsewhere."""
    weight = torch.zeros(width, rows.shape[1])
    weight[indices] = rows[: len(indices)]
    return weight
