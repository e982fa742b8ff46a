"""Sampling parameters: every wrong value is refused, with a message that says which and why."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.sampling.params import MAX_SEED, SamplingParams

NAN, INF = float("nan"), float("inf")
OUT_OF_RANGE = {
    "temperature": [-0.1, 100.5, NAN, INF, None, "hot"],
    "top_k": [-1, 1.5, None],
    "top_p": [0.0, -0.5, 1.01, NAN, INF],
    "min_p": [-0.01, 1.01, NAN],
    "repetition_penalty": [0.0, -1.0, NAN, INF],
    "presence_penalty": [-2.1, 2.1, NAN],
    "frequency_penalty": [-2.1, 2.1, NAN],
    "logit_bias": [{-1: 0.0}, {1: "much"}, [1], {1: 1e39}, {1: -1e31}, {1: float("inf")}, {1: float("nan")}],
    "bad_words": [("",), ((),), ((-1,),), "word", 5],
    "min_tokens": [-1, 1.5],
    "max_tokens": [0, -5, 2.5],
    "stop": ["", ("a", ""), ("a",) * 65, 3],
    "stop_token_ids": [(-1,), (1,) * 65],
    "ignore_eos": ["perhaps"],
    "seed": [-1, MAX_SEED + 1, 0.5],
    "n": [0, 129],
    "logprobs": ["perhaps"],
    "top_logprobs": [-1, 65],
    "structured": [{}, {"regex": ""}, {"choice": ["a"], "regex": "a"}, "yes"],
}
ACCEPTED_BORDERS = {
    "temperature": [0.0, 100.0],
    "top_k": [0, 10**9],
    "top_p": [1.0, 1e-9],
    "min_p": [0.0, 1.0],
    "presence_penalty": [-2.0, 2.0],
    "frequency_penalty": [-2.0, 2.0],
    "max_tokens": [1],
    "seed": [0, MAX_SEED, None],
    "stop": [("a",) * 64],
}


def test_the_table_names_every_parameter():
    """No parameter is without a case of refusal."""
    assert set(OUT_OF_RANGE) == set(SamplingParams.model_fields)


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in OUT_OF_RANGE.items() for v in values])
def test_a_value_out_of_range_is_refused_by_name(name, value):
    """The error is ours, not pydantic's, and its text names the parameter."""
    with pytest.raises(InvalidParameterError) as caught:
        SamplingParams(**{name: value})
    assert not isinstance(caught.value, ValidationError)
    assert name in str(caught.value)


@pytest.mark.parametrize(("name", "value"), [(name, v) for name, values in ACCEPTED_BORDERS.items() for v in values])
def test_the_borders_of_the_ranges_are_accepted(name, value):
    """The last legal value on each side is kept as given."""
    assert getattr(SamplingParams(**{name: value}), name) == value


def test_the_message_says_what_was_wrong_and_what_was_given():
    """One line per problem: name, rule, value."""
    with pytest.raises(InvalidParameterError) as caught:
        SamplingParams(top_p=1.5, temperature=-1)
    text = str(caught.value)
    assert "temperature: Input should be greater than or equal to 0, got -1" in text
    assert "top_p: Input should be less than or equal to 1, got 1.5" in text


def test_an_unknown_name_is_refused_with_the_known_ones():
    """A misspelt parameter is named, and so are the ones that exist."""
    with pytest.raises(InvalidParameterError) as caught:
        SamplingParams(temprature=0.5)
    text = str(caught.value)
    assert "'temprature'" in text
    assert all(name in text for name in SamplingParams.model_fields)


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ({"top_logprobs": 3}, ["top_logprobs", "logprobs=True"]),
        ({"n": 2, "temperature": 0}, ["n > 1", "temperature"]),
        ({"min_tokens": 9, "max_tokens": 8}, ["min_tokens (9)", "max_tokens (8)"]),
    ],
)
def test_values_that_contradict_each_other_are_refused(values, names):
    """The message names both sides of the contradiction."""
    with pytest.raises(InvalidParameterError) as caught:
        SamplingParams(**values)
    assert [name for name in names if name not in str(caught.value)] == []


def test_one_stop_string_may_be_given_alone():
    """A single string is one stop string, not its letters; None is none."""
    assert SamplingParams(stop="END").stop == ("END",)
    assert SamplingParams(stop=None).stop == ()


def test_a_copy_with_changes_is_validated():
    """`replace` keeps the other values and refuses what the constructor refuses."""
    params = SamplingParams(temperature=0.5, top_k=4)
    assert params.replace(top_k=9) == SamplingParams(temperature=0.5, top_k=9)
    with pytest.raises(InvalidParameterError) as caught:
        params.replace(top_p=2)
    assert "top_p" in str(caught.value)


SOME = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 0.5, 1.0]),
        "top_k": st.integers(0, 3),
        "top_p": st.sampled_from([0.5, 1.0]),
        "repetition_penalty": st.sampled_from([1.0, 1.2]),
        "logit_bias": st.sampled_from([{}, {1: 2.0}]),
        "bad_words": st.sampled_from([(), ((1, 2),)]),
        "stop": st.sampled_from([(), ("a",)]),
        "min_tokens": st.integers(0, 9),
        "max_tokens": st.integers(9, 12),
        "seed": st.sampled_from([None, 3]),
    },
)


@given(said=SOME, defaults=SOME)
def test_what_is_said_goes_before_defaults(said, defaults):
    """Also a value that equals our own default; what nobody has said is our default, and nothing is left unsaid."""
    whole = SamplingParams(**said).over(SamplingParams(**defaults))
    ours = SamplingParams()
    expected = {name: getattr(ours, name) for name in SamplingParams.model_fields} | defaults | said
    assert {name: getattr(whole, name) for name in SamplingParams.model_fields} == expected
    assert whole.model_fields_set == set(SamplingParams.model_fields)
    assert whole.over(SamplingParams(temperature=0.9, top_k=7, min_tokens=8)) == whole


def test_a_short_answer_needs_no_other_minimum():
    """A model's minimum gives way to a request's maximum; one that was said does not."""
    defaults = SamplingParams(min_tokens=300)
    assert SamplingParams(max_tokens=4).over(defaults).min_tokens == 4
    assert SamplingParams(max_tokens=400).over(defaults).min_tokens == 300
    with pytest.raises(InvalidParameterError, match=r"min_tokens \(300\) exceeds max_tokens \(256\)"):
        SamplingParams(min_tokens=300).over(SamplingParams())


def test_several_samples_may_leave_the_temperature_to_the_model():
    """It is refused when the model is greedy."""
    assert SamplingParams(n=2).over(SamplingParams(temperature=0.5)).temperature == 0.5
    with pytest.raises(InvalidParameterError, match="n > 1"):
        SamplingParams(n=2).over(SamplingParams())


def test_parameters_cannot_be_changed_in_place():
    """A request in flight cannot change under the engine."""
    with pytest.raises(ValidationError):
        SamplingParams().temperature = 1.0


@pytest.mark.parametrize(("temperature", "greedy"), [(0.0, True), (1e-4, False)])
def test_greedy_is_temperature_zero_only(temperature, greedy):
    """A very small temperature is still sampling."""
    assert SamplingParams(temperature=temperature).greedy == greedy
