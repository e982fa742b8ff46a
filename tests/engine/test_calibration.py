"""Calibration: measured within its time, kept on disk, and refused where it does not fit."""

import json
import shutil
import time

import pytest
import torch

from specrouter_llm import SpecRouter
from specrouter_llm.config import ModelSpec
from specrouter_llm.engine import calibration
from specrouter_llm.engine.calibration import Calibration, measure, pool_runners
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.pool.pool import ModelPool
from specrouter_llm.pool.source import find_checkpoint
from specrouter_llm.scheduling.latency import GRID, LatencyModel
from specrouter_llm.testing import TableRunner


class SlowRunner(TableRunner):
    """Takes its time per token."""

    def __init__(self, name, seconds):
        super().__init__(name, torch.zeros(8, 8))
        self._seconds = seconds

    def forward(self, spans):
        time.sleep(self._seconds * sum(len(span.token_ids) for span in spans))
        return super().forward(spans)


@pytest.fixture
def pool():
    """The two smaller members of the embedded family."""
    return ModelPool.load("demo/middle", ["demo/draft"], max_batch=1, progress=False)


@pytest.fixture
def saved(pool, tmp_path):
    """A calibration of the pool on disk."""
    runners = pool_runners(pool, num_slots=1, pack=True)
    Calibration.of(pool, runners, seconds=0.2, rows=1, progress=False).save(tmp_path / "saved.json")
    return tmp_path / "saved.json"


def load(path, target="demo/middle", drafts=("demo/draft",), policy="adaptive", **options):
    return SpecRouter.from_pretrained(
        target, list(drafts), policy=policy, calibration=path, max_batch=1, progress=False, **options
    )


def test_a_quick_model_is_measured_at_every_point():
    samples = measure({"a": TableRunner("a", torch.zeros(8, 8))}, seconds=5.0, progress=False).forwards["a"]
    points = [(n, c + n) for n in GRID for c in ((64, 960) if n <= 16 else (64,))]
    assert points == [(n, c) for n, c, _ in samples]


def test_every_padded_size_is_measured():
    """Costs may jump from size to size; between those that are run there is nothing to measure."""
    runner = TableRunner("a", torch.zeros(8, 8))
    runner.token_sizes = (4, 12, 40, 48, 128)
    samples = measure({"a": runner}, seconds=5.0, progress=False).forwards["a"]
    assert {4, 12, 40, 48, 128} == {n for n, _, _ in samples}


def test_both_sides_of_a_pass_are_measured():
    """Between them the cost jumps; nothing beyond the grid is measured for it."""
    runner = TableRunner("a", torch.zeros(8, 8))
    for step, expected in ((11, {11, 12, 22, 23}), (40, {40, 41}), (0, set())):
        runner.token_step = step
        samples = measure({"a": runner}, seconds=5.0, progress=False).forwards["a"]
        assert expected | set(GRID) == {n for n, _, _ in samples}


def test_slow_models_share_the_time():
    """Whoever cannot be measured everywhere is measured at one token, and at the far end if there is time."""
    runners = {"slow": SlowRunner("slow", 0.02), "quick": SlowRunner("quick", 0.0)}
    started = time.perf_counter()
    samples = measure(runners, seconds=0.5, progress=False).forwards
    assert time.perf_counter() - started < 1.5
    assert {1, 8} >= {n for n, _, _ in samples["slow"]}
    assert {n for n, _, _ in samples["quick"]} == set(GRID)


class SlowToGrow(TableRunner):
    """Its first forward in a long context takes longer than there is time for all of them."""

    capacity = 512

    def forward(self, spans):
        if max(span.end for span in spans) > self.capacity:
            self.capacity = 1024
            time.sleep(0.6)
        return super().forward(spans)


def test_growing_a_cache_takes_nothing_from_what_is_measured():
    """Of this model and of those after it: all sizes are measured, none is guessed."""
    runners = {name: SlowToGrow(name, torch.zeros(8, 8)) for name in ("draft", "target")}
    samples = measure(runners, seconds=0.5, progress=False).forwards
    for name in runners:
        assert {n for n, _, _ in samples[name]} == set(GRID)
        assert max(seconds for _, _, seconds in samples[name]) < 0.1


