"""Short stories put together from a place, somebody, a wish, a trouble and a friend."""

from __future__ import annotations

from examples.train_family.dialogue import Dialogue, assistant, contains, user
from examples.train_family.words import Words


def sample(words: Words) -> Dialogue:
    rng = words.rng
    hero, animal, thing = words.name(), words.animal(), words.thing()
    asked = rng.choice(
        (
            ("Tell me a short story.", ()),
            ("Tell me a story.", ()),
            ("Write a short story.", ()),
            (f"Tell me a short story about a {animal}.", (animal,)),
            (f"Tell me a story about a {animal} and a {thing}.", (animal, thing)),
            (f"Write a short story about {hero}.", (hero,)),
        )
    )
    text = _tell(words, hero, animal, thing)
    request, keys = asked
    return Dialogue([user(request), assistant(text)], is_right=contains("Once", *keys))


def _tell(words: Words, hero: str, animal: str, thing: str) -> str:
    rng = words.rng
    friend = rng.choice([name for name in words.distinct(words.name, 2) if name != hero])
    colour, mood, place = words.colour(), words.adjective(), rng.choice(_PLACES)
    beginning = rng.choice(
        (
            f"Once upon a time, there was a {mood} {animal} named {hero}. {hero} lived {place}.",
            f"Once there was a {animal} called {hero}, who lived {place}.",
            f"Once upon a time, a {mood} {animal} named {hero} lived {place}.",
        )
    )
    wish = rng.choice(
        (
            f"Every day {hero} liked to play with a {colour} {thing}.",
            f"{hero} had a {colour} {thing} and loved it very much.",
            f"{hero} wanted to have a {colour} {thing} more than anything.",
        )
    )
    trouble = rng.choice(
        (
            f"One day the {thing} was gone. {hero} looked under the bed and behind the door, but it was not there.",
            f"One day it began to rain, and the {thing} fell into the water. {hero} was very sad.",
            f"One morning a strong wind came and carried the {thing} far away. {hero} began to cry.",
            f"One day {hero} climbed too high and could not come down again.",
        )
    )
    helper = rng.choice(
        (
            f'Then {friend} came by. "Do not be sad," said {friend}. "I will help you."',
            f'{friend} heard this and ran to help. "What is wrong?" asked {friend}.',
            f"A kind friend named {friend} saw it and wanted to help.",
        )
    )
    solution = rng.choice(
        (
            f"Together they looked everywhere until they found the {thing} under an old tree.",
            f"They worked hard all day, and in the evening the {thing} was back.",
            f"{friend} had a clever idea, and soon everything was good again.",
        )
    )
    ending = rng.choice(
        (
            f"{hero} smiled and said thank you. From that day on, {hero} and {friend} were the best of friends.",
            f"{hero} was happy and shared a big cake with {friend}. They played until the sun went down.",
            f"{hero} learned that it is good to have a friend. The end.",
        )
    )
    return " ".join((beginning, wish, trouble, helper, solution, ending))


_PLACES = (
    "in a little house near the forest",
    "by the sea",
    "on a small farm",
    "in a big city",
    "under a hill",
    "next to a quiet river",
    "in an old garden",
    "at the end of a long road",
)
