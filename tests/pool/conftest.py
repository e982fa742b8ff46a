"""Tiny random models and tokenizers, made once per session or on disk."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast


@pytest.fixture
def make_config():
    """Builds a tiny Llama config; keyword arguments replace its fields."""

    def make(**changes):
        fields = {
            "vocab_size": 40,
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "eos_token_id": 2,
            "tie_word_embeddings": False,
        }
        return LlamaConfig(**(fields | changes))

    return make


@pytest.fixture
def make_model(make_config):
    """Builds a tiny random Llama model in eval mode."""

    def make(seed=0, dtype=torch.float32, **changes):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(make_config(**changes)).to(dtype).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0.0, 0.3)
        return model

    return make


@pytest.fixture
def make_tokenizer():
    """Builds a word tokenizer; keyword arguments `changes` replace the tokens of single ids."""

    def make(size=40, changes=None):
        words = {i: f"w{i}" for i in range(size)} | {0: "<unk>", 1: "<s>", 2: "</s>"} | (changes or {})
        tokenizer = Tokenizer(models.WordLevel({word: i for i, word in words.items()}, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")

    return make


@pytest.fixture
def save_model(tmp_path, make_model, make_tokenizer):
    """Saves a tiny model (and a tokenizer unless `tokenizer=None`) to a folder of the given name."""

    def save(name, *, tokenizer="default", **changes):
        folder = tmp_path / name
        make_model(**changes).save_pretrained(folder)
        if tokenizer == "default":
            tokenizer = make_tokenizer()
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def edit_json():
    """Changes fields of a JSON file; a field set to None is removed."""

    def edit(path, **changes):
        content = json.loads(path.read_text()) | changes
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return edit