class Looping(SlowRunner):
    """A forward takes long, a loop does not."""

    def loops(self, warp):
        return True

    def loop(self, spans, count, warp, keys):
        assert not warp.temperature
        return torch.zeros(len(spans), count, dtype=torch.long) if self.name != "strict" else None


def test_a_drafter_that_loops_is_timed_in_a_loop_too():
    """So it proposes where nothing is below it; the target, and who has no loop for a row, know forwards only."""
    runners = {name: Looping(name, 0.01) for name in ("draft", "strict", "target")}
    forwards, loops = measure(runners, seconds=3.0, progress=False)
    single = {name: min(seconds for tokens, _, seconds in rows if tokens == 1) for name, rows in forwards.items()}
    assert min(single.values()) > 0.005
    assert list(loops) == ["draft"]
    assert max(seconds for _, _, seconds in loops["draft"]) < 0.005


def test_loops_are_part_of_a_calibration(pool, tmp_path):
    """Saved and loaded, beside the forwards."""
    runners = {name: Looping(name, 0.01) for name in ("demo/draft", "demo/middle")}
    Calibration.of(pool, runners, seconds=0.5, rows=1, progress=False).save(tmp_path / "x.json")
    latency = Calibration.load(tmp_path / "x.json").latency
    assert latency.drafted("demo/draft") < 0.005 < latency.seconds("demo/draft", 1)
    assert latency.drafted("demo/middle") == latency.seconds("demo/middle", 1)


class RowByRow(TableRunner):
    """Every row takes a while of its own, whatever it holds."""

    def forward(self, spans):
        time.sleep(0.01 * len(spans))
        return super().forward(spans)


def test_a_row_has_a_price_of_its_own(pool):
    """A batch of rows costs more than one row of as many tokens by what the rows take."""
    runners = {name: RowByRow(name, torch.zeros(8, 8)) for name in ("demo/draft", "demo/middle")}
    latency = Calibration.of(pool, runners, seconds=0.5, rows=8, progress=False).latency
    alone, together = latency.seconds("demo/draft", 8, 500), latency.seconds("demo/draft", 8, 500, rows=8)
    assert together - alone == pytest.approx(7 * 0.01, rel=0.5)
    again = LatencyModel.from_json(latency.to_json())
    assert again.seconds("demo/draft", 8, 500, rows=8) == pytest.approx(together)


@pytest.mark.parametrize(("rows", "compared"), [(1, set()), (2, {2}), (8, {8}), (40, {16})])
def test_the_price_of_a_row_is_measured_on_as_many_as_there_may_be(pool, monkeypatch, rows, compared):
    """Four rows that seem to take a tenth longer than they do make eight seem to take a quarter longer."""
    timed, batches = calibration._timed, []
    monkeypatch.setattr(calibration, "_timed", lambda runner, spans: batches.append(len(spans)) or timed(runner, spans))
    runners = pool_runners(pool, num_slots=rows, pack=False)
    Calibration.of(pool, runners, seconds=0.3, rows=rows, progress=False)
    assert compared == set(batches) - {1}
    assert len(runners) * 2 <= len(batches) - batches.count(1) or rows == 1  # the first of each sets up


def test_sizes_are_those_of_the_runners(saved):
    """Which number of rows a matrix is padded to is decided anew at every load."""
    content = json.loads(saved.read_text())
    content["latency"]["curves"]["demo/draft"]["sizes"] = [64]
    saved.write_text(json.dumps(content))
    with load(saved) as engine:
        curve = engine._policy.latency._curves["demo/draft"]
        assert curve.sizes == tuple(engine._runners["demo/draft"].token_sizes)


