"""Architectures that are refused, each with its reason, from the config alone."""

import pytest
import torch
import transformers

from specrouter_llm.errors import UnsupportedModelError
from specrouter_llm.pool import ModelPool
from specrouter_llm.pool.checks import check_architecture
from specrouter_llm.pool.quantization import check_target_quantization

TINY = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA = TINY | HEADS


def test_a_recurrent_model_is_refused_before_its_weights_are_looked_for(tmp_path):
    """A Mamba folder with nothing but its config is refused for its state, not for missing weights."""
    transformers.MambaConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1).save_pretrained(tmp_path / "mamba")
    with pytest.raises(
        UnsupportedModelError, match=r"'mamba' \(MambaForCausalLM\) is not supported: .*recurrent state"
    ):
        ModelPool.load(tmp_path / "mamba", progress=False)


def rope(kind, **fields):
    return {"rope_type": kind, "rope_theta": 10000.0, **fields}


REFUSED = {
    "hybrid": (
        transformers.Lfm2Config(**LLAMA, layer_types=["conv", "full_attention"]),
        "it has 'conv' layers, whose recurrent state cannot be rolled back",
    ),
    "chunked": (
        transformers.Llama4TextConfig(
            **LLAMA, layer_types=["chunked_attention", "full_attention"], intermediate_size_mlp=48, num_local_experts=2
        ),
        "it uses chunked attention",
    ),
    "unknown layers": (
        transformers.Qwen3Config(**LLAMA, layer_types=["full_attention", "window_attention"]),
        "a kind of attention that this engine does not know",
    ),
    "shared": (
        transformers.Gemma3nTextConfig(**LLAMA, num_kv_shared_layers=1, layer_types=["full_attention"] * 2),
        "its last 1 layers share keys and values",
    ),
    "latent": (
        transformers.DeepseekV3Config(vocab_size=40, hidden_size=32, num_attention_heads=4, kv_lora_rank=16),
        "it caches keys and values in a latent form",
    ),
    "dynamic": (
        transformers.LlamaConfig(**LLAMA, rope_parameters=rope("dynamic", factor=2.0)),
        "'dynamic' RoPE, whose frequencies depend on the longest row",
    ),
    "longrope": (
        transformers.LlamaConfig(
            **LLAMA, rope_parameters=rope("longrope", factor=2.0, short_factor=[1.0] * 4, long_factor=[2.0] * 4)
        ),
        "'longrope' RoPE",
    ),
    "encoder-decoder": (transformers.BartConfig(vocab_size=40, d_model=16), "encoder-decoder"),
    "encoder": (transformers.BertConfig(vocab_size=40, hidden_size=32, num_attention_heads=4), "it is an encoder"),
    "alibi": (transformers.BloomConfig(vocab_size=40, hidden_size=32, n_head=4), "its attention is not exchangeable"),
    "not a language model": (transformers.ViTConfig(), "is not a causal language model"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_refused_with_the_reason(kind):
    """Each kind that cannot be decoded losslessly with rollback is refused with the model's name and the reason."""
    config, reason = REFUSED[kind]
    with pytest.raises(UnsupportedModelError) as caught:
        check_architecture("some-model", config)
    assert "'some-model'" in str(caught.value)
    assert reason in str(caught.value)


def test_rope_per_layer_type_is_looked_into():
    """One batch-dependent RoPE among several layer types is found."""
    config = transformers.LlamaConfig(**LLAMA)
    config.rope_parameters = {"full_attention": rope("default"), "sliding_attention": rope("dynamic")}
    with pytest.raises(UnsupportedModelError, match="'dynamic' RoPE"):
        check_architecture("some-model", config)


def test_the_old_name_of_the_rope_field_in_a_folder(save_model, edit_json):
    """A config.json of transformers v4 with `rope_scaling` is refused as well."""
    folder = save_model("old")
    edit_json(folder / "config.json", rope_parameters=None, rope_scaling={"type": "dynamic", "factor": 2.0})
    with pytest.raises(UnsupportedModelError, match="'dynamic' RoPE"):
        ModelPool.load(folder, progress=False)


def test_attention_sinks_are_refused(tmp_path):
    """Sinks show only in the modules; they are found without loading weights."""
    config = transformers.GptOssConfig(**LLAMA, head_dim=8, num_local_experts=2, num_experts_per_tok=1)
    model = transformers.GptOssForCausalLM(config)
    model.save_pretrained(tmp_path / "oss")
    with pytest.raises(UnsupportedModelError, match=r"attention sinks \(model\.layers\.0\.self_attn\.sinks\)"):
        ModelPool.load(tmp_path / "oss", progress=False)


@pytest.mark.parametrize(
    "config",
    [
        transformers.LlamaConfig(
            **LLAMA, rope_parameters=rope("llama3", factor=2.0, low_freq_factor=1.0, high_freq_factor=4.0)
        ),
        transformers.Qwen2Config(**LLAMA),
        transformers.Qwen3Config(**LLAMA, layer_types=["sliding_attention", "full_attention"], use_sliding_window=True),
        transformers.MistralConfig(**LLAMA, sliding_window=16),
        transformers.Gemma3TextConfig(**LLAMA),
        transformers.Phi3Config(**LLAMA, pad_token_id=0),
        transformers.GPT2Config(vocab_size=40, n_embd=32, n_layer=1, n_head=4),
        transformers.GPTNeoXConfig(**TINY, num_attention_heads=4),
        transformers.MixtralConfig(**LLAMA),
    ],
    ids=lambda config: config.model_type,
)
def test_ordinary_decoders_are_accepted(config):
    """The mainstream families, sliding windows included, pass."""
    check_architecture("some-model", config)


SHARED_SCALES = {
    "bitsandbytes": transformers.BitsAndBytesConfig(load_in_8bit=True),
    "compressed-tensors": {
        "quant_method": "compressed-tensors",
        "config_groups": {"group_0": {"input_activations": {"num_bits": 8, "strategy": "tensor", "dynamic": True}}},
    },
    "torchao": {
        "quant_method": "torchao",
        "quant_type": {"default": {"_type": "Float8DynamicActivationFloat8WeightConfig"}},
    },
}


@pytest.mark.parametrize("kind", SHARED_SCALES)
def test_activation_scales_shared_by_the_batch(kind):
    """A target whose activation scales depend on batch-mates is refused, with what to use instead."""
    with pytest.raises(
        UnsupportedModelError, match=r"as target: .* would depend on the other rows .* As a drafter it is fine"
    ):
        check_target_quantization("big", SHARED_SCALES[kind])


@pytest.mark.parametrize(
    "quantization",
    [
        None,
        transformers.BitsAndBytesConfig(load_in_4bit=True),
        transformers.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0),
        {"config_groups": {"g": {"input_activations": {"strategy": "token", "dynamic": True}}}},
        {"config_groups": {"g": {"input_activations": {"strategy": "tensor", "dynamic": False}}}},
    ],
    ids=["none", "bnb-4bit", "bnb-8bit without outliers", "per token", "static"],
)
def test_other_quantisation_is_accepted(quantization):
    """Weight-only, per-token and static scales do not couple rows."""
    check_target_quantization("big", quantization)


def test_a_quantised_config_is_refused_as_target_and_not_as_draft(save_model, edit_json):
    """The rule applies by role: as a draft the same folder passes this check and gets as far as the missing backend."""
    folder, target = save_model("eight"), save_model("target")
    edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    with pytest.raises(UnsupportedModelError, match="outlier columns from the whole batch"):
        ModelPool.load(folder, progress=False)
    with pytest.raises(Exception, match="bitsandbytes") as caught:
        ModelPool.load(target, [folder], progress=False)
    assert not isinstance(caught.value, UnsupportedModelError)


@pytest.mark.filterwarnings("ignore")
def test_torch_dynamic_int8_is_refused_as_target_only(make_model):
    """fbgemm's dynamic int8 has one scale per tensor: fine in a draft, refused in a target."""
    quantized = torch.ao.quantization.quantize_dynamic(make_model(), {torch.nn.Linear}, dtype=torch.qint8)
    with pytest.raises(UnsupportedModelError, match="one activation scale per tensor"):
        ModelPool.load(quantized, progress=False)
