"""The compiled runner: the model's own logits, bit for bit the same in any company, in any pieces, on any number of threads."""

import copy
import itertools
import logging
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
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
from specrouter_llm.runtime import cache, select
from specrouter_llm.runtime.batch import Span
from specrouter_llm.runtime.lean import LeanRunner
from specrouter_llm.runtime.records import BFLOAT16, FLOAT16, FLOAT32
from specrouter_llm.runtime.select import make_runner, packing_bytes
from specrouter_llm.sampling.choice import BROKEN, Segment, choose
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.row import GREEDY, RowSampler

njit = pytest.importorskip("numba").njit
compiled = pytest.importorskip("specrouter_llm.runtime.compiled", reason="torch does not run on GNU's OpenMP here")
CompiledRunner = compiled.CompiledRunner
from specrouter_llm.runtime import compiled_products, kernels  # noqa: E402  # needs numba
from specrouter_llm.runtime.panels import Panels  # noqa: E402  # needs numba
from specrouter_llm.runtime.tile import FORMATS, LANES, PANEL  # noqa: E402  # needs numba

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
SCALED = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# Heads narrower than a panel, as wide as one, as two, and one and a bit; more queries to a key head than a tile has rows.
MODELS = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE, attention_bias=True, mlp_bias=True, tie_word_embeddings=True)
    ),
    "llama3-rope": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, head_dim=32, rope_parameters=SCALED)),
    "llama-many-queries": lambda: LlamaForCausalLM(
        LlamaConfig(**SHAPE | {"num_attention_heads": 12, "num_key_value_heads": 1}, head_dim=64)
    ),
    "mistral-sliding": lambda: MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=7)),
    "mistral-wider": lambda: MistralForCausalLM(MistralConfig(**SHAPE, head_dim=32, sliding_window=50)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=40)),
}


def make(kind):
    """With biases and norms that are not those of a fresh model: zeros and ones."""
    torch.manual_seed(0)
    model = MODELS[kind]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


