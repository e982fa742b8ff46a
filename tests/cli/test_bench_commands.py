"""`specrouter bench speed | batch | step | compare` and `specrouter report`, as scripts and people use them."""

import json

import pytest
from typer.testing import CliRunner

from specrouter_llm.cli.app import app
from specrouter_llm.errors import InvalidParameterError


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a command in an empty folder; errors are raised."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments):
        outcome = CliRunner().invoke(app, list(arguments), catch_exceptions=False)
        assert 0 == outcome.exit_code, outcome.output
        return outcome.output

    return call


def test_speed_compared_and_reported(run, tmp_path):
    """A prompt file's category in, a table and a result out; compared with itself; joined into a page."""
    prompts = tmp_path / "question.jsonl"
    prompts.write_text('{"category": "qa", "turns": ["Why?"]}\n{"category": "rag", "turns": ["Where?"]}\n')
    arguments = ["-w", f"{prompts}#qa", "--max-tokens", "4", "--chain", "demo/draft@2", "--peer", "none"]
    output = run("bench", "speed", *arguments, "--out", "speed.json")
    assert "demo/draft@2" in output
    content = json.loads((tmp_path / "speed.json").read_text())
    assert ["plain", "demo/draft@2", "routed"] == [row["contestant"] for row in content["rows"]]
    assert [{"name": "question#qa", "prompts": 1, "temperature": 0.0, "max_tokens": 4}] == content["settings"][
        "workloads"
    ]
    assert str(tmp_path) not in json.dumps([content["rows"], content["settings"]])
    assert "1.000" in run("bench", "compare", "speed.json", "speed.json")
    run("report", "page/all.html", "speed.json")
    assert "question#qa" in (tmp_path / "page" / "all.html").read_text(encoding="utf-8")


def test_batch_and_step(run, tmp_path):
    """Sizes may be repeated; the floor is explained under the table."""
    output = run("bench", "batch", "--batch", "2", "--groups", "1", "--limit", "2", "--max-tokens", "4", "--no-chains",
                 "--no-peer", "--out", "batch.json")  # fmt: skip
    assert "routed" in output
    rows = json.loads((tmp_path / "batch.json").read_text())["rows"]
    assert [(2, "plain"), (2, "routed")] == [(row["batch"], row["contestant"]) for row in rows]
    output = run("bench", "step", "--tokens", "1", "--context", "8", "--rounds", "1", "--no-peer")
    assert "MiB of weights" in output


def test_only_the_mixture_can_be_asked_for(run, tmp_path):
    run(
        "bench",
        "speed",
        "-w",
        "mix",
        "--limit",
        "1",
        "--max-tokens",
        "2",
        "--no-chains",
        "--peer",
        "none",
        "--out",
        "a.json",
    )
    content = json.loads((tmp_path / "a.json").read_text())
    assert {("mix", 6)} == {(row["workload"], row["prompts"]) for row in content["rows"]}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench", "speed", "-w", "nothing"), "there is no prompt file nothing; built-in workloads"),
        (("bench", "speed", "--chain", "ngram"), "LEVEL@WINDOW"),
        (("bench", "speed", "--plot", "a.bmp"), ".png, .svg"),
        (("bench", "compare", "a.json", "b.json"), "cannot be read"),
        (("report", "a.html", "b.json"), "cannot be read"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(run, arguments, words):
    with pytest.raises(InvalidParameterError, match=words):
        run(*arguments)


def test_a_forgotten_page_does_not_cost_a_result(run, tmp_path):
    """`report RESULT RESULT`: nothing is read or written."""
    (tmp_path / "a.json").write_text("a result")
    with pytest.raises(InvalidParameterError, match=r"the page comes first.*\.html or \.htm, got 'a\.json'"):
        run("report", "a.json", "a.json")
    assert "a result" == (tmp_path / "a.json").read_text()


def test_a_plot_without_matplotlib(run, monkeypatch):
    """The extra is named before models are loaded."""
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r"specrouter-llm\[plots\]"):
        run("bench", "step", "--plot", "a.png")
