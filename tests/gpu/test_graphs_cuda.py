"""CUDA graphs and the Triton kernels on a device; skipped where there is none."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

pytest.importorskip("triton")

from specrouter_llm import SpecRouter
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.buckets import TOKENS
from specrouter_llm.runtime.fused import FusedForward
from specrouter_llm.runtime.graphs import CudaCapture, GraphRunner
from specrouter_llm.runtime.runner import EagerRunner
from specrouter_llm.runtime.select import make_runner

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]

SHAPE = {
    "vocab_size": 500,
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.1,
}
LAYERS = ["sliding_attention", "full_attention", "full_attention"]
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=64, **SHAPE)),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(head_dim=64, sliding_window=300, layer_types=LAYERS, **SHAPE)),
}
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3, torch.bfloat16: 0.1}


def on_device(kind, dtype):
    """A random model."""
    torch.manual_seed(3)
    return MODELS[kind]().to("cuda", dtype).eval()


def runner_of(model, *, num_slots=4, context_length=2048, **options):
    """The runner that a model on the device gets."""
    return make_runner("m", model, num_slots=num_slots, context_length=context_length, pack=True, keep=True, **options)


def random_steps(number, *, num_slots, context_length):
    """Ragged steps with rejections, prompts and long contexts."""
    choose = random.Random(0)
    lengths = [0] * num_slots
    for _ in range(number):
        spans = []
        for slot in choose.sample(range(num_slots), choose.randint(1, num_slots)):
            fed = choose.choice([1, 1, 1, 2, 5, 9, 40, 300])
            keep = lengths[slot] - choose.randint(0, min(4, lengths[slot]))
            keep = keep if keep + fed <= context_length else 0
            lengths[slot] = keep + fed
            ids = [choose.randrange(SHAPE["vocab_size"]) for _ in range(fed)]
            spans.append(Span(slot, keep, ids, choose.randint(1, min(fed, 10))))
        yield spans


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_graphs_equal_the_eager_runner(kind, dtype):
    """Replayed forwards give the logits of eager ones, over contexts of several splits, up to rounding."""
    model = on_device(kind, dtype)
    eager = EagerRunner("m", copy.deepcopy(model), num_slots=4, context_length=2048)
    runner = runner_of(model)
    assert type(runner) is GraphRunner
    assert isinstance(runner._recorded, FusedForward) == (kind != "gemma3")
    for spans in random_steps(60, num_slots=4, context_length=2048):
        expected, actual = eager.forward(spans), runner.forward(spans)
        assert (expected - actual).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def test_a_forward_that_cannot_be_recorded_leaves_the_stream():
    """Where it waits for the device; other engines record on the stream that it failed on."""
    before = torch.cuda.current_stream()
    with pytest.raises(Exception):  # noqa: B017 - whatever the driver says
        CudaCapture(torch.device("cuda", 0))(lambda: torch.zeros((), device="cuda").item())
    assert torch.cuda.current_stream() == before
    assert torch.ones(3, device="cuda").sum().item() == 3


@pytest.mark.parametrize(("heads", "key_heads", "head_dim"), [(32, 8, 128), (14, 2, 64), (8, 8, 80), (16, 1, 256)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_kernels_of_real_shapes(dtype, heads, key_heads, head_dim):
    """Llama 3, Qwen 2.5 0.5B, Phi-2 and Gemma shapes are within what the kernels can do."""
    from specrouter_llm.runtime.triton_attention import agrees

    assert agrees(torch.device("cuda"), dtype, heads, key_heads, head_dim)


@pytest.mark.parametrize("options", [{"dtype": "float64"}, {"dtype": "float64", "strict": True}], ids=str)
def test_speculation_changes_nothing(options):
    """Greedy and seeded tokens over graphs are the same with any chain."""
    prompts = ["Once upon a time", "Tom has 3 apples and", "The answer is"]
    with SpecRouter.from_pretrained("demo", device="cuda", max_batch=3, progress=False, **options) as engine:
        assert {type(runner) for runner in engine._runners.values()} == {GraphRunner}
        for sampling in ({"temperature": 0.0}, {"temperature": 1.0, "seed": 5}):
            plain = engine.generate(prompts, speculation=False, max_tokens=40, **sampling)
            for chain in (["ngram"], ["demo/draft"], ["demo/draft", "demo/middle"]):
                drafted = engine.generate(prompts, chain=chain, max_tokens=40, **sampling)
                assert [c.token_ids for c in plain] == [c.token_ids for c in drafted]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_strict_tokens_do_not_depend_on_the_batch(dtype):
    """Where strict mode reports bitwise, answers alone, in a batch and with any chain are equal in low precision too."""
    prompts = ["Once upon a time", "Tom has 3 apples and", "The answer is"]
    options = {"dtype": dtype, "device": "cuda", "max_batch": 3, "progress": False}
    with SpecRouter.from_pretrained("demo", strict=True, **options) as engine:
        if engine.guarantee != "bitwise":
            pytest.skip("the probe finds that this device does not keep bits")
        together = [c.token_ids for c in engine.generate(prompts, max_tokens=60)]
        alone = [engine.generate(p, max_tokens=60, speculation=False)[0].token_ids for p in prompts]
        assert alone == together


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_strict_bits_do_not_depend_on_pieces_or_company(dtype):
    """The probe's promise beyond what it probed."""
    runner = runner_of(on_device("llama", dtype), num_slots=3, strict=True)
    if runner.guarantee != "bitwise":
        pytest.skip("the probe finds that this device does not keep bits")
    ids = [(i * i + 3 * i) % 500 for i in range(900)]
    whole = runner.forward([Span(0, 0, ids, 900)])
    for size in (63, 200, 7):
        pieces = [
            runner.forward([Span(1, 0, ids[: 1 + start % 90], 0), Span(2, start, ids[start : start + size], size)])
            for start in range(0, 900 - 900 % size, size)
        ]
        assert torch.equal(whole[: len(pieces) * size], torch.cat(pieces))
    single = torch.cat([runner.forward([Span(2, start, [ids[start]], 1)]) for start in range(600, 700)])
    assert torch.equal(whole[600:700], single)


