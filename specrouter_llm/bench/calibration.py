"""`specrouter bench calibration`: does the scheduler's arithmetic predict what happens?

A target is drafted for by models whose weights carry growing noise, so that similarity falls step by step. After some
tokens of one chain its acceptance is estimated, once for all. With it, and with latencies that go on following the
machine, the time per token of every further answer is predicted before it is run, with the same window and with others.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from rich.table import Table

from specrouter_llm.bench.engines import calibrated_engine
from specrouter_llm.bench.models import Models, encode
from specrouter_llm.bench.plots import new_figure, save_figure
from specrouter_llm.bench.texts import TextPrompt
from specrouter_llm.bench.trials import TrialRecorder
from specrouter_llm.config import ModelSpec
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.pool.pool import ModelPool, PoolMember
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.scheduling.estimates import Costs, Estimates
from specrouter_llm.scheduling.latency import LatencyModel
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import StepObservation
from specrouter_llm.scheduling.pricing import price
from specrouter_llm.scheduling.similarity import Similarity, regime

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOISE = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.8)
"""Standard deviations of the noise, as parts of each matrix's own."""
LEARN_TOKENS = 200
WINDOW = 4
"""Of the chain that the estimates are learnt from."""
WINDOWS = (0, 2, 4, 8)
"""Of the chains that are predicted; 0 is plain decoding."""
CALIBRATION_SECONDS = 0.5


class Scheduler:
    """The scheduler's estimators without its decisions: learns acceptance from every step until that is frozen."""

    def __init__(self, names: tuple[str, str], latency: LatencyModel, temperature: float) -> None:
        self._names = names
        self._latency = latency
        self._similarity = Similarity(names)
        self._regime = regime(temperature)
        self._steps = 0
        self.frozen = False

    def observe(self, step: StepObservation) -> None:
        """As the adaptive policy does."""
        self._steps += 1
        for forward in step.forwards:
            self._latency.observe(forward)
        self._latency.observe_overhead(step)
        if self.frozen:
            return
        for row in step.rows:
            self._similarity.observe(row.row_id, self._regime, row.trials, self._steps, row.scores)

    @property
    def acceptance(self) -> float:
        """Expected of a request that has not begun."""
        return self._similarity.alpha(*self._names, self._regime)

    def seconds_per_token(self, plan: Plan, context: int) -> float:
        """Expected of one row."""
        self._latency.settle()
        lower = self._similarity.lower
        estimates = Estimates(
            lower=lower,
            num_lookups=0,
            target=self._names[1],
            num_rows=1,
            acceptance=self._similarity.acceptance([(-1, self._regime)]),
            costs=Costs.of(self._latency, lower, 0, self._names[1], 1, context),
            overhead=self._latency.overhead.seconds(drafted=True),
            plain_overhead=self._latency.overhead.seconds(drafted=False),
            catch_up=np.zeros(len(lower)),
            blocked=np.zeros((1, len(lower))),
        )
        tokens, seconds = price([plan], estimates)
        return seconds / tokens


