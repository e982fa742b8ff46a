"""Results that lie on the disk: read again, compared with each other, joined into a page."""

import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from specrouter_llm.bench import report
from specrouter_llm.bench.compare import compare, table
from specrouter_llm.bench.experiments import KEYS, read_result, row_key, table_of
from specrouter_llm.bench.plots import reach
from specrouter_llm.bench.result import result, write_result
from specrouter_llm.cli import results
from specrouter_llm.cli.experiment import show
from specrouter_llm.errors import InvalidParameterError, MissingDependencyError

INTERVAL = {"value": 2.0, "low": 1.5, "high": 2.5}
COMMITTED = sorted((Path(__file__).parents[2] / "docs" / "benchmarks" / "results").glob("*.json"))


def step_row(**changes):
    return {"runner": "specrouter", "tokens": 8, "ms": 10.0, "over_one": INTERVAL, **changes}


def step_result(*rows, experiment="step"):
    return result(experiment, {"target": "demo <&>"}, rows, ["specrouter", "bench", experiment])


def test_figures_side_by_side():
    """A ratio for each number that both have; intervals say whether they are apart."""
    apart = {"value": 1.0, "low": 0.9, "high": 1.1}
    first = step_result(step_row(), step_row(tokens=4, only_here=1.0))
    second = step_result(step_row(ms=5.0, over_one=apart), step_row(tokens=4, ms=0.0))
    rows = compare(first, second)
    assert [
        ("specrouter, 8", "ms", 0.5, None),
        ("specrouter, 8", "over_one", 0.5, True),
        ("specrouter, 4", "ms", 0.0, None),
        ("specrouter, 4", "over_one", 1.0, False),
    ] == [(row["row"], row["figure"], row["ratio"], row["apart"]) for row in rows]
    assert compare(second, first)[2]["ratio"] is None
    assert ["0.500", "0.500*", "0.000", "1.000"] == list(table(rows).columns[-1].cells)


def test_a_figure_without_an_interval_is_compared_by_its_value():
    """With one that has an interval too: older results have one for any number of units."""
    few, whole = (step_result(step_row(ms="", over_one=figure)) for figure in ({"value": 4.0}, INTERVAL))
    for first, second, ratio in ((whole, few, 2.0), (few, whole, 0.5), (few, few, 1.0)):
        (row,) = compare(first, second)
        assert ("over_one", ratio, None) == (row["figure"], row["ratio"], row["apart"])


def test_intervals_reach_around_their_figures():
    assert [[0.5, 0.0], [0.5, 0.0]] == reach([INTERVAL, {"value": 4.0}])


def test_nested_figures_have_dotted_names():
    speedup = {"plain": {"decode": INTERVAL}}
    row = {"workload": "cot", "contestant": "routed", "speedup": speedup, "temperatures": [0.0], "kind": "routed"}
    content = result("speed", {}, [row])
    assert [("cot, routed", "speedup.plain.decode")] == [(r["row"], r["figure"]) for r in compare(content, content)]


def test_what_cannot_be_compared():
    with pytest.raises(InvalidParameterError, match="one experiment"):
        compare(step_result(step_row()), step_result(step_row(), experiment="batch"))
    with pytest.raises(InvalidParameterError, match="no figure in common"):
        compare(step_result(step_row()), step_result(step_row(tokens=2)))
    with pytest.raises(InvalidParameterError, match="both about 'specrouter, 8'"):
        compare(step_result(step_row(), step_row()), step_result(step_row()))


def test_a_result_is_checked_when_read(tmp_path):
    path = tmp_path / "a.json"
    write_result(path, step_result(step_row()))
    assert "step" == read_result(path)["experiment"]
    with pytest.raises(InvalidParameterError, match="cannot be read"):
        read_result(tmp_path / "missing.json")
    whole = json.loads(path.read_text())
    wrong = [
        {"format": 99},
        {"rows": None},
        {"rows": [1]},
        {"rows": {}},
        {"experiment": 5},
        {"command": None},
        {"settings": []},
        {"machine": None},
    ]
    for content in ([], {}, *(whole | change for change in wrong)):
        path.write_text(json.dumps(content))
        with pytest.raises(InvalidParameterError, match="is not a result"):
            read_result(path)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_can_be_shown_and_compared(path):
    """Every result in docs/benchmarks still has a table, and rows that can be told apart."""
    content = read_result(path)
    keys = [row_key(content["experiment"], row) for row in content["rows"]]
    assert len(set(keys)) == len(keys) > 0
    assert {1.0} == {row["ratio"] for row in compare(content, content) if row["ratio"] is not None}
    assert next(report.tables_in(table_of(content))).row_count > 0


