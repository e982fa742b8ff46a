"""llama.cpp as a peer: the same weights, so the same greedy answers; and clear errors."""

import sys

import pytest

from specrouter_llm.bench import speed
from specrouter_llm.bench.contestants import contestants_of
from specrouter_llm.bench.llamacpp import llama_cpp_peers, write_gguf
from specrouter_llm.bench.models import Models
from specrouter_llm.bench.workloads import workload
from specrouter_llm.errors import MissingDependencyError, UnsupportedModelError


def test_without_its_packages_the_extra_is_named(models, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_cpp", None)
    with (
        pytest.raises(MissingDependencyError, match=r"specrouter-llm\[peers\]"),
        contestants_of(models, peers=["llama.cpp"]),
    ):
        pass


@pytest.mark.parametrize("widen", [None, "12M"])
def test_its_answers_are_ours(widen):
    """Prompts as chats and as text, plain and with its lookup: no first difference but near-ties."""
    for module in ("llama_cpp", "gguf"):
        pytest.importorskip(module)
    workloads = [workload("editing", 2, max_tokens=32), workload("cot", 1, max_tokens=32)]
    _, rows = speed.measure(Models.of("demo", widen=widen), workloads, mix=False, chains=[], peers=["llama.cpp"])
    theirs = [row for row in rows if row["kind"] == "peer"]
    assert ["llama.cpp", "llama.cpp lookup@10"] * 2 == [row["contestant"] for row in theirs]
    for row in theirs:
        assert (row["prompts"], 0) == (row["identical"] + row["near_ties"], row["different"])
    assert 1.0 == theirs[0]["tokens_per_target_step"] < theirs[1]["tokens_per_target_step"]


def test_models_that_it_would_read_otherwise_are_refused(models, tmp_path):
    """Scaled rotary embeddings have metadata of their own, which is not written."""
    pytest.importorskip("gguf")
    pool = models.pool()
    pool.target.model.config.rope_parameters = {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}
    with pytest.raises(UnsupportedModelError, match="only plain Llama models"):
        write_gguf(pool.target.model, tmp_path / "a.gguf")
    pool.close()


def test_one_prompt_at_a_time(models):
    for module in ("llama_cpp", "gguf"):
        pytest.importorskip(module)
    from specrouter_llm.errors import InvalidParameterError

    with llama_cpp_peers(models) as peers, pytest.raises(InvalidParameterError, match="one prompt at a time"):
        peers[0].decode([])
