"""Similarity: how often one level's tokens are another level's choices.

alpha(lower, upper) is the chance that the upper level accepts the next token of the lower one, given that it accepted
those before. Its prior is SimScore = 1 - E[TV] (SpecRouter, arXiv 2505.07680), its evidence are counted matches.

A verification of n tokens that accepts a < n of them has seen a successes and one failure; what came after the first
mismatch was never put to the test. So the estimate is accepted / (accepted + first rejections). accepted / proposed is
biased low: for alpha = 0.8 and windows of 8 it tends to 0.42.

Text is easy in some places and hard in others, so a token after an accepted one is accepted more often than the first one
of a proposal. Both are counted for each pair of the workload, and their distance from what they are together, its tilt, is
put on every estimate: P(at least k accepted) = (alpha + tilt_1) (alpha + tilt_2)^(k - 1).

Two levels that agree with the target in shares a and b of all places agree with each other in at least a + b - 1 of them
and at most 1 - |a - b| (Fréchet's bounds). Most pairs never meet, and all have been held against the target: a prior that
lies outside is put on the border. The rates that are known are of different places, so this is a rule of thumb for priors;
counts of the pair itself outweigh it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import numpy as np

from specrouter_llm.scheduling.agreement import Agreement
from specrouter_llm.scheduling.counts import Array, Counts, Memory, mean_of
from specrouter_llm.scheduling.evidence import Matches, matches_of
from specrouter_llm.scheduling.policy import Score, Trial
from specrouter_llm.scheduling.spread import Spread

SIMSCORE_STRENGTH = 12.0
"""Trials that a measured SimScore is worth."""
DEFAULT_PRIOR = 0.6
DEFAULT_STRENGTH = 3.0
"""Trials that the default prior is worth."""
OWN_STRENGTH = 3.0
"""Trials that the workload's estimate is worth to a row whose short memory has shown that it is another text; else `Spread`."""
SHARED_WEIGHT = 4.0
"""Optimism about a row counts what the workload knows up to this many times the strength."""
LOOKUP_STRENGTH = 8.0
"""Calls that the workload's hit rate is worth to a row: texts differ in what they repeat."""
HIT_PRIOR, STAY_PRIOR = 0.5, 0.85
"""A model-free level proposes something half of the time, and goes on after each token with this chance."""
WORKLOAD_MEMORY = Memory(long=2000.0, short=100.0, idle=2000.0)
ROW_MEMORY = Memory(long=300.0, short=24.0, idle=150.0)
FADE_EVERY = 16
"""Steps."""
TILT_STRENGTH = 40.0
"""Trials that no difference between the places of a proposal is worth."""
LEAST_ALPHA = 0.005
MAX_WINDOW = 16
"""Tokens that a level offers at most."""
MOVED_SHARE, MOVED_LEAST = 0.2, 0.005
"""A value has moved materially once it has by this share of 1 - alpha and this much more."""
IDLE_STEPS = 64
"""A level without trials during so many steps is idle."""


def regime(temperature: float) -> int:
    """Bucket of a temperature: 0, (0, 0.5], (0.5, 1], above."""
    if temperature <= 0:
        return 0
    return 1 if temperature <= 0.5 else 2 if temperature <= 1 else 3


def bounded(prior: Array | float, lower: Array | float, upper: Array | float) -> Array:
    """The prior of a pair of levels that agree with the target at these rates."""
    return np.asarray(np.minimum(np.maximum(prior, lower + upper - 1), 1 - np.abs(lower - upper)))


def expected_match(simscore: float, bucket: int) -> float:
    """The prior of alpha from SimScore.

    With shared Gumbel noise the chance of equal choices lies between (1 - TV) / (1 + TV) and 1 - TV (Daliri et al.,
    arXiv 2408.07978); the middle is within 0.02 of what was measured on softmax pairs. Greedy has no noise: SimScore as is.
    """
    if bucket == 0:
        return simscore
    return simscore * (0.5 + 0.5 / (2 - simscore))


