"""`specrouter bench acceptance`: what every level accepts of the level below, by workload.

Chains are forced, so every pair is counted. Beside accepted / proposed, which depends on the window, stands the match
rate accepted / (accepted + first rejections), which does not, and the optimum 1 - TV on the target's own text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from specrouter_llm.bench import match
from specrouter_llm.bench.bootstrap import Interval, ratio_of_sums
from specrouter_llm.bench.models import Models, completions_of, encode
from specrouter_llm.bench.plots import new_figure, reach, save_figure
from specrouter_llm.bench.texts import TextPrompt
from specrouter_llm.bench.trials import TrialRecorder
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.scheduling.plan import Plan

WINDOW, LOOKUP_WINDOW = 4, 8


def plans(levels: Sequence[str], num_lookups: int) -> list[Plan]:
    """Every lower level alone under the target, every drafter under every larger one, and all models in one chain."""
    lookups, models = levels[:num_lookups], levels[num_lookups:]
    *drafters, target = models
    found = [Plan.chain([name, target], [LOOKUP_WINDOW]) for name in lookups]
    found += [Plan.chain([name, target], [WINDOW]) for name in drafters]
    for i, middle in enumerate(drafters):
        found += [Plan.chain([lower, middle, target], [WINDOW // 2, WINDOW]) for lower in (*lookups, *drafters[:i])]
    if len(drafters) > 2:
        found.append(Plan.chain(models, [WINDOW // 2, *range(WINDOW, WINDOW + len(drafters) - 1)]))
    return found


def measure(
    models: Models,
    workloads: Mapping[str, Sequence[TextPrompt]],
    *,
    temperatures: Sequence[float] = (0.0, 1.0),
    max_tokens: int = 64,
    seed: int = 0,
    batch: int = 8,
    advance: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """One row per workload, temperature, chain and pair of neighbours in it."""
    rows: list[dict[str, Any]] = []
    recorder = TrialRecorder(Plan(("",)))
    with models.engine(max_batch=batch, policy=recorder) as engine:
        chains = plans(engine.levels, len(engine.levels) - len(engine.labels))
        for workload, texts in workloads.items():
            prompts = [encode(engine, text) for text in texts]
            for temperature in temperatures:
                params = SamplingParams(temperature=temperature, max_tokens=max_tokens)
                for plan in chains:
                    recorder.use(plan)
                    completions_of(engine, prompts, params, seed)
                    rows += _rows(workload, temperature, plan, recorder)
                    advance(f"{workload}, T = {temperature:g}, {' > '.join(plan.levels)}")
    for workload, texts in workloads.items():
        found = match.measure(models, texts, temperatures=temperatures, max_tokens=max_tokens, seed=seed, batch=batch)
        bounds = {(row["temperature"], row["lower"], row["upper"]): row["one_minus_tv"] for row in found}
        for row in rows:
            if row["workload"] == workload:
                row["one_minus_tv"] = bounds.get((row["temperature"], row["lower"], row["upper"]))
        advance(f"{workload}, 1 - TV")
    return rows


def _rows(workload: str, temperature: float, plan: Plan, recorder: TrialRecorder) -> list[dict[str, Any]]:
    """One row per pair of neighbours; a level that never proposed has none."""
    rows = []
    for lower, upper, window in zip(plan.levels, plan.levels[1:], plan.windows, strict=False):
        counts = [row[lower, upper] for row in recorder.rows.values() if (lower, upper) in row]
        accepted = [float(count.accepted) for count in counts]
        proposed = [float(count.proposed) for count in counts]
        tested = [float(count.accepted + count.rejections) for count in counts]
        if not counts:
            continue
        rows.append(
            {
                "workload": workload,
                "temperature": temperature,
                "chain": list(plan.levels),
                "windows": list(plan.windows),
                "lower": lower,
                "upper": upper,
                "window": window,
                "requests": len(counts),
                "proposed": int(sum(proposed)),
                "accepted": int(sum(accepted)),
                "first_rejections": int(sum(tested) - sum(accepted)),
                "accepted_over_proposed": ratio_of_sums(accepted, proposed).as_dict(),
                "match": ratio_of_sums(accepted, tested).as_dict(),
            }
        )
    return rows


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for people."""
    shown = Table(title="Acceptance by level (95 % bootstrap intervals by request)")
    columns = ("workload", "T", "chain [windows]", "pair", "accepted/proposed", "match, uncensored", "1-TV")
    for column in columns:
        shown.add_column(column, justify="left" if column in ("workload", "chain [windows]", "pair") else "right")
    for row in rows:
        bound = row.get("one_minus_tv")
        shown.add_row(
            row["workload"],
            f"{row['temperature']:g}",
            f"{' > '.join(row['chain'])} [{', '.join(map(str, row['windows']))}]",
            f"{row['lower']} > {row['upper']}",
            f"{row['accepted']}/{row['proposed']} = {row['accepted_over_proposed']['value']:.3f}",
            str(Interval(**row["match"])),
            str(Interval(**bound)) if bound else "-",
        )
    return shown


def plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The match rate of each pair against the optimum."""
    figure = new_figure(5.5, 5)
    axes = figure.subplots()
    found = [row for row in rows if row.get("one_minus_tv")]
    for pair in dict.fromkeys((row["lower"], row["upper"]) for row in found):
        mine = [row for row in found if (row["lower"], row["upper"]) == pair]
        values = [row["match"] for row in mine]
        axes.errorbar(
            [row["one_minus_tv"]["value"] for row in mine],
            [value["value"] for value in values],
            yerr=reach(values),
            fmt="o",
            capsize=2,
            label=" > ".join(pair),
        )
    axes.plot([0, 1], [0, 1], color="black", linewidth=0.8)
    axes.set(xlabel="1 - TV on the target's text", ylabel="match rate", xlim=(0, 1), ylim=(0, 1))
    axes.legend(fontsize="small")
    save_figure(figure, path)
