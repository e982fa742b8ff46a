"""The engine's errors are LangChain's errors too."""

from __future__ import annotations

import pytest
from langchain_core import exceptions as core

import langchain_specrouter
from langchain_specrouter.errors import core_errors
from specrouter_llm import errors as ours

PAIRS = [
    (ours.ContextOverflowError, core.ContextOverflowError),
    (ours.UnsupportedSchemaError, core.ModelInvalidRequestError),
    (ours.InvalidPromptError, core.ModelInvalidRequestError),
    (ours.InvalidParameterError, core.ModelInvalidRequestError),
    (ours.ModelNotFoundError, core.ModelNotFoundError),
    (ours.QueueFullError, core.ModelRateLimitError),
]


@pytest.mark.parametrize(("raised", "expected"), PAIRS)
def test_code_that_catches_either_works(raised, expected):
    for caught in (raised, expected):
        with pytest.raises(caught, match="what happened") as info, core_errors():
            raise raised("what happened")
        assert type(info.value.__cause__) is raised
        assert type(info.value).__name__ in langchain_specrouter.__all__


def test_only_a_full_queue_and_a_timeout_are_worth_a_retry():
    twins = [getattr(langchain_specrouter, name) for name in langchain_specrouter.__all__ if name.endswith("Error")]
    assert {twin.__name__ for twin in twins if twin.is_retryable} == {
        "SpecRouterQueueFullError",
        "SpecRouterTimeoutError",
    }


@pytest.mark.parametrize("error", [ours.EngineClosedError("closed"), ours.NumericalError("nan"), KeyError("mine")])
def test_other_errors_pass_as_they_are(error):
    with pytest.raises(type(error)) as info, core_errors():
        raise error
    assert info.value is error


def test_an_error_is_translated_once():
    with pytest.raises(core.ModelInvalidRequestError) as info, core_errors(), core_errors():
        raise ours.InvalidPromptError("x")
    assert type(info.value.__cause__) is ours.InvalidPromptError
