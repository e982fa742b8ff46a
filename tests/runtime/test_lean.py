"""The lean runner: the model's own arithmetic over packed weights, bit for bit the same in any company."""

import copy
import time

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
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

from specrouter_llm.errors import UnsupportedModelError
from specrouter_llm.runtime import lean as lean_module
from specrouter_llm.runtime import select
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.lean import LeanRunner, can_run_lean
from specrouter_llm.runtime.packing import (
    BLOCK_ROWS,
    ROWS,
    PackedLinear,
    choose_padding,
    has_packing,
    packable,
    row_sizes,
)
from specrouter_llm.runtime.runner import EagerRunner
from specrouter_llm.runtime.select import make_runner

pytestmark = pytest.mark.skipif(not has_packing(), reason="this build of torch cannot pack weights")

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
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, attention_bias=True, tie_word_embeddings=True)),
    "llama3-rope": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SHAPE,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            },
        )
    ),
    "mistral-sliding": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=7)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=16)),
}


@pytest.fixture(params=MODELS)
def model(request):
    torch.manual_seed(0)
    return MODELS[request.param]().eval()


@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", MODELS)
def test_ragged_steps_equal_a_fresh_forward(kind, data):
    """Rows of any length, over garbage of earlier rejections, get the logits of the model's own fresh run."""
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    twin = copy.deepcopy(model)
    runner = LeanRunner("m", model, num_slots=3, context_length=1024)
    held = [[], [], []]
    for _ in range(4):
        spans, wanted = [], []
        for slot in data.draw(st.permutations([0, 1, 2]))[: data.draw(st.integers(1, 3))]:
            keep = data.draw(st.integers(0, len(held[slot])))  # the rest was rejected
            fed = data.draw(st.lists(st.integers(0, 49), min_size=1, max_size=12))
            num_logits = data.draw(st.integers(0, len(fed)))
            held[slot] = [*held[slot][:keep], *fed]
            spans.append(Span(slot, keep, fed, num_logits))
            with torch.inference_mode():
                full = twin(torch.tensor([held[slot]]), use_cache=False).logits[0]
            wanted.append(full[len(held[slot]) - num_logits :])
        assert torch.allclose(torch.cat(wanted), runner.forward(spans), atol=2e-4, rtol=1e-3)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_bits_do_not_depend_on_company_or_pieces(data):
    """The reported guarantee: the same tokens fed whole, in any pieces and beside any rows give the same bits."""
    torch.manual_seed(0)
    runner = LeanRunner("m", MODELS["qwen3"]().eval(), num_slots=3, context_length=1024)
    if runner.guarantee != "bitwise":
        pytest.skip("this machine does not keep bits")
    length = data.draw(st.sampled_from([5, 130, 300, 600]))
    ids = [(i * i + 3 * i) % 50 for i in range(length)]
    whole = runner.forward([Span(0, 0, ids, length)])
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=6)))
    pieces = []
    for start, end in zip([0, *cuts], [*cuts, length], strict=True):
        mate = data.draw(st.integers(0, 9))
        mates = [Span(1, data.draw(st.integers(0, 200)), ids[:mate] * 1, 0)] if mate else []
        pieces.append(runner.forward([*mates, Span(2, start, ids[start:end], end - start)]))
    assert torch.equal(whole, torch.cat(pieces))


def test_the_plain_weights_are_freed_or_kept(model):
    """Our own copy gives its memory to the packed one; a caller's model stays as it was."""
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        before = model(ids).logits
    kept = LeanRunner("m", model, num_slots=1, context_length=512, keep=True)
    with torch.inference_mode():
        assert torch.equal(before, model(ids).logits)
    logits = kept.forward([Span(0, 0, [1, 2, 3], 3)])
    own = LeanRunner("m", model, num_slots=1, context_length=512, keep=False)
    assert torch.equal(logits, own.forward([Span(0, 0, [1, 2, 3], 3)]))
    assert model.model.layers[0].mlp.down_proj.weight.numel() == 0
    assert model.get_input_embeddings().weight.numel() > 0


def test_a_broken_token_breaks_what_follows_and_nothing_else():
    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    runner = LeanRunner("m", model, num_slots=1, context_length=512)
    expected = runner.forward([Span(0, 0, [1, 2, 3], 3)])
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.nan
    broken = runner.forward([Span(0, 0, [1, 2, 5, 6], 4)]).isnan().all(dim=1)
    assert [False, False, True, True] == broken.tolist()
    assert torch.equal(expected[2:], runner.forward([Span(0, 2, [3], 1)]))
    assert runner.forward([Span(0, 3, [5], 1)]).isnan().all()
    runner.clear(0)
    assert torch.equal(expected, runner.forward([Span(0, 0, [1, 2, 3], 3)]))


def test_a_model_that_computes_something_else_is_refused(monkeypatch):
    """The check at load, not the list of names, has the last word."""
    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    model.model.layers[1].mlp.act_fn = nn.ReLU()
    monkeypatch.setattr(lean_module, "_feed_forward", lambda layer, hidden: torch.zeros_like(hidden))
    with pytest.raises(UnsupportedModelError, match="differ from those of transformers"):
        LeanRunner("m", model, num_slots=1, context_length=512)


