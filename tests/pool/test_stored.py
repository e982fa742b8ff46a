"""Checkpoints of 16 bits that stay so from the disk to the compiled forward, which computes with them in float32."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from huggingface_hub import HfApi
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from specrouter_llm.config import ModelSpec
from specrouter_llm.engine.calibration import pool_runners
from specrouter_llm.errors import MemoryBudgetError, UnsupportedModelError
from specrouter_llm.pool import ModelPool, shape_for
from specrouter_llm.pool.source import find_checkpoint
from specrouter_llm.pool.weights import short_dtype
from specrouter_llm.runtime import select
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.runner import EagerRunner
from specrouter_llm.runtime.select import make_runner, packing_bytes

pytest.importorskip("numba")
pytest.importorskip("specrouter_llm.runtime.compiled", reason="torch does not run on GNU's OpenMP here")
from specrouter_llm.runtime.compiled import CompiledRunner  # needs numba
from specrouter_llm.runtime.panels import HELD  # needs numba

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
}
SCALED = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
CONFIGS = {
    "llama": LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama-yarn": LlamaConfig(**SHAPE, rope_parameters=SCALED),
    "mistral": MistralConfig(**SHAPE, sliding_window=7),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE, head_dim=40, tie_word_embeddings=True),
}
SHORT = [dtype for dtype in HELD if dtype != torch.float32]


def save(folder, config, dtype):
    """A model whose biases and norms are not those of a fresh one."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    model.to(dtype).save_pretrained(folder)
    return folder


def load(source, **options):
    """As an engine on a CPU loads it."""
    return ModelPool.load(source, **{"packing": packing_bytes, "device": "cpu", "progress": False} | options)


def loaded_bytes(model):
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("kind", CONFIGS)
def test_the_bits_are_those_of_float32(kind, dtype, tmp_path):
    """Loaded as it is stored, a model gives the logits that it gives loaded in float32, of prompts and of single tokens."""
    save(tmp_path, CONFIGS[kind], dtype)
    held, full = load(tmp_path), load(tmp_path, packing=None)
    assert (held.target.model.dtype, full.target.model.dtype) == (dtype, torch.float32)
    assert held.target.dtype == full.target.dtype == torch.float32
    runners = [pool_runners(pool, num_slots=2, pack=True)[pool.target.name] for pool in (held, full)]
    for runner in runners:
        assert type(runner) is CompiledRunner
        assert runner.dtype == "float32"
    ids = [(i * 7) % 50 for i in range(300)]
    for spans in (
        [Span(0, 0, ids, 300), Span(1, 0, ids[5:9], 1)],
        [Span(0, 300, [3], 1), Span(1, 4, [7, 8], 2)],
    ):
        assert torch.equal(*(runner.forward(spans) for runner in runners))


@pytest.mark.parametrize("dtype", SHORT, ids=str)
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_what_is_held_is_accounted_for(kind, dtype, tmp_path):
    """Half of what float32 takes: weights, panels, and the embedding that a tied head was made of."""
    save(tmp_path, CONFIGS[kind], dtype)
    pool, full = load(tmp_path), load(tmp_path, dtype="float32", packing=None)
    assert 2 * pool.memory.members[0].weight_bytes == full.memory.members[0].weight_bytes
    assert pool.memory.members[0].weight_bytes == loaded_bytes(pool.target.model)
    runner = pool_runners(pool, num_slots=1, pack=True)[pool.target.name]
    held = loaded_bytes(pool.target.model) + runner.weight_bytes
    assert held == pool.memory.members[0].weight_bytes + pool.memory.members[0].packing.copies
    # Keys and values are float32 all the same.
    assert pool.memory.members[0].cache_bytes_per_token == full.memory.members[0].cache_bytes_per_token


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="no list of what is mapped")
@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_no_file_stays_mapped(dtype, compiled, tmp_path, monkeypatch):
    """transformers' weights are parts of the file; what is left of them when the rest is packed must not keep it in memory."""
    monkeypatch.setattr(select, "has_compiler", lambda: compiled)
    folder = save(tmp_path / "mapped", CONFIGS["llama"], dtype)
    pool = load(folder)
    runners = pool_runners(pool, num_slots=1, pack=True)
    assert str(folder) not in Path("/proc/self/maps").read_text()
    assert torch.isfinite(runners[pool.target.name].forward([Span(0, 0, [1, 2, 3], 1)])).all()


def test_what_fits_only_so_is_loaded(tmp_path):
    """A budget that float32 would exceed."""
    save(tmp_path, CONFIGS["qwen2"], torch.bfloat16)
    options = {"max_context": 512, "max_batch": 1}
    needed = load(tmp_path, **options).memory.total
    load(tmp_path, memory_budget=needed, **options)
    with pytest.raises(MemoryBudgetError):
        load(tmp_path, memory_budget=needed, packing=None, **options)


