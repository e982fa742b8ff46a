"""The command for a GPU: parts that fail or take too long cost only themselves, and aims are read from what was measured."""

import json
import sys

import pytest

from specrouter_llm.bench import gpu
from specrouter_llm.bench.experiments import read_result
from specrouter_llm.bench.result import result, write_result


def python(name, code):
    return gpu.Part(name, (sys.executable, "-c", code))


def run(parts, folder, seconds=60.0):
    seen = []
    outcomes = gpu.run(parts, folder, seconds=seconds, settings={"device": "cpu"}, advance=seen.append)
    assert seen == outcomes
    return outcomes


def test_a_part_that_fails_is_recorded_and_the_others_run(tmp_path):
    """Its error lies where its result would; an older result of that name is gone; a good part's last line is kept."""
    write_result(tmp_path / "step.json", result("step", {}, [{"runner": "old"}]))
    outcomes = run(
        [python("step", "raise ValueError('no device')"), python("tests", "print('x\\n7 passed')")], tmp_path
    )
    assert [("step", "failed"), ("tests", "done")] == [(each.part, each.state) for each in outcomes]
    assert "ValueError: no device" in outcomes[0].note
    failed = read_result(tmp_path / "step.json")
    assert [] == failed["rows"]
    assert "exit status 1" == failed["settings"]["error"][-1]
    assert [{"summary": "7 passed"}] == read_result(tmp_path / "tests.json")["rows"]
    summary = read_result(tmp_path / "gpu.json")
    assert "cpu" == summary["settings"]["device"]
    assert ["failed", "done"] == [each["state"] for each in summary["settings"]["parts"].values()]
    assert not any("value" in row for row in summary["rows"])


def test_tests_that_were_all_skipped_are_not_done(tmp_path):
    """As where torch does not find the device: pytest ends well all the same."""
    (outcome,) = run([python("tests", "print('36 skipped in 4.1s')")], tmp_path)
    assert (gpu.FAILED, "36 skipped in 4.1s") == (outcome.state, outcome.note)


def test_a_failing_part_keeps_what_it_wrote(tmp_path):
    """`verify` writes what it found and ends with status 1 where something differs."""
    rows = [{"chain": "ngram", "requests": 2, "identical": 1, "near_ties": 0, "different": 1}]
    content = json.dumps(result("verify", {}, rows))
    code = (
        f"import pathlib, sys; pathlib.Path({str(tmp_path / 'identity.json')!r}).write_text({content!r}); sys.exit(1)"
    )
    (outcome,) = run([python("identity", code)], tmp_path)
    assert gpu.FAILED == outcome.state
    figure = next(row for row in gpu.figures(tmp_path) if row["part"] == "identity")
    assert (0.5, False, "1 identical, 0 near-ties, 1 different") == (figure["value"], figure["met"], figure["of"])


def test_the_time_is_a_budget(tmp_path):
    """A part is stopped when it is up, and what would begin afterwards is not run."""
    parts = [python("step", "import time; print('began', flush=True); time.sleep(60)"), python("speed", "")]
    outcomes = run(parts, tmp_path, seconds=3.0)
    assert [gpu.FAILED, gpu.NOT_RUN] == [each.state for each in outcomes]
    assert ["began", "stopped: the time was up"] == read_result(tmp_path / "step.json")["settings"]["error"]
    assert not (tmp_path / "speed.json").exists()