@dataclass(frozen=True)
class Acceptance:
    """What a search needs of R rows, L lower levels (model-free ones first), M models (the target last)."""

    pairs: Array
    """[L, M] mean over the rows."""
    target: Array
    """[R, L] each row's alpha to the target."""
    pair_tilts: Array
    """[2, L, M] of the first token of a proposal, and of the others."""
    target_tilts: Array
    """[2, R, L], or [2, 1, L] of all rows."""
    hits: Array
    """[R, P] chance that a model-free level proposes anything."""
    stays: Array
    """[R, P] chance that its proposal goes on after each token."""
    agreed: Array
    """[L, M - 1] chance that the target accepts a token that a model, too, has accepted from a lower level."""

    @cached_property
    def pair_survival(self) -> Array:
        """[L, M, MAX_WINDOW]: chance that the upper level accepts at least k = 1, 2, ... of the lower one's tokens."""
        return _survival(self.pairs, self.pair_tilts)

    @cached_property
    def target_survival(self) -> Array:
        """[R, L, MAX_WINDOW]: the same of each row for the target."""
        return _survival(self.target, self.target_tilts)

    @cached_property
    def mean_survival(self) -> Array:
        """[L, MAX_WINDOW]: of all rows together."""
        return mean_of(self.target_survival)

    @cached_property
    def most_survival(self) -> Array:
        """[L, MAX_WINDOW]: of the row that accepts most."""
        return np.asarray(self.target_survival.max(axis=0))

    @cached_property
    def mean_target(self) -> Array:
        """[L] alpha to the target, of all rows together."""
        return mean_of(self.target)

    @cached_property
    def mean_powers(self) -> Array:
        """[L, MAX_WINDOW]: that to the power of k = 1, 2, ..."""
        return np.asarray(self.mean_target[:, None] ** np.arange(1, MAX_WINDOW + 1))

    @cached_property
    def agreed_survival(self) -> Array:
        """[L, M - 1, MAX_WINDOW + 1]: chance that the target accepts k = 0, 1, ... tokens that both levels agree on."""
        return np.asarray(self.agreed[:, :, None] ** np.arange(MAX_WINDOW + 1))


def _survival(alpha: Array, tilts: Array) -> Array:
    first, other = _clipped(alpha + tilts)
    return np.asarray(first[..., None] * other[..., None] ** np.arange(MAX_WINDOW))


def _clipped(alpha: Array) -> Array:
    return np.asarray(np.minimum(np.maximum(alpha, LEAST_ALPHA), 1 - LEAST_ALPHA))


class _Evidence:
    """Matches, hits and lengths of one row or of the whole workload."""

    def __init__(self, shape: tuple[int, int], num_lookups: int, memory: Memory) -> None:
        self.matches = Counts(shape, memory)
        self.lookups = Counts((num_lookups, 2), memory)


class _Row(_Evidence):
    """What is known of one row alone."""

    def __init__(self, strength: Array, num_lookups: int) -> None:
        super().__init__((strength.shape[0], strength.shape[1]), num_lookups, ROW_MEMORY)
        self.strength = strength
        """[L, M] trials that the workload's estimate is worth to this row."""
        self.reported: Array | None = None


