"""Counterparts of other libraries' arguments: each leads to something that there is."""

from __future__ import annotations

import inspect
import re
from dataclasses import fields

import pytest

from specrouter_llm import SamplingParams, SpecRouter
from specrouter_llm.chat.hints import _COUNTERPARTS, counterpart, counterparts
from specrouter_llm.config import EngineConfig

PER_CALL = {*SamplingParams.model_fields, *inspect.signature(SpecRouter.submit).parameters, "model"}
LOADING = {*(field.name for field in fields(EngineConfig)), *inspect.signature(SpecRouter.from_pretrained).parameters}


@pytest.mark.parametrize("name", sorted(_COUNTERPARTS))
def test_a_counterpart_is_something_that_there_is(name):
    advice = counterpart(name)
    option, argument = re.search(r'engine_kwargs=\{"(\w+)"', advice), re.match(r"use (\w+)", advice)
    if option:
        assert option[1] in LOADING
    elif argument:
        assert argument[1] in PER_CALL
    else:
        assert advice.startswith(("leave it out, ", "name what it holds: "))


def test_no_name_of_a_call_has_another_counterpart():
    """What is right already is never an error."""
    assert not PER_CALL & _COUNTERPARTS.keys()


def test_an_error_says_what_is_known_and_nothing_else():
    assert counterparts(["bogus", "max_new_tokens", "torch_dtype"]) == (
        ' (max_new_tokens: use max_tokens; torch_dtype: use engine_kwargs={"dtype": ...} when the model is made)'
    )
    assert counterparts(["bogus"]) == ""
