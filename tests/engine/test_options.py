"""Options of the wrong kind are refused with their name, before anything is queued."""

from __future__ import annotations

import pytest

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
