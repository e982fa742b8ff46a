"""Accounting of memory before loading, and the refusal that shows it."""

import re

import pytest
import torch
import transformers

from specrouter_llm.config import ModelSpec
from specrouter_llm.errors import InvalidParameterError, MemoryBudgetError
from specrouter_llm.pool import ModelPool, shape_for
from specrouter_llm.pool.budget import MemberNeeds, cache_bytes_per_token, default_budgets, plan_memory
from specrouter_llm.pool.quantization import stored_bits
from specrouter_llm.pool.weights import count_weights
from specrouter_llm.runtime import select
from specrouter_llm.runtime.lean import LeanRunner
from specrouter_llm.runtime.packing import PackedLinear, has_packing, kernel_bytes
from specrouter_llm.runtime.select import make_runner, packing_bytes
from specrouter_llm.types import PackingBytes

LLAMA = transformers.LlamaForCausalLM


def loaded_bytes(model):
    return sum(parameter.nbytes for parameter in model.parameters())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "auto", None])
@pytest.mark.parametrize("tied", [True, False])
def test_weights_are_counted_as_they_are_loaded(save_model, dtype, tied):
    """The bytes in the report equal the bytes of the loaded parameters, tied weights once; stored in float16 here."""
    folder = save_model("half", dtype=torch.float16, tie_word_embeddings=tied)
    pool = ModelPool.load(folder, dtype=dtype, device="cpu", progress=False)
    assert loaded_bytes(pool.target.model) == pool.memory.members[0].weight_bytes
    expected = {None: torch.float32, "auto": torch.float16}.get(dtype) or getattr(torch, dtype or "")
    assert expected == pool.target.model.dtype


def test_a_widened_member_is_counted_widened(save_model, make_config):
    """Weights, cache and parameters of a widened member are those of the large shape, and the label says so."""
    shape = shape_for(make_config(), 200_000)
    pool = ModelPool.load(ModelSpec(save_model("small"), widen=shape), progress=False)
    assert loaded_bytes(pool.target.model) == pool.memory.members[0].weight_bytes
    assert sum(p.numel() for p in pool.target.model.parameters()) == pool.target.num_parameters
    assert pool.memory.members[0].cache_bytes_per_token == shape.num_layers * 2 * shape.num_kv_heads * 8 * 4
    assert pool.target.widened
    assert re.fullmatch(r"small \(widened to \d+ K\)", pool.target.label)


def test_the_cache_formula(make_config):
    """Layers x 2 x key-value heads x head size x bytes; grouped-query heads and an explicit head size count."""
    assert cache_bytes_per_token(make_config(), 4) == 2 * 2 * 2 * 8 * 4
    assert cache_bytes_per_token(make_config(head_dim=16), 2) == 2 * 2 * 2 * 16 * 2


def test_the_cache_where_layers_differ():
    """Gemma 4's full-attention layers have heads of their own size."""
    config = transformers.Gemma4TextConfig(
        hidden_size=32,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        global_head_dim=32,
        hidden_size_per_layer_input=0,
        num_kv_shared_layers=0,
    )
    full = config.layer_types.count("full_attention")
    assert 0 < full < 6
    assert cache_bytes_per_token(config, 2) == 2 * 2 * 2 * ((6 - full) * 16 + full * 32)


NEEDS = (MemberNeeds("big", "cpu", 10_000, 100, 2000), MemberNeeds("small", "cpu", 1_000, 10, 600))


def total(tokens, slots=2):
    """The sum by hand: both weights, the target's cache, and the draft's that ends at its own 600 tokens (1024 stored)."""
    return 10_000 + 1_000 + slots * tokens * 100 + slots * min(tokens, 1024) * 10