def test_strict_mode_pads_nothing_over_products_of_our_own():
    """A row's bits do not depend on the bucket there, so that strict mode costs decoding nothing."""
    runner = runner_of(on_device("llama", torch.bfloat16), num_slots=3, strict=True)
    assert runner.guarantee == "bitwise"
    assert tuple(runner.token_sizes) == TOKENS


def test_nothing_grows_over_a_thousand_steps():
    """Once every bucket has been seen, a step leaves no memory behind."""
    runner = runner_of(on_device("llama", torch.bfloat16))
    steps = list(random_steps(200, num_slots=4, context_length=2048))
    for spans in steps:
        runner.forward(spans)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        for spans in steps:
            runner.forward(spans)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_closing_frees_graphs_and_slabs():
    """A closed runner leaves only the caller's model."""
    model = on_device("llama", torch.float32)

    def use():
        runner = runner_of(model)
        for tokens in (1, 5, 60):
            runner.forward([Span(0, 0, [1] * tokens, 1)])
        runner.close()
        torch.cuda.synchronize()
        return torch.cuda.memory_allocated()

    before = use()  # cuBLAS keeps a workspace for every stream
    assert use() <= before + 2**20


def test_a_broken_token_breaks_its_row_only():
    """NaN reaches later positions of its row through replayed graphs, and is gone when it is overwritten."""
    model = on_device("llama", torch.float32)
    runner = runner_of(model)
    expected = runner.forward([Span(0, 0, [1, 2, 3], 3)])
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.nan
    broken = runner.forward([Span(0, 0, [1, 2, 5, 6], 4), Span(1, 0, [1, 2], 2)]).isnan().all(dim=1)
    assert [False, False, True, True, False, False] == broken.tolist()
    again = runner.forward([Span(0, 2, [3], 1)])
    assert torch.allclose(expected[2:], again, atol=1e-3)
