"""The forward written out for CUDA graphs: the modules' arithmetic, any rows, and nothing held twice.

Without a CUDA device its kernels can run in triton's interpreter, where triton is installed:

    TRITON_INTERPRET=1 pytest tests/runtime/test_fused.py
"""

from __future__ import annotations

import copy
import os
import random

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

pytest.importorskip("triton")
if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1 from the start", allow_module_level=True)

from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.fused import FusedForward, can_fuse
from specrouter_llm.runtime.graphs import GraphRunner
from specrouter_llm.runtime.runner import EagerRunner
from specrouter_llm.runtime.triton_attention import tile_attention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SHAPE = {
    "vocab_size": 40,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.3,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(head_dim=20, **SHAPE)),
    "llama, tied, biased": lambda: LlamaForCausalLM(
        LlamaConfig(tie_word_embeddings=True, attention_bias=True, mlp_bias=True, **SHAPE)
    ),
    "mistral": lambda: MistralForCausalLM(MistralConfig(sliding_window=5, head_dim=16, **SHAPE)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=16, **SHAPE)),
}
TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-4, torch.bfloat16: 0.1}
DTYPES = [torch.float64, torch.float32] + [torch.bfloat16] * torch.cuda.is_available()


def random_model(kind, dtype=torch.float32):
    """Weights and biases of any size; new biases are zero otherwise."""
    torch.manual_seed(3)
    model = MODELS[kind]().to(DEVICE, dtype).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name or "bias" in name:
            parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def recorded_again(run):
    """A `Capture` for any device: the function itself."""
    run()
    return run


def fused_runner(model, **options):
    """A GraphRunner of the forward that is tested."""
    settings = {"num_slots": 3, "context_length": 512, "capture": recorded_again, "attention": tile_attention}
    return GraphRunner("m", model, recorded=FusedForward(model), **settings | options)


def steps(number):
    """Ragged steps with rejections and long prompts."""
    choose, lengths = random.Random(1), [0, 0, 0]
    for _ in range(number):
        spans = []
        for slot in choose.sample(range(3), choose.randint(1, 3)):
            start = lengths[slot] - choose.randint(0, min(3, lengths[slot]))
            ids = [choose.randrange(40) for _ in range(choose.choice([1, 1, 2, 5, 9, 17, 140]))]
            start = start if start + len(ids) <= 512 else 0
            lengths[slot] = start + len(ids)
            spans.append(Span(slot, start, ids, choose.randint(1, len(ids))))
        yield spans


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", MODELS)
def test_it_is_the_forward_of_the_modules(kind, dtype):
    model = random_model(kind, dtype)
    assert can_fuse(model)
    eager = EagerRunner("m", copy.deepcopy(model), num_slots=3, context_length=512)
    runner = fused_runner(model)
    for spans in steps(6):
        expected, actual = eager.forward(spans), runner.forward(spans)
        assert (expected - actual).abs().max() <= TOLERANCE[dtype] * expected.abs().max()


def test_a_token_does_not_see_what_stands_beside_it():
    """Its logits have the same bits alone, beside others, and at any place: strict mode needs it."""
    runner = fused_runner(random_model("llama"), strict=True)
    assert runner.guarantee == "bitwise"


def test_nothing_is_held_twice_and_the_model_works_on():
    model = random_model("qwen2")
    ids = torch.arange(9, device=DEVICE)[None]
    expected = model(input_ids=ids).logits
    before = sum(parameter.nbytes for parameter in model.parameters())
    first, second = FusedForward(model), FusedForward(model)
    held = {
        parameter.untyped_storage().data_ptr(): parameter.untyped_storage().nbytes() for parameter in model.parameters()
    }
    assert sum(held.values()) == before
    assert first._layers[0].query_key_value.weight.data_ptr() == second._layers[0].query_key_value.weight.data_ptr()
    assert torch.allclose(expected, model(input_ids=ids).logits, atol=1e-5)


def test_what_is_not_finite_breaks_its_row_from_there_on():
    model = random_model("llama")
    runner = fused_runner(model)
    model.get_input_embeddings().weight.data[7] = torch.inf
    logits = runner.forward([Span(0, 0, [1, 7, 2], 3), Span(1, 0, [3, 4], 2)])
    assert logits.isnan().any(dim=1).tolist() == [False, True, True, False, False]
    assert runner.forward([Span(0, 3, [5], 1)]).isnan().all()
    assert all(slab.isfinite().all() for layer in runner._cache.layers for slab in (layer.keys, layer.values))
    assert runner.forward([Span(0, 1, [2, 5], 2)]).isfinite().all()  # written over


def test_other_architectures_and_layers_are_refused():
    gelu = LlamaForCausalLM(LlamaConfig(hidden_act="gelu", **SHAPE))
    assert not can_fuse(gelu)
    replaced = random_model("llama")
    replaced.model.layers[1].mlp.down_proj = torch.nn.utils.parametrizations.weight_norm(
        replaced.model.layers[1].mlp.down_proj
    )
    assert not can_fuse(replaced)
