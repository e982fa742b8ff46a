"""`specrouter bench match`: how often the levels' choices agree on the target's own samples, and what could be reached.

The target answers every prompt; every model is then run once over each answer, and its distributions and choices at all
positions are compared pairwise. The noise is that of the answer's own seed, so the target's choices are the answer.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from specrouter_llm.bench.bootstrap import Interval, ratio_of_sums
from specrouter_llm.bench.coupling import joint_match, overlap, path_acceptance, tokens_per_cycle
from specrouter_llm.bench.models import Models, completions_of, encode
from specrouter_llm.bench.texts import TextPrompt
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.pool.pool import PoolMember
from specrouter_llm.sampling.choice import Segment, choose, processed
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import RowSampler

WINDOWS = (4, 8)


@dataclass(frozen=True, slots=True)
class Answer:
    """What the target said to one prompt."""

    prompt_ids: list[int]
    token_ids: list[int]
    seed: int

    def segment(self, params: SamplingParams) -> Segment:
        """All of its choices."""
        sampler = RowSampler(params, seed=self.seed, prompt_ids=self.prompt_ids)
        return Segment(sampler, len(self.prompt_ids), self.token_ids[:-1], len(self.token_ids))


@dataclass(slots=True)
class Tally:
    """Sums of one pair of models at one temperature, one entry per prompt."""

    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.sums.setdefault(name, []).append(value)

    def mean(self, name: str, count: str = "positions") -> Interval:
        return ratio_of_sums(self.sums[name], self.sums[count])

    def total(self, name: str) -> int:
        return round(sum(self.sums[name]))


def measure(
    models: Models,
    texts: Sequence[TextPrompt | list[int]],
    *,
    temperatures: Sequence[float] = (0.0, 0.7, 1.0),
    max_tokens: int = 64,
    seed: int = 0,
    batch: int = 8,
    advance: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """One row per temperature and pair of models; `advance` is called after each piece of work."""
    answers: dict[float, list[Answer]] = {}
    with models.engine(max_batch=batch) as engine:
        prompts = [encode(engine, text) for text in texts]
        for temperature in temperatures:
            params = SamplingParams(temperature=temperature, max_tokens=max_tokens)
            answers[temperature] = answers_of(engine, prompts, params, seed)
            advance(f"answers at T = {temperature:g}")
    rows: list[dict[str, Any]] = []
    pool = models.pool()
    members = sorted(pool.members.values(), key=lambda member: (member is pool.target, member.num_parameters))
    for temperature in temperatures:
        tallies: dict[tuple[str, str], Tally] = {}
        for answer in answers[temperature]:
            _score(members, answer, temperature, tallies)
            advance(f"forwards at T = {temperature:g}")
        for pair, tally in tallies.items():
            rows.append(_row(temperature, pair, tally, len(answers[temperature])))
    pool.close()
    return rows


def answers_of(engine: SpecRouter, prompts: Sequence[list[int]], params: SamplingParams, seed: int) -> list[Answer]:
    """The target's answers, each with noise of its own."""
    completions = completions_of(engine, prompts, params, seed)
    return [Answer(ids, list(c.token_ids), c.seed) for ids, c in zip(prompts, completions, strict=True)]


def _score(
    members: Sequence[PoolMember], answer: Answer, temperature: float, tallies: dict[tuple[str, str], Tally]
) -> None:
    """Adds one answer to the tallies of all pairs."""
    segment = answer.segment(SamplingParams(temperature=temperature))
    width = members[-1].vocab_size
    probs: dict[str, Tensor] = {}
    choices: dict[str, Tensor] = {}
    best: dict[str, Tensor] = {}
    for member in members:
        logits = fitted(teacher_forced(member, answer), width)
        probs[member.name] = processed(logits, segment).softmax(dim=-1)
        chosen = choose(logits, [segment])[0]
        assert chosen is not None, f"{member.name} gave logits that are not finite"
        choices[member.name] = torch.tensor(chosen)
        best[member.name] = logits.argmax(dim=-1)
    path = torch.tensor(answer.token_ids)
    for lower, upper in itertools.combinations([member.name for member in members], 2):
        agreement = overlap(probs[upper], probs[lower])
        values = {
            "positions": float(len(path)),
            "one_minus_tv": float(agreement.sum()),
            "lower_bound": float((agreement / (2 - agreement)).sum()),
            "observed_match": float((choices[upper] == choices[lower]).sum()),
            "argmax_agreement": float((best[upper] == best[lower]).sum()),
            "reproduced": float((choices[members[-1].name] == path).sum()),
        }
        if temperature > 0:
            values["expected_match"] = float(joint_match(probs[upper], probs[lower]).sum())
        if upper == members[-1].name:
            values |= _cycles(probs[upper], probs[lower], choices[lower], path, temperature)
        tallies.setdefault((lower, upper), Tally()).add(values)