@settings(max_examples=8, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", MODELS)
def test_ragged_steps_equal_a_fresh_forward(kind, data):
    """Rows of any length, over garbage of earlier rejections, get the logits of the model's own fresh run."""
    model = make(kind)
    twin = copy.deepcopy(model)
    runner = CompiledRunner("m", model, num_slots=3, context_length=1024)
    held = [[], [], []]
    for _ in range(4):
        spans, wanted = [], []
        for slot in data.draw(st.permutations([0, 1, 2]))[: data.draw(st.integers(1, 3))]:
            keep = data.draw(st.integers(0, len(held[slot])))  # the rest was rejected
            fed = data.draw(st.lists(st.integers(0, 49), min_size=1, max_size=40))
            num_logits = data.draw(st.integers(0, len(fed)))
            held[slot] = [*held[slot][:keep], *fed]
            spans.append(Span(slot, keep, fed, num_logits))
            with torch.inference_mode():
                full = twin(torch.tensor([held[slot]]), use_cache=False).logits[0]
            wanted.append(full[len(held[slot]) - num_logits :])
        assert torch.allclose(torch.cat(wanted), runner.forward(spans), atol=3e-4, rtol=1e-3)


@settings(max_examples=12, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["llama3-rope", "llama-many-queries", "mistral-wider", "qwen3"])
def test_bits_do_not_depend_on_company_pieces_or_threads(kind, data):
    """The reported guarantee; more than 512 positions move the cache between two pieces."""
    runner = CompiledRunner("m", make(kind), num_slots=3, context_length=1024)
    assert runner.guarantee == "bitwise"
    length = data.draw(st.sampled_from([5, 130, 600]))
    ids = [(i * i + 3 * i) % 50 for i in range(length)]
    whole = runner.forward([Span(0, 0, ids, length)])
    cuts = sorted(data.draw(st.sets(st.integers(1, length - 1), max_size=6)))
    pieces = []
    threads = torch.get_num_threads()
    try:
        for start, end in zip([0, *cuts], [*cuts, length], strict=True):
            torch.set_num_threads(data.draw(st.sampled_from([1, 2, 3])))
            mate = data.draw(st.integers(0, 9))
            mates = [Span(1, data.draw(st.integers(0, 200)), ids[:mate], 0)] if mate else []
            pieces.append(runner.forward([*mates, Span(2, start, ids[start:end], end - start)]))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(whole, torch.cat(pieces))


@settings(max_examples=10, deadline=None)
@given(data=st.data())
@pytest.mark.parametrize("kind", ["llama", "mistral-sliding", "qwen3"])
def test_a_loop_is_so_many_forwards_and_choices(kind, data):
    """The same ids and, in the cache, the same bits; rows of any length, over the growth of the cache too."""
    runner, other = (CompiledRunner("m", make(kind), num_slots=3, context_length=1024) for _ in range(2))
    count = data.draw(st.integers(1, 6))
    slots = data.draw(st.permutations([0, 1, 2]))[: data.draw(st.integers(1, 3))]
    spans = []
    for slot in slots:
        length = data.draw(st.sampled_from([1, 7, 40, 509, 511]))
        ids = [(i * i + 3 * i + slot) % 50 for i in range(length + data.draw(st.integers(1, 4)))]
        for each in (runner, other):
            each.forward([Span(slot, 0, ids[:length], 0)])
        spans.append(Span(slot, length, ids[length:], 1))
    chosen = runner.loop(spans, count, GREEDY, [[] for _ in spans])
    fed, expected = spans, []
    for _ in range(count):
        choices = other.forward(fed).argmax(dim=-1).tolist()
        expected.append(choices)
        fed = [Span(span.slot, span.end, [choice], 1) for span, choice in zip(fed, choices, strict=True)]
    assert chosen.t().tolist() == expected
    assert torch.equal(runner.forward(fed), other.forward(fed))


def test_a_loop_leaves_to_others_what_it_cannot_do():
    """Choices that need noise, and more tokens than its memory is for."""
    runner = CompiledRunner("m", make("llama"), num_slots=1, context_length=1024)
    assert [runner.loops(GREEDY._replace(temperature=t)) for t in (0.0, 1.0)] == [True, False]
    assert runner.loop([Span(0, 0, [1], 1)], 2, GREEDY._replace(temperature=1.0), [[(0, 0)] * 2]) is None
    assert runner.loop([Span(0, 0, [1] * 300, 1)], 2, GREEDY, [[]]) is None


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_the_choice_of_a_loop_is_that_of_the_rule(data):
    """The lowest id of the highest score; none where there is a NaN or nothing finite."""
    special = st.sampled_from([0.0, -0.0, float("inf"), float("-inf"), float("nan")])
    scores = data.draw(st.lists(st.one_of(st.floats(-3, 3, width=32), special), min_size=1, max_size=3 * PANEL))
    table = np.array(scores, np.float32)
    segment = Segment(RowSampler(SamplingParams(), seed=0, sample=0, prompt_ids=[1], end_ids=[]), 1, [], 1)
    (expected,) = choose(torch.from_numpy(table)[None], [segment])[0]
    assert kernels._best(table) == (BROKEN if expected is None else expected)


ROUNDED = {BFLOAT16: torch.bfloat16, FLOAT16: torch.float16}
"""To which numbers, all of which are float32 too."""


@pytest.mark.parametrize("stored", [stored for stored in ROUNDED if stored in FORMATS])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_a_checkpoint_of_16_bits_stays_one(kind, stored, monkeypatch):
    """Half the bytes and the same bits, in forwards and in loops, as from float32."""
    model = make(kind).to(ROUNDED[stored]).float()
    short = CompiledRunner("m", model, num_slots=2, context_length=1024)
    monkeypatch.setattr(compiled, "lossless_format", lambda weights: FLOAT32)
    plain = CompiledRunner("m", model, num_slots=2, context_length=1024)
    assert sum(matrix.nbytes for matrix in plain.matrices) == 2 * sum(matrix.nbytes for matrix in short.matrices)
    ids = [(i * 7) % 50 for i in range(300)]
    spans = [Span(0, 0, ids, 300), Span(1, 0, ids[5:9], 1)]
    assert torch.equal(plain.forward(spans), short.forward(spans))
    spans = [Span(0, 300, [3], 1), Span(1, 4, [7, 8], 1)]
    assert torch.equal(*(runner.loop(spans, 5, GREEDY, [[], []]) for runner in (plain, short)))
    spans = [Span(slot, span.end + 4, [9], 1) for slot, span in enumerate(spans)]
    assert torch.equal(plain.forward(spans), short.forward(spans))


def test_the_plain_weights_are_freed_or_kept():
    """Our own copy gives its memory to the packed one; a caller's model stays as it was."""
    model = make("llama")
    ids = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        before = model(ids).logits
    kept = CompiledRunner("m", model, num_slots=1, context_length=512, keep=True)
    with torch.inference_mode():
        assert torch.equal(before, model(ids).logits)
    logits = kept.forward([Span(0, 0, [1, 2, 3], 3)])
    own = CompiledRunner("m", model, num_slots=1, context_length=512, keep=False)
    assert torch.equal(logits, own.forward([Span(0, 0, [1, 2, 3], 3)]))
    assert model.model.layers[0].mlp.down_proj.weight.numel() == 0
    assert model.get_input_embeddings().weight.numel() > 0


@pytest.mark.parametrize("kind", ["llama", "llama3-rope", "mistral-sliding"])
def test_a_broken_token_breaks_what_follows_and_nothing_else(kind):
    """Its own logits and those of later positions of its row, until it is overwritten."""
    model = make(kind)
    runner = CompiledRunner("m", model, num_slots=2, context_length=512)
    expected = runner.forward([Span(0, 0, [1, 2, 3], 3), Span(1, 0, [1, 2, 3], 3)])
    with torch.no_grad():
        model.model.embed_tokens.weight[5] = torch.nan
        model.model.embed_tokens.weight[7] = torch.inf
    for bad in (5, 7):
        found = runner.forward([Span(0, 0, [1, 2, bad, 6, 7], 4), Span(1, 1, [2, 3], 2)])
        assert [False, True, True, True, False, False] == found.isnan().all(dim=1).tolist()
        assert torch.equal(expected[4:], found[4:])
        assert torch.equal(expected[2:3], runner.forward([Span(0, 2, [3], 1)]))
        assert runner.forward([Span(0, 3, [bad], 1)]).isnan().all()
    runner.clear(0)
    assert torch.equal(expected[:3], runner.forward([Span(0, 0, [1, 2, 3], 3)]))


def test_no_logits_are_wanted_in_the_middle_of_a_prompt():
    """An empty answer, and the same logits afterwards."""
    runner = CompiledRunner("m", make("qwen2"), num_slots=1, context_length=512)
    expected = runner.forward([Span(0, 0, [1, 2, 3, 4], 1)])
    assert runner.forward([Span(0, 0, [1, 2, 3], 0)]).shape == (0, 50)
    assert torch.equal(expected, runner.forward([Span(0, 3, [4], 1)]))


def test_torch_defaults_are_not_ours():
    """Another thread that loads a model in bfloat16 changes torch's default for a while; compiled code writes float32."""
    runner = CompiledRunner("m", make("llama3-rope"), num_slots=2, context_length=1024)
    ids = [(i * 7) % 50 for i in range(600)]  # more than the cache and the room of the first forwards hold
    expected = runner.forward([Span(0, 0, ids, 600)])
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(torch.bfloat16)
        other = CompiledRunner("m", make("llama3-rope").float(), num_slots=2, context_length=1024)
        found = [each.forward([Span(1, 0, ids, 600)]) for each in (runner, other)]
    finally:
        torch.set_default_dtype(before)
    assert found[0].dtype == found[1].dtype == torch.float32
    assert torch.equal(expected, found[0])


@pytest.mark.parametrize("kind", [CompiledRunner, LeanRunner])
@pytest.mark.parametrize("call", range(6))
def test_a_cache_that_cannot_grow_stays_sound(kind, call, monkeypatch):
    """Memory runs out in the middle of growing: what was there is still right, and the next forward grows the rest."""
    runner = kind("m", make("qwen2"), num_slots=3, context_length=1024)
    ids = [(i * 7) % 50 for i in range(520)]
    mate = [Span(1, 0, [1, 2, 3, 4], 4)]
    expected = runner.forward([Span(0, 0, ids, 1), *mate])
    runner = kind("m", make("qwen2"), num_slots=3, context_length=1024)
    runner.forward([Span(0, 0, ids[:500], 0), Span(1, 0, [1, 2], 0)])
    calls = itertools.count()
    grow = cache._grown

    def failing(*given):
        if next(calls) == call:
            raise MemoryError
        return grow(*given)

    monkeypatch.setattr(cache, "_grown", failing)
    if call < 5:  # two layers of keys and values, and the flags
        with pytest.raises(MemoryError):
            runner.forward([Span(0, 500, ids[500:], 1)])
    found = [runner.forward([Span(1, 2, [3, 4], 2)]), runner.forward([Span(0, 500, ids[500:], 1)])]
    assert torch.allclose(expected[:1], found[1], atol=1e-4)
    assert torch.allclose(expected[3:], found[0], atol=1e-4)


@pytest.mark.parametrize("runner", [CompiledRunner, LeanRunner])
def test_only_mistral_has_a_window_in_its_config(runner):
    """A Llama whose config names one, as a converted Mistral's may, attends to everything."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, sliding_window=5)).eval()
    ids = list(range(30))
    with torch.inference_mode():
        expected = model(torch.tensor([ids]), use_cache=False).logits[0]
    found = runner("m", model, num_slots=1, context_length=512).forward([Span(0, 0, ids, 30)])
    assert torch.allclose(expected, found, atol=3e-4, rtol=1e-3)


def test_a_model_that_computes_something_else_is_refused():
    """The check at load, not the list of names, has the last word."""
    model = make("llama")
    model.model.layers[1].mlp.act_fn = nn.ReLU()
    with pytest.raises(UnsupportedModelError, match="differ from those of transformers"):
        CompiledRunner("m", model, num_slots=1, context_length=512)


def test_who_is_compiled(monkeypatch, caplog):
    """Llama-like models with a SiLU gate; others, and all of them without numba, run as before."""
    options = {"num_slots": 1, "context_length": 512, "keep": True}
    model = make("qwen2")
    assert type(make_runner("m", model, pack=True, **options)) is CompiledRunner
    torch.manual_seed(0)
    other = LlamaForCausalLM(LlamaConfig(**SHAPE, hidden_act="gelu")).eval()
    assert type(make_runner("m", other, pack=True, **options)) is LeanRunner
    for change in (lambda m: m.model.embed_tokens.to(torch.bfloat16), lambda m: m.model.norm.double()):
        odd = make("qwen2")
        change(odd)
        assert not select._can_compile(odd, torch.float32)
    odd = make("qwen2")
    odd.lm_head = nn.Linear(48, 50, bias=True)
    assert not select._can_compile(odd, torch.float32)
    select.has_compiler.cache_clear()
    monkeypatch.setattr(select.importlib.util, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert type(make_runner("m", model, pack=True, **options)) is LeanRunner
    assert 'pip install "specrouter-llm[cpu]"' in caplog.text
    select.has_compiler.cache_clear()


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_what_it_takes_is_accounted_for(kind, keep):
    """Plain weights and panels together, with the head that is tied to the embedding and without."""
    model = make(kind)
    plain = sum(parameter.nbytes for parameter in model.parameters())
    promised = packing_bytes(model, keep, torch.float32)
    runner = CompiledRunner("m", model, num_slots=1, context_length=512, keep=keep)
    left = sum(parameter.nbytes for parameter in model.parameters())
    assert plain + promised.copies == left + sum(matrix._weight.nbytes for matrix in runner.matrices)
    assert not promised.kernels


def test_what_cannot_be_kept_is_compiled_at_every_start(monkeypatch, caplog):
    """A machine without a directory that numba may write to is told, and runs as fast."""

    def entries(sources, *, cache):
        if cache:
            raise RuntimeError("no locator available")
        return sources, cache

    monkeypatch.setattr(kernels, "_entries", entries)
    sources, cache = kernels._compiled()
    assert (len(sources), cache) == (64, False)
    assert "set NUMBA_CACHE_DIR" in caplog.text


NARROW = """
import test_compiled as t
from specrouter_llm.runtime import tile
assert (tile.PANEL, tile.ROWS) == (16, 6)
for kind in ("llama3-rope", "llama-many-queries", "qwen3"):
    t.test_ragged_steps_equal_a_fresh_forward(kind)
    t.test_bits_do_not_depend_on_company_pieces_or_threads(kind)
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="asks for another processor of this kind")
def test_processors_with_narrower_vectors(tmp_path):
    """What one without AVX-512 runs: half the panel, half the rows."""
    target = {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": "+avx2,+fma"}
    env = os.environ | target | {"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(Path(__file__).parent)}
    done = subprocess.run(
        [sys.executable, "-c", NARROW], env=env, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="asks for another processor of this kind")
def test_processors_without_fused_multiply_add_are_refused(tmp_path):
    """They would call a function for every product."""
    env = os.environ | {"NUMBA_CPU_NAME": "nehalem", "NUMBA_CPU_FEATURES": "+sse4.2", "NUMBA_CACHE_DIR": str(tmp_path)}
    script = "import specrouter_llm.runtime.tile"
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=False)
    assert "ImportError: this processor has no fused multiply-add" in done.stderr


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names of x86's instructions")
def test_the_softmax_is_in_vectors():
    """An index that may be negative counts from the end in numba, and a loop over such is one number at a time."""

    @njit(error_model="numpy")
    def weigh(scores, begin, end):
        kernels._weigh(scores, begin, end)

    scores = np.linspace(-4.0, 4.0, 200, dtype=np.float32)
    expected = np.where((np.arange(200) >= 3) & (np.arange(200) < 150), np.exp(scores), 0.0)
    weigh(scores, 3, 150)
    assert np.allclose(scores, expected / expected.sum(), rtol=1e-5)
    (code,) = weigh.inspect_asm().values()
    register = "z" if LANES == 16 else "y"
    assert re.search(rf"vfn?madd\d+ps\s.*%{register}mm", code)


@pytest.mark.parametrize("stored", FORMATS)
def test_weights_are_asked_for_ahead(stored):
    """Without it eight tokens of 16 bits take twice as long, and no sum tells."""

    @njit(error_model="numpy")
    def multiply(x, w, out):
        compiled_products._multiply_some(8, x, 64, w, stored, 64, out, PANEL, False)

    panels = Panels([nn.Linear(64, PANEL, bias=False)], stored)
    rows, out = np.ones((8, 64), np.float32), np.zeros((8, PANEL), np.float32)
    multiply(rows.ctypes.data, panels.weight_address, out.ctypes.data)
    assert np.array_equal(out, panels(torch.from_numpy(rows)).numpy())
    (code,) = multiply.inspect_llvm().values()
    assert "llvm.prefetch" in code
