"""`specrouter bench rejection`: what a middle level spares the target (early rejection), in counts.

Chains of two and three levels are run at the same number of tokens offered to the target. Everything reported is a count
of tokens and forwards, so the machine's speed does not enter, and a widened model gives the counts of the original.

A middle level runs one round of verification before it offers what it has, or as many rounds as it takes to fill its
window ("filled"): its tokens are then exactly those that it would have drafted alone, one forward a token.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from specrouter_llm.bench.bootstrap import Interval, ratio_of_sums
from specrouter_llm.bench.identity import Comparison
from specrouter_llm.bench.models import Models, completions_of, encode
from specrouter_llm.bench.texts import TextPrompt
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import RowView, StepObservation
from specrouter_llm.types import Completion

OFFERS = (4, 8)


@dataclass(frozen=True, slots=True)
class Variant:
    """One chain at one number of tokens offered to the target."""

    offered: int
    plan: Plan
    filled: bool = False

    @property
    def label(self) -> str:
        windows = ", ".join(map(str, self.plan.windows))
        return f"{' > '.join(self.plan.levels)} [{windows}]{' filled' if self.filled else ''}"


class CountingPolicy:
    """The same plan for every row, and counts of the forwards of each level: one of three rows counts three times."""

    def __init__(self, plan: Plan) -> None:
        self.use(plan)

    def use(self, plan: Plan) -> None:
        """Another plan from now on, with counts of its own."""
        self._plan = plan
        self.forwards: Counter[str] = Counter()

    def plan(self, rows: Sequence[RowView]) -> Sequence[Plan]:
        return [self._plan] * len(rows)

    def observe(self, step: StepObservation) -> None:
        for forward in step.forwards:
            self.forwards[forward.level] += forward.num_rows * forward.turns


def variants(models: Sequence[str], offers: Sequence[int]) -> list[Variant]:
    """Plain two-level chains, and every drafter below every larger one, for each number of offered tokens.

    `models` are ordered from the smallest drafter to the target.
    """
    *drafters, target = models
    found = []
    for offered in offers:
        found += [Variant(offered, Plan.chain([name, target], [offered])) for name in drafters]
        for i, lower in enumerate(drafters):
            for middle in drafters[i + 1 :]:
                levels = (lower, middle, target)
                for window in sorted({offered // 2, offered - 1}):
                    found.append(Variant(offered, Plan(levels, (window, offered), (window, 1, 1))))
                    found.append(Variant(offered, Plan(levels, (window, offered), (window, offered, 1)), filled=True))
    return found


def measure(
    models: Models,
    texts: Sequence[TextPrompt],
    *,
    temperatures: Sequence[float] = (0.0, 1.0),
    max_tokens: int = 64,
    seed: int = 0,
    batch: int = 8,
    offers: Sequence[int] = OFFERS,
    advance: Callable[[str], None] = lambda what: None,
) -> tuple[str, list[dict[str, Any]]]:
    """The target's label and one row per temperature and variant."""
    policy = CountingPolicy(Plan(("",)))
    rows = []
    with models.engine(max_batch=batch, policy=policy, proposers=[]) as engine:
        prompts = [encode(engine, text) for text in texts]
        for temperature in temperatures:
            params = SamplingParams(temperature=temperature, max_tokens=max_tokens)
            policy.use(Plan((engine.target,)))
            plain = _answers(engine, prompts, params, seed)
            advance(f"T = {temperature:g}, plain decoding")
            for variant in variants(engine.levels, offers):
                policy.use(variant.plan)
                answers = _answers(engine, prompts, params, seed)
                comparison = Comparison()
                for prompt, expected, answer in zip(prompts, plain, answers, strict=True):
                    comparison.add(engine, prompt, params, expected, answer.token_ids)
                rows.append(_row(temperature, variant, answers, policy, comparison))
                advance(f"T = {temperature:g}, {variant.label}")
        return engine.labels[engine.target], rows


def _answers(engine: SpecRouter, prompts: Sequence[list[int]], params: SamplingParams, seed: int) -> list[Completion]:
    """The completions, once the policy has seen all of their steps."""
    answers = completions_of(engine, prompts, params, seed)
    engine.target_logits(prompts[0])  # answered between two steps
    return answers


def _row(
    temperature: float,
    variant: Variant,
    answers: Sequence[Completion],
    policy: CountingPolicy,
    comparison: Comparison,
) -> dict[str, Any]:
    levels = variant.plan.levels
    stats = [answer.stats for answer in answers]
    steps = [float(s.num_target_steps) for s in stats]
    tokens = [float(s.num_committed_tokens) for s in stats]
    committed = sum(tokens)
    stages: dict[str, Any] = {}
    for lower, upper in itertools.pairwise(levels):
        mine = [next((stage for stage in s.chain if stage.model == lower), None) for s in stats]
        proposed = [float(stage.proposed) if stage else 0.0 for stage in mine]
        accepted = [float(stage.accepted) if stage else 0.0 for stage in mine]
        stages[f"{lower} > {upper}"] = {
            "proposed": int(sum(proposed)),
            "accepted": int(sum(accepted)),
            "rate": ratio_of_sums(accepted, proposed).as_dict(),
        }
    return {
        "temperature": temperature,
        "chain": list(levels),
        "windows": list(variant.plan.windows),
        "rounds": list(variant.plan.rounds),
        "filled": variant.filled,
        "label": variant.label,
        "offered": variant.offered,
        "prompts": len(answers),
        "committed": int(committed),
        "target_steps": int(sum(steps)),
        "target_forwards_per_token": ratio_of_sums(steps, tokens).as_dict(),
        "tokens_per_target_step": ratio_of_sums(tokens, steps).as_dict(),
        "forwards_per_token": {name: round(policy.forwards[name] / committed, 4) for name in levels},
        "target_rejected_per_token": _rejected(stages[f"{levels[-2]} > {levels[-1]}"], committed),
        "stages": stages,
        **asdict(comparison),
    }


def _rejected(stage: Mapping[str, Any], committed: float) -> float:
    rejected: int = stage["proposed"] - stage["accepted"]
    return round(rejected / committed, 4)


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for people."""
    shown = Table(title="Early rejection: counts per committed token")
    for column in ("T", "chain [windows]", "tokens/target step", "forwards per token", "accepted", "same/near/diff"):
        shown.add_column(column, justify="left" if column == "chain [windows]" else "right")
    for row in rows:
        shown.add_row(
            f"{row['temperature']:g}",
            row["label"],
            str(Interval(**row["tokens_per_target_step"])),
            " ".join(f"{count:.2f}" for count in row["forwards_per_token"].values()),
            " ".join(f"{stage['rate']['value']:.2f}" for stage in row["stages"].values()),
            f"{row['identical']}/{row['near_ties']}/{row['different']}",
        )
    return shown
