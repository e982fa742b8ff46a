"""What a model begins with: it copies before it has learnt anything, and a word is itself with a space before it."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cosine_similarity

from examples.train_family.config import Shape
from examples.train_family.learner import new_model
from examples.train_family.tokenizer import train_tokenizer

TEXTS = ['{"word": "thing"} says the word of a thing'] * 50
SIZES = {
    "target": Shape(
        hidden_size=256, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, intermediate_size=64
    ),
    "middle": Shape(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, intermediate_size=64
    ),
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 700)


def made(shape, tokenizer):
    torch.manual_seed(0)
    return new_model(shape, tokenizer).eval()


@pytest.mark.parametrize("size", SIZES)
def test_a_new_model_copies(size, tokenizer):
    """Random tokens, twice: the second time a good part is foretold. Without the second head hardly one is."""
    model = made(SIZES[size], tokenizer)
    tokens = torch.randint(8, len(tokenizer), (8, 32))
    twice = torch.cat([tokens, tokens], dim=1)

    def share():
        with torch.inference_mode():
            said = model(twice).logits[:, 32:-1].argmax(-1)
        return (said == twice[:, 33:]).float().mean().item()

    assert share() > 0.3
    torch.nn.init.zeros_(model.model.layers[1].self_attn.o_proj.weight)
    assert share() < 0.05


def test_a_model_of_one_layer_is_left_alone(tokenizer):
    shape = SIZES["middle"].model_copy(update={"num_hidden_layers": 1})
    model = made(shape, tokenizer)
    assert not model.model.layers[0].self_attn.o_proj.weight.any()


def test_a_word_is_itself_with_a_space_before_it(tokenizer):
    embedding = made(SIZES["target"], tokenizer).get_input_embeddings().weight
    vocabulary = tokenizer.get_vocab()
    bare, spaced, other = (embedding[vocabulary[token]] for token in ("word", "\u0120word", "thing"))
    assert cosine_similarity(bare[1:], spaced[1:], dim=0) > 0.7
    assert cosine_similarity(bare[1:], other[1:], dim=0) < 0.4
