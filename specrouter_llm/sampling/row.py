"""One row's side of the choice rule: its parameters, its noise, and the score adjustments that depend on its context."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from specrouter_llm.sampling.constraint import Constraint
from specrouter_llm.sampling.noise import gumbel, row_keys
from specrouter_llm.sampling.params import SamplingParams


class Warp(NamedTuple):
    """The part of the processing that needs only the scores themselves; rows with equal warps are processed together."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float


GREEDY = Warp(temperature=0.0, top_k=0, top_p=1.0, min_p=0.0)


class RowSampler:
    """Sampling state of one row: a pure function of (parameters, prompt, seed, sample) and the committed tokens."""

    def __init__(
        self,
        params: SamplingParams,
        *,
        seed: int,
        sample: int = 0,
        prompt_ids: Sequence[int] = (),
        end_ids: Iterable[int] = (),
        bad_words: Sequence[Sequence[int]] = (),
        constraint: Constraint | None = None,
    ) -> None:
        self.params = params
        self.seed = seed
        self.sample = sample
        self.constraint = constraint
        """The row's grammar."""
        sampled = Warp(params.temperature, params.top_k, params.top_p, params.min_p)
        self.warp = sampled if params.temperature else GREEDY  # where cuts leave the best one, which is the choice
        self.noise: dict[int, Tensor] = {}
        """Noise rows by absolute position, kept until the position is committed: all levels read the same ones."""
        self._end_ids = sorted(end_ids)
        self._bad_words = [tuple(word) for word in bad_words]
        self._penalised = (
            params.repetition_penalty != 1.0 or params.presence_penalty != 0.0 or params.frequency_penalty != 0.0
        )
        self._prompt_ids = tuple(prompt_ids)
        self._in_prompt = frozenset(prompt_ids) if self._penalised else frozenset()
        self._counts: Counter[int] = Counter()
        self._output: list[int] = []

    @property
    def contextual(self) -> bool:
        """Whether scores must be adjusted at all before the warp."""
        short = len(self._output) < self.params.min_tokens and bool(self._end_ids)
        words = bool(self.params.logit_bias) or bool(self._bad_words)
        return self.constraint is not None or self._penalised or words or short

    def commit(self, token_ids: Sequence[int]) -> None:
        """Tokens became final: they count for penalties, and noise up to them is no longer needed."""
        self._output.extend(token_ids)
        if self._penalised:
            self._counts.update(token_ids)
        if self.constraint is not None:
            self.constraint.commit(token_ids)
        done = len(self._prompt_ids) + len(self._output)
        for position in [p for p in self.noise if p < done]:
            del self.noise[position]

    def noise_at(self, position: int, token_ids: Sequence[int]) -> list[float]:
        """Noise of a few token ids at one absolute position."""
        ids = torch.tensor(token_ids, dtype=torch.int32)
        return gumbel([row_keys(self.seed, self.sample, position)], ids)[0].tolist()  # type: ignore[no-any-return]  # torch

    def adjust(self, scores: Tensor, hypothesis: Sequence[int]) -> Tensor:
        """Scores [n, V] after penalties, bias, bad words, min_tokens and the grammar; `scores` is not modified.

        Row j is the choice after committed + hypothesis[: len(hypothesis) - n + 1 + j]: the last n - 1 tokens of the
        hypothesis are a proposal, and every position sees just what precedes it.
        """
        adjusted = scores.clone()
        first = len(hypothesis) - scores.shape[0] + 1
        if self._penalised:
            self._penalise_context(adjusted, scores, hypothesis, first)
        if self.params.logit_bias:
            pairs = [(i, b) for i, b in self.params.logit_bias.items() if i < scores.shape[1]]
            ids = torch.tensor([i for i, _ in pairs], device=scores.device, dtype=torch.long)
            adjusted[:, ids] += torch.tensor([b for _, b in pairs], device=scores.device, dtype=scores.dtype)
        for row in range(scores.shape[0]):
            banned = self._banned(hypothesis[: first + row], scores.shape[1])
            if banned:
                adjusted[row, banned] = -torch.inf
        if self.constraint is not None:
            for row in range(scores.shape[0]):
                _forbid(adjusted[row], scores[row], self.constraint.allowed(hypothesis[: first + row]))
        # A broken row stays broken even if the ban hits just the token that is NaN.
        return adjusted.masked_fill_(scores.isnan().any(dim=-1, keepdim=True), torch.nan)

    def _penalise_context(self, adjusted: Tensor, raw: Tensor, hypothesis: Sequence[int], first: int) -> None:
        """Penalties for committed tokens (equal in all rows), then for tokens of the hypothesis (row by row).

        Each affected score is computed once from its raw value and its total count, never by increments: a token
        counted twice gets the same bits whether it was committed or proposed.
        """
        committed = [i for i in {*self._in_prompt, *self._counts} if i < raw.shape[1]]
        if committed:
            ids = torch.tensor(committed, device=raw.device, dtype=torch.long)
            counts = torch.tensor([[float(self._counts[i]) for i in committed]], device=raw.device, dtype=raw.dtype)
            adjusted[:, ids] = self._penalise(raw[:, ids], torch.ones_like(counts, dtype=torch.bool), counts)
        proposed = sorted({i for i in hypothesis if i < raw.shape[1]})
        if not proposed:
            return
        totals, seen = [], []
        for row in range(raw.shape[0]):
            here = Counter(hypothesis[: first + row])
            totals.append([float(self._counts[i] + here[i]) for i in proposed])
            seen.append([i in self._in_prompt or self._counts[i] + here[i] > 0 for i in proposed])
        ids = torch.tensor(proposed, device=raw.device, dtype=torch.long)
        counts = torch.tensor(totals, device=raw.device, dtype=raw.dtype)
        adjusted[:, ids] = self._penalise(raw[:, ids], torch.tensor(seen, device=raw.device), counts)

    def _penalise(self, raw: Tensor, seen: Tensor, counts: Tensor) -> Tensor:
        """Penalised scores [n, k] from raw scores, occurrence in prompt or output, and counts in the output."""
        penalty = self.params.repetition_penalty
        repeated = torch.where(raw > 0, raw / penalty, raw * penalty)
        scores = torch.where(seen, repeated, raw)
        scores = scores - self.params.presence_penalty * (counts > 0).to(raw.dtype)
        return scores - self.params.frequency_penalty * counts

    def _banned(self, hypothesis: Sequence[int], vocab_size: int) -> list[int]:
        """Token ids that may not follow committed + hypothesis."""
        banned: list[int] = []
        if len(self._output) + len(hypothesis) < self.params.min_tokens:
            banned.extend(self._end_ids)
        if self._bad_words:
            reach = max(len(word) for word in self._bad_words) - 1
            context = (*self._prompt_ids[-reach:], *self._output[-reach:], *hypothesis)[-reach:] if reach else ()
            banned.extend(word[-1] for word in self._bad_words if _ends_with(context, word[:-1]))
        return [token_id for token_id in banned if token_id < vocab_size]


def _forbid(adjusted: Tensor, raw: Tensor, allowed: Tensor | None) -> None:
    """Takes from the adjusted scores [V] of one choice what the grammar does not allow.

    If all that is allowed has been forbidden otherwise, the grammar wins. A drafter whose vocabulary holds nothing that
    is allowed is left alone: whatever it says will be rejected.
    """
    if allowed is None:
        return
    width = raw.shape[0]
    mask = torch.zeros(width, dtype=torch.bool)
    mask[: len(allowed)] = allowed[:width]
    if not mask.any():
        return
    forbidden = ~mask.to(raw.device)
    adjusted.masked_fill_(forbidden, -torch.inf)
    if not bool(torch.isfinite(adjusted).any()):
        adjusted.copy_(raw.masked_fill(forbidden, -torch.inf))


def _ends_with(context: Sequence[int], suffix: Sequence[int]) -> bool:
    return not suffix or tuple(context[-len(suffix) :]) == tuple(suffix)
