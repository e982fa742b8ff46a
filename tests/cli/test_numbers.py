"""Numbers that no command can run with end in one line and status 2, before anything is loaded."""

import pytest
from typer.testing import CliRunner

from specrouter_llm.bench.workloads import workload
from specrouter_llm.cli.app import app
from specrouter_llm.errors import InvalidParameterError

LEAST_ONE, NONE_BELOW = "1", "0"
"""typer words its own bounds otherwise from release to release."""
BAD = [
    ("generate x --max-tokens 0", LEAST_ONE),
    ("generate x --temperature nan", "must be finite and at least 0 and at most 100, got nan"),
    ("generate x --top-p 1.5", "must be finite and above 0 and at most 1, got 1.5"),
    ("generate x --top-k -1", NONE_BELOW),
    ("generate x --seed -1", NONE_BELOW),
    ("chat --max-tokens 0", LEAST_ONE),
    ("demo --max-tokens 0", LEAST_ONE),
    ("calibrate --seconds nan", "must be finite and above 0, got nan"),
    ("calibrate --seconds inf", "must be finite and above 0, got inf"),
    ("verify --limit -1", LEAST_ONE),
    ("verify --batch 0", LEAST_ONE),
    ("verify --epsilon nan", "must be finite and at least 0, got nan"),
    ("verify --epsilon -1", "must be finite and at least 0, got -1"),
    ("bench match --limit 0", LEAST_ONE),
    ("bench match --temperature -1", "must be finite and at least 0"),
    ("bench acceptance --limit 0", LEAST_ONE),
    ("bench recording a.json --limit 0", LEAST_ONE),
    ("bench rejection --offer 0", LEAST_ONE),
    ("bench rejection --batch 0", LEAST_ONE),
    ("bench off --pairs 0", LEAST_ONE),
    ("bench off --batch 0", LEAST_ONE),
    ("bench calibration --noise nan", "must be finite and at least 0, got nan"),
    ("bench calibration --window -1", NONE_BELOW),
    ("bench calibration --tokens 0", LEAST_ONE),
    ("bench calibration --temperature inf", "got inf"),
    ("bench overhead --pools 0", LEAST_ONE),
    ("bench overhead --models 0", LEAST_ONE),
    ("bench overhead --tokens 0", LEAST_ONE),
    ("bench memory --depth -1", NONE_BELOW),
    ("bench memory --steps -1", NONE_BELOW),
    ("bench speed --limit -1", LEAST_ONE),
    ("bench speed --max-tokens 0", LEAST_ONE),
    ("bench speed --temperature nan", "got nan"),
    ("bench speed --seed -1", NONE_BELOW),
    ("bench batch --groups 0", LEAST_ONE),
    ("bench batch --batch 0", LEAST_ONE),
    ("bench batch --max-context 0", LEAST_ONE),
    ("bench step --rounds 0", LEAST_ONE),
    ("bench step --tokens 0", LEAST_ONE),
    ("bench step --context 0", LEAST_ONE),
    ("bench strict --limit 0", LEAST_ONE),
    ("bench gpu --out new --seconds nan", "must be finite and above 0, got nan"),
    ("bench gpu --out new --limit 0", LEAST_ONE),
    ("bench gpu --out new --max-tokens 0", LEAST_ONE),
    ("bench gpu --out new --batch 0", LEAST_ONE),
]


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Runs a command in an empty folder where nothing can be loaded; returns its output."""
    monkeypatch.chdir(tmp_path)
    for name in ("pool.pool.ModelPool.load", "engine.spec_router.SpecRouter.from_pretrained"):
        monkeypatch.setattr(f"specrouter_llm.{name}", lambda *_, **__: pytest.fail("loaded"))

    def run(arguments):
        outcome = CliRunner().invoke(app, arguments, catch_exceptions=False, env={"COLUMNS": "160"})
        assert outcome.exit_code == 2, outcome.output
        assert not list(tmp_path.iterdir())
        return outcome.output

    return run


@pytest.mark.parametrize(("command", "words"), BAD, ids=[command for command, _ in BAD])
def test_a_number_out_of_bounds_is_refused(refused, command, words):
    """The option is named, with what it takes."""
    option = next(word for word in reversed(command.split()) if word.startswith("--"))
    output = refused(command.split())
    assert words in output
    assert f"Invalid value for '{option}'" in output


@pytest.mark.parametrize("chain", ["", ",", " , "])
@pytest.mark.parametrize(
    ("command", "instead"),
    [
        (("generate", "x"), "draft nothing with --no-speculation"),
        (("chat",), "draft nothing with --policy off"),
        (("verify",), "for the router and every chain"),
    ],
)
def test_a_chain_of_no_levels_is_refused(refused, command, instead, chain):
    """It is told how to do without."""
    with pytest.raises(InvalidParameterError, match=f"--chain names no level, got '{chain}': leave it out.*{instead}"):
        refused([*command, "--chain", chain])


def test_windows_of_no_numbers_are_refused(refused):
    with pytest.raises(InvalidParameterError, match="--windows takes whole numbers"):
        refused(["generate", "x", "--windows", ","])


def test_a_length_of_zero_is_not_the_usual_one():
    assert workload("cot", 1).max_tokens == 64
    assert workload("cot", 1, max_tokens=0).max_tokens == 0
