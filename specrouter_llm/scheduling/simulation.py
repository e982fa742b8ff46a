"""A simulated engine: runs plans as the executor does, over models that are nothing but keyed choices and a price list.

Not the scheduler's formulas: every model has a choice at every context (a hash of the row's tokens), so who agrees with
whom, how long proposals live and how rounds end follow from running the plan. The committed text is the target's, whatever
the plans: two policies can be compared on the very same tokens.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from specrouter_llm.scheduling.evidence import ASIDE_WINDOW, MOST_SCORED, InnerProposal, num_scored, scores_of
from specrouter_llm.scheduling.plan import Plan, rows_by_chain
from specrouter_llm.scheduling.policy import (
    Aside,
    AskingPolicy,
    Forward,
    Policy,
    RowObservation,
    RowView,
    Score,
    StepObservation,
    Trial,
)

_MASK = (1 << 64) - 1


def _mix(a: int, b: int) -> int:
    x = (a * 0x9E3779B97F4A7C15 + b * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) & _MASK
    x ^= x >> 31
    x = (x * 0xD6E8FEB86659FD93) & _MASK
    return x ^ (x >> 32)


def _unit(a: int, b: int) -> float:
    return _mix(a, b) / 2.0**64


@dataclass(frozen=True, slots=True)
class SimulatedModel:
    """Seconds of a forward over n tokens and c positions: first + each * (n - 1) + position * c."""

    first: float
    each: float
    quality: float = 1.0
    """Chance that its choice is the reference's, which the target's always is."""
    shared: float = 0.5
    """Chance that it finds easy or hard what the other models do; else it errs on its own."""
    position: float = 0.0

    def seconds(self, tokens: int, context: int, rows: int = 1) -> float:
        """Of one forward, all rows together."""
        return self.first + self.each * (tokens - 1) + self.position * context


@dataclass(frozen=True, slots=True)
class SimulatedLookup:
    """A model-free level: proposes at some contexts, for a while, with some success."""

    hit: float
    stay: float
    quality: float
    first: float = 1e-5


@dataclass(frozen=True, slots=True)
class SimulatedPool:
    """Models smallest first, the target last with quality 1."""

    models: Mapping[str, SimulatedModel]
    lookups: Mapping[str, SimulatedLookup] = field(default_factory=dict)
    overhead: float = 0.0
    ahead: bool = False
    """Whether the target's forward of a plain step begins in the step before, if that and its own were plain, too."""

    @property
    def target(self) -> str:
        return list(self.models)[-1]

    def choice(self, name: str, context: int, hardness: float) -> int:
        """The token that a model chooses after a context: 0 is the reference's, others are mistakes."""
        model = self.models[name]
        if model.quality >= 1.0:
            return 0
        number = list(self.models).index(name) + 2
        own = _mix(context, number)
        shared = _unit(own, 1) < model.shared
        luck = _unit(context, 1) if shared else _unit(own, 2)
        return 0 if luck < model.quality**hardness else 1 if shared else number

    def start(self, seed: int, row_id: int) -> int:
        """The context in which a row's first token is chosen."""
        return _mix(seed, 1000 + row_id)

    def after(self, context: int, token: int) -> int:
        """The context behind one more token."""
        return _mix(context, token)

    def look_up(self, name: str, context: int, want: int, hardness: float) -> list[int]:
        """What a model-free level proposes after a context, at most `want` tokens."""
        lookup = self.lookups[name]
        tokens: list[int] = []
        key = _mix(context, 991)
        while len(tokens) < want and _unit(key, 1 + bool(tokens)) < (lookup.stay if tokens else lookup.hit):
            token = 0 if _unit(key, 3) < lookup.quality**hardness else -1
            tokens.append(token)
            context = _mix(context, token)
            key = _mix(context, 991)
        return tokens

    def match(self, lower: str, upper: str, samples: int = 2000) -> float:
        """How often two levels choose alike, counted."""
        equal = 0
        for i in range(samples):
            context = _mix(i, 77)
            if lower in self.lookups:
                mine = 0 if _unit(_mix(context, 991), 3) < self.lookups[lower].quality else -1
            else:
                mine = self.choice(lower, context, 1.0)
            equal += mine == self.choice(upper, context, 1.0)
        return equal / samples


