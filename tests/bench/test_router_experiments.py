"""The experiments about the router, each on a few tokens: its numbers must fit together."""

import itertools
import json
import math
import sys

import pytest

from specrouter_llm.bench import acceptance, calibration, memory, overhead
from specrouter_llm.bench.models import Models
from specrouter_llm.bench.trials import TrialRecorder
from specrouter_llm.errors import InvalidParameterError, RequestFailedError
from specrouter_llm.scheduling.adaptive import AdaptivePolicy
from specrouter_llm.scheduling.plan import Plan
from specrouter_llm.scheduling.policy import RowObservation, RowView, StepObservation, Trial
from specrouter_llm.testing import fake_engine

TARGET, MIDDLE, DRAFT = "demo/target", "demo/middle", "demo/draft"


def test_trials_are_counted_by_request_and_pair():
    """A full acceptance has no rejection; a request's first two steps, and its short last ones, give counts but no time."""
    plan = Plan.chain(["a", "t"], [4])
    recorder = TrialRecorder(plan)
    for row_id, remaining in ((1, 90), (1, 90), (2, 90), (2, 90)):
        assert recorder.plan([RowView(row_id, 10, remaining, 0.0)]) == [plan]
        recorder.observe(StepObservation((RowObservation(row_id, plan, (), 1, False),), (), 9.0))
    assert recorder.tokens == 0
    rows = (
        RowObservation(1, plan, (Trial("a", "t", 4, 4), Trial("a", "t", 4, 1)), 7, False),
        RowObservation(2, plan, (Trial("a", "t", 3, 0),), 1, False),
    )
    recorder.observe(StepObservation(rows, (), 0.5))
    recorder.plan([RowView(1, 10, 4, 0.0)])
    recorder.observe(StepObservation((RowObservation(1, plan, (), 1, False),), (), 9.0))
    recorder.plan([RowView(3, 10, 90, 0.0)])
    recorder.observe(StepObservation((RowObservation(3, Plan(("t",)), (), 1, False),), (), 9.0))
    total = recorder.total(("a", "t"))
    assert (total.proposed, total.accepted, total.rejections) == (11, 5, 2)
    assert total.rate == 5 / 7
    assert (recorder.tokens, recorder.seconds) == (8, 0.5)
    assert math.isnan(recorder.total(("b", "t")).rate)
    recorder.use(plan)
    assert recorder.total(("a", "t")).proposed == 0


