"""The command line as scripts and people use it."""

from __future__ import annotations

import json

import pytest

from specrouter_llm.cli.verify import all_chains, compare
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.testing import fake_engine


def test_generate_streams_text_and_statistics(specrouter):
    """The answer goes to stdout, one line about it to stderr; a seed makes it reproducible."""
    arguments = ("generate", "Once upon a time", "--raw", "--max-tokens", "12", "--temperature", "0.8", "--seed", "4")
    status, first, err = specrouter(*arguments)
    assert status == 0
    assert len(first.split()) > 3
    assert "12 tokens" in err
    assert "seed 4" in err
    assert specrouter(*arguments, "--no-speculation")[1] == first


def test_generate_prints_json_for_scripts(specrouter):
    """--json gives one object with text, usage and the statistics under vLLM's names."""
    status, out, _ = specrouter("generate", "-", "--json", "--max-tokens", "8", "--chain", "ngram", stdin="Hello there")
    assert status == 0
    answer = json.loads(out)
    assert answer["usage"]["completion_tokens"] <= 8
    assert set(answer["speculative_decoding"]) >= {"num_draft_tokens", "acceptance_histogram", "mean_acceptance_length"}
    assert answer["guarantee"] in {"bitwise", "near-tie"}  # the machine decides


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("generate", "x", "--temperature", "-1"), "temperature"),
        (("generate", "x", "--chain", "nobody"), "unknown level 'nobody'"),
        (("generate", "x", "--target", "no/such/folder"), "no/such/folder"),
        (("generate", ""), "prompt is empty"),
        (("verify", "--prompts", "missing.jsonl"), "there is no prompt file missing.jsonl"),
        (("generate", "x", "--document", "missing.txt"), "missing.txt cannot be read: No such file"),
        (("generate", "x", "--windows", "a,b"), "--windows takes whole numbers separated by commas"),
        (("chat", "--windows", "4,4.5"), "--windows takes whole numbers separated by commas"),
        (("generate", "x", "--device", "cuda:77"), "device 'cuda:77' is not there"),
    ],
)
def test_bad_input_is_one_clear_line_and_status_2(specrouter, arguments, words):
    """Errors name what is wrong, without a traceback."""
    status, _, err = specrouter(*arguments, *(("--raw",) if arguments[0] == "generate" else ()))
    assert status == 2
    assert words in err
    assert "Traceback" not in err


@pytest.mark.parametrize("arguments", [("generate", "x", "--document"), ("verify", "--prompts")])
def test_a_file_of_bytes_is_refused(specrouter, tmp_path, arguments):
    """Texts are UTF-8; the message names the file that is not."""
    file = tmp_path / "latin.txt"
    file.write_bytes("caf\u00e9".encode("latin-1"))
    status, _, err = specrouter(*arguments, str(file))
    assert status == 2
    assert f"error: {file} is not UTF-8 text" in err


def test_a_folder_is_no_document(specrouter, tmp_path):
    """It is named, and nothing is loaded."""
    status, _, err = specrouter("generate", "x", "--document", str(tmp_path))
    assert status == 2
    assert f"error: {tmp_path} cannot be read" in err


def test_verify_compares_every_chain(specrouter, tmp_path):
    """verify runs each chain on the prompts of a file, and says what it found in its exit status."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"question": "How many apples?"}\n{"prompt": "Tell me a story."}\n{"turns": ["Hello", "x"]}\n')
    status, out, _ = specrouter(
        "verify", "--prompts", str(prompts), "--max-tokens", "10", "--dtype", "float64", "--transformers", "--json"
    )
    report = json.loads(out)
    assert status == 0
    assert [r["requests"] for r in report["reports"]] == [3] * 9  # the router, 2^3 - 1 chains, and transformers
    assert [r["identical"] for r in report["reports"]] == [3] * 9
    assert report["reports"][0]["chain"] == "routed"
    assert all(r["drafted"] > 0 for r in report["reports"] if "demo" in r["chain"])


def test_verify_tells_a_near_tie_from_a_difference():
    """A first difference is measured by the change of the logits that it takes, and judged by epsilon."""
    params = SamplingParams(max_tokens=6, temperature=1.0, seed=2)
    prompts = [[1, 2, 3], [4, 5]]
    with fake_engine() as engine:
        plain = engine.generate(prompts, params, speculation=False)
        other = (plain[0].token_ids[0] + 1) % 32
        changed = [(other, *plain[0].token_ids[1:]), plain[1].token_ids]
        strict = compare(engine, prompts, params, plain, changed, "x", 1e-3).outputs
        assert (strict.identical, strict.near_ties, strict.different) == (1, 0, 1)
        assert 1e-3 < strict.largest_margin < 64
        loose = compare(engine, prompts, params, plain, changed, "x", strict.largest_margin * 1.01).outputs
        assert (loose.identical, loose.near_ties, loose.different) == (1, 1, 0)
        shorter = [plain[0].token_ids[:3], plain[1].token_ids]
        assert compare(engine, prompts, params, plain, shorter, "x", 1.0).outputs.different == 1
        assert len(all_chains(engine)) == 7


def test_demo_prints_identical_pairs(specrouter):
    """The demo decodes each task both ways, drafts something, and the answers are the same."""
    status, out, _ = specrouter("demo", "--widen", "none", "--max-tokens", "16", "--json")
    pairs = json.loads(out)
    assert status == 0
    assert [pair["identical"] for pair in pairs] == [True] * 3
    assert all(pair["chain"][0]["proposed"] >= pair["chain"][0]["accepted"] >= 0 for pair in pairs)
    assert sum(pair["chain"][0]["accepted"] for pair in pairs) > 0
    assert all(pair["plain_tokens_per_second"] > 0 for pair in pairs)


def test_a_widened_pool_says_so_everywhere(specrouter):
    """Reports about widened models carry the word."""
    status, out, _ = specrouter(
        "verify", "--widen", "30M", "--limit", "1", "--max-tokens", "6", "--chain", "ngram", "--json"
    )
    assert status == 0
    assert "(widened to " in json.loads(out)["target"]