@pytest.mark.parametrize(
    ("budget", "context"),
    [(total(512), 512), (total(1024) - 1, 512), (total(1536), 1536), (total(2048), 2000), (10**9, 2000)],
)
def test_the_longest_context_that_fits(budget, context):
    """Multiples of 512 are tried; the target's own context is the end, stored in whole steps."""
    report = plan_memory(NEEDS, slots=2, max_context=None, budgets={"": budget})
    assert context == report.max_context
    assert total(-(-context // 512) * 512) == report.total
    assert report.total <= budget == report.budget


def test_a_given_context_is_kept_or_refused():
    """An explicit context is used as it is, refused if it does not fit, and may not exceed the target's."""
    assert plan_memory(NEEDS, slots=2, max_context=700, budgets={"": total(1024)}).max_context == 700
    with pytest.raises(MemoryBudgetError, match="max_context=700 and max_batch=2"):
        plan_memory(NEEDS, slots=2, max_context=700, budgets={"": total(1024) - 1})
    with pytest.raises(
        InvalidParameterError, match=r"max_context=2001 exceeds the context of the target 'big', 2000 tokens"
    ):
        plan_memory(NEEDS, slots=2, max_context=2001, budgets={"": 10**9})


def parse_sum(text):
    """The numbers of a report: {row: bytes}, and of each cache row the product of its factors."""
    rows = {m[1].strip(): int(m[2]) for m in re.finditer(r"^  (.+?)  .*?(\d+) B  \(", text, re.MULTILINE)}
    factors = re.findall(r"(\d+) slots x (\d+) tokens x (\d+) B = +(\d+) B", text)
    return rows, [(int(a) * int(b) * int(c), int(product)) for a, b, c, product in factors]


def test_the_message_shows_a_sum_that_adds_up(save_model):
    """Every weight and cache is a line, products and total are right, and each advice is a value that works."""
    sources = [save_model("big"), save_model("small", num_hidden_layers=1, max_position_embeddings=512)]
    with pytest.raises(MemoryBudgetError) as caught:
        ModelPool.load(sources[0], sources[1:], max_batch=4, max_context=1024, memory_budget="1.2 MB", progress=False)
    text = str(caught.value)
    rows, products = parse_sum(text)
    assert list(rows) == ["big weights", "big cache", "small weights", "small cache", "total", "budget"]
    assert all(product == printed for product, printed in products)
    assert len(products) == 2
    assert rows["total"] == sum(rows[name] for name in list(rows)[:4])
    assert rows["budget"] == 1_200_000 < rows["total"]
    advice = re.search(
        r"memory_budget to (\d+) bytes; or lower max_batch to (\d+); or lower max_context to (\d+)", text
    )
    budget, rows_fit, context = (int(number) for number in advice.groups())
    for change in ({"memory_budget": budget}, {"max_batch": rows_fit}, {"max_context": context}):
        options = {"max_batch": 4, "max_context": 1024, "memory_budget": "1.2 MB"} | change
        pool = ModelPool.load(sources[0], sources[1:], progress=False, **options)
        assert pool.memory.total <= pool.memory.budget
    with pytest.raises(MemoryBudgetError):
        ModelPool.load(
            sources[0], sources[1:], max_batch=rows_fit + 1, max_context=1024, memory_budget="1.2 MB", progress=False
        )


@pytest.mark.skipif(not has_packing(), reason="this build of torch cannot pack weights")
@pytest.mark.parametrize("kind", [transformers.LlamaForCausalLM, transformers.GPTNeoXForCausalLM])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("borrowed", [True, False])
def test_packed_copies_are_counted(tmp_path, monkeypatch, kind, tied, borrowed):
    """Weights and packed copy in the report are what model and runner hold together, by name and by a loaded model."""
    config = kind.config_class(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
    )
    source = kind(config)
    if not borrowed:
        source.save_pretrained(tmp_path)
        source = tmp_path
    monkeypatch.setattr(select, "has_compiler", lambda: False)  # what the compiled runner takes is tested with it
    pool = ModelPool.load(ModelSpec(source, name="m"), packing=packing_bytes, device="cpu", progress=False)
    member, model = pool.memory.members[0], pool.target.model
    runner = make_runner("m", model, num_slots=1, context_length=512, pack=True, keep=borrowed)
    packed = {id(p): p for p in _packed_layers(runner, model)}.values()
    held = loaded_bytes(model) + sum(4 * layer.out_features * layer.in_features for layer in packed)
    held += sum(layer._bias.nbytes for layer in packed if layer._bias is not None)
    assert held == member.weight_bytes + member.packing.copies
    assert bool(member.packing.copies) is (tied if not borrowed else kind is LLAMA)
    assert ("packed copy" in str(pool.memory)) is bool(member.packing.copies)
    shapes = {(layer.in_features, layer.out_features) for layer in packed}
    assert member.packing.kernels == kernel_bytes(shapes)
    assert ("kernels" in str(pool.memory)) is bool(shapes)
    assert pool.memory.cache_bytes(member) + held + pool.memory.kernel_bytes == pool.memory.total


def test_kernels_are_shared_by_equal_shapes():
    """oneDNN keeps them per shape, not per model."""
    packing = [PackingBytes(0, frozenset({(8, 8, 100), (8, 16, 100)})), PackingBytes(0, frozenset({(8, 16, 100)}))]
    needs = [MemberNeeds(str(i), "cpu", 1000, 1, 512, packing[i]) for i in range(2)]
    report = plan_memory(needs, slots=1, max_context=512, budgets={"": 10_000})
    assert report.kernel_bytes == 200
    assert report.total == 2 * 1000 + 200 + 2 * 512
    with pytest.raises(MemoryBudgetError, match="packing adds to them exceed the budget; or set pack=False"):
        plan_memory(needs, slots=1, max_context=512, budgets={"": 2100})


def _packed_layers(runner, model):
    """All packed layers of a lean runner, or those in the modules of any other."""
    if isinstance(runner, LeanRunner):
        return runner.matrices
    return [module for module in model.modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize("asked", [{"dtype": "float64"}, {"dtype": "bfloat16"}, {"packing": None}])
def test_no_packed_copy_where_nothing_is_packed(save_model, asked):
    """Other dtypes stay as they are, and a pool without runners packs nothing."""
    options = {"packing": packing_bytes, "device": "cpu", "progress": False} | asked
    assert (
        ModelPool.load(save_model("tied", tie_word_embeddings=True), **options).memory.members[0].packing
        == PackingBytes()
    )


def test_a_packed_copy_is_part_of_the_budget(save_model):
    """What would fit without it is refused with it, and the sum says why."""
    folder = save_model("tied", tie_word_embeddings=True)
    options = {"device": "cpu", "max_context": 512, "max_batch": 1, "progress": False}
    budget = ModelPool.load(folder, **options).memory.total
    with pytest.raises(MemoryBudgetError, match="tied packed copy"):
        ModelPool.load(folder, packing=packing_bytes, memory_budget=budget, **options)


def test_weights_alone_too_large(save_model):
    """Without room for a single row the advice is another model, not fewer rows."""
    with pytest.raises(MemoryBudgetError) as caught:
        ModelPool.load(save_model("big"), memory_budget=1000, progress=False)
    assert "the weights alone exceed the budget" in str(caught.value)
    assert "max_batch to" not in str(caught.value)


def test_nothing_is_loaded_beyond_the_budget(save_model, monkeypatch):
    """The refusal comes before any weights are read."""
    folder = save_model("big")
    monkeypatch.setattr("specrouter_llm.pool.prepare.load_model", lambda *_: pytest.fail("weights were read"))
    with pytest.raises(MemoryBudgetError):
        ModelPool.load(folder, memory_budget=1000, progress=False)


def test_the_default_budget_is_a_share_of_what_is_free(monkeypatch):
    """90 % of the free memory; bytes that the caller's own models hold already are part of it, as they are of the sum."""
    monkeypatch.setattr("specrouter_llm.pool.budget.free_memory", {"cpu": 1000, "cuda:0": 5000, "": 9000}.__getitem__)
    on_cpu = MemberNeeds("a", "cpu", 1, 1, 1)
    on_cuda = MemberNeeds("b", "cuda:0", 1, 1, 1)
    spread = MemberNeeds("c", "", 1, 1, 1)
    assert default_budgets([on_cpu, on_cuda], {"cpu": 100}) == {"cpu": 990, "cuda:0": 4500}
    assert default_budgets([on_cpu, spread], {}) == {"": 8100}


def test_every_device_must_hold_its_members():
    """With a budget per device the tightest one decides."""
    needs = (NEEDS[0], MemberNeeds("small", "cuda:1", 1_000, 10, 4000))
    budgets = {"cpu": 10**9, "cuda:1": 1_000 + 2 * 512 * 10}
    assert plan_memory(needs, slots=2, max_context=None, budgets=budgets).max_context == 512
    with pytest.raises(MemoryBudgetError) as caught:
        plan_memory(needs, slots=2, max_context=None, budgets={"cpu": 10**9, "cuda:1": 2_000})
    assert "big" not in str(caught.value)


def test_quantised_weights_are_estimated_from_their_bits(make_model):
    """Linear layers shrink to their bits, the output head and everything else keep their size."""
    model = make_model()
    linear = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.lm_head)
    expected = loaded_bytes(model) - 4 * linear + linear // 2
    assert expected == count_weights(model, {"load_in_4bit": True}).num_bytes
    assert [stored_bits(c) for c in ({"quant_method": "fp8"}, {"bits": 4}, {"quant_method": "?"})] == [8, 4, None]


def test_weights_that_are_stored_quantised_have_their_size_on_disk(save_model):
    """The headers of the files are summed; here they are the plain tensors of a float16 model."""
    folder = save_model("half", dtype=torch.float16)
    model = ModelPool.load(folder, dtype="float16", progress=False).target.model
    assert loaded_bytes(model) == count_weights(model, {"bits": 4}, [folder / "model.safetensors"]).num_bytes