def test_acceptance(models, texts, tmp_path):
    """Every pair of every chain, counts that add up, and a match rate below the optimum but for noise."""
    rows = acceptance.measure(models, {"some": texts[:2], "others": texts[2:]}, temperatures=[1.0], max_tokens=16)
    pairs = {tuple(row["chain"]): set() for row in rows}
    for row in rows:
        pairs[tuple(row["chain"])].add((row["lower"], row["upper"]))
        assert row["accepted"] + row["first_rejections"] <= row["proposed"]
        low, high = row["accepted_over_proposed"]["value"], row["match"]["value"]
        assert 0 <= low <= high <= 1
        if row["lower"] == "ngram":
            assert row["one_minus_tv"] is None
        else:
            assert 0 <= row["one_minus_tv"]["value"] <= 1
    assert {row["workload"] for row in rows} == {"some", "others"}
    for chain, found in pairs.items():
        if "ngram" not in chain:
            assert found == set(itertools.pairwise(chain))
    assert {(DRAFT, TARGET), (MIDDLE, TARGET), (DRAFT, MIDDLE, TARGET)} <= pairs.keys()
    json.dumps(rows)
    assert acceptance.table(rows).row_count == len(rows)
    acceptance.plot(rows, tmp_path / "acceptance.pdf")
    assert (tmp_path / "acceptance.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(("lookups", "models", "count"), [(0, 2, 1), (1, 2, 3), (1, 3, 6), (0, 4, 7)])
def test_every_pair_of_levels_is_in_a_chain(lookups, models, count):
    levels = [*(f"n{i}" for i in range(lookups)), *(f"m{i}" for i in range(models - 1)), "t"]
    found = acceptance.plans(levels, lookups)
    assert len(found) == len(set(found)) == count
    neighbours = {pair for plan in found for pair in itertools.pairwise(plan.levels)}
    assert neighbours == {(low, up) for i, low in enumerate(levels) for up in levels[max(i + 1, lookups) :]}


def test_calibration(texts, tmp_path, monkeypatch):
    """A perfect drafter is predicted to be one, noise lowers what is predicted and seen, and times are times."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(calibration, "CALIBRATION_SECONDS", 0.1)
    alone = Models(DRAFT, ())  # drafted for by its own noisy copies
    rows = calibration.measure(alone, texts, noise=[0.0, 1.0], windows=[0, 4], learn=60, tokens=30, max_tokens=24)
    assert [(row["drafter"], row["noise"]) for row in rows] == [(DRAFT, 0.0), (DRAFT, 1.0)]
    same, ruined = rows
    assert same["observed_acceptance"] == 1.0
    assert same["predicted_acceptance"] > 0.97
    assert ruined["observed_acceptance"] < 0.5
    assert ruined["predicted_acceptance"] < 0.6
    for row in rows:
        assert row["learnt_trials"] > 20
        assert row["accepted_over_proposed_while_learning"] <= row["predicted_acceptance"] + 0.1
        assert [entry["window"] for entry in row["seconds_per_token"]] == [0, 4]
        for entry in row["seconds_per_token"]:
            assert entry["observed"] > 0
            assert entry["relative_error"] == pytest.approx(entry["predicted"] / entry["observed"] - 1)
    json.dumps(rows)
    assert calibration.summary(rows)["acceptance_error"] < 0.3
    assert calibration.table(rows).row_count == len(rows)
    calibration.plot(rows, tmp_path / "new" / "calibration.png")
    assert (tmp_path / "new" / "calibration.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"max_tokens": 10, "windows": [0]}, "answers of 10 tokens .* a window of 4: at least 11"),
        ({"max_tokens": 18}, "a window of 8: at least 19"),
        ({"tokens": 0}, "at least 1 token must be run"),
    ],
)
def test_answers_that_never_count_are_refused(texts, options, words):
    """They would be run for ever. No model is loaded: there is none."""
    with pytest.raises(InvalidParameterError, match=words):
        calibration.measure(Models("no/such/model"), texts, **options)


def test_the_shortest_answers_that_count(texts, monkeypatch):
    """Even if the second step commits as much as it can; prompts that leave less room are passed over."""
    monkeypatch.setattr(calibration, "CALIBRATION_SECONDS", 0.1)
    alone = Models(DRAFT, ())
    (row,) = calibration.measure(alone, texts[:1], noise=[0.0], windows=[0, 4], learn=1, tokens=1, max_tokens=11)
    assert row["learnt_trials"] > 0
    with pytest.raises(InvalidParameterError, match="no prompt leaves 100000 of the context"):
        calibration.measure(alone, texts[:1], noise=[0.0], max_tokens=100_000)


def test_overhead_of_simulated_pools():
    """Parts add up to the whole, and routing saves more than it costs."""
    (row,) = overhead.measure_simulated([4], pools=1, tokens=400)
    assert row["plan_us"]["mean"] == pytest.approx(row["search_us"]["mean"] + row["decision_us"]["mean"], abs=0.02)
    assert 0 < row["search_us"]["percentile_99"] <= row["plan_us"]["percentile_99"]
    assert row["steps"] <= 400
    per_step = row["plan_us"]["mean"] + row["observe_us"]["mean"]
    assert row["scheduler_ms_per_request"] == pytest.approx(1e-3 * per_step * row["steps"], rel=0.01)
    assert row["saved_ms_per_request"] > row["scheduler_ms_per_request"]


def test_overhead_of_the_engine(models, texts, tmp_path):
    """Every way to decode is split into the same parts, which make up the whole."""
    rows = overhead.measure_engine(models, texts[:2], max_tokens=24, seconds=0.2)
    assert [row["way"] for row in rows] == ["adaptive", "plain", "one drafter"]
    for row in rows:
        assert row["tokens"] == 48
        assert sum(row["share"].values()) == pytest.approx(1.0)
        assert sum(row["us_per_step"].values()) == pytest.approx(1e3 * row["step_ms"])
        assert row["outside_forwards"] == pytest.approx(1 - row["share"]["forwards"])
        assert all(0 < row["share"][part] < 1 for part in ("forwards", "executor", "worker"))
    adaptive, plain, _ = rows
    assert plain["steps"] == 46
    assert plain["share"]["choose"] == plain["saved_ms_per_request"] == 0
    assert adaptive["share"]["choose"] > 0
    json.dumps(rows)
    rows += overhead.measure_simulated([2, 3], pools=1, tokens=50)
    overhead.table(rows)
    overhead.plot(rows, tmp_path / "overhead.png")
    assert (tmp_path / "overhead.png").stat().st_size > 1000


def test_memory_of_a_pool(texts, tmp_path):
    """A fresh process holds what was accounted for, and not more than its peak; a drafter may come twice."""
    pytest.importorskip("matplotlib")
    (row,) = memory.measure("demo", [DRAFT], texts, depths=[2], max_batch=2, max_tokens=8, steps=40)
    assert row["chain"] == [f"{DRAFT} #1", f"{DRAFT} #2", TARGET]
    assert row["accounted"] == row["weights"] + row["packed_copies"] + row["kernels"] + row["caches"]
    assert row["weights"] > 2 * 5_900_000
    assert 0.95 * row["accounted"] < row["resident"] <= row["peak"]
    assert row["growth"]["steps"] >= 40
    assert row["growth"]["rollbacks"] > 0
    samples = row["growth"]["samples"]
    assert len(samples) == memory.PERIODS
    assert row["growth"]["growth_steps"] == samples[-1]["steps"] - samples[2]["steps"] < row["growth"]["steps"]
    json.dumps(row)
    assert memory.table([row]).row_count == 1
    memory.plot([row], tmp_path / "memory.svg")
    assert "<svg" in (tmp_path / "memory.svg").read_text(encoding="utf-8")


def test_growth_is_told_over_the_steps_that_it_was_measured_in():
    """An older result, which does not say how many, has its samples."""
    samples = [{"steps": steps, "resident": 0, "objects": 0} for steps in (400, 800, 1210, 1600, 2003)]
    growth = {"steps": 2003, "rollbacks": 7, "resident_growth": 0, "object_growth": 3, "samples": samples}
    sizes = dict.fromkeys(("weights", "packed_copies", "kernels", "caches", "accounted", "resident", "peak"), 1)
    for each in (growth, growth | {"growth_steps": 793}):
        (told,) = memory.table([{"labels": ["a"], "growth": each, **sizes}]).columns[-1].cells
        assert "+3 objects in the last 793 of 2003 steps with 7 rollbacks" in told


def test_a_widened_family_may_have_a_drafter_twice():
    """A chain deeper than the family is long."""
    drafts = ["demo/middle", "demo/draft", "demo/middle"]
    target, *chain = memory.Task("demo", drafts, "150M", [], 1, 1, 0).sources()
    assert [spec.name for spec in chain] == ["demo/middle #1", "demo/draft #2", "demo/middle #3"]
    assert chain[0].widen == chain[2].widen
    assert target.widen.hidden_size > chain[0].widen.hidden_size


def test_a_failing_process_says_why(texts, tmp_path, monkeypatch):
    """The error carries the end of what the process wrote."""
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with pytest.raises(RequestFailedError, match="out of luck"):
        memory.measure("demo", None, texts, depths=[0])


SECONDS = {"ngram": 1e-5, "draft0": 1e-4, "draft1": 3e-4, "target": 3e-3}


class OnAQuietMachine(AdaptivePolicy):
    """Believes that a forward always takes its model's SECONDS: what it drafts does not depend on what else runs."""

    def observe(self, step):
        forwards = tuple(forward._replace(seconds=SECONDS[forward.level]) for forward in step.forwards)
        super().observe(step._replace(forwards=forwards, seconds=sum(forward.seconds for forward in forwards) + 1e-5))


@pytest.mark.parametrize("policy", ["fixed", "adaptive"])
def test_nothing_grows_over_1000_rollbacks(policy):
    """Rows, slots, caches and the scheduler's memory: as many objects at the end as in the middle."""
    models = ["draft0", "draft1", "target"]
    chosen = OnAQuietMachine(models, ["ngram"]) if policy == "adaptive" else None
    with fake_engine(max_batch=4, policy=chosen) as engine:
        options = {"max_tokens": 24, "ignore_eos": True}
        if chosen is None:
            options |= {"chain": models[:-1], "windows": [3, 5]}
        steps = 600 if policy == "fixed" else 1600
        grown = memory.run_long(engine, [[1, 2, 3], [4, 5], [6], [7, 8, 9, 1]], [options], steps)
    assert grown["rollbacks"] >= 1000
    assert abs(grown["object_growth"]) < 400


@pytest.mark.slow
def test_nothing_grows_over_10000_steps(models, texts):
    """The same on the embedded family with the adaptive policy; the process itself grows by kernels only."""
    with models.engine(max_batch=4, policy="adaptive") as engine:
        prompts = [engine.encode(text) for text in texts]
        grown = memory.run_long(engine, prompts, [{"max_tokens": 64, "ignore_eos": True}], 10_000)
    assert abs(grown["object_growth"]) < 1000
    # oneDNN keeps 0.6 MiB for every (matrix shape, number of rows) that it has not met before, 1024 of them at most
    assert grown["resident_growth"] < 64 * 2**20