def _cycles(upper: Tensor, lower: Tensor, drafted: Tensor, path: Tensor, temperature: float) -> dict[str, float]:
    """Tokens per cycle of a chain of this pair along the target's path; greedy has one rule only."""
    if temperature > 0:
        keyed, rejection = path_acceptance(upper, lower, path)
        kinds = {"keyed": keyed, "rejection": rejection}
    else:
        kinds = {"keyed": (drafted == path).to(torch.float64)}
    values: dict[str, float] = {}
    for window in WINDOWS:
        for kind, acceptance in kinds.items():
            values[f"cycle_{kind}_{window}"], starts = tokens_per_cycle(acceptance, window)
            values[f"starts_{window}"] = float(starts)
    return values


def teacher_forced(member: PoolMember, answer: Answer) -> Tensor:
    """Logits [n, V] of one model before each of an answer's n tokens, in one forward of transformers."""
    ids = [*answer.prompt_ids, *answer.token_ids[:-1]]
    with torch.inference_mode():
        output = member.model(input_ids=torch.tensor([ids], device=member.model.device), use_cache=False)
        logits: Tensor = output.logits[0, len(answer.prompt_ids) - 1 :].cpu()
    return logits if logits.dtype == torch.float64 else logits.float()


def fitted(logits: Tensor, width: int) -> Tensor:
    """The target's vocabulary: surplus ids are never proposed, missing ones cannot be."""
    missing = width - logits.shape[1]
    return torch.nn.functional.pad(logits, (0, missing), value=-torch.inf) if missing > 0 else logits[:, :width]


def _row(temperature: float, pair: tuple[str, str], tally: Tally, num_prompts: int) -> dict[str, Any]:
    rates = ("one_minus_tv", "lower_bound", "expected_match", "observed_match", "argmax_agreement")
    row: dict[str, Any] = {
        "temperature": temperature,
        "lower": pair[0],
        "upper": pair[1],
        "prompts": num_prompts,
        "positions": tally.total("positions"),
        "reproduced": tally.total("reproduced"),
        **{name: tally.mean(name).as_dict() for name in rates if name in tally.sums},
    }
    for window in WINDOWS:
        keyed, rejection = f"cycle_keyed_{window}", f"cycle_rejection_{window}"
        if not sum(tally.sums.get(f"starts_{window}", ())):
            continue
        cycle = {"keyed": tally.mean(keyed, f"starts_{window}").as_dict()}
        if rejection in tally.sums:
            cycle["rejection"] = tally.mean(rejection, f"starts_{window}").as_dict()
            cycle["keyed_over_rejection"] = tally.mean(keyed, rejection).as_dict()
        row[f"tokens_per_cycle_{window}"] = cycle
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for people."""
    shown = Table(title="Agreement of two levels on the target's samples (95 % bootstrap intervals by prompt)")
    for column in ("T", "pair", "positions", "(1-TV)/(1+TV)", "keyed match", "expected", "1-TV", "argmax"):
        shown.add_column(column, justify="left" if column == "pair" else "right")
    for row in rows:
        expected = row.get("expected_match")
        shown.add_row(
            f"{row['temperature']:g}",
            f"{row['lower']} > {row['upper']}",
            str(row["positions"]),
            f"{row['lower_bound']['value']:.3f}",
            str(Interval(**row["observed_match"])),
            str(Interval(**expected)) if expected else "-",
            str(Interval(**row["one_minus_tv"])),
            f"{row['argmax_agreement']['value']:.3f}",
        )
    return shown
