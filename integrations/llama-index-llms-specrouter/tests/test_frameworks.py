"""The model inside LlamaIndex: settings, query engines, agents that have to recover."""

from __future__ import annotations

import asyncio
import sys

import llama_index.core
import pytest
from llama_index.core import Document, MockEmbedding, Settings, VectorStoreIndex
from llama_index.core.agent.workflow import AgentOutput, AgentStream, FunctionAgent, ToolCallResult
from llama_index.core.bridge.pydantic import BaseModel, field_validator
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import PydanticProgramMode


@pytest.fixture
def settings():
    before, tokenizer = vars(Settings).copy(), llama_index.core.global_tokenizer
    Settings.embed_model = MockEmbedding(embed_dim=8)
    yield Settings
    vars(Settings).update(before)
    llama_index.core.global_tokenizer = tokenizer


@pytest.fixture
def index(settings, scripted):
    """One passage; the model says what it finds in its prompt."""
    settings.llm = scripted(lambda prompt: "In Oslo." if "a baker in Oslo" in prompt else "I do not know.")
    return VectorStoreIndex.from_documents([Document(text="Anna is a baker in Oslo.")])


def test_query_engine(index):
    assert str(index.as_query_engine().query("Where is Anna?")) == "In Oslo."


def test_passages_fit_if_the_models_tokenizer_counts_them(settings, scripted):
    """LlamaIndex fills the context as far as its tokenizer says; the default one does not know the model's vocabulary, and all
    that comes of it is "Empty Response"."""
    settings.llm = llm = scripted("Nowhere.", engine_options={"max_context": 1500}, max_tokens=60)
    settings.tokenizer = llm.engine.tokenizer.encode_document
    text = " ".join(f"Photosynthesizing Zürich überschwänglich {i}." for i in range(400))
    index = VectorStoreIndex.from_documents([Document(text=text)])
    assert str(index.as_query_engine(response_mode="compact").query("Where is Anna?")) == "Nowhere."


def test_query_engine_streams(index):
    """Several pieces, the whole answer, and the passage they rest on."""
    answer = index.as_query_engine(streaming=True).query("Where is Anna?")
    pieces = list(answer.response_gen)
    assert "".join(pieces) == "In Oslo."
    assert len(pieces) > 1
    assert [node.text for node in answer.source_nodes] == ["Anna is a baker in Oslo."]


def test_query_engine_async(index):
    async def ask():
        engine = index.as_query_engine(use_async=True)
        return await asyncio.gather(*(engine.aquery("Where is Anna?") for _ in range(3)))

    assert [str(answer) for answer in asyncio.run(ask())] == ["In Oslo."] * 3


def test_query_engine_with_objects(settings, scripted):
    """`output_cls` of a query engine goes through structured prediction."""

    class Place(BaseModel):
        city: str

    settings.llm = scripted('{"city":"Oslo"}')
    index = VectorStoreIndex.from_documents([Document(text="Anna is a baker in Oslo.")])
    answer = index.as_query_engine(output_cls=Place, response_mode="compact").query("Where is Anna?")
    assert answer.response == Place(city="Oslo")


def test_chat_engine_remembers(scripted):
    """The second turn sees the first; streamed too."""
    llm = scripted(lambda prompt: f"{prompt.count('<|user|>')} so far")
    engine = SimpleChatEngine.from_defaults(llm=llm)
    assert str(engine.chat("One")) == "1 so far"
    assert "".join(engine.stream_chat("Two").response_gen) == "2 so far"


def add(a: int, b: int = 0) -> int:
    """Add two integers."""
    return a + b


def agent_run(llm, **options):
    async def run():
        handler = FunctionAgent(tools=[add], llm=llm, **options).run("What is 1 plus 2?", max_iterations=5)
        events = [event async for event in handler.stream_events()]
        return await handler, events

    return asyncio.run(run())


