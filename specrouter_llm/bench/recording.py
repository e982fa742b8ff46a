"""Records what the levels of a pool choose at every place of the target's answers, for the simulator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from specrouter_llm.bench.match import Answer, answers_of, fitted, teacher_forced
from specrouter_llm.bench.models import Models, encode
from specrouter_llm.bench.workloads import Workload
from specrouter_llm.drafting.ngram import NgramProposer
from specrouter_llm.pool.pool import PoolMember
from specrouter_llm.sampling.choice import choose
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler
from specrouter_llm.scheduling.recording import RecordedAnswer
from specrouter_llm.scheduling.similarity import MAX_WINDOW
from specrouter_llm.state.row import Row


def record(
    models: Models,
    workload: Workload,
    *,
    seed: int = 0,
    batch: int = 8,
    advance: Callable[[str], None] = lambda what: None,
) -> list[RecordedAnswer]:
    """One answer per prompt: the target writes it, the drafters then read it in one forward each, lookup searches it at
    every place. `advance` is called after each.

    Raises:
        ContextOverflowError: a prompt that leaves no room for its answer.
    """
    params = SamplingParams(temperature=workload.temperature, max_tokens=workload.max_tokens, ignore_eos=True)
    with models.engine(max_batch=batch) as engine:
        prompts = [encode(engine, text) for text in workload.prompts]
        answers = answers_of(engine, prompts, params, seed)
    pool = models.pool()
    found = []
    for answer in answers:
        found.append(
            _recorded(pool.target, sorted(pool.drafts, key=lambda draft: draft.num_parameters), answer, params)
        )
        advance("answers")
    pool.close()
    return found


def _recorded(
    target: PoolMember, drafts: Sequence[PoolMember], answer: Answer, params: SamplingParams
) -> RecordedAnswer:
    segment = answer.segment(params)
    places = range(len(answer.token_ids))
    classes: list[dict[int, int]] = [{answer.token_ids[i]: 0} for i in places]
    choices = {}
    for draft in drafts:
        chosen = choose(fitted(teacher_forced(draft, answer), target.vocab_size), [segment])[0]
        drafted = [id_ for id_ in chosen if id_ is not None]
        assert len(drafted) == len(chosen), f"{draft.label} gave logits that are not finite"
        choices[draft.label] = [classes[i].setdefault(drafted[i], len(classes[i])) for i in places]
    return RecordedAnswer(len(answer.prompt_ids), choices, {"ngram": _looked_up(segment.sampler, answer)})


def _looked_up(sampler: RowSampler, answer: Answer) -> list[tuple[int, int]]:
    """At every place: tokens that lookup proposes, and how many of them, from the first, are the answer's."""
    proposer = NgramProposer()
    row = Row(
        0, list(answer.prompt_ids), len(answer.prompt_ids), sampler, len(answer.prompt_ids) + len(answer.token_ids)
    )
    found = []
    for i, token_id in enumerate(answer.token_ids):
        proposal = proposer.propose(row, [], MAX_WINDOW)
        rest = answer.token_ids[i:]
        right = next((n for n, (a, b) in enumerate(zip(proposal, rest, strict=False)) if a != b), len(proposal))
        found.append((len(proposal), min(right, len(rest))))
        row.token_ids.append(token_id)
    return found
