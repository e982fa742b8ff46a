"""Structured prediction, in all four forms."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import pytest
from llama_index.core.bridge.pydantic import BaseModel, Field
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms.llm import LLM
from llama_index.core.prompts import PromptTemplate

from llama_index.llms.specrouter.testing.base import LLMTests, recorded


class Album(BaseModel):
    """A record."""

    title: str = Field(max_length=20)
    year: int = Field(ge=1900, le=2030)
    mood: Literal["calm", "loud"]


PROMPT = PromptTemplate("Invent an album about {topic}. Answer with JSON: title, year, mood.")
METHODS = ("structured_predict", "astructured_predict", "stream_structured_predict", "astream_structured_predict")


def predict(llm: LLM, method: str, output_cls: type[BaseModel], **kwargs: Any) -> list[Any]:
    """All objects of a structured prediction, one if it does not stream."""
    if not method.startswith("a"):
        outcome = getattr(llm, method)(output_cls, PROMPT, topic="trains", **kwargs)
        return list(outcome) if "stream" in method else [outcome]

    async def apredict() -> list[Any]:
        outcome = await getattr(llm, method)(output_cls, PROMPT, topic="trains", **kwargs)
        return [item async for item in outcome] if "stream" in method else [outcome]

    return asyncio.run(apredict())


class StructuredTests(LLMTests):
    """Answers that are objects."""

    structured_kwargs: dict[str, Any] = {"max_tokens": 64}  # noqa: RUF012  (a constant of the suite, to be overridden)

    @pytest.mark.parametrize("method", METHODS)
    def test_structured_predict(self, llm: LLM, method: str) -> None:
        """The last object is an instance of the class, and says what every other form says."""
        objects = predict(llm, method, Album, llm_kwargs=dict(self.structured_kwargs))
        assert isinstance(objects[-1], Album)
        assert objects[-1] == predict(llm, "structured_predict", Album, llm_kwargs=dict(self.structured_kwargs))[0]

    @pytest.mark.parametrize("method", METHODS)
    def test_structured_events(self, llm: LLM, method: str) -> None:
        """A prediction starts once and ends once."""
        with recorded() as events:
            predict(llm, method, Album, llm_kwargs=dict(self.structured_kwargs))
        kinds = (LLMStructuredPredictStartEvent, LLMStructuredPredictEndEvent)
        assert [len(events.of(kind)) for kind in kinds] == [1, 1]

    def test_as_structured_llm(self, llm: LLM) -> None:
        """A model of objects: `raw` is one, and the text is its JSON."""
        response = llm.as_structured_llm(Album).complete("An album about trains", **self.structured_kwargs)
        assert isinstance(response.raw, Album)
        assert Album.model_validate_json(response.text) == response.raw
