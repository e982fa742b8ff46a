"""Parameters with JSON types, values, and words for both: what tools take and what schemas ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from examples.train_family.words import Words


@dataclass(frozen=True, slots=True)
class Parameter:
    """A name, its schema, and one value as JSON and as people say it."""

    name: str
    schema: dict[str, Any]
    value: Any
    told: str

    @property
    def spoken(self) -> str:
        return self.name.replace("_", " ")


def draw_parameters(words: Words, count: int) -> list[Parameter]:
    """`count` parameters of different names."""
    return [_draw(words, name) for name in words.distinct(lambda: _name(words), count)]


def object_schema(words: Words, parameters: list[Parameter]) -> dict[str, Any]:
    """An object of `parameters`, of which there is one at least, its keys in one of the orders that libraries write."""
    properties = {parameter.name: parameter.schema for parameter in parameters}
    parts: dict[str, Any] = {"type": "object", "properties": properties, "required": list(properties)}
    orders = (
        ("type", "properties", "required"),
        ("properties", "required", "type"),
        ("properties", "type", "required"),
    )
    order = words.rng.choice(orders)
    return {key: parts[key] for key in order}


def _name(words: Words) -> str:
    rng = words.rng
    kind = rng.random()
    if kind < 0.3:
        return words.object()
    if kind < 0.5:
        return words.quality()
    if kind < 0.6:
        return words.invented()
    if kind < 0.75:
        return f"{words.object()}_{rng.choice(('id', 'name', 'count', 'type', 'date', 'size'))}"
    if kind < 0.9:
        return rng.choice(
            ("name", "place", "x", "y", "n", "value", "number", "text", "query", "input", "first", "second")
        )
    return f"{words.adjective()}_{words.object()}"


def _draw(words: Words, name: str) -> Parameter:
    rng = words.rng
    type_name = rng.choices(("string", "integer", "number", "boolean", "enum", "array"), (46, 26, 8, 6, 8, 6))[0]
    schema, value, told = _VALUES[type_name](words)
    if rng.random() < 0.3:
        about = f"The {name.replace('_', ' ')}" + rng.choice(("", f" of the {words.object()}", " to use"))
        schema = {"description": about, **schema} if rng.random() < 0.3 else {**schema, "description": about}
    if rng.random() < 0.2:
        schema = {"title": name.replace("_", " ").title(), **schema}
    return Parameter(name, schema, value, told)


def _string(words: Words) -> tuple[dict[str, Any], Any, str]:
    rng = words.rng
    kinds = (
        words.name,
        words.full_name,
        words.place,
        lambda: f"{words.place()}, {rng.choice(('CA', 'TX', 'UK', 'FR', 'DE', 'NY'))}",
        words.thing,
        lambda: f"{words.adjective()} {words.things()}",
        words.invented,
        words.foreign,
        lambda: f"{words.invented().capitalize()} {words.foreign()}",
        lambda: f"20{rng.randint(10, 39)}-{rng.randint(1, 12):02}-{rng.randint(1, 28):02}",
        lambda: f"{words.invented()}{rng.randint(1, 99)}",
    )
    value = rng.choices(kinds, (16, 14, 14, 6, 10, 10, 10, 8, 3, 5, 4))[0]()
    return {"type": "string"}, value, value


def _integer(words: Words) -> tuple[dict[str, Any], Any, str]:
    value = words.rng.choice((words.rng.randint(0, 9), words.rng.randint(10, 99), words.rng.randint(100, 9999)))
    return {"type": "integer"}, value, str(value)


def _number(words: Words) -> tuple[dict[str, Any], Any, str]:
    value = words.rng.randint(1, 999) / 10
    return {"type": "number"}, value, str(value)


def _boolean(words: Words) -> tuple[dict[str, Any], Any, str]:
    value = words.rng.random() < 0.5
    return {"type": "boolean"}, value, "true" if value else "false"


def _enum(words: Words) -> tuple[dict[str, Any], Any, str]:
    options = words.distinct(words.rng.choice((words.colour, words.adjective, words.invented)), words.rng.randint(2, 4))
    value = words.rng.choice(options)
    return {"type": "string", "enum": options}, value, value


def _array(words: Words) -> tuple[dict[str, Any], Any, str]:
    if words.rng.random() < 0.5:
        items: list[Any] = words.distinct(words.name, words.rng.randint(1, 3))
        return {"type": "array", "items": {"type": "string"}}, items, " and ".join(items)
    items = [words.rng.randint(1, 99) for _ in range(words.rng.randint(2, 4))]
    return {"type": "array", "items": {"type": "integer"}}, items, ", ".join(map(str, items))


_VALUES = {
    "string": _string,
    "integer": _integer,
    "number": _number,
    "boolean": _boolean,
    "enum": _enum,
    "array": _array,
}
