"""What a model's generation config recommends acts where a request says nothing, as it does in transformers' `generate`."""

from __future__ import annotations

import json
import logging
import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, GenerationConfig

from specrouter_llm import ModelSpec, SamplingParams, SpecRouter
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.pool.generation import recommended
from specrouter_llm.sampling.choice import Segment, processed
from specrouter_llm.sampling.row import RowSampler

QWEN = {"do_sample": True, "temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05}
"""What Qwen2.5-Instruct says."""
STERN = {
    "repetition_penalty": 1.3,
    "suppress_tokens": [5, 6, 7],
    "bad_words_ids": [[8], [9, 10], [11, 12, 13], [2]],
    "min_new_tokens": 12,
}
"""Everything that acts on greedy answers, the end of the text among the bad words."""
PROMPTS = [[1, 3, 4], [20, 21, 22, 23, 24], [30, 8, 31]]


def said(params: SamplingParams) -> dict:
    return {name: getattr(params, name) for name in params.model_fields_set}


@pytest.fixture
def save(save_model):
    """Saves a tiny model of float64 whose generation config says `settings`, also such as transformers would not write."""

    def make(name="model", settings=None, **changes):
        folder = save_model(name, dtype=torch.float64, **changes)
        content = {"eos_token_id": 2, "pad_token_id": 0, **(settings or {})}
        (folder / "generation_config.json").write_text(json.dumps(content))
        return folder

    return make


def member(tokenizer="some", **settings):
    """A model of 40 tokens of which nothing but the generation config matters."""
    return of_config(GenerationConfig(**settings), tokenizer)


def of_config(config, tokenizer=None):
    model = SimpleNamespace(generation_config=config)
    return SimpleNamespace(name="m", model=model, vocab_size=40, tokenizer=tokenizer)


def load(target, drafts=(), **options):
    return SpecRouter.from_pretrained(
        target, list(drafts), **{"dtype": "float64", "progress": False, "policy": "fixed", **options}
    )


def generated(folder, prompt, **options):
    """Of transformers, tokens without the prompt."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    return model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist()


def test_greedy_answers_are_those_of_generate(save):
    """Penalties and forbidden tokens of the model act in greedy answers too, with and without a drafter."""
    folder = save(settings=STERN)
    drafter = save("drafter", {"do_sample": True, "temperature": 0.3, "repetition_penalty": 2.0}, seed=1)
    expected = [generated(folder, prompt, do_sample=False, max_new_tokens=24) for prompt in PROMPTS]
    with load(folder, [drafter]) as engine, load(folder, [drafter], generation_config="ignore") as plain:
        for options in ({}, {"temperature": 0}, {"speculation": False}):
            answers = engine.generate(PROMPTS, max_tokens=24, **options)
            assert [list(answer.token_ids) for answer in answers] == expected
        others = [list(answer.token_ids) for answer in plain.generate(PROMPTS, max_tokens=24)]
        assert all(other != tokens for other, tokens in zip(others, expected, strict=True))
        lenient = {"repetition_penalty": 1.0, "logit_bias": {}, "bad_words": (), "min_tokens": 0}
        answers = engine.generate(PROMPTS, max_tokens=24, **lenient)
        assert [list(answer.token_ids) for answer in answers] == others


@pytest.mark.parametrize(
    "settings",
    [
        QWEN,
        {**QWEN, "top_k": 7, "min_p": 0.05, "repetition_penalty": 1.5},
        {**STERN, "do_sample": True, "top_k": 0, "min_p": 0.1},
        {"do_sample": True, "temperature": 1.7, "top_p": 0.3},
    ],
)
def test_sampled_distributions_are_those_of_generate(save, settings):
    """Its processors' scores of a first token against ours, from the same logits."""
    folder = save(settings=settings)
    with load(folder) as engine:
        params = SamplingParams().over(engine.default_params)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64)
    for prompt in PROMPTS:
        output = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=16,
            return_dict_in_generate=True,
            output_scores=True,
            output_logits=True,
        )
        sampler = RowSampler(params, seed=0, prompt_ids=prompt, bad_words=params.bad_words, end_ids=[2])
        ours = processed(output.logits[0].to(torch.float64), Segment(sampler, len(prompt), (), 1)).softmax(-1)
        theirs = output.scores[0].to(torch.float64).softmax(-1)
        assert torch.equal(ours > 0, theirs > 0)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
        assert not torch.allclose(ours, output.logits[0].to(torch.float64).softmax(-1), atol=1e-3)


