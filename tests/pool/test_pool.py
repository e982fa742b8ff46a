"""The pool as a whole: names, defaults, loaded models, placement, progress, life cycle."""

import gc
import os
import weakref

import pytest
import torch
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from specrouter_llm.config import ModelSpec
from specrouter_llm.errors import EngineClosedError, InvalidParameterError, ModelLoadError
from specrouter_llm.pool import ModelPool
from specrouter_llm.pool.placement import place


def test_duplicate_names(save_model, make_model):
    """The message names the duplicate and the way out; the way out works."""
    folder = save_model("twin")
    with pytest.raises(InvalidParameterError, match=r"two models of the pool are called 'twin'; .*name=\.\.\."):
        ModelPool.load(folder, [folder], progress=False)
    pool = ModelPool.load(folder, [ModelSpec(folder, name="other")], progress=False)
    assert list(pool.members) == ["twin", "other"]
    assert pool.drafts[0] is pool.members["other"]


@pytest.mark.parametrize("before", [None, "0"])
def test_models_on_a_cpu_are_loaded_in_one_thread(save_model, monkeypatch, before):
    """Other threads' heaps would keep what was freed in them. The switch is as it was afterwards."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    monkeypatch.delenv(name, raising=False)
    if before is not None:
        monkeypatch.setenv(name, before)
    seen = []
    load = AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(
        AutoModelForCausalLM,
        "from_pretrained",
        lambda *args, **kwargs: (seen.append(os.environ.get(name)), load(*args, **kwargs))[1],
    )
    ModelPool.load(save_model("target"), device="cpu", progress=False)
    assert seen == ["1"]
    assert os.environ.get(name) == before


def test_a_text_is_not_a_list_of_drafts(save_model):
    """A single draft given as text would be read letter by letter."""
    with pytest.raises(InvalidParameterError, match="drafts must be a list"):
        ModelPool.load(save_model("target"), "draft", progress=False)


def test_members_are_ready_for_inference(save_model, edit_json):
    """Eval mode, no gradients, end-of-sequence ids of tokenizer and generation config together."""
    folder = save_model("model")
    edit_json(folder / "generation_config.json", eos_token_id=[5, 6])
    member = ModelPool.load(folder, progress=False).target
    assert not member.model.training
    assert not any(parameter.requires_grad for parameter in member.model.parameters())
    assert member.eos_token_ids == {2, 5, 6}
    assert (member.name, member.label, member.vocab_size, member.context_length) == ("model", "model", 40, 1024)


def test_a_spec_wins_over_the_arguments(save_model):
    """Arguments are defaults: a member with its own dtype keeps it."""
    target, draft = save_model("target"), save_model("draft")
    pool = ModelPool.load(target, [ModelSpec(draft, dtype="bfloat16")], dtype="float64", device="cpu", progress=False)
    assert [torch.float64, torch.bfloat16] == [member.model.dtype for member in pool.members.values()]


def test_loaded_models_are_used_without_a_copy(make_model, make_tokenizer):
    """The same object, with the tokenizer of its spec, counted in the budget."""
    model, draft, tokenizer = make_model(), make_model(seed=1), make_tokenizer()
    pool = ModelPool.load(ModelSpec(model, name="mine", tokenizer=tokenizer), [draft], progress=False)
    assert pool.target.model is model
    assert pool.tokenizer is tokenizer
    assert list(pool.members) == ["mine", "LlamaForCausalLM"]
    assert sum(p.nbytes for p in model.parameters()) == pool.memory.members[0].weight_bytes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "bfloat16"}, "is loaded already, as torch.float32; .* dtype='bfloat16' cannot be met"),
        ({"device": "meta"}, "is loaded already, on cpu; .* 'meta' cannot be met"),
        ({"device_map": "auto"}, "is loaded already, on cpu; .* 'auto' cannot be met"),
    ],
)
def test_a_loaded_model_is_not_converted(make_model, options, message):
    """Another dtype or place would need a copy behind the caller's back; the error says what to do."""
    with pytest.raises(InvalidParameterError, match=message):
        ModelPool.load(make_model(), progress=False, **options)
    ModelPool.load(make_model(), dtype=torch.float32, device="cpu", progress=False)


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        (3, {}, "a model must be a name, a folder, .* got int"),
        ("demo", {"dtype": "int3"}, "dtype must be 'auto' or one of"),
        ("demo", {"device": "abacus"}, "unknown device 'abacus'"),
        ("demo", {"device": "meta"}, "'meta' holds no weights"),
        ("demo", {"device": "cpu", "device_map": "auto"}, "either device or device_map"),
        ("demo", {"max_batch": 0}, "max_batch must be a positive integer"),
        ("demo", {"memory_budget": "plenty"}, "memory_budget must be"),
    ],
)
def test_wrong_arguments(source, options, message):
    """Each wrong value is refused by name."""
    with pytest.raises(InvalidParameterError, match=message):
        ModelPool.load(source, progress=False, **options)


def test_placement():
    """The target has the first device to itself if there are several; specs win; a module map can only mean the target."""
    three = [ModelSpec("a"), ModelSpec("b"), ModelSpec("c")]

    def devices(specs, num_cuda, **options):
        return [
            p.device or p.device_map for p in place(specs, options.get("device"), options.get("device_map"), num_cuda)
        ]

    assert devices(three, 0) == ["cpu"] * 3
    assert devices(three, 1) == ["cuda:0"] * 3
    assert devices(three, 2) == ["cuda:0", "cuda:1", "cuda:1"]
    assert devices(three, 3) == ["cuda:0", "cuda:1", "cuda:2"]
    assert devices(three, 2, device="cuda") == ["cuda:0"] * 3
    assert devices(three, 2, device_map="auto") == ["auto"] * 3
    assert devices(three, 2, device_map={"model": 0, "lm_head": 1})[1:] == ["cuda:1", "cuda:1"]
    assert devices([ModelSpec("a", device="cpu"), ModelSpec("b", device_map="auto")], 2) == ["cpu", "auto"]


@pytest.mark.parametrize(("num_cuda", "device"), [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2")])
def test_a_device_that_is_not_there_is_refused(num_cuda, device):
    """Before its memory is asked for, whether the call or the spec named it; the message counts those that are there."""
    message = f"device '{device}' is not there: torch finds {num_cuda} CUDA devices"
    with pytest.raises(ModelLoadError, match=message):
        place([ModelSpec("a")], device, None, num_cuda)
    with pytest.raises(ModelLoadError, match=message):
        place([ModelSpec("a"), ModelSpec("b", device=device)], None, None, num_cuda)


def test_one_bar_and_only_if_wanted(save_model, capfd):
    """One bar over the members, none of transformers' own, and their settings are as before afterwards."""
    before = transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    folder = save_model("model")
    capfd.readouterr()
    ModelPool.load(folder, progress=False)
    assert "%" not in capfd.readouterr().err
    ModelPool.load(folder)
    shown = capfd.readouterr().err
    assert "Loading models: 100%" in shown
    assert "Loading weights" not in shown
    assert before == (transformers_logging.is_progress_bar_enabled(), are_progress_bars_disabled())


def test_close_gives_the_models_back(save_model):
    """After close the models are gone from memory; closing twice is fine; using the pool says why it cannot."""
    pool = ModelPool.load(save_model("model"), progress=False)
    model = weakref.ref(pool.target.model)
    pool.close()
    pool.close()
    gc.collect()
    assert model() is None
    assert dict(pool.members) == {}
    with pytest.raises(EngineClosedError, match="closed"):
        _ = pool.target
