"""The choice rule: which token a model chooses at a position. One rule for every level, greedy and sampled.

    choice = argmax_v ( scores[v] + g(seed, sample, position, v) )

with scores processed in one fixed order and g keyed Gumbel noise; greedy is the same rule with g = 0, ties go to the
lowest id. The target's choices are what is committed, so any proposer is lossless. By the Gumbel-max trick the choice
is an exact sample of softmax(scores). For two models with shared noise P(equal choices) lies between (1 - TV)/(1 + TV)
and 1 - TV (Daliri et al., arXiv 2408.07978). A row with a grammar replaces a choice after which its output could no
longer be closed in time, at every level alike.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from specrouter_llm.sampling.noise import gumbel, row_keys
from specrouter_llm.sampling.row import RowSampler, Warp

BROKEN = -1
"""In place of a token id: there was no finite score."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive choices of one row: `count` rows of a logits matrix."""

    sampler: RowSampler
    position: int
    """Absolute position of the first token to choose."""
    hypothesis: Sequence[int]
    """All tokens after the committed ones; the last count - 1 are the proposal under test."""
    count: int


def choose(
    logits: Tensor, segments: Sequence[Segment], meanwhile: Callable[[Tensor], None] = lambda ids: None
) -> list[list[int | None]]:
    """Choices of every segment from logits [sum of counts, V]; None at a position that holds NaN or nothing finite.

    `meanwhile` is called when all work is launched and, on a device, not waited for, with the ids as the device has them:
    BROKEN for None, before any grammar; in the order of the segments if their settings are alike.
    """
    scores = _adjusted(logits, segments)
    rows: dict[Warp, list[int]] = {}
    owners: list[tuple[Segment, int]] = []
    for segment in segments:
        for offset in range(segment.count):
            rows.setdefault(segment.sampler.warp, []).append(len(owners))
            owners.append((segment, offset))
    chosen: list[Tensor] = []
    for warp, indices in rows.items():
        block = scores if len(indices) == len(owners) else scores[indices]
        chosen.append(_argmax(_perturbed(block, warp, [owners[i] for i in indices])))
    best: list[int | None] = [None] * len(owners)
    order = itertools.chain.from_iterable(rows.values())
    for index, token_id in zip(order, _on_host(chosen, meanwhile), strict=True):
        best[index] = _fitting(*owners[index], token_id) if token_id != BROKEN else None
    ends = itertools.accumulate(segment.count for segment in segments)
    return [best[end - segment.count : end] for segment, end in zip(segments, ends, strict=True)]


def pick(scores: Tensor, warp: Warp, keys: Tensor) -> Tensor:
    """`choose` by tensors alone, for scores [n, V] that no context adjusts: ids, int64 [n], BROKEN for None.

    `keys`, int32 [n, 2] on the device of the scores, are the `row_keys` of each choice; greedy reads none. Nothing waits
    for the device, so a recorded graph may hold it.
    """
    if warp.temperature == 0.0:
        return _argmax(scores)
    return _argmax(_warped(scores, warp) + gumbel(keys, _token_ids(scores.shape[1], scores.device)))


def _argmax(perturbed: Tensor) -> Tensor:
    """Of each row [n, V], the lowest id of the highest; BROKEN where that is not finite."""
    if perturbed.device.type == "cpu":  # numpy's argmax uses vectors, and takes a fifth of the time
        table = perturbed.numpy()
        best = table.argmax(axis=-1)
        best[~np.isfinite(table[np.arange(len(table)), best])] = BROKEN
        return torch.from_numpy(best)
    values, ids = perturbed.max(dim=-1)
    return ids.where(values.abs() < torch.inf, BROKEN)


def _on_host(chosen: Sequence[Tensor], meanwhile: Callable[[Tensor], None]) -> list[int]:
    """In one copy, for every one of them waits for the device, which goes on with what `meanwhile` launches."""
    ids = chosen[0] if len(chosen) == 1 else torch.cat(list(chosen))
    if ids.device.type != "cuda":
        meanwhile(ids)
        return list(ids.tolist())
    host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
    host.copy_(ids, non_blocking=True)
    copied = torch.cuda.current_stream(ids.device).record_event()
    meanwhile(ids)
    copied.synchronize()
    return list(host.tolist())


