"""Widening keeps the function."""

import pytest
import torch
import transformers

from specrouter_llm.config import WideShape
from specrouter_llm.errors import InvalidParameterError, UnsupportedModelError
from specrouter_llm.pool import FAMILY_RATIO, family_shapes, shape_for, widen
from specrouter_llm.pool.shapes import format_parameters, parameters_of, parse_parameters
from specrouter_llm.pool.widen import shape_of


@pytest.fixture
def exact_norms(monkeypatch):
    """transformers' RMSNorm computes in float32 whatever the dtype; this one computes in the dtype of its input."""

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))

    monkeypatch.setattr("transformers.models.llama.modeling_llama.LlamaRMSNorm.forward", forward)


SHAPE = WideShape(hidden_size=72, num_layers=4, intermediate_size=100, num_heads=9, num_kv_heads=3)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_key_value_heads": 2, "tie_word_embeddings": False},
        {"num_key_value_heads": 2, "tie_word_embeddings": True},
        {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True},
        {"num_key_value_heads": 2, "head_dim": 12},
    ],
    ids=["untied", "tied", "biases", "free head size"],
)
@pytest.mark.usefixtures("exact_norms")
def test_the_logits_are_equal(make_model, changes):
    """In float64 a grouped-query model and its widened form agree to 1e-9 everywhere and in every choice."""
    model = make_model(dtype=torch.float64, **changes)
    wide = widen(model, SHAPE)
    ids = torch.randint(0, 40, (3, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, actual = model(ids).logits, wide(ids).logits
    assert expected.std() > 0.1  # or equality would mean nothing
    assert (expected - actual).abs().max() < 1e-9
    assert torch.equal(expected.argmax(-1), actual.argmax(-1))
    assert shape_of(wide.config) == SHAPE
    assert wide.dtype == torch.float64


def test_with_the_norms_of_transformers(make_model):
    """With norms rounded to float32, as transformers computes them, what differs is their last bits."""
    model = make_model()
    ids = torch.randint(0, 40, (3, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected, actual = model(ids).logits, widen(model, SHAPE)(ids).logits
    assert (expected - actual).abs().max() < 1e-4 * expected.abs().max()
    assert torch.equal(expected.argmax(-1), actual.argmax(-1))


@pytest.mark.usefixtures("exact_norms")
def test_all_heads_separate_and_wider_groups(make_model):
    """Multi-head attention can be widened into groups."""
    model = make_model(dtype=torch.float64, num_key_value_heads=4)
    wide = widen(model, WideShape(64, 2, 48, 8, 4))
    ids = torch.arange(40)[None]
    with torch.no_grad():
        assert (model(ids).logits - wide(ids).logits).abs().max() < 1e-9


def test_the_filling_is_real_and_reproducible(make_model):
    """Twice the same weights, whatever the global generator holds and without touching it; new weights are not zeros."""
    model = make_model()
    torch.manual_seed(5)
    state = torch.get_rng_state()
    one = widen(model, SHAPE)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(6)
    other = widen(model, SHAPE)
    for (name, a), (_, b) in zip(one.named_parameters(), other.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert one.model.layers[3].self_attn.q_proj.weight.std() > 0.01
    assert one.model.layers[0].mlp.up_proj.weight[:, 32:].std() > 0.01


def test_the_model_itself_is_unchanged(make_model):
    """Widening copies."""
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    widen(model, SHAPE)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.config.hidden_size == 32


def test_only_llama(make_model):
    """Another architecture is refused by name."""
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=4))
    with pytest.raises(UnsupportedModelError, match="not GPT2LMHeadModel"):
        widen(model, SHAPE)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (WideShape(16, 4, 100, 9, 3), "hidden_size=16 is smaller than the model's 32"),
        (WideShape(72, 4, 100, 6, 6), "6 heads on 6 key-value heads do not hold the model's groups of 2"),
        (WideShape(72, 4, 100, 9, 4), "9 heads on 4 key-value heads"),
    ],
)
def test_shapes_that_cannot_hold_the_model(make_model, shape, message):
    """A dimension that shrinks, or groups that do not fit, are refused with the numbers."""
    with pytest.raises(InvalidParameterError, match=message):
        widen(make_model(), shape)


@pytest.mark.parametrize("wanted", ["100K", "3M", "150M", "1.1B"])
@pytest.mark.parametrize("tied", [True, False])
def test_shape_for_meets_the_count(make_config, wanted, tied):
    """The parameters, counted on a model without memory, are within 10 %; the head size and groups stay."""
    config = make_config(tie_word_embeddings=tied, vocab_size=400)
    shape = shape_for(config, wanted)
    wide = transformers.LlamaConfig(**config.to_dict() | {
        "hidden_size": shape.hidden_size, "num_hidden_layers": shape.num_layers, "head_dim": 8,
        "intermediate_size": shape.intermediate_size, "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
    })  # fmt: skip
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in transformers.LlamaForCausalLM(wide).parameters())
    assert count == parameters_of(config, shape)
    assert count == pytest.approx(parse_parameters(wanted), rel=0.10)
    assert shape.hidden_size == shape.num_heads * 8
    assert shape.num_heads == 2 * shape.num_kv_heads


def test_shape_for_refuses_to_shrink(make_config):
    """The message holds both numbers."""
    own = parameters_of(make_config(), shape_of(make_config()))
    with pytest.raises(InvalidParameterError, match=rf"has {own} parameters, more than the 1000 asked for"):
        shape_for(make_config(), "1K")


def test_family_ratio(make_config):
    """A widened family has the ratios of 7B : 1.1B : 68M, where the members are not larger already."""
    configs = [make_config(), make_config(num_hidden_layers=1), make_config(num_hidden_layers=1, intermediate_size=32)]
    shapes = family_shapes(configs, "50M")
    for config, shape, ratio in zip(configs, shapes, FAMILY_RATIO, strict=True):
        assert parameters_of(config, shape) == pytest.approx(50e6 * ratio, rel=0.10)
    layers = [shape.num_layers for shape in shapes]
    assert layers == [layers[0], round(layers[0] * 22 / 32), max(1, round(layers[0] * 2 / 32))]
    assert family_shapes(configs, 60_000)[1:] == (None, None)
    pair = family_shapes(configs[:2], "50M")
    assert parameters_of(configs[1], pair[1]) == pytest.approx(50e6 * FAMILY_RATIO[2], rel=0.10)


@pytest.mark.parametrize("value", ["many", "-3M", 0, True, "3T"])
def test_numbers_of_parameters(value):
    """Text that is no number of parameters is refused."""
    with pytest.raises(InvalidParameterError, match="a number of parameters must be"):
        parse_parameters(value)


def test_parameters_in_words():
    """Numbers are shown with two or three figures."""
    assert [format_parameters(n) for n in (5_868_800, 153_900_000, 1_100_000_000, 12)] == [
        "5.9 M",
        "154 M",
        "1.1 B",
        "12",
    ]