@pytest.mark.parametrize("sizes", [(24,), (8, 16, 40)])
@pytest.mark.parametrize("bias", [False, True])
def test_packed_linear_is_the_linear(sizes, bias):
    """One or several layers side by side; more rows than a block; one row and none."""
    torch.manual_seed(0)
    sources = [nn.Linear(32, size, bias=bias) for size in sizes]
    packed = PackedLinear(sources)
    assert torch.equal(torch.cat([source.weight for source in sources]), packed.weight)
    for rows in (0, 1, 3, BLOCK_ROWS + 5):
        inputs = torch.randn(rows, 32)
        with torch.inference_mode():
            expected = torch.cat([source(inputs) for source in sources], dim=-1)
            assert torch.allclose(expected, packed(inputs), atol=1e-5)


def test_few_numbers_of_rows_are_ever_run(monkeypatch):
    """Each number of rows costs oneDNN memory for good, so any number is run as one of a few, by pieces of a block."""
    torch.manual_seed(0)
    packed = PackedLinear([nn.Linear(32, 24)])
    seen = set()
    run = packed._run
    monkeypatch.setattr(packed, "_run", lambda rows: (seen.add(len(rows)), run(rows))[1])
    inputs = torch.randn(3 * BLOCK_ROWS, 32)
    with torch.inference_mode():
        whole = packed(inputs)
        for count in range(len(inputs)):
            assert packed(inputs[:count]).shape == (count, 24)
            if packed.stable:
                assert torch.equal(packed(inputs[:count]), whole[:count])
    assert seen <= set(ROWS)


@pytest.mark.parametrize("padding", [1, 4])
def test_sizes_are_the_numbers_of_rows_that_are_run(padding, monkeypatch):
    """What the scheduler is told is what happens, for every number up to a block."""
    torch.manual_seed(0)
    layers = [PackedLinear([nn.Linear(32, 24)]), PackedLinear([nn.Linear(24, 32)])]
    for layer in layers:
        layer.pad_to(padding)
    sizes = row_sizes(layers)
    assert sizes[-1] == BLOCK_ROWS
    assert sizes[0] >= padding
    for count in range(1, BLOCK_ROWS + 1):
        assert max(layer.rows_for(count) for layer in layers) == next(size for size in sizes if size >= count)
    assert layers[0].rows_for(BLOCK_ROWS + 1) == BLOCK_ROWS + 1


def test_who_is_packed(monkeypatch):
    """Plain float32 layers on the CPU only; the runner follows, where nothing can be compiled."""
    monkeypatch.setattr(select, "has_compiler", lambda: False)
    torch.manual_seed(0)
    model = MODELS["qwen2"]().eval()
    assert packable(model)
    assert can_run_lean(model)
    options = {"num_slots": 1, "context_length": 512, "keep": True}
    assert type(make_runner("m", model, pack=True, **options)) is LeanRunner
    plain = make_runner("m", model, pack=False, **options)
    assert type(plain) is EagerRunner
    plain.close()
    assert not packable(copy.deepcopy(model).double())
    watched = copy.deepcopy(model)
    watched.lm_head.register_forward_hook(lambda *args: None)
    assert not can_run_lean(watched)


def test_other_architectures_are_packed_layer_by_layer():
    """A model that the lean runner does not know keeps its own forward, over packed layers, if it is ours alone."""
    from transformers import GemmaConfig, GemmaForCausalLM

    torch.manual_seed(0)
    model = GemmaForCausalLM(GemmaConfig(**SHAPE, head_dim=16)).eval()
    with torch.inference_mode():
        expected = model(torch.tensor([[1, 2, 3]]), use_cache=False).logits[0]
    runner = make_runner("m", model, num_slots=2, context_length=512, pack=True, keep=False)
    assert type(runner) is EagerRunner
    assert type(model.model.layers[0].mlp.down_proj) is PackedLinear
    assert torch.allclose(expected, runner.forward([Span(0, 0, [1, 2, 3], 3)]), atol=1e-4)
    one = torch.cat([runner.forward([Span(1, i, [i + 1], 1)]) for i in range(3)])
    if runner.guarantee == "bitwise":
        assert torch.equal(one, runner.forward([Span(0, 0, [1, 2, 3], 3)]))
    runner.close()


@pytest.mark.parametrize("faster", [1, 4])
def test_padding_is_what_takes_less_time_and_changes_no_bits(faster, monkeypatch):
    """The faster of two ways to run a single row is kept; the answer is the same."""
    torch.manual_seed(0)
    packed = PackedLinear([nn.Linear(64, 96)])
    row = torch.randn(1, 64)
    with torch.inference_mode():
        before = packed(row)
        seen = []
        run = packed._run
        monkeypatch.setattr(packed, "_run", lambda rows: (seen.append(len(rows)), run(rows))[1])

        def step():
            packed(row)
            time.sleep(0.002 if seen[-1] == faster else 0.02)

        choose_padding([packed], step)
        assert torch.equal(before, packed(row))
        assert seen[-1] == faster