@dataclass(slots=True)
class SimulatedRow:
    """One request."""

    row_id: int
    num_tokens: int
    remaining: int
    temperature: float = 0.0
    hardness: float = 1.0
    """Qualities are taken to this power."""
    context: int = 0
    """Hash of the committed tokens."""
    seen: dict[str, int] = field(default_factory=dict)
    past: list[int] = field(default_factory=list)
    """Contexts in which the last committed tokens were chosen."""
    started: bool = False
    """Whether its prompt has been taken in, which nothing is drafted before."""

    def view(self) -> RowView:
        return RowView(self.row_id, self.num_tokens, self.remaining, self.temperature)


class Simulator:
    """Runs steps. Observed times are noisy, `seconds` and `true_seconds` of the clock are not."""

    def __init__(
        self,
        pool: SimulatedPool,
        rows: Sequence[SimulatedRow],
        *,
        slots: int | None = None,
        seed: int = 0,
        noise: float = 0.05,
    ) -> None:
        """`slots` rows run at a time (all by default), the others wait for a row to finish."""
        self.pool = pool
        self._slots = slots if slots is not None else len(rows)
        self._seed = seed
        self.waiting = list(rows)
        self.rows: list[SimulatedRow] = []
        self.seconds = 0.0
        """Noise-free time so far."""
        self.tokens = 0
        self.steps = 0
        self._plain: tuple[tuple[int, ...], int] = (), 0
        """The rows of the last step, and how many steps in a row have decoded them plainly."""
        self._left = 0.0
        """Seconds of the target's next forward that are left when the last step has been dealt with, if it was begun then."""
        self._noise = noise
        self._random = random.Random(seed)

    def run(self, policy: Policy, tokens: int, *, steps: int | None = None) -> float:
        """Decodes until so many tokens more are committed, or so many steps are done; returns seconds per token."""
        start, first, begun = self.seconds, self.tokens, self.steps
        asking = policy if isinstance(policy, AskingPolicy) else None
        while (
            (self.rows or self.waiting)
            and self.tokens - first < tokens
            and (steps is None or self.steps - begun < steps)
        ):
            while self.waiting and len(self.rows) < self._slots:
                self.rows.append(self._started(self.waiting.pop(0)))
            plans = policy.plan([row.view() for row in self.rows])
            policy.observe(self.step(plans, asking.asides() if asking is not None else ()))
        return (self.seconds - start) / max(1, self.tokens - first)

    def _started(self, row: SimulatedRow) -> SimulatedRow:
        """The target has taken in all but the prompt's last token; the drafters nothing."""
        row.context = self.pool.start(self._seed, row.row_id)
        row.seen = {self.pool.target: row.num_tokens - 1}
        return row

    def step(self, plans: Sequence[Plan], asides: Collection[str] = ()) -> StepObservation:
        """One step, as `Executor.step` and `commit`."""
        run = _Run(self)
        for name in asides:
            run.ask(name, [row for row, plan in zip(self.rows, plans, strict=True) if name not in plan.levels])
        plans = [plan if row.started else Plan((plan.top,)) for row, plan in zip(self.rows, plans, strict=True)]
        begun = self._left if self._plain[1] > 1 and self.pool.ahead else 0.0
        hidden = self.pool.overhead if self._runs_ahead(plans) else 0.0
        proposals: list[list[int]] = [[] for _ in self.rows]
        self._draft(run, {i: plan.alternatives[0] for i, plan in enumerate(plans) if plan.lookup_first}, proposals)
        plans = [p.alternatives[not found] if p.lookup_first else p for p, found in zip(plans, proposals, strict=True)]
        self._draft(run, {i: plan for i, plan in enumerate(plans) if not proposals[i]}, proposals)
        empty: list[list[int]] = [[] for _ in self.rows]
        verified = run.verify(self.pool.target, self.rows, empty, proposals, [plan.below for plan in plans])
        observations = []
        for row, plan, tokens in zip(list(self.rows), plans, verified, strict=True):
            observations.append(self._commit(run, row, plan, tokens[: row.remaining]))
        self.rows = [row for row in self.rows if row.remaining > 0]
        if hidden:
            run.log = [f._replace(seconds=max(f.seconds - hidden, 1e-9), shifted=True) for f in run.log]
        elif begun:  # in vain, and what comes first waits for it
            run.log[0] = run.log[0]._replace(seconds=run.log[0].seconds + begun, shifted=True)
            run.seconds += begun
        spent = sum(forward.seconds for forward in run.log)
        overhead = self.pool.overhead * self.noisy()
        self.seconds += max(run.seconds, hidden) if hidden else run.seconds + self.pool.overhead
        self._left = max(0.0, self.pool.models[self.pool.target].seconds(len(plans), 0) - self.pool.overhead)
        self.steps += 1
        return StepObservation(tuple(observations), tuple(run.log), spent + overhead)

    def _draft(self, run: _Run, plans: Mapping[int, Plan], proposals: list[list[int]]) -> None:
        for below, members in rows_by_chain(plans).items():
            wants = [min(plans[i].window, self.rows[i].remaining - 1) for i in members]
            rows = [self.rows[i] for i in members]
            for i, proposal in zip(members, run.propose(below, rows, [[] for _ in rows], wants), strict=True):
                proposals[i] = proposal

    def _runs_ahead(self, plans: Sequence[Plan]) -> bool:
        """Whether the forward of this step was begun in the step before."""
        rows, before = self._plain
        now = tuple(row.row_id for row in self.rows)
        plain = all(plan.below is None for plan in plans)
        self._plain = now, before + 1 if plain and now == rows else int(plain)
        return self.pool.ahead and self._plain[1] > 2

    def _commit(self, run: _Run, row: SimulatedRow, plan: Plan, tokens: list[int]) -> RowObservation:
        for level, fed in run.fed.get(row.row_id, {}).items():
            same = next((i for i, (a, b) in enumerate(zip(fed, tokens, strict=False)) if a != b), None)
            row.seen[level] = row.num_tokens + (min(len(fed), len(tokens)) if same is None else same)
        for token in tokens:
            row.past = [*row.past[1 - MOST_SCORED :], row.context]
            row.context = self.pool.after(row.context, token)
        row.started = True
        row.num_tokens += len(tokens)
        row.remaining -= len(tokens)
        self.tokens += len(tokens)
        trials = tuple(run.trials.get(row.row_id, ()))
        scores = (*run.scores.get(row.row_id, ()), *scores_of(run.inner.get(row.row_id, ()), tokens))
        asides = tuple(run.asides.get(row.row_id, ()))
        return RowObservation(row.row_id, plan, trials, len(tokens), row.remaining <= 0, scores, asides)

    def noisy(self) -> float:
        """A factor around 1, now and then an outlier."""
        if not self._noise:
            return 1.0
        factor = self._random.lognormvariate(0.0, self._noise)
        return factor * (4.0 if self._random.random() < 0.005 else 1.0)


