"""Text about a thing, a JSON schema, and the object that says the same."""

from __future__ import annotations

import json
from typing import Any

from examples.train_family.dialogue import Dialogue, assistant, json_is, system, user
from examples.train_family.skills.parameters import Parameter, draw_parameters, object_schema
from examples.train_family.words import Words


def sample(words: Words) -> Dialogue:
    rng = words.rng
    parameters = draw_parameters(words, rng.randint(1, 4))
    values: dict[str, Any] = {parameter.name: parameter.value for parameter in parameters}
    schema = object_schema(words, parameters)
    if rng.random() < 0.4:
        schema = {"title": words.invented().capitalize(), **schema}
    spelt = json.dumps(schema, ensure_ascii=False)
    text = _told(words, parameters)
    answer = json.dumps(values, ensure_ascii=False)
    if rng.random() < 0.5:
        chat = [system(f"Answer with JSON of this schema:\n{spelt}"), user(text)]
    else:
        chat = [user(f"{text}\n\nAnswer with JSON of this schema:\n{spelt}")]
    return Dialogue([*chat, assistant(answer)], is_right=json_is(values))


def _told(words: Words, parameters: list[Parameter]) -> str:
    shuffled = words.rng.sample(parameters, len(parameters))
    forms = ("The {name} is {value}.", "{name}: {value}.", "Its {name} is {value}.", "{name} = {value}.")
    form = words.rng.choice(forms)
    return " ".join(form.format(name=parameter.spoken, value=parameter.told) for parameter in shuffled)
