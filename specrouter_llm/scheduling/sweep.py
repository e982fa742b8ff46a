"""Random simulated pools, what calibration would say of them, and the best static chain of each, found by trying."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence

from specrouter_llm.scheduling.latency import GRID, LatencyModel
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import FixedPolicy
from specrouter_llm.scheduling.simulation import (
    SimulatedLookup,
    SimulatedModel,
    SimulatedPool,
    SimulatedRow,
    Simulator,
)

Rows = Callable[[], list[SimulatedRow]]
WINDOWS = (1, 2, 3, 4, 6, 8, 12, 16)


def requests(count: int, tokens: int = 400, hardness: Sequence[float] = (1.0,)) -> list[SimulatedRow]:
    """Requests of 64 prompt tokens, one after the other harder or easier."""
    return [SimulatedRow(i, 64, tokens, hardness=hardness[i % len(hardness)]) for i in range(count)]


def random_pool(rng: random.Random, size: int, lookup: bool) -> SimulatedPool:
    """A target of 50 ms and drafters of 1 % to 63 % of that; dearer ones tend to be better, not always."""
    target = 0.05
    each = rng.uniform(0.005, 0.15)
    models = {}
    for i, first in enumerate(sorted(target * 10 ** rng.uniform(-2, -0.2) for _ in range(size - 1))):
        quality = 0.45 + 0.25 * (math.log10(first / target) + 2) + rng.gauss(0, 0.12)
        models[f"m{i}"] = SimulatedModel(first, first * each, min(0.97, max(0.2, quality)), rng.uniform(0.2, 0.9))
    models["target"] = SimulatedModel(target, target * rng.uniform(0.005, 0.12))
    found = SimulatedLookup(rng.uniform(0.1, 0.9), rng.uniform(0.7, 0.95), rng.uniform(0.4, 0.95))
    return SimulatedPool(models, {"ngram": found} if lookup else {}, overhead=target * rng.uniform(0.005, 0.05))


def calibration(pool: SimulatedPool) -> LatencyModel:
    """What a calibration run measures."""
    samples = {
        name: [(n, c, model.seconds(n, c)) for n in GRID for c in (128, 1024)] for name, model in pool.models.items()
    }
    return LatencyModel.fit(samples, pool.overhead)


def simscores(pool: SimulatedPool, rng: random.Random, spread: float) -> dict[tuple[str, str], float]:
    """Priors of all pairs that are off by `spread` standard deviations of one trial (0.07: counted over 200 trials)."""
    names = [*pool.lookups, *pool.models]
    scores = {}
    for i, lower in enumerate(names):
        for upper in names[i + 1 :]:
            if upper in pool.models:
                match = pool.match(lower, upper, 500)
                noisy = match + rng.gauss(0, spread * math.sqrt(match * (1 - match)))
                scores[lower, upper] = min(0.98, max(0.05, noisy))
    return scores


def static_plans(pool: SimulatedPool, rng: random.Random, limit: int) -> list[Plan]:
    """All chains of up to 2 levels with all windows of `WINDOWS`; longer ones with a grid, at most `limit` of a kind."""
    target, lookups, drafters = pool.target, list(pool.lookups), list(pool.models)[:-1]
    plans = [Plan((target,))]
    plans += [Plan.chain([name, target], [w]) for name in (*lookups, *drafters) for w in WINDOWS]
    three, four = [], []
    for low, high in itertools.combinations((*lookups, *drafters), 2):
        if high in drafters:
            grid = itertools.product(WINDOWS[:6], WINDOWS[1:])
            three += [Plan.chain([low, high, target], [v, w]) for v, w in grid if w > v]
    for chain in itertools.combinations((*lookups, *drafters), 3):
        if chain[1] in drafters:
            grid4 = itertools.product((2, 4), (3, 6, 8), (4, 8, 16))
            four += [
                Plan.chain([*chain, target], windows) for windows in grid4 if sorted(set(windows)) == list(windows)
            ]
    rng.shuffle(three)
    rng.shuffle(four)
    return plans + three[:limit] + four[: limit // 3]


def pace(pool: SimulatedPool, plan: Plan, rows: Rows, slots: int, tokens: int) -> float:
    """Seconds per token of one plan for all rows."""
    return Simulator(pool, rows(), slots=slots, noise=0.0).run(FixedPolicy(plan), tokens)


def best_static(pool: SimulatedPool, rows: Rows, slots: int, tokens: int, plans: Sequence[Plan]) -> tuple[float, Plan]:
    """The fastest plan: all of them over a few tokens, a quarter over more, the best over all."""
    left = list(plans)
    for share, length in ((6, tokens // 20), (3, tokens // 6)):
        order = sorted(left, key=lambda plan: pace(pool, plan, rows, slots, max(length, 100)))
        left = order[: max(8, len(order) // share)]
    return min(((pace(pool, plan, rows, slots, tokens), plan) for plan in left[:10]), key=lambda found: found[0])
