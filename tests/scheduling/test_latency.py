"""The latency model: interpolates what was measured, follows what it sees, is not thrown by an outlier."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.scheduling.curve import BELIEVED, BELIEVED_SLOW, CALM, FRESH, News
from specrouter_llm.scheduling.latency import GRID, LatencyModel
from specrouter_llm.scheduling.policy import Forward


def true_seconds(tokens, context):
    return 0.01 + 0.0004 * tokens + 1e-6 * context


def fitted(sizes=()):
    def run_as(tokens):
        return next((size for size in sizes if size >= tokens), tokens)

    points = [(n, c, true_seconds(run_as(n), c)) for n in GRID for c in (128, 1024)]
    return LatencyModel.fit({"m": points}, overhead=0.001, sizes={"m": sizes})


@pytest.mark.parametrize("tokens", [1, 3, 5, 20, 64, 100, 300])
@pytest.mark.parametrize("context", [0, 500, 4000])
def test_interpolates_and_extrapolates(tokens, context):
    assert fitted().seconds("m", tokens, context) == pytest.approx(true_seconds(tokens, context), rel=1e-6)


def test_never_decreases():
    model = LatencyModel.fit({"m": [(1, 0, 0.02), (2, 0, 0.015), (4, 0, 0.03)]}, 0.0)
    curve = [model.seconds("m", n) for n in range(1, 100)]
    assert curve == sorted(curve)


def test_follows_a_slower_machine():
    model, rng = fitted(), random.Random(0)
    for _ in range(200):
        n = rng.choice([1, 5, 9])
        model.observe(Forward("m", 1, n, 500, 1.6 * true_seconds(n, 500) * rng.lognormvariate(0, 0.05)))
    for n in (1, 5, 9):
        assert model.seconds("m", n, 500) == pytest.approx(1.6 * true_seconds(n, 500), rel=0.05)
    assert model.moved
    model.settle()
    assert not model.moved


def test_outliers_and_prefills_do_not_matter():
    model = fitted()
    for i in range(100):
        model.observe(Forward("m", 1, 4, 500, true_seconds(4, 500) * (30 if i % 20 == 7 else 1)))
        model.observe(Forward("m", 1, 2000, 2000, 5.0))
    assert model.seconds("m", 4, 500) == pytest.approx(true_seconds(4, 500), rel=0.04)


faster_and_slower = pytest.mark.parametrize(
    ("factor", "believed"), [(0.6, BELIEVED), (1.7, BELIEVED_SLOW)], ids=["faster", "slower"]
)


@pytest.mark.parametrize("sizes", [(), (4, 8, 12, 16)])
@faster_and_slower
def test_what_is_seen_often_enough_is_believed(sizes, factor, believed):
    """Outliers move a node a little, as many as are believed all the way, if they are the last that were seen there: what other
    numbers of tokens took in between does not matter, what so many took does."""
    odd, other_odd = (News.FAST, News.NONE) if factor < 1 else (News.NONE, News.FAST)
    steady = [Forward("m", 1, n, 500, fitted(sizes).seconds("m", n, 500)) for n in (4, 16) for _ in range(30)]
    other = Forward("m", 1, 4, 500, factor * fitted(sizes).seconds("m", 4, 500))

    def error(*forwards):
        model = fitted(sizes)
        news = [model.observe(forward) for forward in (*steady, *forwards)][-1]
        return abs(model.seconds("m", 4, 500) / other.seconds - 1), news

    for number in range(1, believed):
        few, news = error(*[other, steady[-1]] * (number - 1), other)
        assert news is odd
        assert few > 0.2
    enough, news = error(*[other, steady[-1]] * (believed - 1), other)
    assert news is News.CHANGED
    assert enough < 0.1
    apart, news = error(*[other] * (believed - 1), steady[0], other)
    assert news is odd
    assert apart > 0.2
    opposite = Forward("m", 1, 4, 500, steady[0].seconds / factor)
    _, news = error(*[other] * (believed - 1), opposite)
    assert news is other_odd


@given(
    st.lists(st.tuples(st.integers(1, BELIEVED_SLOW - 1), st.floats(1.1, 3.0)), min_size=1, max_size=8),
    st.sampled_from([(), (4, 8, 12, 16)]),
)
def test_a_few_slow_forwards_are_no_change(bursts, sizes):
    """Something else runs on the host for a moment. If that were taken for what so many tokens cost, others would be fed
    instead, and no forward would show that it is over."""
    model = fitted(sizes)
    usual = model.seconds("m", 10, 500)
    forwards = [usual] * 30
    for length, factor in bursts:
        forwards += [factor * usual] * length + [usual] * 40
    news = [model.observe(Forward("m", 1, 10, 500, seconds)) for seconds in forwards]
    assert News.CHANGED not in news
    assert model.seconds("m", 10, 500) == pytest.approx(usual, rel=0.05)


def test_what_was_not_seen_for_a_while_is_corrected_faster():
    """Eight tokens were seen a hundred times, and then only four: the next forward over eight says more than the last did."""
    model = fitted()

    def observe(n, times, factors=(0.96, 1.04)):
        for i in range(times):
            model.observe(Forward("m", 1, n, 500, true_seconds(n, 500) * factors[i % len(factors)]))
        return model.seconds("m", 8, 500)

    before = observe(8, 100)
    soon = observe(8, 1, (1.1,)) - before
    before = observe(4, FRESH + 1)
    late = observe(8, 1, (1.1,)) - before
    assert late > 4 * soon > 0


@faster_and_slower
def test_a_change_is_not_that_of_numbers_that_were_just_seen(factor, believed):
    """Sixteen tokens cost what they did a moment ago; fewer never more than what was just seen, more never less."""
    model = fitted()
    for n in (4, 16) * 30:
        model.observe(Forward("m", 1, n, 500, true_seconds(n, 500)))
    for _ in range(believed):
        model.observe(Forward("m", 1, 4, 500, factor * true_seconds(4, 500)))
    assert model.seconds("m", 16, 500) == pytest.approx(max(1.0, factor * 0.72) * true_seconds(16, 500), rel=0.05)
    for n in (1, 2):
        assert model.seconds("m", n, 500) <= model.seconds("m", 4, 500)
    assert model.seconds("m", 1, 500) < 0.8 * true_seconds(1, 500) or factor > 1


@given(
    st.lists(st.lists(st.floats(-0.2, 0.2), min_size=1, max_size=4), min_size=1, max_size=30),
    st.sampled_from([(), (4, 8, 16)]),
)
def test_forwards_that_are_learnt_from_together_count_as_one_by_one(groups, sizes):
    """Four at once move a curve as far as four in succession."""
    together, alone = fitted(sizes), fitted(sizes)
    for errors in groups:
        forwards = [Forward("m", 1, 4, 500, true_seconds(4, 500) * math.exp(error)) for error in errors]
        together.observe(*forwards)
        for forward in forwards:
            alone.observe(forward)
    for n in (1, 2, 4, 8, 16):
        assert together.seconds("m", n, 500) == pytest.approx(alone.seconds("m", n, 500), rel=0.03)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_a_change_is_found_among_forwards_that_are_learnt_from_together(size):
    """However they are cut, the third that is off is believed, and what follows it is as expected."""
    model = fitted()
    for _ in range(30):
        model.observe(Forward("m", 1, 4, 500, true_seconds(4, 500)))
    forwards = [Forward("m", 1, 4, 500, 0.6 * true_seconds(4, 500))] * (BELIEVED + 1)
    news = [model.observe(*forwards[i : i + size]) for i in range(0, len(forwards), size)]
    assert news.count(News.CHANGED) == 1
    assert news.index(News.CHANGED) == (BELIEVED - 1) // size
    assert model.seconds("m", 4, 500) == pytest.approx(0.6 * true_seconds(4, 500), rel=0.02)


@pytest.mark.parametrize("period", [20, 60])
def test_a_machine_that_changes_back_and_forth_is_not_followed(period):
    """It is at first; then its mean is what forwards are taken to cost, for who follows is always late. One that has long been
    calm is believed again."""
    model, slow = fitted(), true_seconds(4, 500)

    def believed(periods):
        forwards = [(1.0, 0.65)[i // period % 2] * slow for i in range(periods * period)]
        return sum(model.observe(Forward("m", 1, 4, 500, seconds)) is News.CHANGED for seconds in forwards)

    assert believed(10) >= 2
    assert believed(40) <= 2
    assert 0.7 * slow < model.seconds("m", 4, 500) < 0.95 * slow
    for _ in range(6 * CALM):
        model.observe(Forward("m", 1, 4, 500, slow))
    changes = [model.observe(Forward("m", 1, 4, 500, 0.65 * slow)) is News.CHANGED for _ in range(2 * BELIEVED)]
    assert any(changes)


@pytest.mark.parametrize("sizes", [(), (4, 8, 16)])
def test_what_was_hidden_behind_fewer_tokens_is_corrected_from_what_was_expected(sizes):
    """Eight tokens of a flat curve become dearer; sixteen, which have not been seen, are then expected to cost as much. A
    forward that agrees changes nothing, one that is off changes a little, and neither changes what eight cost."""
    model = LatencyModel.fit({"m": [(n, 0, 0.02) for n in GRID]}, 0.0, sizes={"m": sizes})
    for seconds in (*[0.02] * 30, *[0.03] * BELIEVED_SLOW):
        model.observe(Forward("m", 1, 8, 0, seconds))
    assert model.seconds("m", 16) == pytest.approx(0.03, rel=0.01)
    model.observe(Forward("m", 1, 16, 0, 0.0297))
    for n in (8, 11, 16):
        assert model.seconds("m", n) == pytest.approx(0.03, rel=0.02)
    model.observe(Forward("m", 1, 16, 0, 0.022))
    assert model.seconds("m", 8) > 0.027
    for _ in range(BELIEVED - 1):  # the first change back is believed like any other
        model.observe(Forward("m", 1, 16, 0, 0.022))
    assert model.seconds("m", 16) == pytest.approx(0.022, rel=0.02)


def test_a_forward_far_from_all_that_was_measured_is_no_error():
    model = LatencyModel.fit({"m": [(16, 0, 0.02)]}, 0.0)
    assert model.observe(Forward("m", 1, 1, 0, 0.02)) is not None


def test_learns_an_unknown_level_from_its_first_forward():
    model = LatencyModel()
    assert not model.knows("new")
    model.observe(Forward("new", 1, 1, 100, 0.02))
    assert model.knows("new")
    assert model.seconds("new", 1) == pytest.approx(0.02)
    for _ in range(60):
        model.observe(Forward("new", 1, 8, 100, 0.05))
        model.observe(Forward("new", 1, 1, 100, 0.02))
    assert model.seconds("new", 8) == pytest.approx(0.05, rel=0.1)


def test_saves_and_loads():
    model = fitted()
    again = LatencyModel.from_json(model.to_json())
    assert again.seconds("m", 7, 300) == pytest.approx(model.seconds("m", 7, 300))
    assert again.overhead.seconds(drafted=True) == model.overhead.seconds(drafted=True)
    for text in ("{", "{}", '{"version": 2}', "[]"):
        with pytest.raises(InvalidParameterError):
            LatencyModel.from_json(text)


def test_padded_numbers_cost_what_they_are_run_as():
    """A ninth token is a twelfth; beyond the largest size there is no padding; what is learnt belongs to the size."""
    model = fitted((4, 8, 12, 16))
    for n, padded in ((1, 4), (4, 4), (5, 8), (9, 12), (16, 16), (17, 17), (100, 100)):
        assert model.seconds("m", n, 300) == pytest.approx(true_seconds(padded, 300), rel=1e-6)
    assert LatencyModel.from_json(model.to_json()).seconds("m", 9, 300) == pytest.approx(
        true_seconds(12, 300), rel=1e-6
    )
    totals = model.totals("m", 20, 300, 2)
    assert [totals[n] for n in (1, 9, 12, 20)] == pytest.approx(
        [true_seconds(n, 300) for n in (4, 12, 12, 20)], rel=1e-6
    )
    for _ in range(200):
        model.observe(Forward("m", 1, 5, 300, 2 * true_seconds(8, 300)))
    for n in (5, 7, 8):
        assert model.seconds("m", n, 300) == pytest.approx(2 * true_seconds(8, 300), rel=0.03)


def test_what_was_measured_padded_belongs_to_the_size():
    """One token was run as four: with nothing else measured, four cost the same."""
    model = LatencyModel.fit({"m": [(1, 0, 0.02)]}, 0.0, {"m": (4, 8)})
    assert model.seconds("m", 1) == model.seconds("m", 4) == 0.02


@pytest.mark.parametrize("factor", [0.4, 1.6])
def test_the_price_of_a_row_is_corrected_by_batches(factor):
    """Plain steps of sixteen rows are known after a few of them, and what a row costs holds for longer steps too."""
    row = 0.0008
    model = fitted()
    model._curves["m"].row = factor * row

    def took(tokens, rows):
        return true_seconds(tokens, 1500) + (rows - 1) * row

    def predicted(tokens, rows):
        return model.seconds("m", tokens, 1500, rows)

    before = abs(predicted(40, 16) / took(40, 16) - 1)
    for _ in range(20):
        model.observe(Forward("m", 16, 16, 1500, took(16, 16)))
    assert abs(predicted(16, 16) / took(16, 16) - 1) < 0.05
    assert abs(predicted(40, 16) / took(40, 16) - 1) < 0.5 * before
    assert abs(model._curves["m"].row / row - 1) < 0.8 * abs(factor - 1)


def test_rejects_empty_and_negative_samples():
    for points in ([], [(0, 1, 0.1)], [(1, 1, -0.1)]):
        with pytest.raises(InvalidParameterError):
            LatencyModel.fit({"m": points}, 0.0)


@pytest.mark.parametrize("sizes", [(), (4, 6, 8, 128)])
@pytest.mark.parametrize("learnt", [False, True])
@given(tokens=st.integers(1, 10**7), context=st.integers(0, 10**5), rows=st.integers(1, 9))
def test_one_number_is_as_good_as_an_array(learnt, sizes, tokens, context, rows):
    """The scalar way, which every forward takes, and the arrays of a search are the same curve, corrected or not."""
    model = fitted(sizes)
    if learnt:
        model.observe(Forward("m", 1, 3, 700, 0.05))
        model.observe(Forward("new", 1, 2, 100, 0.02))
    for level in ("m", "new") if learnt else ("m",):
        model._curves[level].row = 0.003
        alone = model.seconds(level, tokens, context, rows)
        among = model._curves[level].at(np.array([1.0, tokens, 2.0 * tokens]), context, rows)
        assert alone == pytest.approx(among[1], rel=1e-12)
        assert among[0] <= among[1] <= among[2]


@pytest.mark.parametrize(
    "curve", [{"tokens": [], "base": [], "slope": []}, {"tokens": [1], "base": [1, 2], "slope": [0]}]
)
def test_a_file_with_a_broken_curve_is_refused(curve):
    text = json.dumps({"version": 1, "overhead": 0.0, "curves": {"m": curve}})
    with pytest.raises(InvalidParameterError, match="curve of 'm'"):
        LatencyModel.from_json(text)


@pytest.mark.parametrize("curves", ["curves", "loops"])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"base": [0.01, float("nan")]}, "seconds of 'm' must be finite and positive"),
        ({"base": [0.01, float("inf")]}, "seconds of 'm' must be finite and positive"),
        ({"base": [0.0, 0.01]}, "seconds of 'm' must be finite and positive"),
        ({"base": [-0.01, 0.01]}, "seconds of 'm' must be finite and positive"),
        ({"slope": [float("nan"), 0.0]}, "seconds of 'm' must be finite and positive"),
        ({"slope": [-1e-6, 0.0]}, "seconds of 'm' must be finite and positive"),
        ({"row": float("inf")}, "seconds of 'm' must be finite and positive"),
        ({"row": -0.001}, "seconds of 'm' must be finite and positive"),
        ({"tokens": [float("nan"), 2.0]}, "seconds of 'm' must be finite and positive"),
        ({"tokens": [2.0, 1.0]}, "tokens of 'm' must rise from above 0"),
        ({"tokens": [0.0, 1.0]}, "tokens of 'm' must rise from above 0"),
        ({"sizes": [8, 4]}, "tokens of 'm' must rise from above 0"),
        ({"sizes": [float("inf")]}, "not a latency file"),
        ({"base": ["a", "b"]}, "not a latency file"),
    ],
)
def test_a_file_of_times_that_cannot_be_is_refused(curves, change, words):
    """A policy would fail at every step, or believe that a level costs nothing."""
    whole = {"tokens": [1.0, 2.0], "base": [0.01, 0.02], "slope": [0.0, 0.0], "sizes": [1, 2], "row": 0.0}
    content = {"version": 1, "overhead": 0.0, "curves": {"m": whole}}
    assert LatencyModel.from_json(json.dumps(content)).knows("m")
    with pytest.raises(InvalidParameterError, match=words):
        LatencyModel.from_json(json.dumps(content | {curves: {"m": whole | change}}))


@pytest.mark.parametrize("overhead", [float("nan"), float("inf"), -0.001])
def test_a_file_of_an_overhead_that_cannot_be_is_refused(overhead):
    with pytest.raises(InvalidParameterError, match="overhead of"):
        LatencyModel.from_json(json.dumps({"version": 1, "overhead": overhead, "curves": {}}))


def test_loops_have_a_curve_of_their_own():
    """A token of a loop corrects what drafting costs, a forward what verifying costs; without loops both are one."""
    model = LatencyModel.fit(
        {"a": [(n, 64, 0.010) for n in GRID], "b": [(1, 64, 0.02)]}, 0.0, loops={"a": [(1, 64, 0.004)]}
    )
    assert (model.drafted("a"), model.seconds("a", 1)) == pytest.approx((0.004, 0.010))
    assert model.drafted("b", 1, 64) == model.seconds("b", 1, 64)
    for _ in range(200):
        model.observe(Forward("a", 1, 1, 64, 0.006, looped=True))
    assert (model.drafted("a"), model.seconds("a", 1)) == pytest.approx((0.006, 0.010), rel=0.02)
    again = LatencyModel.from_json(model.to_json())
    assert again.drafted("a") == pytest.approx(model.drafted("a"))


def test_a_level_first_seen_in_a_loop_is_known():
    """Its forwards are taken to cost the same until there is one."""
    model = LatencyModel()
    model.observe(Forward("a", 2, 2, 64, 0.006, looped=True))
    assert model.knows("a")
    assert model.drafted("a", 2) == pytest.approx(model.seconds("a", 2)) == pytest.approx(0.006)


def test_every_padded_size_is_learnt_for_itself():
    """Between powers of two, where calibration does not measure, and beyond the last one: costs may jump from size to size."""
    sizes = (1, 2, 4, 8, 16, 32, 40, 48, 64, 96, 128)
    true = {32: 92, 40: 97, 48: 135, 64: 148, 96: 198, 128: 250}
    model = LatencyModel.fit({"m": [(n, 64, true.get(n, 20 + 2 * n)) for n in GRID]}, 0.0, sizes={"m": sizes})
    assert model.seconds("m", 96) == pytest.approx(148 + 2 * 28)
    choose = random.Random(0)
    for _ in range(1200):
        size = choose.choice(list(true))
        tokens = choose.randint(sizes[sizes.index(size) - 1] + 1, size)
        model.observe(Forward("m", 2, tokens, 0, true[size] * choose.uniform(0.97, 1.03)))
    for size, seconds in true.items():
        assert model.seconds("m", size, 0, 2) == pytest.approx(seconds, rel=0.03)
    assert model.seconds("m", 33) == model.seconds("m", 40) < model.seconds("m", 41)


def test_a_batch_in_which_a_row_is_still_taken_in_says_nothing_about_decoding():
    """Its prompt is as many tokens as the other rows feed altogether, and costs otherwise."""
    model = LatencyModel.fit({"m": [(n, 64, 0.02 + 0.001 * n) for n in GRID]}, 0.0, row_ratios={"m": (4, 64, 1.2)})
    before = model.seconds("m", 32, 2000, 32)
    for _ in range(20):
        model.observe(Forward("m", 32, 348, 3000, 3.0, longest=150))
    assert model.seconds("m", 32, 2000, 32) == before


def test_plain_steps_of_a_batch_teach_what_rows_cost():
    """What a batch drafts tells of its number of tokens; put down to rows, it would make plain decoding look dear."""
    points, ratios = {"m": [(n, 64, 0.02 + 0.001 * n) for n in GRID]}, {"m": (4, 64, 1.2)}
    drafted, plain = (LatencyModel.fit(points, 0.0, row_ratios=ratios) for _ in range(2))
    before = drafted.seconds("m", 16, 1000, 16)
    for _ in range(20):
        drafted.observe(Forward("m", 16, 64, 1000, 1.4 * drafted.seconds("m", 64, 1000, 16)))
    assert drafted.seconds("m", 16, 1000, 16) < 1.12 * before
    for _ in range(3):
        plain.observe(Forward("m", 16, 16, 1000, 1.25 * before))
    assert plain.seconds("m", 16, 1000, 16) == pytest.approx(1.25 * before, rel=0.08)


def test_beyond_the_last_size_costs_rise_as_over_its_half():
    """Not as between the last two, which may be two sizes of a staircase."""
    true = {1: 20, 32: 66, 48: 100, 64: 117}
    sizes = (1, 32, 48, 64, 96, 128)
    model = LatencyModel.fit({"m": [(n, 64, s) for n, s in true.items()]}, 0.0, sizes={"m": sizes})
    assert model.seconds("m", 96) == pytest.approx(117 + (117 - 66))
    assert model.seconds("m", 200) == pytest.approx(117 + (200 - 64) * (117 - 66) / 32)
    assert model.curve("m", 1, 0, 199)[200] == pytest.approx(model.seconds("m", 200))


def test_a_level_that_loops_only_greedily_is_priced_so():
    """Where a row is sampled it drafts forward by forward; a saved model knows it too."""
    points = [(n, 64, 0.010) for n in GRID]
    loops = {"a": [(1, 64, 0.004)], "b": [(1, 64, 0.004)]}
    model = LatencyModel.fit({"a": points, "b": points}, 0.0, loops=loops, greedy_only=["a"])
    for found in (model, LatencyModel.from_json(model.to_json())):
        seconds = [found.drafted(level, sampled=sampled) for level in "ab" for sampled in (False, True)]
        assert seconds == pytest.approx([0.004, 0.010, 0.004, 0.004])


def test_a_loop_of_many_rows_costs_what_forwards_make_of_it():
    """Only one row is measured in a loop; where sixteen tokens cost what one does, sixteen rows do."""
    flat = LatencyModel.fit({"m": [(n, 64, 0.002) for n in GRID]}, 0.0, loops={"m": [(1, 64, 0.001)]})
    steep = LatencyModel.fit({"m": [(n, 64, 0.002 * n) for n in GRID]}, 0.0, loops={"m": [(1, 64, 0.001)]})
    assert flat.drafted("m", 16) == pytest.approx(0.001)
    assert steep.drafted("m", 16) == pytest.approx(0.016)


def test_forwards_beyond_the_last_node_are_news_too():
    """A batch may verify more tokens than any size that was measured."""
    model = LatencyModel.fit({"m": [(n, 64, 0.02 + 0.001 * n) for n in GRID]}, 0.0)
    model.settle()
    for _ in range(10):
        model.observe(Forward("m", 32, 512, 3000, 2 * model.seconds("m", 512, 3000, 32)))
    assert model.moved


def test_a_point_of_one_context_is_met():
    """What the context costs is known from smaller numbers of tokens, and is not counted twice."""
    points = [(1, 65, 0.010), (1, 961, 0.019), (11, 75, 0.020), (12, 76, 0.025)]
    model = LatencyModel.fit({"m": points}, overhead=0.0)
    for tokens, context, seconds in points:
        assert model.seconds("m", tokens, context) == pytest.approx(seconds, rel=1e-6)
    assert model.seconds("m", 12, 960) > model.seconds("m", 11, 960) + 0.004
