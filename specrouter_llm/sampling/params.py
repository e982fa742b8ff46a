"""Sampling parameters: everything that decides which tokens an answer has, and nothing that decides how fast it comes."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.sampling.structured import StructuredOutput

MAX_SEED = 2**63 - 1
"""Largest accepted seed; seeds are non-negative."""
MAX_SAMPLES = 128
MAX_STOPS = 64
MAX_TOP_LOGPROBS = 64
MAX_BIAS = 1e30
"""Far beyond any score, and a sum with one is finite in float32."""

_TokenId = Annotated[int, Field(ge=0)]


class SamplingParams(BaseModel):
    """How the target chooses tokens. Unknown or out-of-range values raise InvalidParameterError when the object is made.

    The order in which they act is fixed: repetition, presence and frequency penalty, logit_bias, bad words and
    min_tokens, the grammar, then temperature, top_k, top_p, min_p.

    A value that is not given is said nowhere (`model_fields_set`): an engine takes it from the model, see `over`. What is
    written here as a default holds where the model says nothing either, and values contradict each other only when both
    are said.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)

    temperature: float = Field(default=0.0, ge=0.0, le=100.0, allow_inf_nan=False)
    """0 is greedy: the token with the highest score, ties to the lowest id. Else at least 1e-4."""
    top_k: int = Field(default=0, ge=0)
    """Keep the k most likely tokens; 0 keeps all."""
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    """Keep the smallest set of tokens whose probability reaches top_p."""
    min_p: float = Field(default=0.0, ge=0.0, le=1.0)
    """Keep tokens with at least min_p times the probability of the most likely one."""
    repetition_penalty: float = Field(default=1.0, ge=1e-2, le=1e2)
    """Divides positive and multiplies negative scores of tokens that occur in prompt or output (as Hugging Face does)."""
    presence_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Subtracted once from the score of every token that occurs in the output."""
    frequency_penalty: float = Field(default=0.0, ge=-2.0, le=2.0)
    """Subtracted from a token's score for each time that it occurs in the output."""
    logit_bias: dict[_TokenId, float] = Field(default_factory=dict)
    """Added to the scores of these token ids; -inf forbids one."""
    bad_words: tuple[str | tuple[_TokenId, ...], ...] = ()
    """Words, or sequences of token ids, that must not be produced."""
    min_tokens: int = Field(default=0, ge=0)
    """No end-of-sequence or stop token, and no stop string, before this many output tokens."""
    max_tokens: int = Field(default=256, ge=1)
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = Field(default=(), max_length=MAX_STOPS)
    """Strings that end the text; they are not part of it."""
    stop_token_ids: tuple[_TokenId, ...] = Field(default=(), max_length=MAX_STOPS)
    ignore_eos: bool = False
    """Go on after the model's end-of-sequence token."""
    seed: Annotated[int, Field(ge=0, le=MAX_SEED)] | None = None
    """Drawn and reported when None."""
    n: int = Field(default=1, ge=1, le=MAX_SAMPLES)
    """Samples per prompt."""
    logprobs: bool = False
    """Report each output token's log-probability under the target's raw distribution."""
    top_logprobs: int = Field(default=0, ge=0, le=MAX_TOP_LOGPROBS)
    """And those of this many most likely tokens (needs logprobs)."""
    structured: StructuredOutput | None = None
    """A grammar that the text has to satisfy; stop strings and stop tokens do not count inside it."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidParameterError(_explain(error)) from None

    @model_validator(mode="before")
    @classmethod
    def _accept_single_stop(cls, values: Any) -> Any:
        if isinstance(values, dict) and isinstance(values.get("stop"), str):
            return {**values, "stop": (values["stop"],)}
        if isinstance(values, dict) and values.get("stop", ()) is None:
            return {**values, "stop": ()}
        return values

    @model_validator(mode="after")
    def _check_together(self) -> SamplingParams:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs=True")
        if self.n > 1 and self.temperature == 0 and "temperature" in self.model_fields_set:
            raise ValueError("n > 1 with temperature 0 would give n copies of one answer; set temperature > 0")
        if self.min_tokens > self.max_tokens and "max_tokens" in self.model_fields_set:
            raise ValueError(f"min_tokens ({self.min_tokens}) exceeds max_tokens ({self.max_tokens})")
        if 0 < self.temperature < 1e-4:
            raise ValueError(f"temperature must be 0 (greedy) or at least 1e-4, got {self.temperature}")
        if any(bias != -math.inf and not abs(bias) <= MAX_BIAS for bias in self.logit_bias.values()):
            raise ValueError(f"logit_bias must hold numbers of at most {MAX_BIAS:g}, or -inf to forbid a token")
        if any(not word for word in self.bad_words):
            raise ValueError("bad_words must not hold an empty word")
        if self.structured is not None and self.ignore_eos:
            raise ValueError("ignore_eos contradicts structured: a grammar says where the text ends")
        return self

    def replace(self, **changes: Any) -> SamplingParams:
        """A copy with some values changed, validated like a new one."""
        return SamplingParams(**{**self.model_dump(exclude_unset=True), **changes})

    def over(self, defaults: SamplingParams) -> SamplingParams:
        """These values, those of `defaults` for what is not said here: a copy that says everything.

        Raises InvalidParameterError if what is said contradicts what is not.
        """
        values = {name: getattr(self if name in self.model_fields_set else defaults, name) for name in _NAMES}
        if "min_tokens" not in self.model_fields_set:  # a short answer that is asked for is no contradiction
            values["min_tokens"] = min(values["min_tokens"], values["max_tokens"])
        return SamplingParams(**values)

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


_NAMES = tuple(SamplingParams.model_fields)


def _explain(error: ValidationError) -> str:
    """One line for every problem: which parameter, what is wrong, what was given."""
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"][:1]) or "parameters"
        if problem["type"] == "extra_forbidden":
            known = ", ".join(sorted(SamplingParams.model_fields))
            lines.append(f"unknown sampling parameter {name!r}; known: {known}")
        elif problem["loc"]:
            lines.append(f"{name}: {problem['msg']}, got {problem['input']!r}")
        else:
            lines.append(problem["msg"].removeprefix("Value error, "))
    return "; ".join(lines)
