"""Each experiment on a few prompts: its numbers must fit together."""

import json

import pytest
from typer.testing import CliRunner

from specrouter_llm.bench import match, off, rejection
from specrouter_llm.cli.app import app

MODELS = ("demo/draft", "demo/middle", "demo/target")


def test_match(models, texts):
    """Rates lie between their bounds, the answer is what the target chooses, and expectation predicts observation."""
    rows = match.measure(models, texts, temperatures=[0.0, 1.0], max_tokens=24)
    pairs = [("demo/draft", "demo/middle"), ("demo/draft", "demo/target"), ("demo/middle", "demo/target")]
    assert [(t, *pair) for t in (0.0, 1.0) for pair in pairs] == [
        (r["temperature"], r["lower"], r["upper"]) for r in rows
    ]
    for row in rows:
        value = {name: entry["value"] for name, entry in row.items() if isinstance(entry, dict) and "value" in entry}
        assert 0 < row["positions"] <= 3 * 24
        assert row["positions"] == row["reproduced"]
        assert 0 <= value["lower_bound"] <= value["one_minus_tv"] <= 1
        assert 0 <= value["observed_match"] <= 1
        if row["temperature"] == 0:
            assert value["argmax_agreement"] == value["observed_match"]
            assert "expected_match" not in row
        else:
            assert value["lower_bound"] <= value["expected_match"] <= value["one_minus_tv"]
            assert value["observed_match"] == pytest.approx(
                value["expected_match"], abs=4 * (0.25 / row["positions"]) ** 0.5
            )
        if row["upper"] == "demo/target":
            cycle = row["tokens_per_cycle_4"]
            assert 1 <= cycle["keyed"]["value"] <= 5
            if row["temperature"]:
                assert cycle["keyed"]["value"] <= cycle["rejection"]["value"] <= 5
                assert cycle["keyed_over_rejection"]["value"] <= 1
    json.dumps(rows)
    assert match.table(rows).row_count == len(rows)


def test_rejection(models, texts):
    """Counts add up; a filled middle level is accepted like the middle alone; outputs are those of plain decoding."""
    label, rows = rejection.measure(models, texts, temperatures=[1.0], max_tokens=24, offers=[4])
    assert "demo/target" == label
    assert len(rejection.variants(MODELS, [4])) == len(rows) == 6
    by_label = {row["label"]: row for row in rows}
    for row in rows:
        target = row["chain"][-1]
        assert len(texts) == row["identical"] + row["near_ties"]
        assert row["committed"] >= row["target_steps"] >= row["committed"] / (row["offered"] + 1)
        assert row["forwards_per_token"][target] == pytest.approx(row["target_steps"] / row["committed"], abs=1e-4)
        assert row["forwards_per_token"][target] == pytest.approx(row["target_forwards_per_token"]["value"], abs=1e-4)
        drafted = next(iter(row["stages"].values()))["proposed"]
        assert row["forwards_per_token"][row["chain"][0]] == pytest.approx(drafted / row["committed"], abs=1e-4)
        assert all(0 <= stage["accepted"] <= stage["proposed"] for stage in row["stages"].values())
    alone = by_label["demo/middle > demo/target [4]"]
    for window in (2, 3):
        filled = by_label[f"demo/draft > demo/middle > demo/target [{window}, 4] filled"]
        assert alone["stages"]["demo/middle > demo/target"] == filled["stages"]["demo/middle > demo/target"]
        assert alone["target_steps"] == filled["target_steps"]
        assert filled["forwards_per_token"]["demo/middle"] < alone["forwards_per_token"]["demo/middle"]
    json.dumps(rows)
    assert rejection.table(rows).row_count == len(rows)


def test_off(models, texts):
    """Equal outputs, one time per pair and engine on both clocks, and ratios within their intervals."""
    rows = off.measure(models, texts, batches=[1, 2], pairs=5, max_tokens=6)
    assert [1, 2] == [row["batch"] for row in rows]
    for row in rows:
        assert 0 == row["outputs_differ"]
        for clock in ("wall", "cpu"):
            assert dict.fromkeys(("with", "without", "control"), 5) == {
                name: len(times) for name, times in row[clock]["seconds"].items()
            }
            for name in ("with_over_without", "control"):
                figure = row[clock][name]
                assert 0 < figure["low"] <= figure["value"] <= figure["high"]
    json.dumps(rows)
    assert 4 == off.table(rows).row_count


def test_the_command_writes_what_it_shows(tmp_path):
    """`specrouter bench match` on a prompt file: a table on stdout, a result without the file's folder."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question": "What is 3 + 4?"}\n', encoding="utf-8")
    out = tmp_path / "match.json"
    arguments = [
        "bench",
        "match",
        "--prompts",
        str(prompts),
        "--temperature",
        "1",
        "--max-tokens",
        "8",
        "--out",
        str(out),
    ]
    outcome = CliRunner().invoke(app, arguments)
    assert 0 == outcome.exit_code, outcome.output
    assert "1-TV" in outcome.output
    content = json.loads(out.read_text(encoding="utf-8"))
    assert "match" == content["experiment"]
    assert {"prompts": "prompts.jsonl", "num_prompts": 1} == {
        k: content["settings"][k] for k in ("prompts", "num_prompts")
    }
    assert 3 == len(content["rows"])
    assert str(tmp_path) not in json.dumps(content["rows"]) + json.dumps(content["settings"])


def test_a_recording_holds_classes_of_tokens_and_no_text(tmp_path):
    """`specrouter bench recording`: lists of small numbers, as many as tokens; two runs write the same."""
    paths = [tmp_path / name for name in ("one.json", "two.json")]
    for path in paths:
        arguments = ["bench", "recording", str(path), "--workload", "qa", "--limit", "2", "--max-tokens", "8"]
        outcome = CliRunner().invoke(app, arguments)
        assert 0 == outcome.exit_code, outcome.output
    assert paths[0].read_text(encoding="utf-8") == paths[1].read_text(encoding="utf-8")
    for answer in json.loads(paths[0].read_text(encoding="utf-8"))["answers"]:
        assert {"demo/draft", "demo/middle"} == set(answer["choices"])
        for classes in answer["choices"].values():
            assert 8 == len(classes)
            assert set(classes) <= {0, 1, 2}
        assert all(0 <= right <= length for length, right in answer["lookups"]["ngram"])


@pytest.mark.parametrize("arguments", [["bench", "--help"], ["bench", "off", "--help"]])
def test_help(arguments):
    """The subcommands are found and described."""
    assert 0 == CliRunner().invoke(app, arguments).exit_code
