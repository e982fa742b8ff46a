"""The adaptive policy: the ModelChainScheduler. Measures, estimates, searches, holds on to what works, probes."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace

from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.scheduling.decision import NEW_ROW, Decision, RowSeen, Seen, forwards_of, rows_of
from specrouter_llm.scheduling.estimates import Costs, Estimates, context_bucket
from specrouter_llm.scheduling.explanation import Explanation, Journal, Switch
from specrouter_llm.scheduling.latency import LatencyModel
from specrouter_llm.scheduling.lookups import Asides
from specrouter_llm.scheduling.offers import MOST_LEVELS
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import Reasons, RowView, StepObservation
from specrouter_llm.scheduling.pricing import OTHER_CHAIN_GAIN, PLAIN_GAIN, best_draft, least_gain, pays, price
from specrouter_llm.scheduling.probing import CHANGE_LOAN, FIRST_LOAN, PROBE_WINDOW, ROUTINE_ALPHA, Prober, most_telling
from specrouter_llm.scheduling.rows import RowBook
from specrouter_llm.scheduling.search import Search, StepChoice
from specrouter_llm.scheduling.similarity import Similarity, regime
from specrouter_llm.scheduling.trials import Trials
from specrouter_llm.types import RouteCandidate

REPLAN_STEPS, LEAST_STEPS = 32, 8
"""A search is reused for the first number of steps; for the second if an estimate moved materially; not at all if a row
came or went, or if acceptance has changed."""
ALL_STEPS = 64
"""Steps between two searches over all levels, unless a row came or acceptance has changed; those in between look at the
levels of the best offers only."""
ACTIVE_OFFERS = 12
TOGETHER = 4
"""Steps that are learnt from at once, unless a row has ended or something was tried."""
OPTIMISM, CHANGED_OPTIMISM = 1.5, 2.5
"""Standard errors above the estimate at which idle chains are looked at for a probe: as a rule, and after a change."""


class AdaptivePolicy:
    """Chooses chain and windows for every row from measured latencies and counted matches. Not thread-safe."""

    def __init__(
        self,
        models: Sequence[str],
        proposers: Sequence[str] = (),
        latency: LatencyModel | None = None,
        prior: Mapping[tuple[str, str], float] | None = None,
        *,
        deferred: bool = False,
    ) -> None:
        """Args:
        models: smallest first, the target last. A chain runs through them in this order.
        proposers: model-free levels.
        latency: measured; a level it does not know is tried once and learnt from its first forward.
        prior: SimScore = 1 - E[TV] by (lower, upper).
        deferred: learn and search in `reconsider`, and decode rows that have come plainly until then: for engines that wait
            for a device then. Where plain steps follow each other, such an engine begins the target's next forward before it
            has dealt with the last.

        Raises:
            InvalidParameterError: more lower levels than a search can hold.
        """
        if len(models) - 1 + len(proposers) > MOST_LEVELS:
            raise InvalidParameterError(
                f"the adaptive policy chooses among at most {MOST_LEVELS} drafters, got {len(models) - 1 + len(proposers)}; "
                'leave some out, or name a chain with policy="fixed"'
            )
        self._models = tuple(models)
        self._proposers = tuple(proposers)
        self._target = self._models[-1]
        self._plain = Plan((self._target,))
        self._latency = latency if latency is not None else LatencyModel()
        self._similarity = Similarity(models, proposers, prior)
        self._rows = RowBook(self._models)
        self._prober = Prober()
        self._trials = Trials(windows=not deferred)
        self._asides = Asides(self._proposers)
        self._journal = Journal()
        self._step = self._searched = self._searched_all = 0
        self._stale, self._lent = True, False
        self._decision: Decision | None = None
        self._seen: list[Seen] = []
        """Steps that were not learnt from yet."""
        self._deferred = deferred
        self._next: Decision | None = None
        """Made by `reconsider`, for the next step."""
        self._reconsidered = False
        """Whether that took part of the running step."""
        self._planned = False
        """Whether the running step is one of `plan`."""
        self._in_force: Decision | None = None
        self._standing: dict[int, Plan] = {}
        """Its plans, by row."""
        self._views: dict[int, RowView] = {}
        self._introduced: dict[str, int] = {}
        self._shaken = False
        self._search: Search | None = None
        self._active: frozenset[int] = frozenset()
        self._costs: dict[tuple[int, int, bool], Costs] = {}
        """By rows, context and whether any is sampled; kept until a latency moves."""

    # ---------------------------------------------------------------- the contract of Policy

    def plan(self, rows: Sequence[RowView]) -> Sequence[Plan]:
        """One plan per row. Called again before `observe`, it says the same."""
        self._views = {row.row_id: row for row in rows}
        key = tuple(self._views)
        self._planned = True
        if self._next is not None:
            self._decision, self._next = self._next, None
        decision = self._decision
        if decision is None or ((decision.key != key or self._stale) and not self._deferred):
            decision = self._decision = self._decide(rows, key)
            self._stale = False
        elif decision.key != key:  # a row that has come takes its prompt in now, whatever its plan is
            decision = self._decision = decision.carried(key, self._plain)
            self._stale = True
        return decision.plans

    def asides(self) -> Collection[str]:
        """Model-free levels, now and then."""
        return self._proposers if self._planned and self._asides.due(self._step) else ()

    def reconsider(self) -> None:
        """Learns, and decides what `plan` will say for the next step if the rows stay, where that is to be done while a step is
        running."""
        if not self._deferred:
            return
        if self._may_learn():
            self._learn()
        if self._stale and self._planned and self._decision is not None and not self._decision.tries:
            self._next = self._decide(list(self._views.values()), self._decision.key)
            self._stale, self._reconsidered = False, True

    def observe(self, step: StepObservation) -> None:
        """Takes note. Quiet steps are learnt from a few at a time, and while the next one is running if that is the way."""
        self._step += self._planned  # chains that callers force neither pay for looks and trials nor make them due
        decision, views = (self._decision, self._views) if self._planned else (None, {})
        self._seen.append(seen := Seen(step, decision, views, self._reconsidered))
        self._asides.observe(step, self._step)
        waits = self._deferred and len(self._seen) <= TOGETHER
        learns = not (seen.is_quiet and self._lent) or (self._may_learn() and not waits)
        self._planned = self._reconsidered = False
        if learns:
            self._learn()

    def _may_learn(self) -> bool:
        """Whether there is enough to learn from: out of the caches, one step of one row is nearly as dear as a few."""
        return len(self._seen) >= TOGETHER or (self._planned and self._tries_soon(len(self._views)))

    def _tries_soon(self, rows: int) -> bool:
        """Whether the next step of so many rows may be used to try something."""
        return self._prober.looks(self._step) or self._trials.due(rows, self._step)

    def _learn(self) -> None:
        """Corrects latencies by the forwards, similarities by the trials, and puts decisions into force."""
        seen, self._seen = self._seen, []
        self._learn_latency(seen)
        for each in seen:
            if each.decision is not None and any(row.committed for row in each.step.rows):
                self._settle(each.decision, each)
        for row_id, row in rows_of(seen).items():
            self._learn_row(row_id, row)
        # A look that `_next` has had is told of when that is in force.
        self._stale |= self._due() or (self._next is None and self._prober.looks(self._step))
        self._stale |= self._decision is not None and self._trials.due(len(self._decision.key), self._step)

    # ---------------------------------------------------------------- reports

    def explain(self) -> Explanation:
        """Candidates, the choice, what it was predicted to cost and what it cost, and the switches so far."""
        self._learn()
        decision = self._decision
        return Explanation(
            step=self._step,
            candidates=self._search.candidates if self._search is not None else (),
            chosen=tuple(dict.fromkeys(decision.standing)) if decision is not None else (),
            predicted_seconds_per_token=decision.predicted if decision is not None else math.nan,
            measured_seconds_per_token=self._journal.seconds_per_token,
            switches=tuple(self._journal.switches),
            probes=self._prober.probes,
            probe_seconds=self._prober.spent,
        )

    def reasons(self, row_id: int) -> Reasons:
        """Why a row is decoded as it is; the last 256 finished rows are still known."""
        self._learn()
        found = self._search.candidates if self._search is not None else ()
        told = [(c.plan.levels, c.plan.windows, c.seconds_per_token, c.plan.lookup_first) for c in found]
        predicted = self._decision.predicted if self._decision is not None else math.nan
        candidates = tuple(RouteCandidate(*each) for each in told)
        return Reasons(self._rows.switches(row_id), candidates, None if math.isnan(predicted) else predicted)

    @property
    def latency(self) -> LatencyModel:
        """The corrected model, for saving."""
        self._learn()
        return self._latency

    @property
    def similarity(self) -> Similarity:
        """The estimates of acceptance."""
        self._learn()
        return self._similarity

    # ---------------------------------------------------------------- deciding

    def _decide(self, rows: Sequence[RowView], key: tuple[int, ...]) -> Decision:
        self._learn()
        for row_id in self._rows.expire(rows, self._step):
            self._similarity.forget(row_id)
            self._standing.pop(row_id, None)
        if not self._latency.knows(self._target):
            plain = (self._plain,) * len(rows)
            return Decision(key, plain, plain, math.nan, "the target's speed is not known yet")
        before = self._decision
        stands = None
        if before is not None and before.key == key and not math.isnan(before.predicted) and not self._due():
            stands = Decision(key, before.standing, before.standing, before.predicted)
            if not self._curious(rows):
                return stands
        estimates = self._estimates(rows)  # after which nothing has moved
        return self._probe(rows, stands or self._standing_decision(rows, key, estimates), estimates)

    def _due(self) -> bool:
        """Whether the last search is out of date."""
        age = self._step - self._searched
        moved = self._latency.moved or self._similarity.moved
        return age >= REPLAN_STEPS or self._shaken or self._search is None or (moved and age >= LEAST_STEPS)

    def _searched_choice(self, estimates: Estimates, everything: bool) -> StepChoice:
        """A search over all levels, now and then; in between over those that came out best in the last one."""
        if everything or self._step - self._searched_all >= ALL_STEPS:
            self._search = Search(estimates)
            self._active = frozenset(self._search.levels(ACTIVE_OFFERS))
            self._searched_all = self._step
        else:
            lower = range(estimates.num_lookups, len(estimates.lower))
            self._search = Search(estimates.without([level for level in lower if level not in self._active]))
        self._searched = self._step
        self._shaken = False
        return self._search.choice()

    def _standing_decision(self, rows: Sequence[RowView], key: tuple[int, ...], estimates: Estimates) -> Decision:
        """The best plans by the estimates, or those that stand if they are as good within the noise."""
        everything = self._shaken or self._search is None or key != tuple(self._standing)
        choice = self._searched_choice(estimates, everything)
        plain = (self._plain,) * len(rows)
        if not pays(choice.seconds_per_token, estimates, PLAIN_GAIN):
            choice = StepChoice(plain, len(rows), estimates.plain_seconds)
        decision, standing = self._decision, self._standing
        if decision is not None and decision.key == key:  # in `reconsider` it is not in force yet
            standing = decision.by_row
        before = [standing.get(row.row_id) for row in rows]
        held = tuple(plan for plan in before if plan is not None)
        if len(held) < len(rows):
            return Decision(key, choice.plans, choice.plans, choice.seconds_per_token, NEW_ROW)
        if any(self._rows[row.row_id].blocked.intersection(plan.levels) for row, plan in zip(rows, held, strict=True)):
            return Decision(key, choice.plans, choice.plans, choice.seconds_per_token, "a level is out of use")
        tokens, seconds = price(held, estimates)
        now = seconds / tokens
        gain = 1 - choice.seconds_per_token / now
        stays = held == plain or pays(now, estimates, PLAIN_GAIN / 2)
        if stays and gain < least_gain(held, choice.plans):
            return Decision(key, held, held, now)
        reason = "the batch has changed" if set(key) != set(self._standing) else "the estimates have moved"
        return Decision(key, choice.plans, choice.plans, choice.seconds_per_token, reason, gain)

    def _estimates(self, rows: Sequence[RowView]) -> Estimates:
        """What a search reads. Reading it settles what has moved."""
        if self._latency.moved:
            self._latency.settle()
            self._costs.clear()
        number = len(rows)
        context = context_bucket(sum(row.num_tokens for row in rows))
        lower, num_lookups = self._similarity.lower, len(self._proposers)
        key = number, context, any(row.temperature > 0 for row in rows)
        if key not in self._costs:
            given = self._latency, lower, num_lookups, self._target, number, context
            self._costs[key] = Costs.of(*given, sampled=key[2])
        return Estimates(
            lower=lower,
            num_lookups=num_lookups,
            target=self._target,
            num_rows=number,
            acceptance=self._similarity.acceptance(_regimes(rows)),
            costs=self._costs[key],
            overhead=self._latency.overhead.seconds(drafted=True),
            plain_overhead=self._latency.overhead.seconds(drafted=False),
            catch_up=self._rows.catch_up(lower, rows, self._latency),
            blocked=self._rows.blocked(rows, lower),
            ahead=self._deferred and all(row.continues for row in rows),
        )

    # ---------------------------------------------------------------- probing

    def _curious(self, rows: Sequence[RowView]) -> bool:
        """Whether something may be tried."""
        return self._unknown(rows[self._step % len(rows)]) is not None or self._tries_soon(len(rows))

    def _probe(self, rows: Sequence[RowView], standing: Decision, estimates: Estimates) -> Decision:
        """The standing plans with one row on another chain, if one looks worth it at an optimistic estimate.

        Not where a row has come: in the step that is being decided it takes its prompt in, which would show nothing.
        """
        if not self._lent:
            worth = FIRST_LOAN * len(self._similarity.lower)
            self._prober.lend(max(CHANGE_LOAN, worth) * estimates.plain_seconds, self._step)
        if standing.reason == NEW_ROW:
            self._prober.look_now(self._step + 1)
            if self._standing.keys().isdisjoint(standing.key):
                self._trials.renewed(len(rows), self._step + 1)
            return standing
        place = self._step % len(rows)
        unknown = self._unknown(rows[place])
        if unknown is not None:
            return standing.probing(place, Plan.chain([unknown, self._target], [2]))
        other = self._trials.plans(standing.standing, estimates, self._step)
        if other is not None:
            return standing.running(other)
        if not self._prober.looks(self._step):
            return standing
        chosen = self._promising(rows, standing, estimates, place)
        return replace(standing, looked=False) if chosen is None else replace(chosen, looked=True)

    def _promising(
        self, rows: Sequence[RowView], standing: Decision, estimates: Estimates, place: int
    ) -> Decision | None:
        """The first chain worth a try for which there is budget, for one row."""
        tokens, seconds = price(standing.standing, estimates)
        pace = seconds / tokens
        for plan, hope in self._worth_a_try(rows, regime(rows[place].temperature), estimates, pace):
            if (decision := self._trial(rows, standing, estimates, place, plan, pace, hope)) is not None:
                return decision
        return None

    def _worth_a_try(
        self, rows: Sequence[RowView], bucket: int, estimates: Estimates, pace: float
    ) -> Iterator[tuple[Plan, float]]:
        """Chains that would win at optimistic estimates, with the seconds per token to be hoped for; then idle levels."""
        optimism = CHANGED_OPTIMISM if self._prober.eager(self._step) else OPTIMISM
        hopeful = replace(estimates, acceptance=self._similarity.acceptance(_regimes(rows), optimism=optimism))
        found = Search(hopeful).chains(below=(1 - OTHER_CHAIN_GAIN) * pace)
        for one in most_telling(found, self._similarity.known(bucket), self._models):
            yield one.plan, pace - one.seconds_per_token
        for level in self._similarity.idle(bucket, self._step):
            if best_draft(estimates, level, ROUTINE_ALPHA) < pace:
                yield Plan.chain([estimates.lower[level], self._target], [PROBE_WINDOW]), 0.0

    def _trial(
        self,
        rows: Sequence[RowView],
        standing: Decision,
        estimates: Estimates,
        place: int,
        plan: Plan,
        pace: float,
        hope: float,
    ) -> Decision | None:
        """One row on another chain with small windows, if the budget allows; `hope` in seconds per token."""
        if plan.lookup_first or plan.levels in {run.levels for run in (*standing.standing[place].runs, self._plain)}:
            return None
        if self._rows[rows[place].row_id].blocked.intersection(plan.levels):
            return None
        row = rows[place : place + 1]
        catch_up = sum(self._rows.missing_seconds(level, row, self._latency) for level in plan.levels[:-1])
        gain = hope * self._rows.future(rows[place])
        if not self._prober.allows(plan.levels, catch_up, gain, self._step):
            return None  # and what stands is as good as any: the step itself costs no less than its tokens are worth
        small = Plan.chain(plan.levels, [min(window, PROBE_WINDOW) for window in plan.windows])
        decision = standing.probing(place, small)
        tokens, seconds = price(decision.plans, estimates)
        regret = seconds - tokens * pace + catch_up
        return decision if self._prober.allows(plan.levels, regret, gain, self._step) else None

    def _unknown(self, row: RowView) -> str | None:
        """A drafter that has never run and is not waiting to be tried again."""
        blocked = self._rows[row.row_id].blocked
        waiting = (level for level in self._models[:-1] if not self._latency.knows(level) and level not in blocked)
        return next((level for level in waiting if self._step >= self._introduced.get(level, 0)), None)

    # ---------------------------------------------------------------- learning

    def _learn_latency(self, seen: Sequence[Seen]) -> None:
        for alike, tried in forwards_of(seen, self._proposers, self._target):
            news = self._latency.observe(*alike)
            if alike[0].level == self._target:
                self._trials.learnt(alike[0], news, tried=tried, step=self._step)
        for each in seen:
            self._latency.observe_overhead(each.step)

    def _settle(self, decision: Decision, seen: Seen) -> None:
        """Journal, switches, and what a probe cost."""
        step = seen.step
        committed = sum(row.committed for row in step.rows)
        self._prober.earn(step.seconds)
        if decision.looked is not None:
            self._prober.looked(decision.looked, self._step)
        self._lent = self._lent or not math.isnan(decision.predicted)
        if decision is not self._in_force:
            self._put_in_force(decision)
        if decision.tries:
            self._stale = True
            if self._deferred:  # the next step may be decided later
                self._decision = decision.settled()
        if decision.probed is None:
            if not decision.tries:
                self._journal.measured(step.seconds, committed)
            return
        levels = decision.plans[decision.probed].levels
        run = next((row for row in step.rows if row.row_id == decision.key[decision.probed]), None)
        if not self._latency.knows(levels[0]):
            self._introduced[levels[0]] = self._step + REPLAN_STEPS
        if run is None or run.plan.levels != levels or math.isnan(decision.predicted):
            self._prober.result(levels, 0.0, False, self._step)
            return
        bucket = regime(seen.views[run.row_id].temperature)
        success = self._similarity.surprise(run.row_id, bucket, run.trials, run.scores) >= 0
        self._prober.result(levels, step.seconds - committed * decision.predicted, success, self._step)

    def _put_in_force(self, decision: Decision) -> None:
        """Notes what it has changed."""
        before = tuple(dict.fromkeys(self._standing.get(row_id, self._plain) for row_id in decision.key))
        after = tuple(dict.fromkeys(decision.standing))
        if decision.reason and before != after:
            self._journal.switched(Switch(self._step, before, after, decision.reason, decision.gain))
        for row_id, plan in zip(decision.key, decision.standing, strict=True):
            self._rows.switched(row_id, self._standing.get(row_id, plan), plan, decision.reason, decision.gain)
        self._in_force, self._standing = decision, decision.by_row

    def _learn_row(self, row_id: int, row: RowSeen) -> None:
        bucket = regime(row.temperature)
        for view, planned, observed in zip(row.views, row.planned, row.observed, strict=True):
            self._rows[row_id].observe(planned, observed, view.num_tokens)
        if self._similarity.observe(row_id, bucket, row.trials, self._step, row.scores):
            self._shaken = True
            self._similarity.doubt(row_id, self._step)
            if self._latency.knows(self._target):
                self._prober.lend(CHANGE_LOAN * self._latency.seconds(self._target, 1), self._step)
        for name in self._proposers:
            calls = row.calls(name)
            if calls.lengths or calls.misses:
                self._similarity.observe_lookup(row_id, bucket, name, *calls, self._step)
        if row.finished:
            self._rows.finish(row_id)
            self._similarity.forget(row_id)


def _regimes(rows: Sequence[RowView]) -> list[tuple[int, int]]:
    return [(row.row_id, regime(row.temperature)) for row in rows]
