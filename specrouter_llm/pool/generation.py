"""What a model's generation config recommends: defaults of requests, where transformers' `generate` takes its own from."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from specrouter_llm.pool.pool import PoolMember
from specrouter_llm.sampling.params import SamplingParams

logger = logging.getLogger(__name__)


def recommended(member: PoolMember) -> SamplingParams:
    """The sampling parameters that a model's generation config says; all others are left unsaid.

    Tells the log what was taken over, and warns of what is not: values that `SamplingParams` refuses, and settings that
    have no counterpart. Read once: what a caller changes later in a model of his own has no effect.
    """
    config = getattr(member.model, "generation_config", None)
    taken: dict[str, Any] = {}
    for theirs, value in _stated(config):
        ours, convert = _TRANSLATIONS[theirs]
        try:
            # A value is judged by itself: how long an answer may be is a request's to say.
            taken[ours] = getattr(SamplingParams(**{ours: convert(value, member), "max_tokens": sys.maxsize}), ours)
        except (TypeError, ValueError) as error:
            logger.warning("%s: %s=%r of its generation config is ignored: %s", member.name, theirs, value, error)
    if taken:
        said = ", ".join(f"{name}={value!r}" for name, value in taken.items())
        logger.info("%s: what a request does not say is taken from its generation config: %s", member.name, said)
    if missing := [name for name, neutral in _UNSUPPORTED.items() if not _is_neutral(config, name, neutral)]:
        logger.warning(
            "%s: its generation config says what this engine cannot do, so answers differ from those of generate: %s",
            member.name,
            ", ".join(missing),
        )
    return SamplingParams(**taken)


def _stated(config: Any) -> Iterator[tuple[str, Any]]:
    """Settings that have a value. transformers fills in defaults of its own when it generates; a top_k of 50 is one of them
    that no model has said, and None is what it is until then."""
    samples = getattr(config, "do_sample", None) is True
    for name in _TRANSLATIONS:
        value = getattr(config, name, None)
        if name == "temperature":
            value = (1.0 if value is None else value) if samples else None
        if value is not None:
            yield name, value


def _is_neutral(config: Any, name: str, neutral: Any) -> bool:
    value = getattr(config, name, None)
    return value is None or value == neutral or value == []


def _as_it_is(value: Any, member: PoolMember) -> Any:
    return value


def _words(value: Any, member: PoolMember) -> Any:
    """Words that can come. The end of the text alone is none to `generate` either."""
    stated = getattr(member.model.generation_config, "eos_token_id", None)
    ends = [[end] for end in (stated if isinstance(stated, (list, tuple)) else [stated])]
    return tuple(
        tuple(word) for word in value if list(word) not in ends and all(0 <= i < member.vocab_size for i in word)
    )


def _forbidden(value: Any, member: PoolMember) -> Any:
    return {i: -math.inf for i in value if 0 <= i < member.vocab_size}


def _text(value: Any, member: PoolMember) -> Any:
    if member.tokenizer is None:
        raise ValueError("strings need a tokenizer, and the model came without one")
    return value


_TRANSLATIONS: Mapping[str, tuple[str, Callable[[Any, PoolMember], Any]]] = {
    "temperature": ("temperature", _as_it_is),
    "top_k": ("top_k", _as_it_is),
    "top_p": ("top_p", _as_it_is),
    "min_p": ("min_p", _as_it_is),
    "repetition_penalty": ("repetition_penalty", _as_it_is),
    "suppress_tokens": ("logit_bias", _forbidden),
    "bad_words_ids": ("bad_words", _words),
    "min_new_tokens": ("min_tokens", _as_it_is),
    "stop_strings": ("stop", _text),
}
"""By the name of a setting: what it is called here, and how its value becomes ours."""

_UNSUPPORTED: Mapping[str, Any] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "num_return_sequences", "guidance_scale"), 1),
    **dict.fromkeys(("typical_p", "encoder_repetition_penalty"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length"), 0),
    **dict.fromkeys(("epsilon_cutoff", "eta_cutoff", "penalty_alpha", "token_healing"), 0),
    **dict.fromkeys(("top_h", "sequence_bias", "forced_bos_token_id", "forced_eos_token_id", "begin_suppress_tokens")),
    **dict.fromkeys(("exponential_decay_length_penalty", "watermarking_config", "dola_layers")),
    **dict.fromkeys(("constraints", "force_words_ids")),
}
"""Settings that change what `generate` answers, and the value, beside None, that changes nothing."""
