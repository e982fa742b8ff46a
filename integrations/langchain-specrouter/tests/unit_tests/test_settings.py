"""Fields and arguments: what reaches the engine, what a trace and a cache see, and which values are refused."""

from __future__ import annotations

import pytest
from langchain_core.runnables import ConfigurableField
from pydantic import ValidationError

from langchain_specrouter import ChatSpecRouter, SpecRouterInvalidRequestError, SpecRouterLLM, __version__

BOTH = pytest.mark.parametrize("cls", [ChatSpecRouter, SpecRouterLLM])


@BOTH
def test_what_a_call_says_goes_before_what_the_model_says(cls):
    model = cls(model="demo", temperature=0.5, seed=1, stop=["a"], chain=["ngram"], windows=[3], timeout=9)
    call = model._call(["b"], {"seed": 7, "max_tokens": 5, "windows": [2], "temperature": None})
    assert (call.params.temperature, call.params.seed, call.params.stop, call.params.max_tokens) == (0.5, 7, ("b",), 5)
    assert call.options == {"chain": ["ngram"], "windows": [2], "timeout": 9}
    assert model._call(None, {}).params.stop == ("a",)


@BOTH
def test_another_model_is_not_given_this_ones_drafts_and_chain(cls):
    model = cls(model="demo", drafts=["demo/draft"], chain=["draft"], windows=[2], speculation=True)
    call = model._call(None, {"model": "demo/middle"})
    assert (call.model, call.drafts, call.options) == ("demo/middle", None, {"speculation": True})
    assert model._call(None, {"model": "demo/middle", "drafts": ["demo/draft"]}).drafts == ["demo/draft"]


@BOTH
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give model="),
        ({"model": "demo", "temperature": -1}, "temperature"),
        ({"model": "demo", "top_p": 2}, "top_p"),
        ({"model": "demo", "min_tokens": 9, "max_tokens": 3}, "min_tokens"),
        ({"model": "demo", "stats": "all"}, "stats"),
        ({"model": "demo", "engine": "demo"}, "engine must be a SpecRouter, got str"),
    ],
)
def test_impossible_fields_are_refused_when_the_model_is_made(cls, fields, message):
    with pytest.raises(ValidationError, match=message):
        cls(**fields)


def test_where_a_message_puts_its_statistics_is_one_of_three():
    with pytest.raises(ValidationError, match="stats_sinks"):
        ChatSpecRouter(model="demo", stats_sinks={"mail"})
    with pytest.warns(UserWarning, match="has no field stats_sinks"):  # a text has generation_info only
        SpecRouterLLM(model="demo", stats_sinks={"custom_event"})


@BOTH
def test_impossible_arguments_are_refused_before_the_model_is_loaded(cls):
    model = cls(model="no/such/model")
    with pytest.raises(SpecRouterInvalidRequestError, match=r"unknown parameter 'max_token'; known: .*max_tokens"):
        model.invoke("hi", max_token=3)
    with pytest.raises(SpecRouterInvalidRequestError, match="temperature"):
        model.invoke("hi", temperature=-2)
    with pytest.raises(SpecRouterInvalidRequestError, match=r"n > 1"):
        list(model.stream("hi", n=2, temperature=1.0))
    with pytest.raises(SpecRouterInvalidRequestError, match=r"streaming=True .* n > 1"):
        cls(model="no/such/model", streaming=True).invoke("hi", n=2, temperature=1.0)


@BOTH
def test_an_unknown_field_is_ignored_with_a_warning(cls):
    with pytest.warns(UserWarning, match="has no field max_token: ignored"):
        cls(model="demo", max_token=3)


@BOTH
def test_names_of_other_libraries_are_answered_with_their_counterparts(cls):
    with pytest.warns(
        UserWarning, match=r"ignored \(device_map: use engine_kwargs=.*; max_new_tokens: use max_tokens\)"
    ):
        model = cls(model="demo", max_new_tokens=3, device_map="auto", max_token=3)
    with pytest.raises(
        SpecRouterInvalidRequestError,
        match=r"'max_token' \(max_new_tokens: use max_tokens; max_time: use timeout\); known",
    ):
        model.invoke("hi", max_new_tokens=3, max_time=1, max_token=3)


@BOTH
def test_a_cache_key_holds_all_that_an_answer_depends_on(cls):
    """And nothing that does not decide: two models that answer alike share their cached answers.

    What the cache does with it is in integration_tests/test_caching.py.
    """
    base = {"model": "demo", "seed": 1}
    changes = [
        {"temperature": 0.5},
        {"seed": 2},
        {"max_tokens": 9},
        {"stop": ["x"]},
        {"top_k": 3},
        {"chain": ["ngram"]},
    ]
    keys = {str(cls(**{**base, **change})._identifying_params) for change in [{}, *changes]}
    assert len(keys) == len(changes) + 1
    same = cls(**base, timeout=3, on_step=print, api_key="k", max_retries=2)
    assert same._identifying_params == cls(**base)._identifying_params


@BOTH
def test_traces_know_model_provider_and_version(cls):
    model = cls(model="demo", temperature=0.5, max_tokens=9, chain=["ngram"], metadata={"mine": 1})
    params = model._get_ls_params(stop=["x"])
    assert (params["ls_provider"], params["ls_model_name"], params["ls_stop"]) == ("specrouter", "demo", ["x"])
    assert (params["ls_temperature"], params["ls_max_tokens"]) == (0.5, 9)
    assert model._get_ls_params(model="other")["ls_model_name"] == "other"
    assert model.metadata["lc_versions"]["langchain-specrouter"] == __version__
    assert (model.metadata["mine"], model.metadata["specrouter_chain"]) == (1, ["ngram"])


def test_the_profile_of_a_model_that_is_not_loaded():
    profile = ChatSpecRouter(model="demo").profile
    assert profile["structured_output"] is True
    assert profile["image_inputs"] is False
    assert "max_input_tokens" not in profile
    assert ChatSpecRouter(model="demo", profile={"max_input_tokens": 7}).profile == {"max_input_tokens": 7}


def test_configurable_fields_leave_streaming_on():
    """LangChain makes the model anew with all fields given: `streaming` must not read as switched off."""
    model = ChatSpecRouter(model="demo").configurable_fields(temperature=ConfigurableField(id="temperature"))
    made, _ = model.prepare({"configurable": {"temperature": 0.5}})
    assert made.temperature == 0.5
    assert made._should_stream(async_api=False, stream=True)


def test_models_can_be_copied():
    model = ChatSpecRouter(model="demo", seed=3)
    assert model.model_copy(update={"seed": 4})._identifying_params["seed"] == 4
    assert model.model_copy(deep=True) == model