BROKEN = [
    ("speed", [{"workload": "cot"}]),
    ("speed", [step_row(workload="cot", contestant="x", speedup=[])]),
    ("step", [step_row(over_one={"value": "much"})]),
    (
        "memory",
        [
            {"growth": None, "labels": [], "accounted": 0, "resident": 1, "peak": 1}
            | dict.fromkeys(("weights", "packed_copies", "kernels", "caches"), 0)
        ],
    ),
    ("calibration", [{"drafter": "x", "error": 0.1, "seconds_per_token": []}]),
]


@pytest.mark.parametrize(("experiment", "rows"), BROKEN, ids=[experiment for experiment, _ in BROKEN])
def test_rows_that_are_not_the_experiments_are_told_with_their_file(experiment, rows):
    with pytest.raises(InvalidParameterError, match=r"the rows of a/b\.json cannot be shown: "):
        report.page([(Path("a/b.json"), step_result(*rows, experiment=experiment))])


def test_broken_rows_cannot_be_compared(tmp_path):
    """One line that names both files."""
    path = tmp_path / "a.json"
    write_result(path, step_result(step_row(over_one={"value": None, "low": 1.0, "high": 2.0})))
    with pytest.raises(InvalidParameterError, match=r"the rows of .*a\.json or .*a\.json cannot be shown: TypeError"):
        results.compare(path, path)


@pytest.mark.parametrize("experiment", sorted(KEYS))
def test_a_result_without_rows_has_its_settings(experiment):
    """A part that failed leaves its error there."""
    text = report.page([(Path("x"), result(experiment, {"error": "out of luck"}, [], ["specrouter"]))])
    assert not Page(text).open
    assert "out of luck" in text


def test_brackets_in_a_table_are_shown(capsys):
    """Neither the terminal nor the page takes them for markup."""
    table = table_of(step_result({"name": "[red]a[/x]"}, experiment="gone"))
    show(table)
    assert "[red]a[/x]" in capsys.readouterr().out


class Page(HTMLParser):
    """What a browser would fetch, and which elements are left open."""

    def __init__(self, text):
        super().__init__()
        self.sources, self.open, self.count = [], [], {}
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.count[tag] = self.count.get(tag, 0) + 1
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_a_page_needs_nothing_beside_itself():
    """Tables, a plot, settings, machine; everything escaped, nothing fetched."""
    pytest.importorskip("matplotlib")
    rows = [step_row(tokens=1), step_row()]
    text = report.page(
        [
            (Path("step [a].json"), step_result(*rows)),
            (Path("odd"), step_result({"name": "[red]<b>[/x]"}, experiment="gone")),
        ]
    )
    found = Page(text)
    assert not found.open
    assert (2, 2, 1) == (found.count["section"], found.count["table"], found.count["img"])
    assert all(source.startswith(("#", "data:image/svg+xml;base64,")) for source in found.sources)
    assert "demo &lt;&amp;&gt;" in text
    assert "[red]&lt;b&gt;[/x]" in text
    assert "2.000 [1.500, 2.500]" in text
    for name in ("torch", "date", "cpu"):
        assert f"<dt>{name}</dt>" in text


def test_a_page_without_matplotlib_says_so(monkeypatch):
    def missing(path):
        raise MissingDependencyError("plots need matplotlib")

    monkeypatch.setattr(report, "check_plot", missing)
    text = report.page([(Path("step"), step_result(step_row()))])
    assert "Without plots: plots need matplotlib" in text
    assert "img" not in Page(text).count