def processed(logits: Tensor, segment: Segment) -> Tensor:
    """Processed scores, float64 [count, V], of one segment: -inf where a token cannot be chosen; no noise added."""
    return _warped(_adjusted(logits, [segment]), segment.sampler.warp)


def perturbed(logits: Tensor, segment: Segment) -> Tensor:
    """What the choice is the argmax of, float64 [count, V]; the gap of its two best values is the margin of a choice."""
    owners = [(segment, offset) for offset in range(segment.count)]
    return _perturbed(_adjusted(logits, [segment]), segment.sampler.warp, owners).to(torch.float64)


def _fitting(segment: Segment, offset: int, token_id: int) -> int:
    """The choice, or what a grammar puts in its place because there would be no room left to end the output well."""
    constraint = segment.sampler.constraint
    if constraint is None:
        return token_id
    return constraint.fitting(segment.hypothesis[: len(segment.hypothesis) - segment.count + 1 + offset], token_id)


def _adjusted(logits: Tensor, segments: Sequence[Segment]) -> Tensor:
    """Logits after what depends on each row's context; the same tensor when no row has any of it."""
    if not any(segment.sampler.contextual for segment in segments):
        return logits
    blocks = logits.split([segment.count for segment in segments])
    return torch.cat(
        [
            segment.sampler.adjust(block, segment.hypothesis) if segment.sampler.contextual else block
            for segment, block in zip(segments, blocks, strict=True)
        ]
    )


def _perturbed(scores: Tensor, warp: Warp, owners: Sequence[tuple[Segment, int]]) -> Tensor:
    if warp.temperature == 0.0:
        return scores
    return _warped(scores, warp) + _noise(owners, scores.shape[1], scores.device)


def _warped(scores: Tensor, warp: Warp) -> Tensor:
    """Scores [n, V] / T with the cuts applied as -inf, in float64. Greedy has nothing to divide or cut."""
    warped = scores.to(torch.float64)
    if warp.temperature == 0.0:
        return warped
    warped = warped / warp.temperature
    if 0 < warp.top_k < warped.shape[1]:
        least = warped.topk(warp.top_k, dim=-1).values[:, -1:]
        warped = warped.masked_fill(warped < least, -torch.inf)
    if warp.top_p < 1.0:
        ordered, order = warped.sort(dim=-1, descending=True, stable=True)
        probs = ordered.softmax(dim=-1)
        # A token is cut when those before it already reach top_p; the first is never cut.
        cut = probs.cumsum(dim=-1) - probs >= warp.top_p
        cut[:, 0] = False
        warped = warped.masked_fill(torch.zeros_like(cut).scatter(1, order, cut), -torch.inf)
    if warp.min_p > 0.0:
        least = warped.amax(dim=-1, keepdim=True) + math.log(warp.min_p)
        warped = warped.masked_fill(warped < least, -torch.inf)
    return warped


def _noise(owners: Sequence[tuple[Segment, int]], vocab_size: int, device: torch.device) -> Tensor:
    """Noise rows [n, V] of the owners' positions; computed once per (row, position), whichever level asks first."""
    missing = []
    for segment, offset in owners:
        row = segment.sampler.noise.get(segment.position + offset)
        if row is None or row.shape[0] < vocab_size or row.device != device:
            missing.append((segment.sampler, segment.position + offset))
    if missing:
        keys = [row_keys(sampler.seed, sampler.sample, position) for sampler, position in missing]
        noise = gumbel(keys, _token_ids(vocab_size, device))
        for (sampler, position), row in zip(missing, noise, strict=True):
            sampler.noise[position] = row
    return torch.stack([segment.sampler.noise[segment.position + offset][:vocab_size] for segment, offset in owners])


def _token_ids(vocab_size: int, device: torch.device) -> Tensor:
    return torch.arange(vocab_size, dtype=torch.int32, device=device)