class _Run:
    """One step: the recursion of the executor and what it counts."""

    def __init__(self, simulator: Simulator) -> None:
        self._simulator = simulator
        self._pool = simulator.pool
        self.log: list[Forward] = []
        self.trials: dict[int, list[Trial]] = {}
        self.scores: dict[int, list[Score]] = {}
        self.inner: dict[int, list[InnerProposal]] = {}
        self.asides: dict[int, list[Aside]] = {}
        self.fed: dict[int, dict[str, list[int]]] = {}
        self.seconds = 0.0

    def ask(self, name: str, rows: Sequence[SimulatedRow]) -> None:
        """What a model-free level would propose to rows that do not use it."""
        rows = [row for row in rows if row.remaining > 1]
        wants = [min(ASIDE_WINDOW, row.remaining - 1) for row in rows]
        found = self._look_up(name, rows, [[] for _ in rows], wants) if rows else []
        for row, want, proposal in zip(rows, wants, found, strict=True):
            self.asides.setdefault(row.row_id, []).append(Aside(name, want, len(proposal)))
            self.inner.setdefault(row.row_id, []).append(InnerProposal(name, proposal))

    def propose(
        self, plan: Plan | None, rows: Sequence[SimulatedRow], hypotheses: Sequence[list[int]], wants: Sequence[int]
    ) -> list[list[int]]:
        if plan is None:
            return [[] for _ in rows]
        if plan.top in self._pool.lookups:
            return self._look_up(plan.top, rows, hypotheses, wants)
        grown: list[list[int]] = [[] for _ in rows]
        done = [want <= 0 for want in wants]
        for _ in range(plan.rounds[-1]):
            live = [i for i in range(len(rows)) if not done[i]]
            if not live:
                break
            sub_rows = [rows[i] for i in live]
            sub_hypotheses = [[*hypotheses[i], *grown[i]] for i in live]
            asked = [min(plan.window, wants[i] - len(grown[i]) - 1) for i in live]
            proposals = self.propose(plan.below, sub_rows, sub_hypotheses, asked)
            verified = self.verify(plan.top, sub_rows, sub_hypotheses, proposals, [plan.below] * len(live))
            for i, tokens in zip(live, verified, strict=True):
                grown[i].extend(tokens)
                done[i] = len(grown[i]) >= wants[i]
        return [tokens[:want] for tokens, want in zip(grown, wants, strict=True)]

    def verify(
        self,
        model: str,
        rows: Sequence[SimulatedRow],
        hypotheses: Sequence[list[int]],
        proposals: Sequence[list[int]],
        belows: Sequence[Plan | None],
    ) -> list[list[int]]:
        fed_tokens = context = 0
        verified = []
        for row, hypothesis, proposal, below in zip(rows, hypotheses, proposals, belows, strict=True):
            whole = [*hypothesis, *proposal]
            known = self.fed.setdefault(row.row_id, {}).get(model)
            if known is None:
                self._score(model, row, len(rows))
                fed_tokens += row.num_tokens - min(row.seen.get(model, 0), row.num_tokens - 1) + len(whole)
            else:
                same = next((i for i, (a, b) in enumerate(zip(known, whole, strict=False)) if a != b), len(known))
                fed_tokens += max(len(whole) - min(same, len(hypothesis)), len(proposal) + 1)
            self.fed[row.row_id][model] = whole
            context += row.num_tokens + len(whole)
            tokens = self._accepted(model, row, hypothesis, proposal)
            verified.append(tokens)
            if below is not None and proposal:
                trial = Trial(below.top, model, len(proposal), len(tokens) - 1)
                self.trials.setdefault(row.row_id, []).append(trial)
                if model != self._pool.target and not hypothesis:
                    inner = InnerProposal(below.top, proposal, model, len(tokens) - 1)
                    self.inner.setdefault(row.row_id, []).append(inner)
        seconds = self._pool.models[model].seconds(fed_tokens, context, len(rows))
        self._charge(Forward(model, len(rows), fed_tokens, context, seconds))
        return verified

    def _score(self, model: str, row: SimulatedRow, num_rows: int) -> None:
        """A model that catches up is compared with what has been committed."""
        lag = min(len(row.past), row.num_tokens - 1 - row.seen.get(model, 0))
        count = num_scored(lag, num_rows, sampled=row.temperature > 0)
        if model != self._pool.target and count:
            matched = sum(self._pool.choice(model, context, row.hardness) == 0 for context in row.past[-count:])
            self.scores.setdefault(row.row_id, []).append(Score(model, count, matched))

    def _accepted(self, model: str, row: SimulatedRow, hypothesis: list[int], proposal: list[int]) -> list[int]:
        """The longest prefix of the proposal that the model would choose too, and its next choice."""
        context = self._behind(row, hypothesis)
        tokens: list[int] = []
        for token in proposal:
            own = self._pool.choice(model, context, row.hardness)
            tokens.append(own)
            if own != token:
                return tokens
            context = self._pool.after(context, token)
        tokens.append(self._pool.choice(model, context, row.hardness))
        return tokens

    def _look_up(
        self, name: str, rows: Sequence[SimulatedRow], hypotheses: Sequence[list[int]], wants: Sequence[int]
    ) -> list[list[int]]:
        proposals = [
            self._pool.look_up(name, self._behind(row, hypothesis), want, row.hardness)
            for row, hypothesis, want in zip(rows, hypotheses, wants, strict=True)
        ]
        count = sum(len(tokens) for tokens in proposals)
        self._charge(Forward(name, len(rows), count, 0, self._pool.lookups[name].first * len(rows)))
        return proposals

    def _behind(self, row: SimulatedRow, hypothesis: Sequence[int]) -> int:
        return functools.reduce(self._pool.after, hypothesis, row.context)

    def _charge(self, forward: Forward) -> None:
        self.seconds += forward.seconds
        noisy = forward.seconds * self._simulator.noisy()
        self.log.append(Forward(forward.level, forward.num_rows, forward.num_tokens, forward.context, noisy))
