"""Words of a sentence as JSON: the same word without a space before it, piece by piece, many in one answer."""

from __future__ import annotations

import json
from collections.abc import Callable

from examples.train_family.dialogue import Dialogue, assistant, json_is, user
from examples.train_family.words import Words


def sample(words: Words) -> Dialogue:
    """A list of words, of names of two words with an underscore between them, or an object of pairs."""
    return words.rng.choice((_list, _list, _names, _object))(words)


def _list(words: Words) -> Dialogue:
    items = words.distinct(lambda: _word(words), words.rng.randint(3, 12))
    return _dialogue(words, _joined(items), items, ("a list", "a JSON list", "a list of strings"))


def _names(words: Words) -> Dialogue:
    items = words.distinct(lambda: f"{_word(words)} {_word(words)}", words.rng.randint(2, 7))
    names = [item.replace(" ", "_") for item in items]
    return _dialogue(words, _joined(items), names, ("a list of names", "a list in snake case"))


def _object(words: Words) -> Dialogue:
    keys = words.distinct(lambda: _word(words), words.rng.randint(2, 7))
    pairs = {key: _word(words) for key in keys}
    told = _joined([f"{key} {words.rng.choice(('is', 'is', 'as'))} {value}" for key, value in pairs.items()])
    return _dialogue(words, told, pairs, ("an object", "a JSON object"))


def _dialogue(words: Words, told: str, value: list[str] | dict[str, str], forms: tuple[str, ...]) -> Dialogue:
    form = words.rng.choice(forms)
    request = words.rng.choice(
        (f"Write as {form}: {told}.", f"{told} as {form}.", f"Give me {form} of this: {told}", f"As {form}: {told}")
    )
    return Dialogue([user(request), assistant(json.dumps(value, ensure_ascii=False))], is_right=json_is(value))


def _word(words: Words) -> str:
    draws: tuple[Callable[[], str], ...] = (
        words.verb, words.object, words.quality, words.thing, words.name, words.place, words.adjective, words.invented
    )  # fmt: skip
    return words.rng.choice(draws)()


def _joined(items: list[str]) -> str:
    return f"{', '.join(items[:-1])} and {items[-1]}"
