"""One packed ragged forward through unmodified models: right whatever else is in the batch or left in the cache."""

from __future__ import annotations

import copy
import gc
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Gemma4TextConfig,
    GptOssConfig,
    GptOssForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    NemotronConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import specrouter_llm.runtime.runner as runner_module
from specrouter_llm.errors import UnsupportedModelError
from specrouter_llm.runtime.attention import ATTENTION_NAME
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.parity import native_logits
from specrouter_llm.runtime.runner import EagerRunner, head_shapes

SHAPE = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
}
LAYERS = ["sliding_attention", "full_attention"]
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(head_dim=16, **SHAPE)),
    "mistral_window": lambda: MistralForCausalLM(MistralConfig(sliding_window=7, **SHAPE)),
    "gemma2_softcap": lambda: Gemma2ForCausalLM(
        Gemma2Config(head_dim=16, sliding_window=7, layer_types=LAYERS, attn_logit_softcapping=2.0, **SHAPE)
    ),
    "gemma3": lambda: Gemma3ForCausalLM(Gemma3TextConfig(head_dim=16, sliding_window=7, layer_types=LAYERS, **SHAPE)),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request):
    """A tiny random float64 model."""
    torch.manual_seed(3)
    return MODELS[request.param]().double().eval()


@pytest.fixture
def native(model):
    """The same model as transformers runs it: logits [n, V] of a list of tokens."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")  # the only one that knows soft-capping in every release

    def logits(token_ids):
        with torch.inference_mode():
            return twin(torch.tensor([token_ids]), use_cache=False).logits[0]

    return logits


def close_to(expected, actual):
    """Equal but for rounding (norms run in float32 even in float64 models)."""
    return torch.allclose(expected, actual, atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_ragged_steps_equal_a_fresh_forward(model, data):
    """Rows of any length, feeding any number of tokens over garbage of earlier rejections, get the logits of a fresh run."""
    twin = copy.deepcopy(model)
    twin.set_attn_implementation("eager")  # the only one that knows soft-capping in every release
    runner = EagerRunner("m", model, num_slots=3, context_length=1024)
    tokens = st.integers(0, SHAPE["vocab_size"] - 1)
    held = [[], [], []]
    try:
        for _ in range(4):
            spans, wanted = [], []
            for slot in data.draw(st.permutations([0, 1, 2]))[: data.draw(st.integers(1, 3))]:
                keep = data.draw(st.integers(0, len(held[slot])))  # the rest was rejected
                fed = data.draw(st.lists(tokens, min_size=1, max_size=12))
                num_logits = data.draw(st.integers(0, len(fed)))
                held[slot] = [*held[slot][:keep], *fed]
                spans.append(Span(slot, keep, fed, num_logits))
                with torch.inference_mode():
                    full = twin(torch.tensor([held[slot]]), use_cache=False).logits[0]
                wanted.append(full[len(held[slot]) - num_logits :])
            expected = torch.cat(wanted)
            assert expected.shape == (actual := runner.forward(spans)).shape
            assert close_to(expected, actual)
    finally:
        runner.close()


def test_growth_keeps_what_was_written(model, native):
    """A slot that grows past its first block, twice, still holds its prefix; its neighbour too."""
    runner = EagerRunner("m", model, num_slots=2, context_length=2048)
    long = [(7 * i) % 40 for i in range(1100)]
    short = [3, 1, 4, 1, 5]
    runner.forward([Span(0, 0, long[:300], 0), Span(1, 0, short, 0)])
    before = runner.cache_bytes
    runner.forward([Span(0, 300, long[300:700], 0)])
    runner.forward([Span(0, 700, long[700:], 0)])
    assert runner.cache_bytes == 3 * before
    logits = runner.forward([Span(0, 1100, [8], 1), Span(1, 5, [9], 1)])
    runner.close()
    assert close_to(native([*long, 8])[-1], logits[0])
    assert close_to(native([*short, 9])[-1], logits[1])


def test_a_broken_token_breaks_what_follows_and_nothing_else():
    """NaN reaches its own and later positions of its row; positions before it, and rows after a rejection, are sound."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).double().eval()
    native = copy.deepcopy(model)
    runner = EagerRunner("m", model, num_slots=1, context_length=512)
    with torch.no_grad():
        kept = model.model.embed_tokens.weight[5].clone()
        model.model.embed_tokens.weight[5] = torch.nan
        broken = runner.forward([Span(0, 0, [1, 2, 5, 6], 4)]).isnan().all(dim=1)
        model.model.embed_tokens.weight[5] = kept
    assert [False, False, True, True] == broken.tolist()
    assert runner.forward([Span(0, 4, [1], 1)]).isnan().all()  # it is in the row's past, and stays there
    with torch.inference_mode():
        expected = native(torch.tensor([[1, 2, 3]])).logits[0, -1:]
    assert close_to(expected, runner.forward([Span(0, 2, [3], 1)]))  # rejected: as if it had never been
    runner.clear(0)
    assert close_to(expected, runner.forward([Span(0, 0, [1, 2, 3], 1)]))


def test_more_positions_than_the_context_are_refused(model):
    """A runner never writes past its context."""
    runner = EagerRunner("m", model, num_slots=1, context_length=512)
    with pytest.raises(ValueError, match="513 positions were asked for, the cache is limited to 512"):
        runner.forward([Span(0, 500, [1] * 13, 1)])
    runner.close()


