"""Chats of several turns: greetings, who somebody is, what the user said before, and simple things everyone knows."""

from __future__ import annotations

from examples.train_family.dialogue import Dialogue, Message, assistant, contains, system, user
from examples.train_family.words import Words

_HELLO = ("Hello", "Hello!", "Hi", "Hi!", "Good morning.", "Hey there", "Hi, how are you?", "Hello, can you help me?")
_WELCOME = ("Hello! How can I help you?", "Hi! What can I do for you?", "Hello! What would you like to know?")
_THANKS = ("Thanks!", "Thank you.", "Thanks, that helps.", "Great, thanks.")
_BYE = ("You are welcome!", "You're welcome. Is there anything else?", "Happy to help!")
_OPPOSITES = """big small, hot cold, day night, up down, fast slow, old new, happy sad, open closed, dark light, full empty,
heavy light, wet dry, soft hard, loud quiet, early late, left right, long short, high low, rich poor, strong weak"""
_CAPITALS = """France Paris, Egypt Cairo, Norway Oslo, Peru Lima, India Delhi, Italy Rome, Ireland Dublin, Germany Berlin,
Spain Madrid, Portugal Lisbon, Austria Vienna, Poland Warsaw, Greece Athens, Finland Helsinki, Kenya Nairobi, Cuba Havana,
Japan Tokyo, China Beijing, Canada Ottawa, Sweden Stockholm, Denmark Copenhagen, Hungary Budapest, Chile Santiago"""
_SOUNDS = """dog barks, cat meows, cow moos, duck quacks, bee buzzes, lion roars, wolf howls, owl hoots, horse neighs,
sheep bleats"""


def sample(words: Words) -> Dialogue:
    return words.rng.choice((greeting, _persona, _remember, _remember, _knowledge, _knowledge, _style, _several))(words)


def greeting(words: Words) -> Dialogue:
    rng = words.rng
    chat = [user(rng.choice(_HELLO)), assistant(rng.choice(_WELCOME))]
    return Dialogue(chat, is_right=lambda text: any(start in text for start in ("Hello", "Hi")))


def _persona(words: Words) -> Dialogue:
    rng = words.rng
    name, job, place = words.name(), words.job(), words.place()
    told = rng.choice(
        (f"You are {name}, a {job} from {place}.", f"Your name is {name}. You work as a {job} in {place}.")
    )
    asked, answer, key = rng.choice(
        (
            ("Who are you?", f"I am {name}, a {job} from {place}.", name),
            ("What is your name?", f"My name is {name}.", name),
            ("What do you do?", f"I am a {job}.", job),
            ("Where are you from?", f"I am from {place}.", place),
        )
    )
    return Dialogue([system(told), *_maybe_greeting(words), user(asked), assistant(answer)], is_right=contains(key))


def _remember(words: Words) -> Dialogue:
    rng = words.rng
    name, colour, animal, place, number = (
        words.name(),
        words.colour(),
        words.animal(),
        words.place(),
        rng.randint(2, 99),
    )
    facts = [
        (f"My name is {name}.", f"Nice to meet you, {name}!", "What is my name?", f"Your name is {name}.", name),
        (
            f"My favourite colour is {colour}.",
            "I will remember that.",
            "What is my favourite colour?",
            f"Your favourite colour is {colour}.",
            colour,
        ),
        (
            f"I have a {animal}.",
            f"A {animal} is a fine animal.",
            "Which animal do I have?",
            f"You have a {animal}.",
            animal,
        ),
        (f"I live in {place}.", f"{place} is a nice place.", "Where do I live?", f"You live in {place}.", place),
        (
            f"I am {number} years old.",
            "Thank you for telling me.",
            "How old am I?",
            f"You are {number} years old.",
            str(number),
        ),
    ]
    told = rng.sample(facts, rng.randint(1, 3))
    chat: list[Message] = []
    for sentence, reply, *_ in told:
        chat += [user(sentence), assistant(reply)]
    *_, asked, answer, key = rng.choice(told)
    return Dialogue([*_maybe_system(words), *chat, user(asked), assistant(answer)], is_right=contains(key))


def _knowledge(words: Words) -> Dialogue:
    rng = words.rng
    one, two = rng.choice(_pairs(_OPPOSITES))
    country, capital = rng.choice(_pairs(_CAPITALS))
    animal, sound = rng.choice(_pairs(_SOUNDS))
    asked, answer, key = rng.choice(
        (
            (f"What is the opposite of {one}?", f"The opposite of {one} is {two}.", two),
            (f"What is the capital of {country}?", f"The capital of {country} is {capital}.", capital),
            (f"What does a {animal} do?", f"A {animal} {sound}.", sound),
        )
    )
    return Dialogue(
        [*_maybe_system(words), *_maybe_greeting(words), user(asked), assistant(answer)], is_right=contains(key)
    )


def _style(words: Words) -> Dialogue:
    """A rule in the system prompt that every answer keeps."""
    rng = words.rng
    inner = _knowledge(words)
    asked, answer = inner.messages[-2], str(inner.messages[-1]["content"])
    ending = words.invented()
    told, styled = rng.choice(
        (
            ("Answer in capital letters.", answer.upper()),
            (f"End every answer with {ending}.", f"{answer} {ending}"),
            (f"Begin every answer with {ending}.", f"{ending} {answer}"),
        )
    )
    return Dialogue([system(told), asked, assistant(styled)])


def _several(words: Words) -> Dialogue:
    first, second = _knowledge(words), _knowledge(words)
    chat = [*first.messages[-2:], user(words.rng.choice(_THANKS)), assistant(words.rng.choice(_BYE))]
    return Dialogue([*chat, *second.messages[-2:]], is_right=second.is_right)


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(first, second) for first, second in (pair.split() for pair in text.split(","))]


def _maybe_greeting(words: Words) -> list[Message]:
    return greeting(words).messages if words.rng.random() < 0.3 else []


def _maybe_system(words: Words) -> list[Message]:
    return [system("You are a helpful assistant.")] if words.rng.random() < 0.25 else []
