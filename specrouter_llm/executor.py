"""The Executor: one step of a batch of rows, each with its own plan.

A verified level is itself a proposer: `propose(level)` is the verify step of that level over the proposals of the level
below, for the plan's number of rounds. So N levels are one recursive function, a model that drafts alone is the case
with nothing below it, and plain decoding is the same step with an empty proposal.

A step is atomic over models: if a level raises, every model's lengths go back to what they were; a drafter is set aside
for the rows that used it and the step is run again without it.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

from torch import Tensor

from specrouter_llm.drafting.processor import DraftProcessor
from specrouter_llm.drafting.proposer import Proposer
from specrouter_llm.errors import ModelFailure, NumericalError, RequestFailedError, told
from specrouter_llm.runtime.runner import Runner
from specrouter_llm.sampling.constraint import ENDED
from specrouter_llm.scheduling.evidence import ASIDE_WINDOW, InnerProposal, scores_of
from specrouter_llm.scheduling.plan import Plan, rows_by_chain
from specrouter_llm.scheduling.policy import Aside, Forward, Score, Trial
from specrouter_llm.state.manager import StateManager
from specrouter_llm.state.row import Row
from specrouter_llm.verification.looping import LoopProcessor
from specrouter_llm.verification.rollback import RollbackProcessor
from specrouter_llm.verification.verify import Verification, VerifyProcessor


class RowOutcome(NamedTuple):
    """What a step offers a row; nothing is final before `Executor.commit`."""

    row: Row
    plan: Plan
    """The plan as it was run, without the levels that the row has set aside; of two alternatives the one that was run."""
    token_ids: list[int]
    """The target's choices: accepted tokens and one more. Empty if `error` is set."""
    trials: tuple[Trial, ...] = ()
    scores: tuple[Score, ...] = ()
    logits: Tensor | None = None
    """[len(token_ids), V] raw target logits, if the row reports logprobs."""
    error: RequestFailedError | None = None
    asides: tuple[Aside, ...] = ()


class StepResult(NamedTuple):
    """Outcomes of all rows, in the order given, and where the time went."""

    outcomes: list[RowOutcome]
    forwards: tuple[Forward, ...]
    seconds: float

    @property
    def seconds_per_level(self) -> dict[str, float]:
        """Time spent in each level."""
        totals: dict[str, float] = defaultdict(float)
        for forward in self.forwards:
            totals[forward.level] += forward.seconds_together
        return dict(totals)


class Executor:
    """Runs plans on the models of a pool. The target is the last level of every plan."""

    def __init__(
        self, state: StateManager, runners: Mapping[str, Runner], proposers: Mapping[str, Proposer], target: str
    ) -> None:
        self._state = state
        self._runners = dict(runners)
        self._drafting = DraftProcessor(proposers)
        self._verifying = VerifyProcessor(state, runners)
        self._looping = LoopProcessor(state, runners)
        self._rollback = RollbackProcessor(state)
        self._target = target

    def step(
        self,
        rows: Sequence[Row],
        plans: Sequence[Plan],
        meanwhile: Callable[[], None] = lambda: None,
        asides: Collection[str] = (),
    ) -> StepResult:
        """One step: proposals by each row's chain, then one target forward over all rows.

        `meanwhile` is called when that forward is on its way and, on a device, not yet waited for. `asides` are model-free
        levels that rows which do not use them are asked for too, to see what they would have brought.

        Never raises for a model's failure: a drafter that fails is left out, a target failure ends up in the outcomes of
        the rows that cause it.
        """
        started = time.perf_counter()
        log: list[Forward] = []
        outcomes = self._outcomes(rows, plans, log, meanwhile, asides)
        return StepResult(outcomes, tuple(log), time.perf_counter() - started)

    def has_model(self, level: str) -> bool:
        """Whether the level is a model (and not a model-free proposer)."""
        return level in self._runners

    def commit(self, row: Row, token_ids: Sequence[int]) -> None:
        """Makes the first tokens of an outcome final (a stop condition may have cut the rest)."""
        self._rollback.commit(row, token_ids)

    def prefill(self, model: str, rows: Sequence[Row], max_tokens: int) -> int:
        """Feeds a model at most `max_tokens` committed tokens that it lacks, over all rows; returns how many.

        Raises:
            ModelFailure: the forward raised; lengths are as before.
        """
        return self._verifying.prefill(model, [row.slot for row in rows], max_tokens)

    def _outcomes(
        self,
        rows: Sequence[Row],
        plans: Sequence[Plan],
        log: list[Forward],
        meanwhile: Callable[[], None],
        asides: Collection[str] = (),
    ) -> list[RowOutcome]:
        usable = [self.usable(row, plan) for row, plan in zip(rows, plans, strict=True)]
        run = _StepRun(self._state, self._drafting, self._verifying, self._looping, log, meanwhile)
        try:
            with self._rollback.atomic(rows):
                return run.outcomes(rows, usable, asides)
        except ModelFailure as error:
            failure = error
        failure = failure.released()  # what is tried now may need the memory
        if failure.model != self._target:
            for row, plan in zip(rows, usable, strict=True):
                if failure.model in plan.levels:
                    row.set_aside[failure.model] = f"raised {told(failure.cause)}"
            return self._outcomes(rows, usable, log, meanwhile, asides)
        if len(rows) == 1 and usable[0].below is None:
            return [RowOutcome(rows[0], usable[0], [], error=failure)]
        if len(rows) == 1:  # the proposal may have been too much for it: what plain decoding can do must not fail
            return self._outcomes(rows, [Plan((self._target,))], log, meanwhile)
        # Which row it was is not known: each runs alone, and only those that fail alone have failed.
        return [self._outcomes([row], [plan], log, meanwhile)[0] for row, plan in zip(rows, usable, strict=True)]

    def usable(self, row: Row, plan: Plan) -> Plan:
        """The plan without levels that the row has set aside or has outgrown."""
        for level in plan.levels[:-1]:
            runner = self._runners.get(level)
            if runner is None or level in row.set_aside:
                continue
            if len(row.token_ids) >= runner.context_length:
                row.set_aside[level] = f"its context of {runner.context_length} tokens is full"
            elif row.max_token_id >= runner.vocab_size:
                row.set_aside[level] = f"its vocabulary of {runner.vocab_size} lacks token {row.max_token_id}"
        return plan.without(row.set_aside)