def test_what_is_saved_is_what_the_policy_starts_from(saved, monkeypatch):
    """No model is measured again, and the curves are those of the file."""
    monkeypatch.setattr("specrouter_llm.engine.calibration.measure", lambda *_, **__: pytest.fail("measured again"))
    latency = Calibration.load(saved).latency
    with load(saved) as engine:
        for name in ("demo/draft", "demo/middle"):
            assert engine._policy.latency.seconds(name, 3, 100) == latency.seconds(name, 3, 100) > 0
        engine.generate("Once upon a time", max_tokens=12, ignore_eos=True)
        assert engine.explain().predicted_seconds_per_token > 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"target": "demo/target"}, "does not know 'demo/target'; it knows demo/draft, demo/middle"),
        (
            {"dtype": "float64"},
            "was measured as 'demo/draft, .* parameters, float32 .* it is 'demo/draft, .* parameters, float64",
        ),
        ({"pack": False}, "it is 'demo/draft, .* float32, EagerRunner on cpu"),
        ({"policy": "fixed"}, 'for policy="adaptive"'),
        ({"chain": ["demo/draft"]}, "which chooses chains; here one is given"),
        ({"speculation": False}, "or none is wanted"),
    ],
)
def test_another_pool_is_refused(saved, change, words):
    with pytest.raises(InvalidParameterError, match=words):
        load(saved, **change)


def test_another_model_of_the_same_name_is_refused(tmp_path):
    """A label is the last part of a folder; the size is the model's own."""
    for place, member in (("old", "draft"), ("new", "middle")):
        shutil.copytree(find_checkpoint(ModelSpec(f"demo/{member}")).folder, tmp_path / place / "tiny")
    old, new = (str(tmp_path / place / "tiny") for place in ("old", "new"))
    pool = ModelPool.load("demo/target", [old], max_batch=1, progress=False)
    runners = pool_runners(pool, num_slots=1, pack=True)
    Calibration.of(pool, runners, seconds=0.2, rows=1, progress=False).save(tmp_path / "saved.json")
    load(tmp_path / "saved.json", "demo/target", [old]).close()
    with pytest.raises(
        InvalidParameterError,
        match=r"'tiny' was measured as 'tiny, (\d+) parameters.* it is 'tiny, (?!\1)\d+ parameters",
    ):
        load(tmp_path / "saved.json", "demo/target", [new])


def test_another_processor_is_refused(saved, monkeypatch):
    monkeypatch.setattr(calibration, "processor_name", lambda: "abacus")
    with pytest.raises(InvalidParameterError, match=r"was measured as .* it is .* on cpu, abacus'"):
        load(saved)


def test_other_threads_are_refused(saved):
    """Threads change every cost."""
    content = json.loads(saved.read_text())
    saved.write_text(json.dumps(content | {"threads": 99}))
    with pytest.raises(InvalidParameterError, match=r"99 threads.*specrouter calibrate"):
        load(saved)


@pytest.mark.parametrize(
    "text", ["", "[]", '{"format": 6}', '{"format": 6, "members": {}, "threads": 1, "latency": {}}']
)
def test_other_files_are_refused_before_anything_is_loaded(tmp_path, monkeypatch, text):
    monkeypatch.setattr("specrouter_llm.pool.pool.ModelPool.load", lambda *_, **__: pytest.fail("loaded"))
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InvalidParameterError, match="not a"):
        load(tmp_path / "x.json")
    with pytest.raises(InvalidParameterError, match=r"missing\.json is not a calibration"):
        load(tmp_path / "missing.json")
    for format_ in (5, 7):
        (tmp_path / "x.json").write_text(json.dumps({"format": format_, "members": {}, "threads": 1, "latency": {}}))
        with pytest.raises(
            InvalidParameterError, match=f"format {format_}, this release reads 6; .*`specrouter calibrate`"
        ):
            load(tmp_path / "x.json")


@pytest.mark.parametrize("max_context", [2, 8, 15])
def test_small_contexts_can_be_measured(max_context):
    """Fewer positions than a measurement would like to feed."""
    with SpecRouter.from_pretrained("demo/middle", ["demo/draft"], max_context=max_context, progress=False) as engine:
        (completion,) = engine.generate([[5]], max_tokens=64, ignore_eos=True)
        assert len(completion.token_ids) == max_context - 1
