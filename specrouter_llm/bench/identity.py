"""Whether two outputs are the same, and if not, how near a tie their first difference is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.sampling.choice import Segment
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.types import Completion
from specrouter_llm.verification.near_tie import margin, usual_epsilon


@dataclass(slots=True)
class Comparison:
    """Outputs of one way of decoding against plain decoding."""

    identical: int = 0
    near_ties: int = 0
    different: int = 0
    largest_margin: float = 0.0
    """Largest change of the logits that a first difference needed."""

    @property
    def requests(self) -> int:
        return self.identical + self.near_ties + self.different

    def add(
        self,
        engine: SpecRouter,
        prompt: Sequence[int],
        params: SamplingParams,
        plain: Completion,
        tokens: tuple[int, ...],
        epsilon: float | None = None,
    ) -> None:
        """Counts one completion, and what else was decoded of the same prompt and seed.

        Args:
            epsilon: the change of the logits up to which a difference is a near-tie; that of the dtype by default.
        """
        if plain.token_ids == tokens:
            self.identical += 1
            return
        size = first_margin(engine, prompt, params, plain, tokens)
        self.largest_margin = max(self.largest_margin, size)
        if size <= (usual_epsilon(engine.dtype) if epsilon is None else epsilon):
            self.near_ties += 1
        else:
            self.different += 1


def first_margin(
    engine: SpecRouter, prompt: Sequence[int], params: SamplingParams, plain: Completion, tokens: Sequence[int]
) -> float:
    """The margin of the first choice that differs; infinite if one output is a prefix of the other."""
    pairs = enumerate(zip(plain.token_ids, tokens, strict=False))
    position = next((i for i, (a, b) in pairs if a != b), None)
    if position is None:
        return float("inf")
    output = plain.token_ids[:position]
    words = [word for word in params.bad_words if not isinstance(word, str)]  # as a model's generation config has them
    sampler = RowSampler(params, seed=plain.seed, sample=plain.index, prompt_ids=prompt, bad_words=words)
    sampler.commit(output)
    context = [*prompt, *output]
    return margin(engine.target_logits(context), Segment(sampler, len(context), (), 1), tokens[position])