def measure(
    models: Models,
    texts: Sequence[TextPrompt],
    *,
    noise: Sequence[float] = NOISE,
    windows: Sequence[int] = WINDOWS,
    tokens: int = 400,
    learn: int = LEARN_TOKENS,
    max_tokens: int = 64,
    temperature: float = 0.0,
    seed: int = 0,
    advance: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """One row per drafter and noise: `learn` tokens, then `tokens` for each window, in answers of `max_tokens`.

    Raises:
        InvalidParameterError: no answer, or no prompt with its answer, would ever give a token that counts.
    """
    _check(windows, tokens, max_tokens)
    with models.engine(max_batch=1) as engine:
        encoded = [encode(engine, text) for text in texts]
        prompts = [ids for ids in encoded if len(ids) + max_tokens <= engine.max_context]
        if not prompts:
            raise InvalidParameterError(
                f"no prompt leaves {max_tokens} of the context's {engine.max_context} tokens free"
            )
    pool = models.pool()
    params = SamplingParams(temperature=temperature, max_tokens=max_tokens, ignore_eos=True)
    rows = []
    for base in (*pool.drafts, pool.target):
        for level in noise:
            with _perturbed(pool.target, base, level, temperature, seed) as (engine, recorder, scheduler):
                supply = itertools.cycle(prompts)
                recorder.use(_plan(WINDOW))
                while recorder.tokens < learn:
                    engine.generate([next(supply)], params)[0].raise_for_error()
                scheduler.frozen = True
                row = _compare(engine, recorder, scheduler, supply, windows, tokens, params)
            rows.append({"drafter": base.label, "noise": level, "temperature": temperature, **row})
            advance(f"{base.label}, noise {level:g}")
    pool.close()
    return rows


def _check(windows: Sequence[int], tokens: int, max_tokens: int) -> None:
    """Only typical steps count (see `TrialRecorder`): behind the two that take in the prompt, of which the second may
    commit a whole proposal and a token, there has to be more left than a proposal is long."""
    widest = max((WINDOW, *windows))
    least = 2 * widest + 3
    if max_tokens < least:
        raise InvalidParameterError(
            f"answers of {max_tokens} tokens are too short to be timed with a window of {widest}: at least {least} are needed"
        )
    if tokens < 1:
        raise InvalidParameterError(f"at least 1 token must be run for each prediction, got {tokens}")


@contextmanager
def _perturbed(
    target: PoolMember, base: PoolMember, noise: float, temperature: float, seed: int
) -> Iterator[tuple[SpecRouter, TrialRecorder, Scheduler]]:
    """An engine of the target and a copy of `base` with noise on its weights, its recorder, and calibrated estimators."""
    draft = ModelSpec(noisy(base.model, noise, seed), name="drafter", tokenizer=base.tokenizer)
    whole = ModelSpec(target.model, name="target", tokenizer=target.tokenizer)
    pool = ModelPool.load(whole, [draft], max_batch=1, progress=False)
    schedulers: list[Scheduler] = []
    recorder = TrialRecorder(Plan(("target",)), lambda step: schedulers[0].observe(step))

    def policy(names: Sequence[str], lookups: Sequence[str], latency: LatencyModel) -> TrialRecorder:
        schedulers.append(Scheduler(("drafter", "target"), latency, temperature))
        return recorder

    with calibrated_engine(pool, policy, seconds=CALIBRATION_SECONDS, proposers=[]) as engine:
        yield engine, recorder, schedulers[0]


def noisy(model: PreTrainedModel, noise: float, seed: int) -> PreTrainedModel:
    """A copy with Gaussian noise on every matrix, in parts of the matrix's own standard deviation."""
    changed = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in changed.parameters():
            if parameter.dim() > 1:
                spread = torch.randn(parameter.shape, generator=generator).to(parameter)
                parameter.add_(spread * (noise * parameter.std()))
    return changed


def _compare(
    engine: SpecRouter,
    recorder: TrialRecorder,
    scheduler: Scheduler,
    prompts: Iterator[list[int]],
    windows: Sequence[int],
    tokens: int,
    params: SamplingParams,
) -> dict[str, Any]:
    """Predicts from what was learnt, and runs what was predicted."""
    learnt = recorder.total(("drafter", "target"))
    predicted = scheduler.acceptance
    accepted = tested = 0
    sums = {window: [0.0, 0.0, 0.0] for window in windows}  # tokens, seconds, seconds expected
    while any(count < tokens for count, _, _ in sums.values()):
        prompt = next(prompts)  # the same text for all windows
        for window, found in sums.items():
            expected = scheduler.seconds_per_token(_plan(window), len(prompt) + params.max_tokens // 2)
            recorder.use(_plan(window))
            engine.generate([prompt], params)[0].raise_for_error()
            count = recorder.total(("drafter", "target"))
            accepted, tested = accepted + count.accepted, tested + count.accepted + count.rejections
            for i, value in enumerate((recorder.tokens, recorder.seconds, expected * recorder.tokens)):
                found[i] += value
    times = [
        {
            "window": window,
            "predicted": expected / count,
            "observed": seconds / count,
            "relative_error": expected / seconds - 1,
        }
        for window, (count, seconds, expected) in sums.items()
    ]
    observed = accepted / tested if tested else float("nan")
    return {
        "learnt_trials": learnt.accepted + learnt.rejections,
        "predicted_acceptance": predicted,
        "observed_acceptance": observed,
        "error": predicted - observed,
        "accepted_over_proposed_while_learning": learnt.accepted / max(1, learnt.proposed),
        "seconds_per_token": times,
    }


def _plan(window: int) -> Plan:
    return Plan.chain(["drafter", "target"], [window]) if window else Plan(("target",))


def summary(rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Mean absolute errors over all rows, of acceptance and (relative) of time per token."""
    times = [abs(entry["relative_error"]) for row in rows for entry in row["seconds_per_token"]]
    return {
        "acceptance_error": sum(abs(row["error"]) for row in rows) / len(rows),
        "time_error": sum(times) / len(times),
        "largest_time_error": max(times),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for people."""
    total = summary(rows)
    shown = Table(
        title="Predicted / observed; mean absolute error: acceptance "
        f"{total['acceptance_error']:.3f}, time per token {100 * total['time_error']:.1f} %"
    )
    for column in ("drafter", "noise", "acceptance", "accepted/drafted", "ms per token, by window (0 is plain)"):
        shown.add_column(column, justify="left" if column == "drafter" else "right")
    for row in rows:
        times = "  ".join(
            f"{t['window']}: {1e3 * t['predicted']:.2f}/{1e3 * t['observed']:.2f}" for t in row["seconds_per_token"]
        )
        shown.add_row(
            row["drafter"],
            f"{row['noise']:g}",
            f"{row['predicted_acceptance']:.3f}/{row['observed_acceptance']:.3f}",
            f"{row['accepted_over_proposed_while_learning']:.3f}",
            times,
        )
    return shown


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Predicted against observed: acceptance and time per token."""
    figure = new_figure(9, 4.5)
    left, right = figure.subplots(1, 2)
    for label in dict.fromkeys(row["drafter"] for row in rows):
        mine = [row for row in rows if row["drafter"] == label]
        left.scatter([r["observed_acceptance"] for r in mine], [r["predicted_acceptance"] for r in mine], label=label)
        left.scatter(
            [r["observed_acceptance"] for r in mine],
            [r["accepted_over_proposed_while_learning"] for r in mine],
            marker="x",
            s=18,
            color="grey",
        )
        times = [entry for row in mine for entry in row["seconds_per_token"]]
        right.scatter([1e3 * t["observed"] for t in times], [1e3 * t["predicted"] for t in times], s=18, label=label)
    left.set(xlabel="observed acceptance", ylabel="predicted acceptance", title="Acceptance")
    left.plot([], [], "x", color="grey", label="accepted / drafted")
    right.set(xlabel="observed ms per token", ylabel="predicted ms per token", title="Time per token")
    for axes, slack in ((left, 0.05), (right, 0.0)):
        top = max(axes.get_xlim()[1], axes.get_ylim()[1])
        line = np.array([0.0, top])
        low, high = (line - slack, line + slack) if slack else (0.9 * line, 1.1 * line)
        axes.plot(line, line, color="black", linewidth=0.8)
        axes.fill_between(line, low, high, color="black", alpha=0.08)
        axes.legend(fontsize="small")
    save_figure(figure, path)
