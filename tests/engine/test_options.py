"""Options of the wrong kind are refused with their name, before anything is queued."""

from __future__ import annotations

import inspect

import pytest

from specrouter_llm import SpecRouter
from specrouter_llm.config import EngineConfig
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.testing import fake_engine


@pytest.mark.parametrize(
    "option", [{"chain": "draft0"}, {"chain": ["draft0"], "windows": 3}, {"draft_sources": "a document"}]
)
def test_a_single_value_in_place_of_a_list_is_refused(option):
    """Text is a sequence of letters: taking it for a list of levels or documents would be a trap."""
    name = list(option)[-1]
    with fake_engine() as engine:
        with pytest.raises(InvalidParameterError, match=f"{name} must be a list, got"):
            engine.generate([1, 2], **option)
        assert engine.stats.num_waiting == engine.stats.num_finished == 0


def test_a_chain_of_the_engine_must_be_a_list_too():
    """The same holds for the engine's own default."""
    with pytest.raises(InvalidParameterError, match="chain must be a list, got 'ngram'"):
        EngineConfig(chain="ngram")


@pytest.mark.parametrize("value", ["auto", None, True])
def test_where_defaults_come_from_is_one_of_two(value):
    """vLLM's "auto" is "model" here."""
    with pytest.raises(InvalidParameterError, match=f"generation_config must be 'model' or 'ignore', got {value!r}"):
        EngineConfig(generation_config=value)


@pytest.mark.parametrize("name", ["speculation", "prefix_reuse", "pack", "strict"])
@pytest.mark.parametrize("value", ["false", "no", 0, 1, None])
def test_a_switch_is_true_or_false(name, value):
    """The text "false" is true to Python: an option read from a file or the environment would do its opposite."""
    with pytest.raises(InvalidParameterError, match=f"{name} must be True or False, got {value!r}"):
        EngineConfig(**{name: value})


def test_an_unknown_option_is_answered_with_all_that_there_are():
    """Those beside the fields of EngineConfig, too: a list without dtype says that there is none."""
    keywords = inspect.signature(SpecRouter.from_pretrained).parameters.keys() - {"target", "drafts", "config"}
    with pytest.raises(InvalidParameterError) as caught:
        SpecRouter.from_pretrained("/no/such/folder", max_batches=4)
    known = str(caught.value).removeprefix("unknown engine option 'max_batches'; known: ").split(", ")
    assert sorted({*keywords, *EngineConfig.__dataclass_fields__}) == known


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("torch_dtype", "it is called dtype"),
        ("load_in_4bit", r"quantization_config=BitsAndBytesConfig\(load_in_4bit=True\)"),
        ("cache_dir", r"ModelSpec\(source, model_kwargs={'cache_dir': ...}\)"),
        ("local_files_only", r"ModelSpec\(source, model_kwargs={'local_files_only': ...}\)"),
        ("token", r"ModelSpec\(source, model_kwargs={'token': ...}\)"),
        ("tokenizer", r"ModelSpec\(source, tokenizer=...\)"),
        ("attn_implementation", "an attention of its own"),
        ("trust_remote_code", "never run"),
        ("batch_size", "max_batch"),
        ("max_model_len", "max_context"),
        ("gpu_memory_utilization", "memory_budget"),
    ],
)
def test_an_option_of_others_is_answered_with_its_counterpart(name, hint):
    """Who comes from transformers or vLLM is told what it is called here, and before anything is loaded."""
    with pytest.raises(InvalidParameterError, match=f"unknown engine option '{name}': .*{hint}.*; known: calibration"):
        SpecRouter.from_pretrained("/no/such/folder", **{name: 1})