def test_a_closed_runner_gives_the_model_back(model):
    """A loaded model that an engine has used works on its own again, as before."""
    own = model.config._attn_implementation
    with torch.inference_mode():
        expected = model(torch.tensor([[1, 2, 3]]), use_cache=False).logits[0]
    runner = EagerRunner("m", model, num_slots=1, context_length=512)
    assert model.config._attn_implementation == ATTENTION_NAME
    runner.close()
    assert model.config._attn_implementation == own
    with torch.inference_mode():
        assert torch.equal(expected, model(torch.tensor([[1, 2, 3]]), use_cache=False).logits[0])


def test_closing_frees_the_slabs_at_once(model):
    """Not when the garbage collector comes by: on a device they are gigabytes."""
    runner = EagerRunner("m", copy.deepcopy(model), num_slots=1, context_length=512)
    runner.forward([Span(0, 0, [1, 2], 1)])
    slab = weakref.ref(runner._cache.layers[0].keys)
    gc.disable()
    try:
        runner.close()
        assert slab() is None
    finally:
        gc.enable()


def test_two_runners_of_one_model_close_in_any_order(model):
    """A loaded model that serves two engines stays prepared until the last of them is closed."""
    own = model.config._attn_implementation
    first = EagerRunner("a", model, num_slots=1, context_length=512)
    second = EagerRunner("b", model, num_slots=1, context_length=512)
    expected = second.forward([Span(0, 0, [1, 2, 3], 1)])
    first.close()
    assert torch.equal(expected, second.forward([Span(0, 0, [1, 2, 3], 1)]))
    second.close()
    assert own == model.config._attn_implementation


def test_a_runner_waits_for_another_that_makes_the_model_its_own(model, monkeypatch):
    """Until then the model has the attention of the reference: what a second engine asks it fails."""
    checking, goes_on = threading.Event(), threading.Event()
    own, made = model.config._attn_implementation, []

    def slow(*arguments):
        checking.set()
        assert goes_on.wait(60)
        return native_logits(*arguments)

    def make(name):
        made.append(EagerRunner(name, model, num_slots=1, context_length=512))

    monkeypatch.setattr(runner_module, "native_logits", slow)
    first, second = threading.Thread(target=make, args=("a",)), threading.Thread(target=make, args=("b",))
    first.start()
    assert checking.wait(60)
    second.start()
    second.join(0.2)
    assert not made
    goes_on.set()
    for thread in (first, second):
        thread.join()
    assert torch.equal(*(runner.forward([Span(0, 0, [1, 2, 3], 1)]) for runner in made))
    for runner in made:
        runner.close()
    assert own == model.config._attn_implementation


def test_a_model_that_is_being_made_ones_own_keeps_no_other_waiting(model, monkeypatch):
    """Loading takes long; an engine over another model is closed meanwhile."""
    checking, goes_on = threading.Event(), threading.Event()
    other = EagerRunner("other", copy.deepcopy(model), num_slots=1, context_length=512)

    def slow(*arguments):
        checking.set()
        assert goes_on.wait(60)
        return native_logits(*arguments)

    monkeypatch.setattr(runner_module, "native_logits", slow)
    making = threading.Thread(target=lambda: EagerRunner("a", model, num_slots=1, context_length=512).close())
    making.start()
    assert checking.wait(60)
    closing = threading.Thread(target=other.close)
    closing.start()
    closing.join(30)
    waits = closing.is_alive()
    goes_on.set()
    making.join()
    assert not waits


def test_an_architecture_that_we_run_wrongly_is_refused_at_load():
    """Attention sinks change the logits and are not known to our attention: the check at load notices."""
    torch.manual_seed(0)
    config = GptOssConfig(
        **{**SHAPE, "initializer_range": 0.5},
        head_dim=16,
        num_local_experts=2,
        num_experts_per_tok=1,
        layer_types=LAYERS,
    )
    model = GptOssForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.sinks.fill_(2.0)
    with pytest.raises(UnsupportedModelError, match="its logits differ from those of transformers by"):
        EagerRunner("gpt-oss", model, num_slots=1, context_length=512)
    assert model.config._attn_implementation != ATTENTION_NAME


def test_an_architecture_that_cannot_be_run_is_refused_at_load():
    """Nemotron does not hand what we need on to its attention, and transformers has no float64 products for experts."""
    for config, dtype, message in [
        (NemotronConfig(**SHAPE), torch.float32, "NemotronForCausalLM.*not supported.*RuntimeError"),
        (MixtralConfig(num_local_experts=2, **SHAPE), torch.float64, "not supported.*experts_implementation"),
    ]:
        model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
        own = model.config._attn_implementation
        with pytest.raises(UnsupportedModelError, match=message):
            EagerRunner("odd", model, num_slots=1, context_length=512)
        assert own == model.config._attn_implementation


def test_layers_with_heads_of_different_sizes():
    """As Gemma 4 has them: run as they are, and the probe asks for every size."""
    torch.manual_seed(0)
    config = Gemma4TextConfig(
        **SHAPE,
        head_dim=16,
        global_head_dim=32,
        layer_types=LAYERS,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    assert head_shapes(model) == [(4, 2, 16), (4, 2, 32)]
    ids = [3, 5, 8, 13, 21]
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor([ids])).logits[0]
    runner = EagerRunner("gemma4", model, num_slots=1, context_length=512, pack=True)
    torch.testing.assert_close(runner.forward([Span(0, 0, ids, 5)]), expected, rtol=1e-4, atol=1e-4)
