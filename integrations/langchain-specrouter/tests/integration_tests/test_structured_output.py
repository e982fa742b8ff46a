"""Structured output: every method and kind of schema, from a weak model and from a scripted one."""

from __future__ import annotations

import json
from typing import Annotated, Generic, Literal, TypedDict, TypeVar

import jsonschema
import pytest
from langchain_core.exceptions import ModelInvalidRequestError, OutputParserException
from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel, Field, RootModel, ValidationError, field_validator
from pydantic.v1 import BaseModel as BaseModelV1

from langchain_specrouter import ChatSpecRouter, SpecRouterInvalidRequestError, SpecRouterUnsupportedSchemaError

METHODS = ["json_schema", "function_calling", "json_mode"]


class Person(BaseModel):
    """A person."""

    name: str
    age: int = Field(ge=0, le=150)


class PersonV1(BaseModelV1):
    """A person."""

    name: str
    age: int


class PersonDict(TypedDict):
    """A person."""

    name: str
    age: int


class Tree(BaseModel):
    """A tree."""

    value: int
    children: list[Tree] = Field(max_length=2)


def _json_schema(schema):
    """What was asked for; a TypedDict has no limits."""
    if schema is PersonDict:
        properties = {"name": {"type": "string"}, "age": {"type": "integer"}}
        return {"type": "object", "properties": properties, "required": ["name", "age"]}
    return PersonV1.schema() if schema is PersonV1 else Person.model_json_schema()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("schema", [Person, PersonV1, PersonDict, Person.model_json_schema()])
@pytest.mark.parametrize("params", [{}, {"temperature": 1.5, "seed": 3}], ids=["greedy", "sampled"])
async def test_a_weak_model_gives_valid_answers(demo_engine, schema, method, params):
    """Closed within a budget that a rambling string would exceed, streamed to the same value."""
    model = ChatSpecRouter(engine=demo_engine, max_tokens=40, **params)
    chain = model.with_structured_output(schema, method=method)
    answer = chain.invoke("Who are you?")
    plain = answer if isinstance(answer, dict) else answer.dict() if schema is PersonV1 else answer.model_dump()
    jsonschema.validate(plain, _json_schema(schema))
    assert isinstance(answer, schema if schema in (Person, PersonV1) else dict)
    assert list(chain.stream("Who are you?"))[-1] == answer
    assert await chain.ainvoke("Who are you?") == answer
    assert [piece async for piece in chain.astream("Who are you?")][-1] == answer


def test_dicts_stream_as_they_grow(scripted):
    model = scripted('{"name": "Ann Miller", "age": 42}', max_tokens=60)
    pieces = list(model.with_structured_output(PersonDict).stream("Who?"))
    assert len(pieces) > 2
    assert pieces[-1] == {"name": "Ann Miller", "age": 42}


class LinkV1(BaseModelV1):
    """A link of a chain."""

    value: int
    next: LinkV1 | None


LinkV1.update_forward_refs()


@pytest.mark.parametrize("schema", [Tree, LinkV1])
@pytest.mark.parametrize("method", METHODS)
def test_a_recursive_schema(demo_engine, schema, method):
    model = ChatSpecRouter(engine=demo_engine, max_tokens=80, temperature=1.0, seed=2)
    assert isinstance(model.with_structured_output(schema, method=method).invoke("Make one."), schema)


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=0, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    tricks: list[Literal["sit", "roll"]] = Field(min_length=1, max_length=2)


class Pet(RootModel[Cat | Dog]):
    """One of two."""


class Digits(RootModel[list[Annotated[int, Field(ge=0, le=9)]]]):
    """No object at all."""


class PairV1(BaseModelV1):
    """No object at all."""

    __root__: tuple[int, int]


T = TypeVar("T")


class Box(BaseModel, Generic[T]):
    """Its name is Box[int]."""

    content: T


class Titled(BaseModel):
    """Its title is for people."""

    model_config = {"title": "My nice <title>"}

    content: int


@pytest.mark.parametrize(
    ("schema", "name"), [(Box[int], "Box_int"), (Titled, "My_nice_title"), ({"title": "{}"}, "answer")]
)
def test_a_title_that_is_no_name(demo_engine, schema, name):
    """A tool's name has no brackets and no spaces."""
    model = ChatSpecRouter(engine=demo_engine, max_tokens=40)
    told = model.with_structured_output(schema, method="function_calling", include_raw=True).invoke("Make one.")
    assert [call["name"] for call in told["raw"].tool_calls] == [name]
    assert told["parsing_error"] is None
    assert not isinstance(schema, type) or isinstance(told["parsed"], schema)


DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
ROOTS = {
    "class of alternatives": Pet,
    "class of a list": Digits,
    "class of v1": PairV1,
    "reference": Tree.model_json_schema(),
    "reference with siblings": {**Tree.model_json_schema(), "required": ["value"], "title": "Tree"},
    "alternatives": Pet.model_json_schema(),
    "merged": {"allOf": [{"type": "object", "properties": {"a": DIGIT}, "required": ["a"]}]},
    "free names": {"type": "object", "additionalProperties": DIGIT, "minProperties": 1, "maxProperties": 3},
    "array": {"type": "array", "items": DIGIT, "minItems": 2, "maxItems": 3},
    "number": DIGIT,
    "of itself": {"type": "array", "minItems": 1, "maxItems": 1, "items": {"anyOf": [DIGIT, {"$ref": "#"}]}},
    "object or null": {"type": ["object", "null"], "properties": {"a": DIGIT}, "required": ["a"]},
}


@pytest.mark.parametrize("root", ROOTS)
@pytest.mark.parametrize("params", [{}, {"temperature": 1.5, "seed": 3}], ids=["greedy", "sampled"])
def test_a_call_follows_a_schema_with_any_root(demo_engine, root, params):
    """The arguments of a call are an object; what is none is one argument, and is given without it."""
    schema = ROOTS[root]
    model = ChatSpecRouter(engine=demo_engine, max_tokens=80, **params)
    chain = model.with_structured_output(schema, method="function_calling")
    answer = chain.invoke("Make one.")
    if isinstance(schema, type):
        assert isinstance(answer, schema)
    else:
        jsonschema.validate(answer, schema)
    pieces = list(chain.stream("Make one."))
    assert (pieces[-1] if pieces else None) == answer  # a null is no piece


@pytest.mark.parametrize(
    "wrap",
    [
        lambda schema: {"name": "Person", "parameters": schema},
        lambda schema: {"name": "Person", "schema": schema, "strict": True},
        lambda schema: {"type": "json_schema", "json_schema": {"name": "Person", "schema": schema}},
        lambda schema: {"type": "function", "function": {"name": "Person", "parameters": schema}},
        lambda schema: {key: value for key, value in schema.items() if key != "title"},
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_every_wrapper_of_a_json_schema(demo_engine, wrap, method):
    model = ChatSpecRouter(engine=demo_engine, max_tokens=50)
    answer = model.with_structured_output(wrap(Person.model_json_schema()), method=method)
    jsonschema.validate(answer.invoke("Who are you?"), Person.model_json_schema())


def test_json_mode_without_a_schema(demo_engine):
    chain = ChatSpecRouter(engine=demo_engine, max_tokens=60).with_structured_output(method="json_mode")
    assert isinstance(chain.invoke("Describe yourself in JSON."), dict)


def test_the_raw_message_on_request(demo_engine):
    chain = ChatSpecRouter(engine=demo_engine, max_tokens=40).with_structured_output(Person, include_raw=True)
    told = chain.invoke("Who are you?")
    assert told["parsed"] == Person(**json.loads(told["raw"].content))
    assert told["parsing_error"] is None
    assert told["raw"].response_metadata["model_name"] == "demo/target"


class Even(BaseModel):
    """Its rule is Python, which no schema shows."""

    value: int

    @field_validator("value")
    @classmethod
    def _even(cls, value):
        if value % 2:
            raise ValueError("odd")
        return value


@pytest.mark.parametrize("method", METHODS)
def test_what_only_python_can_check_is_a_parsing_error(scripted, tools, method):
    text = tools.tool_text("Even", value=7) if method == "function_calling" else '{"value": 7}'
    model = scripted(text, max_tokens=40)
    told = model.with_structured_output(Even, method=method, include_raw=True).invoke("?")
    assert told["parsed"] is None
    assert "odd" in str(told["parsing_error"])
    with pytest.raises((OutputParserException, ValidationError), match="odd"):
        model.with_structured_output(Even, method=method).invoke("?")


def test_in_a_pipeline_and_a_batch(demo_engine):
    prompt = ChatPromptTemplate.from_messages([("system", "Extract."), ("human", "{text}")])
    chain = prompt | ChatSpecRouter(engine=demo_engine, max_tokens=40).with_structured_output(Person)
    assert all(isinstance(answer, Person) for answer in chain.batch([{"text": f"Ann is {i}"} for i in range(12)]))


def test_an_unsupported_keyword_is_named_before_anything_runs(demo_engine):
    model = ChatSpecRouter(engine=demo_engine)
    schema = {"title": "x", "type": "array", "items": {"type": "integer"}, "uniqueItems": True}
    done = demo_engine.stats
    with pytest.raises(SpecRouterUnsupportedSchemaError, match="uniqueItems") as info:
        model.with_structured_output(schema).invoke("hi")
    assert isinstance(info.value, ModelInvalidRequestError)
    assert demo_engine.stats == done


@pytest.mark.parametrize(
    ("schema", "kwargs", "message"),
    [
        (Person, {"method": "xml"}, "method must be one of"),
        (None, {}, "needs a schema"),
        (3, {}, "a schema is a pydantic class"),
    ],
)
def test_bad_arguments(schema, kwargs, message):
    with pytest.raises(SpecRouterInvalidRequestError, match=message):
        ChatSpecRouter(model="demo").with_structured_output(schema, **kwargs)