def call(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def test_function_agent(scripted):
    """One call, its result in the next prompt, an answer; the events carry text, calls and counts."""
    llm = scripted(lambda prompt: "It is 3." if "<|tool|>3" in prompt else call("add", '{"a": 1, "b": 2}'))
    output, events = agent_run(llm)
    assert output.response.content == "It is 3."
    results = [event for event in events if isinstance(event, ToolCallResult)]
    assert [(result.tool_kwargs, result.tool_output.raw_output) for result in results] == [({"a": 1, "b": 2}, 3)]
    pieces = [event for event in events if isinstance(event, AgentStream)]
    assert "".join(piece.delta for piece in pieces) == "It is 3."
    turns = [event for event in events if isinstance(event, AgentOutput)]
    assert all(turn.raw["usage"]["completion_tokens"] > 0 for turn in turns)


def test_an_agents_thoughts_are_offered_to_the_template(scripted):
    """Templates of thinking models show what was thought since the last question, so that it is not thought again."""
    template = (
        "{% if tools %}{{ tools | tojson }}{% endif %}{% for m in messages %}<|{{ m.role }}|>"
        "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
        "{% for c in m.tool_calls or () %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}<|end|>"
        "{% endfor %}<|assistant|>"
    )
    prompts = []

    def reply(prompt):
        prompts.append(prompt)
        thought = "<think>\nI have to add them.\n</think>\n\n"
        return "It is 3." if "<|tool|>3" in prompt else thought + call("add", '{"a": 1, "b": 2}')

    output, _ = agent_run(scripted(reply, engine_options={"chat_template": template}))
    assert output.response.content == "It is 3."
    assert "<think>I have to add them.</think><tool_call>" in prompts[-1]


@pytest.mark.parametrize(
    ("first", "told"),
    [(call("add", '{"a": }'), "malformed call"), (call("subtract", "{}"), "subtract not found")],
    ids=["malformed", "unknown"],
)
def test_function_agent_recovers(scripted, monkeypatch, first, told):
    """The model is told what was wrong with its call, no tool runs on a guess, and the second try counts."""
    monkeypatch.setitem(sys.modules, "llguidance", None)  # with it there would be no such call

    def reply(prompt):
        if "<|tool|>3" in prompt:
            return "It is 3."
        return call("add", '{"a": 1, "b": 2}') if told in prompt else first

    output, events = agent_run(scripted(reply))
    assert output.response.content == "It is 3."
    results = [event.tool_output for event in events if isinstance(event, ToolCallResult)]
    assert [result.is_error for result in results] == [True, False]


def test_a_validator_that_no_schema_can_say(scripted):
    """The form is enforced while the model writes; what is beyond it is a ValueError."""

    class Even(BaseModel):
        number: int

        @field_validator("number")
        @classmethod
        def _even(cls, number):
            if number % 2:
                raise ValueError("odd")
            return number

    prompt = PromptTemplate("A number")
    assert scripted('{"number":4}').structured_predict(Even, prompt) == Even(number=4)
    with pytest.raises(ValueError, match="odd"):
        scripted('{"number":3}').structured_predict(Even, prompt)


def test_structured_prediction_is_enforced(scripted):
    """A model that answers in prose gives an object all the same."""

    class Colour(BaseModel):
        red: int
        name: str

    colour = scripted("I like green.").structured_predict(
        Colour, PromptTemplate("A colour"), llm_kwargs={"max_tokens": 40}
    )
    assert isinstance(colour, Colour)


def test_partial_objects(scripted):
    """A stream shows fields as they are written."""

    class Person(BaseModel):
        name: str
        town: str

    llm = scripted('{"name":"Anna Andersson","town":"Oslo"}')
    objects = list(llm.stream_structured_predict(Person, PromptTemplate("A person")))
    assert objects[-1] == Person(name="Anna Andersson", town="Oslo")
    assert any(getattr(item, "name", None) and getattr(item, "town", None) is None for item in objects)


@pytest.mark.parametrize("mode", [PydanticProgramMode.FUNCTION, PydanticProgramMode.LLM])
def test_other_program_modes_are_llama_index_own(scripted, mode):
    """As a tool, or from text: the caller's choice is respected."""

    class Colour(BaseModel):
        name: str

    said = call("Colour", '{"name": "green"}') if mode is PydanticProgramMode.FUNCTION else '{"name": "green"}'
    llm = scripted(said, pydantic_program_mode=mode)
    assert llm.structured_predict(Colour, PromptTemplate("A colour")) == Colour(name="green")
    *_, last = llm.stream_structured_predict(Colour, PromptTemplate("A colour"))
    assert last.name == "green"
