"""calibrate, chat and the demo's plot, as scripts and people use them."""

from __future__ import annotations

import json
import sys

import pytest

from specrouter_llm.cli.chat import Conversation, Status
from specrouter_llm.engine.calibration import Calibration
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.scheduling.latency import GRID
from specrouter_llm.testing import fake_engine
from specrouter_llm.types import LevelStep, StepInfo

POOL = ("--target", "demo/middle", "--draft", "demo/draft")


def test_calibrate_shows_and_writes_what_the_engine_reads(specrouter, tmp_path):
    """A table, a plot, and a file that knows both models."""
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "new" / "pool.json", tmp_path / "pool.png"
    status, shown, _ = specrouter("calibrate", *POOL, "--seconds", "0.4", "--out", str(out), "--plot", str(plot))
    assert status == 0
    assert "n = 64" in shown
    assert any(f"{runner}Runner on" in shown for runner in ("Compiled", "Lean", "Eager"))
    calibration = Calibration.load(out)
    assert list(calibration.members) == ["demo/draft", "demo/middle"]
    assert all(calibration.latency.knows(name) for name in calibration.members)
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_calibrate_prints_json(specrouter):
    status, out, _ = specrouter("calibrate", *POOL, "--seconds", "0.4", "--json")
    assert status == 0
    table = json.loads(out)
    assert set(table) == {"demo/draft", "demo/middle"}
    for contexts in table.values():
        for values in contexts.values():
            assert list(values) == [str(tokens) for tokens in GRID]
            assert 0 < values["1"] <= values["64"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("calibrate", "--seconds", "0"), "must be finite and above 0, got 0"),
        (("calibrate", "--plot", "x.jpeg"), "one of .png, .svg, .pdf"),
        (("demo", "--plot", "x"), "one of .png, .svg, .pdf"),
        (("demo", "--widen", "banana"), "a number of parameters must be an int or text such as '150M', got 'banana'"),
        (("chat", "--policy", "clever"), 'policy must be one of "adaptive", "fixed"'),
        (("bench", "memory", "--plot", "x.gif"), "one of .png, .svg, .pdf"),
    ],
)
def test_bad_input_ends_before_any_work(specrouter, monkeypatch, arguments, words):
    monkeypatch.setattr("specrouter_llm.pool.pool.ModelPool.load", lambda *_, **__: pytest.fail("loaded"))
    status, _, err = specrouter(*arguments)
    assert status == 2
    assert words in err


def test_plots_without_matplotlib_say_what_to_install(specrouter, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, _, err = specrouter("calibrate", "--plot", "x.png")
    assert status == 2
    assert "pip install 'specrouter-llm[plots]'" in err


def test_chat_from_a_pipe(specrouter):
    """An answer per line on stdout; /reset makes the second conversation equal to the first; nothing after /quit."""
    lines = "Hello there\n\nAnd again\n/reset\nHello there\n/nonsense now\n/quit\nnever\n"
    status, out, err = specrouter("chat", *POOL, "--max-tokens", "8", "--policy", "fixed", stdin=lines)
    assert status == 0
    assert err.count("tokens per target step") == 3
    assert "There is no command /nonsense" in err
    assert "starts anew" in err
    alone = specrouter("chat", *POOL, "--max-tokens", "8", "--chain", "ngram", stdin="Hello there\nAnd again")[1]
    assert alone
    assert out.startswith(alone)
    first = specrouter("chat", *POOL, "--max-tokens", "8", "--policy", "fixed", stdin="Hello there")[1]
    assert out == alone + first


def test_a_conversation_needs_a_chat_template():
    with fake_engine() as engine, pytest.raises(InvalidParameterError, match="target has no chat template"):
        Conversation(engine, None, {})


def test_the_status_line_adds_up_steps():
    """Chain of the last step, accepted of drafted by level, and means over all steps."""
    status = Status()
    assert str(status) == "reading ..."
    status.add(StepInfo(0, ("t",), (), (5,), 0.5, ()))
    status.add(StepInfo(0, ("a", "b", "t"), (LevelStep("a", 6, 4), LevelStep("b", 4, 2)), (1, 2, 3), 0.5, ()))
    assert str(status) == ("a > b > t   4 tokens, 4 tokens/s, 2.00 per target step   accepted/drafted: a 4/6, b 2/4")


def test_a_long_conversation_loses_its_oldest_turns():
    """The newest message is always answered, the system message stays."""
    from specrouter_llm import SpecRouter

    with SpecRouter.from_pretrained("demo/draft", max_batch=1, max_context=512, progress=False) as engine:
        conversation = Conversation(engine, "Be brief.", {"max_tokens": 60, "ignore_eos": True})
        for turn in range(12):
            conversation.answer(f"Tell me story number {turn}, please.", Status(), lambda piece: None)
        assert conversation.messages[0] == {"role": "system", "content": "Be brief."}
        assert conversation.messages[-2]["content"] == "Tell me story number 11, please."
        assert 3 <= len(conversation.messages) < 25
        conversation.reset()
        assert conversation.messages == [{"role": "system", "content": "Be brief."}]


def test_the_demo_draws_its_routing(specrouter, tmp_path):
    pytest.importorskip("matplotlib")
    plot = tmp_path / "routing.png"
    status, out, _ = specrouter("demo", "--widen", "none", "--max-tokens", "12", "--plot", str(plot))
    assert status == 0
    assert "drawn in routing.png" in out
    assert plot.stat().st_size > 10_000
