"""Log-probabilities of committed tokens under the target's raw distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specrouter_llm.types import TokenLogprob


def token_logprobs(logits: Tensor, token_ids: Sequence[int], num_top: int) -> list[TokenLogprob]:
    """One entry per token; row j of `logits` [>= len(token_ids), V] is what token j was chosen from."""
    logprobs = logits[: len(token_ids)].to(torch.float64).log_softmax(dim=-1)
    chosen = logprobs.gather(1, torch.tensor(token_ids, device=logits.device)[:, None])[:, 0].tolist()
    if num_top == 0:
        return [TokenLogprob(token_id, value) for token_id, value in zip(token_ids, chosen, strict=True)]
    # A stable sort, not topk: equal values keep the order of their ids.
    values, ids = logprobs.sort(dim=-1, descending=True, stable=True)
    tops = zip(ids[:, :num_top].tolist(), values[:, :num_top].tolist(), strict=True)
    return [
        TokenLogprob(token_id, value, tuple(zip(top_ids, top_values, strict=True)))
        for token_id, value, (top_ids, top_values) in zip(token_ids, chosen, tops, strict=True)
    ]
