"""Tools nobody has seen before: which one to call and with what, what to say of its result, and when to call none."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from examples.train_family.dialogue import (
    Dialogue,
    Message,
    assistant,
    calling,
    calls_equal,
    calls_in,
    contains,
    result,
    system,
    user,
)
from examples.train_family.skills import arithmetic, smalltalk
from examples.train_family.skills.parameters import Parameter, draw_parameters, object_schema
from examples.train_family.words import Words

NONE_FITS = "None of my tools can do that."


@dataclass(frozen=True, slots=True)
class Tool:
    """A definition, one request that it answers, and how people and results speak of that request."""

    definition: dict[str, Any]
    request: str
    arguments: dict[str, Any]
    result: str
    said: str
    """The answer once the result is there."""
    key: str
    """What of the result the answer must hold."""

    @property
    def name(self) -> str:
        return str(self.definition["name"])

    @property
    def call(self) -> Message:
        return calling((self.name, self.arguments))


def sample(words: Words) -> Dialogue:
    """A dialogue that ends with a call, with an answer from a result, or without a call."""
    rng = words.rng
    tools = toolbox(words, rng.choice((1, 1, 2, 2, 3, 4)))
    chosen = rng.choice(tools)
    definitions = [tool.definition for tool in tools]
    opening = [system(words.rng.choice(_SYSTEMS))] if rng.random() < 0.2 else []
    opening += _earlier(words) if rng.random() < 0.1 else []
    kind = rng.random()
    if kind < 0.55:
        call = chosen.call
        return Dialogue([*opening, user(chosen.request), call], definitions, calls_equal(call))
    if kind < 0.62 and len(tools) > 1:
        second = rng.choice([tool for tool in tools if tool is not chosen])
        call = calling((chosen.name, chosen.arguments), (second.name, second.arguments))
        both = (
            f"{chosen.request} {rng.choice(('And', 'Then', 'Also:'))} {second.request[0].lower()}{second.request[1:]}"
        )
        return Dialogue([*opening, user(both), call], definitions, calls_equal(call))
    asked = [*opening, user(chosen.request), chosen.call, result(chosen.result)]
    if kind < 0.82:
        return Dialogue([*asked, assistant(chosen.said)], definitions, _says(chosen.key))
    if kind < 0.88:
        other = rng.choice(tools)
        if other is not chosen:
            call = other.call
            return Dialogue([*asked, assistant(chosen.said), user(other.request), call], definitions, calls_equal(call))
    return _without_a_call(words, opening, definitions)


_SYSTEMS = (
    "You are a helpful assistant.",
    "Use the tools when they help.",
    "You are a careful assistant. Call a tool when one fits.",
    "Help the user.",
)


def _earlier(words: Words) -> list[Message]:
    return smalltalk.greeting(words).messages


def _says(key: str) -> Any:
    found = contains(key)
    return lambda text: found(text) and not calls_in(text)


def _without_a_call(words: Words, opening: list[Message], definitions: list[dict[str, Any]]) -> Dialogue:
    if words.rng.random() < 0.5:
        other = _action(words)
        known = " ".join(json.dumps(definition) for definition in definitions)
        verb, noun = other.name.lower().split("_", 1) if "_" in other.name else (other.name.lower(), other.name.lower())
        if verb not in known.lower() and noun not in known.lower():
            return Dialogue([*opening, user(other.request), assistant(NONE_FITS)], definitions, _says(NONE_FITS))
    plain = words.rng.choice((arithmetic.sample, smalltalk.greeting))(words)
    right = plain.accepts
    return Dialogue([*opening, *plain.messages], definitions, lambda text: right(text) and not calls_in(text))


def toolbox(words: Words, count: int) -> list[Tool]:
    """`count` tools, of which no two answer one request."""
    tools: list[Tool] = []
    while len(tools) < count:
        tool = words.rng.choice((_lookup, _lookup, _action, _action, _function, _no_arguments))(words)
        # Two tools for one verb or one thing would make the right choice a matter of taste.
        parts = set(_parts(tool.name))
        if not any(parts & set(_parts(other.name)) - {"get", "find", "lookup"} for other in tools):
            tools.append(tool)
    return tools


def _parts(name: str) -> list[str]:
    spaced = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name)
    return spaced.replace("-", "_").strip("_").split("_")


def _spelt(words: Words, *parts: str) -> str:
    """The parts as one of the ways in which programs write names."""
    style = words.rng.random()
    if style < 0.75:
        return "_".join(parts)
    return parts[0] + "".join(part.title() for part in parts[1:])


def _definition(words: Words, name: str, about: str, parameters: list[Parameter]) -> dict[str, Any]:
    schema = object_schema(words, parameters) if parameters else {"type": "object", "properties": {}}
    parts = {"name": name, "description": about, "parameters": schema}
    if words.rng.random() < 0.1:
        del parts["description"]
    return parts


def _lookup(words: Words) -> Tool:
    """get_<quality>(<thing>): a question, and a value in return."""
    rng = words.rng
    quality = words.quality()
    name = _spelt(words, rng.choice(("get", "get", "find", "lookup", "fetch")), quality)
    subject = rng.choice(
        (
            words.place,
            words.full_name,
            lambda: words.invented().capitalize(),
            words.foreign,
            lambda: f"{words.place()}, {rng.choice(('CA', 'TX', 'UK', 'FR'))}",
        )
    )()
    parameter = rng.choice(("location", "place", "city", "name", "target", "item", "subject", "of", words.object()))
    schema: dict[str, Any] = {"type": "string"}
    if rng.random() < 0.3:
        schema["description"] = f"The {parameter} to ask about."
    about = rng.choice(
        (f"Get the {quality} of a {parameter}.", f"Find the {quality}.", f"Returns the {quality} at a {parameter}")
    )
    word = rng.choice(("of", "of", "in", "at", "for"))
    request = rng.choice(
        (
            f"What is the {quality} {word} {subject}?",
            f"What's the {quality} {word} {subject}?",
            f"Tell me the {quality} {word} {subject}.",
            f"I need the {quality} {word} {subject}.",
            f"Can you look up the {quality} {word} {subject}?",
        )
    )
    value = rng.choice(
        (
            str(rng.randint(1, 9999)),
            words.adjective(),
            words.colour(),
            f"{rng.randint(1, 99)} {rng.choice(('metres', 'hours', 'points'))}",
        )
    )
    shape = rng.random()
    if shape < 0.4:
        returned = value
    elif shape < 0.7:
        returned = json.dumps({quality: value}, ensure_ascii=False)
    else:
        returned = rng.choice((f"It is {value}.", f"It's {value}", f"The {quality} is {value}."))
    said = f"The {quality} {word} {subject} is {value}."
    definition = _definition(words, name, about, [Parameter(parameter, schema, subject, subject)])
    return Tool(definition, request, {parameter: subject}, returned, said, value)


def _action(words: Words) -> Tool:
    """<verb>_<object>(...): an order, and a receipt in return."""
    rng = words.rng
    verb, noun = words.verb(), words.object()
    parameters = draw_parameters(words, rng.choice((1, 1, 2, 2, 3)))
    told = _with(words, parameters)
    request = rng.choice(
        (
            f"{verb.capitalize()} the {noun} {told}.",
            f"Please {verb} a {noun} {told}.",
            f"I want to {verb} a {noun} {told}.",
            f"Can you {verb} the {noun} {told}?",
            f"{verb.capitalize()} {noun}: {_listed(parameters)}.",
        )
    )
    about = rng.choice(
        (f"{verb.capitalize()} a {noun}.", f"{verb.capitalize()}s the {noun}", f"Use this to {verb} a {noun}.")
    )
    number = rng.randint(10, 9999)
    returned, said, key = rng.choice(
        (
            ("ok", f"Done: {verb} {noun}.", "Done"),
            ("done", f"Done: {verb} {noun}.", "Done"),
            (json.dumps({"status": "ok", "id": number}), f"Done: {verb} {noun}. The id is {number}.", str(number)),
            (f"error: {noun} not found", f"That failed: {noun} not found.", "failed"),
        )
    )
    definition = _definition(words, _spelt(words, verb, noun), about, parameters)
    return Tool(definition, request, {parameter.name: parameter.value for parameter in parameters}, returned, said, key)


def _function(words: Words) -> Tool:
    """A function of numbers or words whose name says nothing."""
    rng = words.rng
    name = (
        words.invented()
        if rng.random() < 0.5
        else _spelt(words, words.adjective(), rng.choice(("function", "tool", "rule", "operation", words.object())))
    )
    parameters = draw_parameters(words, rng.choice((1, 1, 1, 2, 3)))
    values = ", ".join(parameter.told for parameter in parameters)
    spelt = ", ".join(f"{parameter.name}={parameter.told}" for parameter in parameters)
    request = rng.choice(
        (
            f"Call {name} with {_listed(parameters)}.",
            f"Use {name} on {values}.",
            f"Run {name}({spelt}).",
            f"Compute {name}({values}).",
            f"What does {name}({values}) give? Call it.",
            f"Apply {name} to {values}, please.",
        )
    )
    about = rng.choice((f"Applies the {name} to its input.", f"The {name}.", f"Computes {name}."))
    value = rng.choice((str(rng.randint(1, 999)), words.invented()))
    definition = _definition(words, name, about, parameters)
    given = {parameter.name: parameter.value for parameter in parameters}
    return Tool(definition, request, given, value, f"The result of {name} is {value}.", value)


def _no_arguments(words: Words) -> Tool:
    rng = words.rng
    verb, noun = words.verb(), words.object()
    name = _spelt(words, verb, noun)
    request = rng.choice(
        (f"{verb.capitalize()} the {noun}.", f"Run {name}().", f"Please {verb} the {noun} now.", f"Call {name}.")
    )
    definition = _definition(words, name, f"{verb.capitalize()} the {noun}.", [])
    return Tool(definition, request, {}, "ok", f"Done: {verb} {noun}.", "Done")


def _with(words: Words, parameters: list[Parameter]) -> str:
    form = words.rng.choice(
        ("with {name} {value}", "{name} {value}", "with the {name} {value}", "using {value} as {name}")
    )
    return " and ".join(form.format(name=parameter.spoken, value=parameter.told) for parameter in parameters)


def _listed(parameters: list[Parameter]) -> str:
    return ", ".join(f"{parameter.name} {parameter.told}" for parameter in parameters)
