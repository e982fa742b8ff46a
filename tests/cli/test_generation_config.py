"""Commands that answer leave to the model what they were not told; those that measure do not."""

from __future__ import annotations

import io
import json
import shutil
import sys

import pytest

from specrouter_llm.bench.models import Models
from specrouter_llm.cli import main
from specrouter_llm.pool.demo import demo_folder
from specrouter_llm.sampling.params import SamplingParams

GREEDY_WITH_PENALTY = {"repetition_penalty": 1.2}
SAMPLED = {"do_sample": True, "temperature": 0.9, "top_k": 20, "repetition_penalty": 1.2}


@pytest.fixture
def model(tmp_path):
    """Copies an embedded model, whose generation config says more; returns its folder."""

    def make(name, **said):
        shutil.copytree(demo_folder("draft"), tmp_path / name)
        file = tmp_path / name / "generation_config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | said))
        return str(tmp_path / name)

    return make


@pytest.fixture
def specrouter(monkeypatch, capsys):
    """Runs the command, which must succeed; returns what it printed."""

    def run(*arguments, stdin=""):
        monkeypatch.setattr(sys, "argv", ["specrouter", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


def test_generate_leaves_to_the_model_what_it_is_not_told(model, specrouter):
    says, silent = model("says", **SAMPLED), model("silent")

    def ids(target, *options):
        always = ("--raw", "--json", "--max-tokens", "16", "--no-speculation", "--target", target)
        return json.loads(specrouter("generate", "Once upon a time", *always, *options))["token_ids"]

    sampled, greedy = ids(says, "--seed", "3"), ids(says, "--temperature", "0")
    assert ids(says, "--seed", "3", "--top-k", "1") == greedy
    assert len({tuple(found) for found in (sampled, greedy, ids(says, "--seed", "4"), ids(silent))}) == 4


def test_chat_leaves_to_the_model_what_it_is_not_told(model, specrouter):
    says = model("says", **SAMPLED)

    def text(*options):
        always = ("--policy", "off", "--max-tokens", "24", "--target", says)
        return specrouter("chat", *always, *options, stdin="Tell me a short story.\n")

    assert text("--seed", "3") != text("--temperature", "0") != text("--seed", "4")


def test_verify_compares_with_generate_of_the_same_folder(model, specrouter):
    """Whose greedy answers have the model's penalty, too."""
    says = model("says", **GREEDY_WITH_PENALTY)
    options = ("--raw", "--limit", "4", "--max-tokens", "16", "--dtype", "float64", "--chain", "ngram", "--json")
    reports = json.loads(specrouter("verify", "--target", says, "--transformers", *options))["reports"]
    assert [(report["chain"], report["identical"]) for report in reports] == [
        ("ngram", 4),
        ("transformers generate", 4),
    ]


def test_engines_of_benches_do_not_ask_the_model(model):
    with Models.of(model("says", **SAMPLED)).engine(max_batch=1) as engine:
        assert engine.default_params == SamplingParams()