def test_the_arithmetic_that_is_asked_for_stays(tmp_path):
    """`dtype="bfloat16"` means bfloat16 arithmetic, in which transformers runs it."""
    save(tmp_path, CONFIGS["qwen2"], torch.bfloat16)
    pool = load(tmp_path, dtype="bfloat16")
    assert (pool.target.model.dtype, pool.target.dtype) == (torch.bfloat16, torch.bfloat16)
    runner = pool_runners(pool, num_slots=1, pack=True)[pool.target.name]
    assert type(runner) is EagerRunner
    assert runner.dtype == "bfloat16"
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    pool = load(ModelSpec(loaded, name="m"), device=None)
    assert pool.target.dtype == torch.bfloat16
    assert type(pool_runners(pool, num_slots=1, pack=True)["m"]) is EagerRunner


def test_one_tensor_of_32_bits_is_enough_for_float32(tmp_path):
    """It would lose bits."""
    save(tmp_path, CONFIGS["qwen2"], torch.bfloat16)
    assert load(tmp_path).target.model.dtype == torch.bfloat16
    weights = load_file(tmp_path / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"].float() + 1e-3
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = load(tmp_path).target.model
    assert model.dtype == torch.float32
    assert torch.equal(model.model.norm.weight, weights["model.norm.weight"])


def test_who_does_not_hold_16_bits(tmp_path, monkeypatch):
    """Widened models, architectures that are not compiled, and all of them without a compiler are float32."""
    config = LlamaConfig(**SHAPE)
    save(tmp_path / "llama", config, torch.bfloat16)
    save(tmp_path / "gelu", LlamaConfig(**SHAPE, hidden_act="gelu"), torch.bfloat16)
    shape = shape_for(config, 200_000)
    for source in (ModelSpec(tmp_path / "llama", widen=shape), tmp_path / "gelu"):
        pool = load(source)
        assert pool.target.model.dtype == pool.target.dtype == torch.float32
        assert 4 * pool.target.num_parameters == pool.memory.members[0].weight_bytes
    monkeypatch.setattr(select, "has_compiler", lambda: False)
    assert load(tmp_path / "llama").target.model.dtype == torch.float32
    short = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.bfloat16)
    assert packing_bytes(short, False, torch.float32) is None


def test_the_check_at_load_is_one_of_float32(tmp_path):
    """What differs by less than 16 bits round away is refused too."""
    model = transformers.AutoModelForCausalLM.from_pretrained(save(tmp_path, CONFIGS["qwen2"], torch.bfloat16))
    assert model.dtype == torch.bfloat16
    options = {"num_slots": 2, "context_length": 512, "pack": True, "keep": True, "dtype": torch.float32}
    assert type(make_runner("m", model, **options)) is CompiledRunner

    class Odd(torch.nn.SiLU):
        def forward(self, gate):
            return 1.02 * super().forward(gate)

    model.model.layers[1].mlp.act_fn = Odd()
    with pytest.raises(UnsupportedModelError, match=r"differ from those of transformers by 0\.0"):
        make_runner("m", model, **options)


class Metadata:
    def __init__(self, **parameters):
        self.parameter_count = parameters


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Metadata(BF16=1000), torch.bfloat16),
        (Metadata(F16=1000), torch.float16),
        (Metadata(F32=1000), None),
        (Metadata(BF16=1000, F32=10), None),
        (Metadata(F8_E4M3=1000), None),
        (ConnectionError("no network"), None),
    ],
)
def test_the_hub_is_asked_about_what_is_not_here_yet(answer, expected, tmp_path, monkeypatch):
    """The budget is decided before anything is downloaded; where the hub does not tell, weights count as float32."""
    folder = save(tmp_path / "cached", CONFIGS["qwen2"], torch.bfloat16)
    (folder / "model.safetensors").unlink()
    asked = []

    def tell(api, repo_id, **options):
        asked.append((repo_id, options))
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(HfApi, "get_safetensors_metadata", tell)
    monkeypatch.setattr(
        "specrouter_llm.pool.source.cached_file",
        lambda name, file, **options: str(folder / file) if (folder / file).is_file() else None,
    )
    assert short_dtype(find_checkpoint(ModelSpec("someone/model", revision="v2"))) == expected
    assert asked == [("someone/model", {"revision": "v2"})]
    offline = find_checkpoint(ModelSpec("someone/model", model_kwargs={"local_files_only": True}))
    assert short_dtype(offline) is None
    assert len(asked) == 1


def test_shards_are_all_looked_at(tmp_path):
    """The index names several files."""
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(CONFIGS["qwen2"]).to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert load(tmp_path).target.model.dtype == torch.bfloat16
    last = tmp_path / sorted(set(index["weight_map"].values()))[-1]
    save_file({name: tensor.float() for name, tensor in load_file(last).items()}, last, metadata={"format": "pt"})
    assert load(tmp_path).target.model.dtype == torch.float32