@dataclass(slots=True)
class _StepRun:
    """One attempt at a step: the recursion and what it counts."""

    state: StateManager
    drafting: DraftProcessor
    verifying: VerifyProcessor
    looping: LoopProcessor
    log: list[Forward]
    meanwhile: Callable[[], None]
    trials: dict[int, list[Trial]] = field(default_factory=partial(defaultdict, list))
    scores: dict[int, list[Score]] = field(default_factory=partial(defaultdict, list))
    inner: dict[int, list[InnerProposal]] = field(default_factory=partial(defaultdict, list))
    asides: dict[int, list[Aside]] = field(default_factory=partial(defaultdict, list))

    def outcomes(self, rows: Sequence[Row], plans: Sequence[Plan], asides: Collection[str]) -> list[RowOutcome]:
        """What rows look up first, the proposals of the others group by group, then the target once over all rows."""
        for name in asides:
            self._ask(name, [row for row, plan in zip(rows, plans, strict=True) if name not in plan.levels])
        hypotheses: list[list[int]] = [[] for _ in rows]
        proposals: list[list[int]] = [[] for _ in rows]
        self._draft(rows, {i: plan.alternatives[0] for i, plan in enumerate(plans) if plan.lookup_first}, proposals)
        runs = [
            plan.alternatives[not found] if plan.lookup_first else plan
            for plan, found in zip(plans, proposals, strict=True)
        ]
        self._draft(rows, {i: run for i, run in enumerate(runs) if not proposals[i]}, proposals)
        verified = self.verify(plans[0].top, rows, hypotheses, proposals, [run.below for run in runs], final=True)
        return [self._outcome(row, run, v) for row, run, v in zip(rows, runs, verified, strict=True)]

    def _ask(self, name: str, rows: Sequence[Row]) -> None:
        """What a model-free level would propose to these rows."""
        rows = [row for row in rows if row.remaining > 1 and name not in row.set_aside]
        wants = [min(ASIDE_WINDOW, row.remaining - 1) for row in rows]
        found = self.drafting.propose(name, rows, [[] for _ in rows], wants, log=self.log) if rows else []
        for row, want, proposal in zip(rows, wants, found, strict=True):
            if name not in row.set_aside:
                self.asides[row.slot].append(Aside(name, want, len(proposal)))
                self.inner[row.slot].append(InnerProposal(name, proposal))

    def _draft(self, rows: Sequence[Row], plans: Mapping[int, Plan], proposals: list[list[int]]) -> None:
        """Fills in the proposals of the rows that have a plan, group by group."""
        for below, members in rows_by_chain(plans).items():
            wants = [min(plans[i].window, rows[i].remaining - 1) for i in members]
            found = self.propose(below, [rows[i] for i in members], [[] for _ in members], wants)
            for i, proposal in zip(members, found, strict=True):
                proposals[i] = proposal

    def propose(
        self, plan: Plan | None, rows: Sequence[Row], hypotheses: Sequence[list[int]], wants: Sequence[int]
    ) -> list[list[int]]:
        """Up to wants[r] tokens of the plan's top level after each hypothesis. A row that got less offers what it has."""
        if plan is None:
            return [_forced(*each) for each in zip(rows, hypotheses, wants, strict=True)]
        if plan.top in self.drafting:
            return self.drafting.propose(plan.top, rows, hypotheses, wants, log=self.log)
        grown: list[list[int]] = [[] for _ in rows]
        done = [want <= 0 for want in wants]
        if plan.below is None and plan.top in self.looping:
            self._loop(plan, rows, hypotheses, grown, done)
        for _ in range(plan.rounds[-1]):
            live = [
                i for i in range(len(rows)) if not done[i] and self._able(plan.top, rows[i], hypotheses[i], grown[i])
            ]
            if not live:
                break
            sub_rows = [rows[i] for i in live]
            sub_hypotheses = [[*hypotheses[i], *grown[i]] for i in live]
            asked = [wants[i] - len(grown[i]) - 1 for i in live]
            if plan.below is not None:
                asked = [min(plan.window, want) for want in asked]
            proposals = self.propose(plan.below, sub_rows, sub_hypotheses, asked)
            verified = self.verify(plan.top, sub_rows, sub_hypotheses, proposals, [plan.below] * len(live))
            for i, verification in zip(live, verified, strict=True):
                kept, ended = _until_end(rows[i], [*hypotheses[i], *grown[i]], verification.token_ids)
                grown[i].extend(kept)
                done[i] = ended or not kept or len(grown[i]) >= wants[i]
        return [tokens[:want] for tokens, want in zip(grown, wants, strict=True)]

    def _loop(
        self,
        plan: Plan,
        rows: Sequence[Row],
        hypotheses: Sequence[list[int]],
        grown: list[list[int]],
        done: list[bool],
    ) -> None:
        """All rounds of the lowest model at once, for the rows that need nothing of the host between them."""
        live = [i for i in range(len(rows)) if not done[i] and self._able(plan.top, rows[i], hypotheses[i], ())]
        given = [rows[i] for i in live], [hypotheses[i] for i in live]
        for index, token_ids, failed in self.looping.propose(plan.top, *given, plan.rounds[-1], log=self.log):
            i = live[index]
            grown[i], _ = _until_end(rows[i], hypotheses[i], token_ids)
            done[i] = True
            if failed:
                self._set_aside(plan.top, rows[i])

    def verify(
        self,
        model: str,
        rows: Sequence[Row],
        hypotheses: Sequence[list[int]],
        proposals: Sequence[list[int]],
        belows: Sequence[Plan | None],
        *,
        final: bool = False,
    ) -> list[Verification]:
        """One forward of `model` over all proposals, counted; a drafter without finite logits loses the row it failed."""
        keep_logits = final and any(row.sampler.params.logprobs for row in rows)
        verified = self.verifying.verify(
            model,
            rows,
            hypotheses,
            proposals,
            log=self.log,
            keep_logits=keep_logits,
            meanwhile=self.meanwhile if final else None,
        )
        given = zip(rows, belows, verified, hypotheses, proposals, strict=True)
        for row, below, verification, hypothesis, proposal in given:
            if below is not None and verification.num_proposed:
                trial = Trial(below.top, model, verification.num_proposed, verification.num_accepted)
                self.trials[row.slot].append(trial)
                if not final and not hypothesis:
                    inner = InnerProposal(below.top, proposal, model, verification.num_accepted)
                    self.inner[row.slot].append(inner)
            if verification.score is not None and not final:
                self.scores[row.slot].append(verification.score)
            if verification.failed and not final:
                self._set_aside(model, row)
        return verified

    def _set_aside(self, model: str, row: Row) -> None:
        """A drafter whose logits are broken is not asked again, and nothing that it holds of the row is trusted."""
        row.set_aside[model] = "its logits held NaN or no finite value"
        self.state.poison(model, row.slot)

    def _able(self, model: str, row: Row, hypothesis: Sequence[int], grown: Sequence[int]) -> bool:
        """Whether the level may go on with this row within the step."""
        return model not in row.set_aside and self.verifying.fits(model, row, [*hypothesis, *grown])

    def _outcome(self, row: Row, plan: Plan, verification: Verification) -> RowOutcome:
        trials = tuple(self.trials[row.slot])
        if verification.failed:
            error = NumericalError(f"the logits of {plan.top!r} held NaN or no finite value for this request")
            return RowOutcome(row, plan, [], trials, error=error)
        logits = verification.logits if row.sampler.params.logprobs else None
        scores = (*self.scores[row.slot], *scores_of(self.inner[row.slot], verification.token_ids))
        asides = tuple(self.asides[row.slot])
        return RowOutcome(row, plan, verification.token_ids, trials, scores, logits, asides=asides)


def _forced(row: Row, hypothesis: Sequence[int], want: int) -> list[int]:
    """What a grammar leaves no choice about needs no model: the lowest one takes it in as a proposal, in one forward."""
    constraint = row.sampler.constraint
    return constraint.draft(hypothesis, (), want) if constraint is not None else []


def _until_end(row: Row, hypothesis: list[int], token_ids: list[int]) -> tuple[list[int], bool]:
    """The tokens up to the first that ends the row, which is kept; and whether there is one."""
    constraint = row.sampler.constraint
    for size, token_id in enumerate(token_ids, 1):
        if constraint is not None:
            ended = constraint.progress([*hypothesis, *token_ids[:size]]) in ENDED
        else:
            ended = token_id in row.end_ids
        if ended:
            return token_ids[:size], True
    return token_ids, False
