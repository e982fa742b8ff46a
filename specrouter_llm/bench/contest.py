"""A contest: several ways to decode the same prompts, taking turns, measured alike.

Every contestant answers with the same number of tokens (the end of text is ignored). The machine drifts, so contestants
alternate from group to group in rotating order, and speed-ups are ratios of sums over the same prompts, with bootstrap
intervals by prompt.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import Any, Protocol

from specrouter_llm.bench.bootstrap import ratio_of_sums
from specrouter_llm.bench.identity import Comparison
from specrouter_llm.bench.models import encode
from specrouter_llm.bench.texts import TextPrompt
from specrouter_llm.bench.workloads import Workload
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.engine.worker import IDLE_SECONDS
from specrouter_llm.errors import ContextOverflowError, InvalidParameterError
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.types import Completion

WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Job:
    """A prompt, and how it is to be answered."""

    workload: str
    prompt_ids: list[int]
    params: SamplingParams
    """With a seed, and with the end of text ignored."""


@dataclass(frozen=True, slots=True)
class Decoding:
    """What one contestant made of one group of jobs that it decoded together."""

    token_ids: tuple[tuple[int, ...], ...]
    """By job."""
    seconds: float
    """From the start to the last token of all, prefill included."""
    decode_seconds: float
    """After the step that gave the first token."""
    decode_tokens: int
    """Committed in that time."""
    target_steps: int
    """Forwards of the target in that time, each row of a batch counted."""
    completions: tuple[Completion, ...] = ()
    """By job; of our engine only."""

    @property
    def num_tokens(self) -> int:
        return sum(map(len, self.token_ids))

    @property
    def decoding(self) -> float:
        """Seconds of all its tokens at the rate of those after the first step; an answer of one step counts as a whole."""
        return self.decode_seconds / self.decode_tokens * self.num_tokens if self.decode_tokens else self.seconds


DECODING: Callable[[Decoding], float] = attrgetter("decoding")
END_TO_END: Callable[[Decoding], float] = attrgetter("seconds")


class Contestant(Protocol):
    """A way to decode."""

    @property
    def name(self) -> str: ...

    @property
    def kind(self) -> str:
        """plain, static, routed or peer."""
        ...

    @property
    def family(self) -> str:
        """What it is one setting of: the best of every family is picked afterwards."""
        ...

    def decode(self, jobs: Sequence[Job]) -> Decoding:
        """Decodes a group of jobs together."""
        ...


def jobs_of(engine: SpecRouter, workload: Workload, seed: int) -> list[Job]:
    """The prompts that fit the engine's context.

    Raises:
        InvalidParameterError: none does.
    """
    params = SamplingParams(temperature=workload.temperature, max_tokens=workload.max_tokens, ignore_eos=True)
    jobs = []
    for i, prompt in enumerate(workload.prompts):
        ids = _encoded(engine, prompt)
        if ids is not None and len(ids) + workload.max_tokens <= engine.max_context:
            jobs.append(Job(workload.name, ids, params.replace(seed=seed + i)))
    if not jobs:
        raise InvalidParameterError(
            f"no prompt of {workload.name!r} leaves {workload.max_tokens} of the context's {engine.max_context} tokens free"
        )
    return jobs


def _encoded(engine: SpecRouter, prompt: TextPrompt) -> list[int] | None:
    """Token ids; None if the context does not even hold the prompt."""
    try:
        return encode(engine, prompt)
    except ContextOverflowError:
        return None


def warm_up(contestants: Sequence[Contestant], jobs: Sequence[Job]) -> None:
    """A short answer of everyone."""
    short = [
        Job(job.workload, job.prompt_ids, job.params.replace(max_tokens=min(WARM_UP_TOKENS, job.params.max_tokens)))
        for job in jobs
    ]
    for contestant in contestants:
        contestant.decode(short)


def take_turns(
    contestants: Sequence[Contestant],
    groups: Sequence[Sequence[Job]],
    advance: Callable[[str], None] = lambda what: None,
) -> dict[str, list[Decoding]]:
    """Every contestant decodes every group; who begins rotates. One decoding per group, by contestant.

    Each begins when the one before it has given its OpenMP helpers back: those of another engine would slow its prefill.
    """
    found: dict[str, list[Decoding]] = {contestant.name: [] for contestant in contestants}
    for turn, group in enumerate(groups):
        first = turn % len(contestants)
        for contestant in (*contestants[first:], *contestants[:first]):
            time.sleep(2 * IDLE_SECONDS)
            decoding = contestant.decode(group)
            assert [len(ids) for ids in decoding.token_ids] == [job.params.max_tokens for job in group], contestant.name
            found[contestant.name].append(decoding)
            advance(f"{group[0].workload}, {len(group)} in a batch: {contestant.name}")
    return found


def figures(decodings: Sequence[Decoding]) -> dict[str, Any]:
    """Of one contestant, absolute."""
    decode_tokens = sum(each.decode_tokens for each in decodings)
    tokens = sum(each.num_tokens for each in decodings)
    return {
        "tokens": tokens,
        "ms_per_token": round(1e3 * sum(each.decode_seconds for each in decodings) / max(1, decode_tokens), 4),
        "ms_per_token_end_to_end": round(1e3 * sum(each.seconds for each in decodings) / tokens, 4),
        "tokens_per_target_step": round(decode_tokens / max(1, sum(each.target_steps for each in decodings)), 4),
    }


def speedup(decodings: Sequence[Decoding], reference: Sequence[Decoding]) -> dict[str, Any]:
    """Time of a reference over that of a contestant for the same tokens, of decoding and with the prefill."""

    def ratio(seconds: Callable[[Decoding], float]) -> dict[str, Any]:
        return ratio_of_sums([seconds(each) for each in reference], [seconds(each) for each in decodings]).as_dict()

    return {"decode": ratio(DECODING), "end_to_end": ratio(END_TO_END)}


def differences(
    engine: SpecRouter, groups: Sequence[Sequence[Job]], plain: Sequence[Decoding], other: Sequence[Decoding]
) -> dict[str, Any]:
    """How many answers are those of plain decoding, and how near a tie the first differences are."""
    comparison = Comparison()
    for group, expected, found in zip(groups, plain, other, strict=True):
        for job, completion, tokens in zip(group, expected.completions, found.token_ids, strict=True):
            comparison.add(engine, job.prompt_ids, job.params, completion, tokens)
    return asdict(comparison)


def route(decodings: Sequence[Decoding]) -> dict[str, float]:
    """Share of the tokens that each chain committed, most first."""
    tokens: Counter[str] = Counter()
    for decoding in decodings:
        for completion in decoding.completions:
            for leg in completion.stats.route.legs:
                tokens[" > ".join(leg.levels)] += leg.tokens
    return {name: round(count / max(1, tokens.total()), 4) for name, count in tokens.most_common()}
