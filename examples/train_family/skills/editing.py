"""Texts to repeat, or to repeat with one change: nearly all of the answer stands in the prompt."""

from __future__ import annotations

from examples.train_family.dialogue import Dialogue, assistant, user
from examples.train_family.words import Words


def sample(words: Words) -> Dialogue:
    rng = words.rng
    text = _text(words)
    replaceable = [word for word in text.replace(".", "").split() if word.isalnum() and len(word) > 2]
    if rng.random() < 0.3 or not replaceable:
        asked = rng.choice(("Repeat this text:", "Copy the text word for word:", "Say this again:"))
        return Dialogue([user(f"{asked}\n{text}"), assistant(text)])
    old = rng.choice(replaceable)
    new = rng.choice((words.name, words.thing, words.invented, words.place))()
    asked = rng.choice(
        (
            f"Rewrite the text with {old} replaced by {new}:",
            f"Replace {old} with {new} in this text:",
            f"In the text below, change {old} to {new}:",
        )
    )
    edited = " ".join(_replaced(word, old, new) for word in text.split(" "))
    return Dialogue([user(f"{asked}\n{text}"), assistant(edited)])


def _replaced(word: str, old: str, new: str) -> str:
    bare = word.rstrip(".")
    return new + word[len(bare) :] if bare == old else word


def _text(words: Words) -> str:
    rng = words.rng
    kinds = (
        lambda: words.sentence(),
        lambda: f"{words.name()} works as a {words.job()} in {words.place()}.",
        lambda: f"The {words.adjective()} {words.animal()} found a {words.colour()} {words.thing()}.",
        lambda: f"{words.name()} and {words.name()} bought {rng.randint(2, 99)} {words.things()} in {words.place()}.",
    )
    return " ".join(rng.choice(kinds)() for _ in range(rng.randint(1, 5)))
