"""The peers: what transformers itself does with the same weights, on models of its own.

Weights are plain (not packed), attention is torch's scaled_dot_product_attention, the cache is its own. Their
generation configs have no end-of-text token, so that everyone answers with the same number of tokens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.utils import logging as transformers_logging

from specrouter_llm.bench.contest import Decoding, Job
from specrouter_llm.bench.models import Models
from specrouter_llm.errors import InvalidParameterError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GENERATE, ASSISTED, LOOKUP = "generate", "assisted", "lookup"
KINDS = (GENERATE, ASSISTED, LOOKUP)
REFERENCE = "hf generate"
FIXED_TOKENS = (2, 4, 8)
"""Drafted per step by assisted generation with a constant schedule, with everything asked for."""
LOOKUP_TOKENS = (10, 4, 20)
"""Of prompt lookup: the first by default, the others with everything."""
_PAD = 0


class _Clock(StoppingCriteria):  # type: ignore[misc]  # transformers is untyped here
    """Never stops; notes when each step ended and how long the text was then."""

    def __init__(self) -> None:
        self.steps = 0
        self.first_time = 0.0
        self.first_length = 0

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        if not self.steps:
            self.first_time, self.first_length = time.perf_counter(), input_ids.shape[1]
        self.steps += 1
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True, slots=True)
class Peer:
    """One way of `generate`."""

    name: str
    family: str
    model: PreTrainedModel
    options: Mapping[str, Any] = field(default_factory=dict)
    """Of `generate`."""
    assistant: PreTrainedModel | None = None
    assistant_options: Mapping[str, Any] = field(default_factory=dict)
    """Of its generation config."""

    @property
    def kind(self) -> str:
        return "peer"

    def decode(self, jobs: Sequence[Job]) -> Decoding:
        """Raises:
        InvalidParameterError: the jobs differ in their temperature or length.
        """
        params = jobs[0].params
        if any(
            (job.params.temperature, job.params.max_tokens) != (params.temperature, params.max_tokens) for job in jobs
        ):
            raise InvalidParameterError("transformers decodes a batch with one temperature and one length")
        options = {**self.options, "max_new_tokens": params.max_tokens, "do_sample": not params.greedy}
        if not params.greedy:
            options |= {"temperature": params.temperature, "top_k": 0, "top_p": 1.0}
        if self.assistant is not None:
            self.assistant.generation_config = GenerationConfig(pad_token_id=_PAD, **self.assistant_options)
            options["assistant_model"] = self.assistant
        clock = _Clock()
        torch.manual_seed(params.seed or 0)
        started = time.perf_counter()
        ids, mask = self._padded(jobs)
        output = self.model.generate(
            ids, attention_mask=mask, use_cache=True, stopping_criteria=StoppingCriteriaList([clock]), **options
        )
        answers: list[list[int]] = output[:, ids.shape[1] :].tolist()
        ended = time.perf_counter()
        return Decoding(
            token_ids=tuple(tuple(answer) for answer in answers),
            seconds=ended - started,
            decode_seconds=ended - clock.first_time,
            decode_tokens=(output.shape[1] - clock.first_length) * len(jobs),
            target_steps=(clock.steps - 1) * len(jobs),
        )

    def _padded(self, jobs: Sequence[Job]) -> tuple[Tensor, Tensor]:
        """Ids and mask [n, T], padded on the left."""
        longest = max(len(job.prompt_ids) for job in jobs)
        ids = [[_PAD] * (longest - len(job.prompt_ids)) + job.prompt_ids for job in jobs]
        mask = [[0] * (longest - len(job.prompt_ids)) + [1] * len(job.prompt_ids) for job in jobs]
        device = self.model.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


@contextmanager
def peers_of(models: Models, kinds: Sequence[str], *, everything: bool = False) -> Iterator[list[Peer]]:
    """Peers of these kinds, `generate` first: assisted by the smallest drafter with its defaults, lookup of 10 tokens.

    With everything, every drafter assists, also with a fixed number of tokens, and lookup has other lengths too.
    Other kinds are passed over.
    """
    pool = models.pool()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # assisted generation warns about how it calls itself
    try:
        for member in pool.members.values():
            member.model.set_attn_implementation("sdpa")
            member.model.generation_config = GenerationConfig(pad_token_id=_PAD)
        target = pool.target.model
        found = [Peer(REFERENCE, REFERENCE, target)] if GENERATE in kinds else []
        if ASSISTED in kinds:
            drafters = sorted(pool.drafts, key=lambda member: member.num_parameters)
            for drafter in drafters if everything else drafters[:1]:
                by = "" if drafter is drafters[0] else f" by {drafter.name}"
                found += _assisted(target, drafter.model, by, FIXED_TOKENS if everything else ())
        if LOOKUP in kinds:
            found += _lookup(target, LOOKUP_TOKENS if everything else LOOKUP_TOKENS[:1])
        yield found
    finally:
        transformers_logging.set_verbosity(verbosity)
        pool.close()


def _assisted(target: PreTrainedModel, drafter: PreTrainedModel, by: str, counts: Sequence[int]) -> list[Peer]:
    """With its defaults, and with these numbers of tokens."""
    found = [Peer(f"hf assisted{by}", "hf assisted", target, assistant=drafter)]
    for count in counts:
        fixed = {
            "num_assistant_tokens": count,
            "num_assistant_tokens_schedule": "constant",
            "assistant_confidence_threshold": 0.0,
        }
        name = f"hf assisted@{count}{by}"
        found.append(Peer(name, "hf assisted", target, assistant=drafter, assistant_options=fixed))
    return found


def _lookup(target: PreTrainedModel, counts: Sequence[int]) -> list[Peer]:
    return [Peer(f"hf lookup@{count}", "hf lookup", target, {"prompt_lookup_num_tokens": count}) for count in counts]
