"""The eager path on a CUDA device; skipped where there is none."""

from __future__ import annotations

import pytest
import torch

from specrouter_llm import SamplingParams, SpecRouter

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_float64_chains_equal_plain_decoding_on_cuda(temperature):
    """The logic gate of the promise holds on the device too."""
    params = SamplingParams(max_tokens=24, temperature=temperature, seed=3)
    prompts = ["Once upon a time", "Tom has 3 apples and", "The answer is"]
    with SpecRouter.from_pretrained("demo", dtype="float64", device="cuda", max_batch=3, progress=False) as engine:
        plain = engine.generate(prompts, params, speculation=False)
        for chain in (["ngram"], ["demo/draft"], ["demo/draft", "demo/middle"]):
            drafted = engine.generate(prompts, params, chain=chain)
            assert [c.token_ids for c in plain] == [c.token_ids for c in drafted]


def test_noise_has_the_same_bits_on_cuda():
    """Keyed noise does not depend on the device, so a seed means the same everywhere (up to the last bits of log)."""
    from specrouter_llm.sampling.noise import gumbel, row_keys

    keys = [row_keys(1, 0, position) for position in range(8)]
    ids = torch.arange(4096, dtype=torch.int32)
    assert torch.allclose(gumbel(keys, ids), gumbel(keys, ids.cuda()).cpu(), rtol=1e-14, atol=1e-14)


def test_closing_gives_device_memory_back():
    """A second engine leaves nothing behind; the first one leaves what cuBLAS keeps for a thread and a stream."""

    def use():
        engine = SpecRouter.from_pretrained("demo", device="cuda", progress=False)
        engine.generate("Hello", max_tokens=8)
        engine.close()

    use()
    before = torch.cuda.memory_allocated()
    use()
    assert torch.cuda.memory_allocated() <= before + 2**20