def test_aims_are_read_from_the_results(tmp_path):
    """Each figure from rows as its experiment writes them; the worst batch counts, peers do not, nor do plain answers."""

    def ratio(value):
        return {"value": value, "low": value / 2, "high": value * 2}

    same = {"identical": 3, "near_ties": 1, "different": 0}
    peer = {"kind": "peer", "identical": 0, "near_ties": 0, "different": 4}
    plain = {"kind": "plain", "identical": 0, "near_ties": 0, "different": 9}  # compared with itself: says nothing
    contents = {
        "identity": [{"chain": "ngram", **same}],
        "step": [{"runner": "specrouter", "tokens": 1, "over_floor": ratio(9.0)},
                 {"runner": "engine", "tokens": 1, "over_floor": ratio(1.25)}],
        "speed": [peer, plain, {"kind": "routed", **same, "speedup": {"plain": {"decode": ratio(3.0)},
                                                              "hf generate": {"decode": ratio(7.0)}}}],
        "batch": [{"kind": "routed", "batch": size, **same, "speedup": {"plain": ratio(value)}}
                  for size, value in ((1, 2.0), (8, 0.9), (32, 1.1))],
        "strict": [{"mode": mode, "way": way, "guarantee": "bitwise", **same, "over_default": {"decode": ratio(value)}}
                   for mode, way, value in (("default", "plain", 1.0), ("strict", "plain", 0.95),
                                            ("strict", "routed", 0.8))],
    }  # fmt: skip
    for name, rows in contents.items():
        write_result(tmp_path / f"{name}.json", result(name, {}, rows))
    rows = gpu.figures(tmp_path)
    assert [0.8, 3.0, 7.0, 0.9, 0.95, 0.8, 1, 1, 1, 1] == pytest.approx([row["value"] for row in rows])
    assert [False, True, False, False, True, False, True, True, True, True] == [row["met"] for row in rows]
    assert (0.4, 1.6) == pytest.approx((rows[0]["low"], rows[0]["high"]))
    assert "batch 8 of 1, 8, 32" == rows[3]["of"]
    assert len(rows) == gpu.table(rows).row_count


def test_parts_are_commands_of_the_command_line(tmp_path):
    """The options that were given, and no others; every option is one that the command has."""
    from typer.main import get_command

    from specrouter_llm.cli.app import app

    options = {"dtype": None, "workload": "cot", "limit": 2, "max_tokens": 8, "batches": (1, 4)}
    parts = gpu.parts(tmp_path, size=None, device="cpu", tests=tmp_path, **options)
    assert ["identity", "step", "speed", "strict", "batch", "tests"] == [part.name for part in parts]
    for part in parts[:-1]:
        words = list(part.command[len(gpu.SPECROUTER) :])
        command = get_command(app)
        while hasattr(command, "commands"):
            command = command.commands[words.pop(0)]
        parsed = command.make_context(part.name, words).params
        assert ("cpu", None, None) == (parsed["device"], parsed["dtype"], parsed["widen"])
        assert tmp_path / f"{part.name}.json" == parsed["out"]
    assert [1, 4] == parsed["batches"]


def test_chosen_parts_only(tmp_path, monkeypatch):
    """What was measured before stays, and a part that does not exist is refused before anything runs."""
    from typer.testing import CliRunner

    from specrouter_llm.cli.app import app

    write_result(tmp_path / "step.json", result("step", {}, []))
    ran = []

    def run(parts, folder, **options):
        ran.extend(part.name for part in parts)
        return []

    monkeypatch.setattr(gpu, "run", run)
    ended = CliRunner().invoke(app, ["bench", "gpu", "--out", str(tmp_path), "--part", "batch", "--part", "speed"])
    assert 0 == ended.exit_code, ended.output
    assert ["speed", "batch"] == ran
    refused = CliRunner().invoke(app, ["bench", "gpu", "--out", str(tmp_path), "--part", "sped"])
    assert 2 == refused.exit_code
    assert "no part sped" in refused.output
    assert ["speed", "batch"] == ran


@pytest.mark.slow
def test_everything_once_on_a_cpu(tmp_path):
    """The real parts, as small as they go: every figure is measured, and the answers are plain decoding's."""
    from typer.testing import CliRunner

    from specrouter_llm.cli.app import app

    small = (
        "--size",
        "none",
        "--device",
        "cpu",
        "--dtype",
        "float32",
        "--limit",
        "1",
        "--max-tokens",
        "6",
        "--batch",
        "1",
    )
    ended = CliRunner().invoke(app, ["bench", "gpu", *small, "--out", str(tmp_path)])
    assert 0 == ended.exit_code, ended.output
    assert "device cpu" in ended.output
    rows = read_result(tmp_path / "gpu.json")["rows"]
    assert all("value" in row for row in rows)
    assert [1.0] * 4 == [row["value"] for row in rows if row["figure"].startswith("answers")]


def test_a_floor_of_few_rounds_has_no_interval():
    """The share of the floor is one over what a step takes of it; ends change places, if there are any."""
    rows = [{"runner": gpu.STEP, "over_floor": {"value": 2.0}}]
    assert gpu._floor(rows) == {"value": 0.5}
    rows[0]["over_floor"] |= {"low": 1.0, "high": 4.0}
    assert gpu._floor(rows) == {"value": 0.5, "low": 0.25, "high": 1.0}