def test_requests_complete_themselves_from_the_model(save):
    """An engine of a model that samples samples, with the values of the model; what a request says goes before."""
    folder = save(settings=QWEN)
    values = {name: value for name, value in QWEN.items() if name != "do_sample"}
    with load(folder) as engine, load(folder, generation_config="ignore") as plain:
        assert said(engine.default_params) == values
        assert said(plain.default_params) == {}
        sampled = engine.generate(PROMPTS[0], seed=3, n=3)
        greedy = engine.generate(PROMPTS[0], temperature=0)
        assert [a.token_ids for a in sampled] == [
            a.token_ids for a in plain.generate(PROMPTS[0], seed=3, n=3, **values)
        ]
        assert len({a.token_ids for a in (*sampled, *greedy)}) == 4
        stream = engine.stream(PROMPTS[0], SamplingParams(seed=3, top_k=1))
        (top,) = stream.result()
        (best,) = plain.generate(PROMPTS[0], temperature=0, repetition_penalty=1.05)
        assert top.token_ids == best.token_ids == greedy[0].token_ids
        with pytest.raises(InvalidParameterError, match="n > 1"):
            plain.generate(PROMPTS[0], n=3)


def test_a_loaded_model_says_what_its_object_says(make_model):
    """Not a folder's file: a caller may have set it."""
    model = make_model(dtype=torch.float64)
    model.generation_config.repetition_penalty = 1.4
    with load(ModelSpec(model, name="mine"), dtype=None) as engine:
        assert said(engine.default_params) == {"repetition_penalty": 1.4}


CHOICES = {
    "do_sample": [None, False, True],
    "temperature": [None, 0.5, 1.0],
    "top_k": [None, 0, 3, 50],
    "top_p": [None, 0.5, 1.0],
    "min_p": [None, 0.1],
    "repetition_penalty": [None, 1.0, 1.2],
    "max_new_tokens": [None, 7],
    "max_length": [None, 9],
}


@given(settings=st.fixed_dictionaries({name: st.sampled_from(values) for name, values in CHOICES.items()}))
def test_what_a_model_does_not_say_is_not_made_up(settings):
    """No top_k of 50, which is transformers' own; no lengths; the temperature of a greedy model is none."""
    taken = {name: settings[name] for name in ("top_k", "top_p", "min_p", "repetition_penalty")}
    if settings["do_sample"]:
        taken["temperature"] = 1.0 if settings["temperature"] is None else settings["temperature"]
    assert said(recommended(member(**settings))) == {k: v for k, v in taken.items() if v is not None}


def test_what_has_another_name_here():
    config = {
        **STERN,
        "suppress_tokens": [3, -1, 40],
        "bad_words_ids": [[8], [2], [9, 40], [1, 2]],
        "eos_token_id": [2],
    }
    params = recommended(member(**config, stop_strings=["END"]))
    assert said(params) == {
        "repetition_penalty": 1.3,
        "logit_bias": {3: -math.inf},
        "bad_words": ((8,), (1, 2)),
        "min_tokens": 12,
        "stop": ("END",),
    }
    assert recommended(member(min_new_tokens=300)).min_tokens == 300
    assert said(recommended(SimpleNamespace(name="m", model=object(), vocab_size=40, tokenizer=None))) == {}


@pytest.mark.parametrize(
    "settings",
    [
        {"top_p": 0.0},
        {"top_k": -1},
        {"repetition_penalty": 0.0},
        {"temperature": 1e-6, "do_sample": True},
        {"min_p": 7.0},
        {"bad_words_ids": 5},
        {"bad_words_ids": ["word"]},
        {"suppress_tokens": ["x"]},
        {"min_new_tokens": -3},
        {"stop_strings": [""]},
    ],
    ids=str,
)
def test_a_value_out_of_range_is_left_out_with_a_warning(settings, caplog):
    """Never a failed load, and the other values act."""
    name, value = next(iter(settings.items()))
    params = recommended(member(**({"repetition_penalty": 1.1} | settings)))
    (record,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert f"m: {name}={value!r} of its generation config is ignored: " in record.message
    assert said(params) == ({} if "repetition_penalty" in settings else {"repetition_penalty": 1.1})


def test_strings_of_a_model_without_a_tokenizer_are_left_out(caplog):
    assert said(recommended(member(tokenizer=None, stop_strings="END"))) == {}
    assert "stop_strings='END' of its generation config is ignored: strings need a tokenizer" in caplog.text


def test_what_cannot_be_done_is_named_once(caplog):
    """Values that change nothing are not named."""
    config = GenerationConfig(
        num_beams=4, no_repeat_ngram_size=3, typical_p=1.0, guidance_scale=1, begin_suppress_tokens=[]
    )
    config.forced_bos_token_id = 0
    recommended(of_config(config))
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert (
        "answers differ from those of generate: num_beams, no_repeat_ngram_size, forced_bos_token_id" in record.message
    )


def test_what_was_taken_over_is_told_at_load(save, caplog):
    """Once, of the target alone."""
    caplog.set_level(logging.INFO, "specrouter_llm.pool")
    with load(save(settings=QWEN), [save("drafter", {"num_beams": 3, "top_k": 9}, seed=1)]):
        told = [record.message for record in caplog.records if "generation config" in record.message]
    assert told == [
        "model: what a request does not say is taken from its generation config: "
        "temperature=0.7, top_k=20, top_p=0.8, repetition_penalty=1.05"
    ]
