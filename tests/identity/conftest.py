"""Models for the identity suite: real architectures, float64, small enough for any machine."""

from __future__ import annotations

import copy
from dataclasses import dataclass

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

from specrouter_llm import SpecRouter
from specrouter_llm.config import EngineConfig
from specrouter_llm.runtime.runner import EagerRunner

SHAPE = {
    "vocab_size": 48,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": 0.25,
    "tie_word_embeddings": False,  # tied, random Gemma only repeats its last token
}
CONTEXT = 1024


def _llama():
    return LlamaForCausalLM(LlamaConfig(**SHAPE))


def _qwen3():
    return Qwen3ForCausalLM(Qwen3Config(head_dim=16, **SHAPE))


def _gemma3():
    layers = ["sliding_attention", "full_attention"] * 2
    return Gemma3ForCausalLM(Gemma3TextConfig(head_dim=16, sliding_window=12, layer_types=layers, **SHAPE))


def _perturbed(model, amount, seed):
    """A drafter: the target with noise on its weights, so that some of its choices are the target's and some are not."""
    draft = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in draft.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(noise * amount * parameter.std())
    return draft


@dataclass
class Family:
    """Four models of one architecture: draft, small and middle drafters of a target."""

    name: str
    models: dict

    def engine(self, *, max_batch=4, **options):
        """A fresh engine; the target is the last model."""
        runners = {
            name: EagerRunner(name, model, num_slots=max_batch, context_length=CONTEXT)
            for name, model in self.models.items()
        }
        parts = {key: options.pop(key) for key in ("proposers", "policy") if key in options}
        config = EngineConfig(max_batch=max_batch, **options)
        return SpecRouter(runners, target="target", max_context=CONTEXT, config=config, **parts)


@pytest.fixture(scope="session", params=["llama", "qwen3", "gemma3_sliding"])
def family(request):
    """A tiny random family per architecture."""
    torch.manual_seed(1)
    target = {"llama": _llama, "qwen3": _qwen3, "gemma3_sliding": _gemma3}[request.param]().double().eval()
    amounts = {"draft": 0.1, "small": 0.06, "middle": 0.03}
    models = {name: _perturbed(target, amount, seed) for seed, (name, amount) in enumerate(amounts.items())}
    return Family(request.param, {**models, "target": target})


@pytest.fixture(scope="session")
def prompts():
    """Prompts of very different lengths; the long ones repeat themselves, so that lookup finds something."""
    generator = torch.Generator().manual_seed(5)

    def random_ids(n):
        return torch.randint(0, SHAPE["vocab_size"], (n,), generator=generator).tolist()

    phrase = random_ids(9)
    return [random_ids(3), phrase * 6, random_ids(1), random_ids(40), phrase * 20 + random_ids(2), random_ids(17)] + [
        random_ids(n) for n in (2, 25)
    ]