class Similarity:
    """alpha of every pair, per sampling regime and request. Not thread-safe."""

    def __init__(
        self, models: Sequence[str], proposers: Sequence[str] = (), prior: Mapping[tuple[str, str], float] | None = None
    ) -> None:
        self.lower = (*proposers, *models[:-1])
        self.models = tuple(models)
        self._num_lookups = len(proposers)
        self._shape = shape = len(self.lower), len(self.models)
        self._row_of = {name: i for i, name in enumerate(self.lower)}
        self._column_of = {name: i for i, name in enumerate(self.models)}
        self._lookup_prior = np.array([[HIT_PRIOR, STAY_PRIOR]] * len(proposers)).reshape(-1, 2)
        self._priors = [self._prior_table(prior or {}, bucket) for bucket in range(4)]
        self._workload: dict[int, _Evidence] = {}
        self._places: dict[int, Counts] = {}
        """[2, L, M] by regime: matches of the first token of a proposal, and of others behind accepted ones."""
        self._agreement: defaultdict[int, Agreement] = defaultdict(
            partial(Agreement, *shape, self._num_lookups, WORKLOAD_MEMORY)
        )
        self._spread: defaultdict[int, Spread] = defaultdict(partial(Spread, shape))
        self._rows: dict[int, tuple[int, _Row]] = {}
        self._faded = 0
        self.moved = False
        """Whether a value moved materially since the last `acceptance`."""

    def _prior_table(self, prior: Mapping[tuple[str, str], float], bucket: int) -> tuple[Array, Array]:
        """[L, M] prior means and their strengths."""
        mean = np.full(self._shape, DEFAULT_PRIOR)
        strength = np.full_like(mean, DEFAULT_STRENGTH)
        for (lower, upper), score in prior.items():
            if lower in self._row_of and upper in self._column_of:
                cell = (self._row_of[lower], self._column_of[upper])
                mean[cell] = min(max(expected_match(score, bucket), 0.01), 0.99)
                strength[cell] = SIMSCORE_STRENGTH
        return mean, strength

    def _shared(self, bucket: int) -> _Evidence:
        found = self._workload.get(bucket)
        if found is None:
            found = self._workload[bucket] = _Evidence(self._shape, self._num_lookups, WORKLOAD_MEMORY)
            self._places[bucket] = Counts((2, *self._shape), WORKLOAD_MEMORY)
        return found

    def _evidence(self, row_id: int, bucket: int) -> _Row:
        found = self._rows.get(row_id)
        if found is None or found[0] != bucket:
            found = self._rows[row_id] = (bucket, _Row(self._spread[bucket].strength(), self._num_lookups))
        return found[1]

    # ---------------------------------------------------------------- learning

    def observe(
        self, row_id: int, bucket: int, trials: Sequence[Trial], step: int, scores: Sequence[Score] = ()
    ) -> bool:
        """Counts a row's trials and scores; tells whether they show that an acceptance has changed."""
        if step - self._faded >= FADE_EVERY:
            self._faded = step
            for evidence in (*self._workload.values(), *(row for _, row in self._rows.values())):
                evidence.matches.fade(step)
                evidence.lookups.fade(step)
            for counts in self._places.values():
                counts.fade(step)
            for agreement in self._agreement.values():
                agreement.counts.fade(step)
        changed = False
        workload, own, matches = self._shared(bucket), self._evidence(row_id, bucket), matches_of(trials)
        self._count_places(bucket, matches, step)
        self._count_agreement(bucket, scores, step)
        for lower, upper, accepted, missed in (*(pair.together for pair in matches), *self._against_target(scores)):
            if lower not in self._row_of or upper not in self._column_of:
                continue
            cell = (self._row_of[lower], self._column_of[upper])
            if workload.matches.add(cell, accepted, missed, step):
                for place in range(2):
                    self._places[bucket].shorten((place, *cell))
            if own.matches.add(cell, accepted, missed, step, self._alpha(cell, bucket, own)):
                changed = True
                own.strength[cell] = OWN_STRENGTH
            if own.reported is not None and not self.moved:
                before = float(own.reported[cell])
                self.moved = abs(self._alpha(cell, bucket, own) - before) > MOVED_SHARE * (1 - before) + MOVED_LEAST
        self.moved |= changed
        return changed

    def _count_places(self, bucket: int, matches: Sequence[Matches], step: int) -> None:
        for pair in matches:
            if pair.lower in self._row_of and pair.upper in self._column_of:
                for place, counts in enumerate((pair.first, pair.others)):
                    if any(counts):
                        cell = place, self._row_of[pair.lower], self._column_of[pair.upper]
                        self._places[bucket].add(cell, *counts, step)

    def _count_agreement(self, bucket: int, scores: Sequence[Score], step: int) -> None:
        for score in scores:
            if score.level in self._row_of and score.agreed in self._column_of:
                cell = self._row_of[score.level], self._column_of[score.agreed]
                self._agreement[bucket].counts.add(cell, score.matched, score.total - score.matched, step)

    def observe_lookup(
        self, row_id: int, bucket: int, name: str, lengths: Sequence[int], misses: int, ends: int, step: int
    ) -> None:
        """Counts what a model-free level proposed.

        Args:
            lengths: of its proposals.
            misses: calls that proposed nothing.
            ends: proposals that were shorter than what was asked.
        """
        cell = self._row_of.get(name, self._num_lookups)
        if cell >= self._num_lookups:
            return
        goes_on = sum(length - 1 for length in lengths)
        for table in (self._shared(bucket), self._evidence(row_id, bucket)):
            if lengths or misses:
                self.moved |= table.lookups.add((cell, 0), len(lengths), misses, step)
            if goes_on or ends:
                table.lookups.add((cell, 1), goes_on, ends, step)

    def _against_target(self, scores: Sequence[Score]) -> list[tuple[str, str, int, int]]:
        """Scores as counts of matches with the target's choices, which the committed tokens are."""
        whole = (score for score in scores if not score.agreed)
        return [(score.level, self.models[-1], score.matched, score.total - score.matched) for score in whole]

    def surprise(self, row_id: int, bucket: int, trials: Sequence[Trial], scores: Sequence[Score]) -> float:
        """Matches beyond what was expected of these trials and scores, before they are observed; -1 if there were none."""
        counts = (*(pair.together for pair in matches_of(trials)), *self._against_target(scores))
        found = [(alpha, a, m) for lower, upper, a, m in counts if (
            alpha := self._known_alpha(lower, upper, bucket, row_id)) is not None]  # fmt: skip
        return sum(a - alpha * (a + m) for alpha, a, m in found) if found else -1.0

    def _known_alpha(self, lower: str, upper: str, bucket: int, row_id: int) -> float | None:
        if lower not in self._row_of or upper not in self._column_of:
            return None
        return self.alpha(lower, upper, bucket, row_id)

    def doubt(self, row_id: int, step: int) -> None:
        """The row's text has changed: of pairs not seen in the last steps neither its own counts nor the workload's
        say much any more."""
        found = self._rows.get(row_id)
        if found is not None:
            stale = found[1].matches.discount(0.25, step - FADE_EVERY)
            found[1].strength[stale] = OWN_STRENGTH

    def idle(self, bucket: int, step: int) -> list[int]:
        """Lower levels of which the target has verified nothing lately in this regime, longest ago first."""
        ages = step - self._shared(bucket).matches.last[:, -1]
        return [int(i) for i in np.argsort(-ages, kind="stable") if ages[i] > IDLE_STEPS]

    def known(self, bucket: int) -> dict[str, float]:
        """Choices of every lower level in this regime that were held against the target's, as far as they still count."""
        return dict(zip(self.lower, self._shared(bucket).matches.total[:, -1].tolist(), strict=True))

    def forget(self, row_id: int) -> None:
        """A row has finished: it has shown how far one is from the workload."""
        bucket, row = self._rows.pop(row_id, (0, None))
        if row is not None:
            self._spread[bucket].observe(row.matches, self._shared(bucket).matches)

    # ---------------------------------------------------------------- reading

    def alpha(self, lower: str, upper: str, bucket: int = 0, row_id: int | None = None) -> float:
        """The estimate for one pair: of the row if it is known, else of the workload."""
        cell = (self._row_of[lower], self._column_of[upper])
        found = self._rows.get(row_id) if row_id is not None else None
        return self._alpha(cell, bucket, found[1] if found is not None and found[0] == bucket else None)

    def _alpha(self, cell: tuple[int, int], bucket: int, own: _Row | None) -> float:
        mean, strength = (float(table[cell]) for table in self._priors[bucket])
        if cell[1] != len(self.models) - 1:
            pair = cell[0], cell[1] + self._num_lookups
            first, second = (self._target_alpha(level, bucket, own) for level in pair)
            mean = min(max(mean, first + second - 1), 1 - abs(first - second))  # `bounded`
        workload = self._workload.get(bucket)
        if workload is not None:
            counts = workload.matches
            mean = (float(counts.hits[cell]) + strength * mean) / (float(counts.total[cell]) + strength)
        if own is not None:
            counts = own.matches
            strength = float(own.strength[cell])
            mean = (float(counts.hits[cell]) + strength * mean) / (float(counts.total[cell]) + strength)
        return mean

    def _target_alpha(self, level: int, bucket: int, own: _Row | None) -> float:
        return self._alpha((level, len(self.models) - 1), bucket, own)

    def acceptance(self, rows: Sequence[tuple[int, int]], optimism: float = 0.0) -> Acceptance:
        """Arrays for a search over rows (row_id, regime), `optimism` standard errors above the estimates.

        Without optimism the estimates count as read: `moved` starts anew.
        """
        own = [self._evidence(*row) for row in rows]
        buckets = [bucket for _, bucket in rows]
        every = self._tables(buckets, own, optimism)
        if not optimism:
            self.moved = False
            for evidence, alpha in zip(own, every, strict=True):
                evidence.reported = alpha
        lengths = self._lookup_tables(buckets, own)
        pairs = mean_of(every)
        shared = {bucket: (self._tilts(bucket), self._agreement[bucket].rates(pairs)) for bucket in set(buckets)}
        tilts, agreed = _stacked([shared[bucket] for bucket in buckets])
        return Acceptance(
            pairs=pairs,
            target=every[:, :, -1],
            pair_tilts=mean_of(tilts),
            target_tilts=tilts[:, :, :, -1].swapaxes(0, 1),
            hits=lengths[:, :, 0],
            stays=lengths[:, :, 1],
            agreed=mean_of(agreed),
        )

    def _tilts(self, bucket: int) -> Array:
        """[2, L, M]: how far the first token of a proposal, and the others, are from all of them, shrunk towards 0."""
        workload = self._workload.get(bucket)
        if workload is None:
            return np.zeros((2, *self._shape))
        places = self._places[bucket]
        together = workload.matches.hits / np.maximum(workload.matches.total, 1e-9)
        tilts: Array = (places.hits - places.total * together) / (places.total + TILT_STRENGTH)
        return tilts

    def _tables(self, buckets: Sequence[int], own: Sequence[_Row], optimism: float) -> Array:
        """[R, L, M] shrunk estimates: rows towards the workload towards the prior."""
        prior, strength = _stacked([self._priors[bucket] for bucket in buckets])
        hits, total = _stacked([self._counted(bucket) for bucket in buckets])
        own_hits, own_total, own_strength = _stacked([(e.matches.hits, e.matches.total, e.strength) for e in own])
        known = total + strength

        def shrunk(prior: Array) -> Array:
            workload = (hits + strength * prior) / known
            return (own_hits + own_strength * workload) / (own_total + own_strength)

        mean = shrunk(prior)
        met = mean.copy()
        met[:, :, :-1] = bounded(prior[:, :, :-1], mean[:, :, -1:], mean[:, None, self._num_lookups :, -1])
        met[:, :, -1] = prior[:, :, -1]
        mean = shrunk(met)
        if optimism:
            rate = np.clip(mean, 0.1, 0.9)
            weight = own_total + np.minimum(known, SHARED_WEIGHT * own_strength)
            mean = mean + optimism * np.sqrt(rate * (1 - rate) / (weight + 1))
        return _clipped(mean)

    def _counted(self, bucket: int) -> tuple[Array, Array]:
        """[L, M] hits and trials of the workload."""
        workload = self._workload.get(bucket)
        if workload is None:
            nothing = np.zeros(self._shape)
            return nothing, nothing
        return workload.matches.hits, workload.matches.total

    def _lookup_tables(self, buckets: Sequence[int], own: Sequence[_Row]) -> Array:
        """[R, P, 2] chances to propose and to go on."""
        mean = {}
        for bucket in set(buckets):
            mean[bucket] = self._lookup_prior
            if (workload := self._workload.get(bucket)) is not None:
                counts = workload.lookups
                mean[bucket] = (counts.hits + DEFAULT_STRENGTH * self._lookup_prior) / (counts.total + DEFAULT_STRENGTH)
        hits, total, shared = _stacked(
            [(e.lookups.hits, e.lookups.total, mean[bucket]) for e, bucket in zip(own, buckets, strict=True)]
        )
        return (hits + LOOKUP_STRENGTH * shared) / (total + LOOKUP_STRENGTH)


def _stacked(tables: Sequence[tuple[Array, ...]]) -> tuple[Array, ...]:
    """Of R tuples of arrays, each of them as one array of R, or of one for all: read-only."""
    return tuple(
        some[0][None] if all(each is some[0] for each in some) else np.array(some) for some in zip(*tables, strict=True)
    )
