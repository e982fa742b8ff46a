"""Questions about numbered passages: facts to find, passages to quote, and answers that are not there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from examples.train_family.dialogue import Dialogue, assistant, contains, system, user
from examples.train_family.words import Words

_ORDINALS = ("first", "second", "third", "fourth", "fifth")
_SYSTEMS = (
    "Answer the question using only the context.",
    "Use the context to answer. If the answer is not there, say so.",
    "You answer questions about documents.",
)
ABSENT = "The context does not say."


@dataclass(frozen=True, slots=True)
class Fact:
    """A sentence about a subject, a question about it, and the words that answer it."""

    sentence: str
    question: str
    answer: str
    key: str
    about: str
    """Kind and subject: two facts about the same would give the same question two answers."""


def sample(words: Words) -> Dialogue:
    rng = words.rng
    passages, facts = _passages(words, rng.randint(2, 5))
    question, answer, judge = rng.choice((_ask, _ask, _ask, _quote, _quote_about, _absent))(words, passages, facts)
    listed = "\n".join(f"[{number}] {passage}" for number, passage in enumerate(passages, 1))
    before = rng.choice(("Question: ", "Question: ", ""))
    chat = [user(f"Context:\n{listed}\n\n{before}{question}"), assistant(answer)]
    if rng.random() < 0.75:
        chat.insert(0, system(rng.choice(_SYSTEMS)))
    return Dialogue(chat, is_right=judge)


def _passages(words: Words, count: int) -> tuple[list[str], list[tuple[int, Fact]]]:
    """`count` passages, and the facts in them with the passage's index; at least one."""
    passages: list[str] = []
    facts: list[tuple[int, Fact]] = []
    for index in range(count):
        filler = [words.sentence() for _ in range(words.rng.randint(0, 2))]
        if words.rng.random() < 0.8 or (index == count - 1 and not facts):
            fact = words.rng.choice(_FACTS)(words)
            facts.append((index, fact))
            filler.insert(words.rng.randint(0, len(filler)), fact.sentence)
        passages.append(" ".join(filler or [words.sentence(8, 40)]))
    return passages, facts


Answer = tuple[str, str, Callable[[str], bool] | None]


def _ask(words: Words, passages: Sequence[str], facts: Sequence[tuple[int, Fact]]) -> Answer:
    index, fact = words.rng.choice(facts)
    twins = [other for _, other in facts if other.about == fact.about and other is not fact]
    if twins:
        return _quote(words, passages, facts)
    answer = fact.answer if words.rng.random() < 0.7 else f"{fact.answer[:-1]} [{index + 1}]."
    return fact.question, answer, contains(fact.key)


def _quote(words: Words, passages: Sequence[str], facts: Sequence[tuple[int, Fact]]) -> Answer:
    index = words.rng.randrange(len(passages))
    asked = words.rng.choice(
        (
            f"Quote the {_ORDINALS[index]} passage.",
            f"What does passage {index + 1} say?",
            f"Repeat passage [{index + 1}] word for word.",
        )
    )
    return asked, f'"{passages[index]}"', contains(passages[index])


def _quote_about(words: Words, passages: Sequence[str], facts: Sequence[tuple[int, Fact]]) -> Answer:
    index, fact = words.rng.choice(facts)
    subject = fact.sentence.split()[0]
    if subject == "The":
        subject = " ".join(fact.sentence.split()[:2]).lower()
    if sum(subject in passage or subject.capitalize() in passage for passage in passages) > 1:
        return _quote(words, passages, facts)
    asked = words.rng.choice((f"Quote the sentence about {subject}.", f"Which sentence is about {subject}?"))
    return asked, f'"{fact.sentence}" [{index + 1}]', contains(fact.sentence)


def _absent(words: Words, passages: Sequence[str], facts: Sequence[tuple[int, Fact]]) -> Answer:
    known = " ".join(passages)
    while True:
        fact = words.rng.choice(_FACTS)(words)
        subject = fact.question.rstrip("?").split()
        if not any(
            word in known
            for word in subject
            if word[0].isupper() and word not in ("Where", "When", "What", "How", "Who")
        ):
            break
    return fact.question, ABSENT, contains(ABSENT)


def _works(words: Words) -> Fact:
    who, job, place, year = words.name(), words.job(), words.place(), words.rng.randint(1901, 2020)
    sentence = f"{who} works as a {job} in {place} and moved there in {year}."
    question, answer, key = words.rng.choice(
        (
            (f"Where does {who} work?", f"{who} works in {place}.", place),
            (f"When did {who} move to {place}?", f"{who} moved to {place} in {year}.", str(year)),
            (f"What is the job of {who}?", f"{who} is a {job}.", job),
        )
    )
    return Fact(sentence, question, answer, key, f"works {who}")


def _costs(words: Words) -> Fact:
    things, who, price = words.things(), words.name(), words.rng.randint(2, 90)
    question = f"How much do the {things} in the shop of {who} cost?"
    sentence = f"The {things} in the shop of {who} cost {price} dollars each."
    return Fact(sentence, question, f"They cost {price} dollars each.", str(price), f"costs {things} {who}")


def _owns(words: Words) -> Fact:
    who, animal, pet = words.name(), words.animal(), words.distinct(words.name, 1)[0]
    sentence = f"{who} has a {words.adjective()} {animal} called {pet}."
    question, answer, key = words.rng.choice(
        (
            (f"What is the {animal} of {who} called?", f"The {animal} is called {pet}.", pet),
            (f"What animal does {who} have?", f"{who} has a {animal}.", animal),
        )
    )
    return Fact(sentence, question, answer, key, f"owns {who}")


def _founded(words: Words) -> Fact:
    company, who, year, place = (
        words.invented().capitalize(),
        words.full_name(),
        words.rng.randint(1850, 2024),
        words.place(),
    )
    sentence = f"{company} was founded by {who} in {place} in {year}."
    question, answer, key = words.rng.choice(
        (
            (f"Who founded {company}?", f"{company} was founded by {who}.", who),
            (f"When was {company} founded?", f"{company} was founded in {year}.", str(year)),
            (f"Where was {company} founded?", f"{company} was founded in {place}.", place),
        )
    )
    return Fact(sentence, question, answer, key, f"founded {company}")


def _measured(words: Words) -> Fact:
    quality, thing, value = words.quality(), words.invented().capitalize(), words.rng.randint(2, 999)
    unit = words.rng.choice(("metres", "kilograms", "hours", "miles", "dollars", "degrees", "points"))
    sentence = f"The {quality} of {thing} is {value} {unit}."
    return Fact(
        sentence,
        f"What is the {quality} of {thing}?",
        f"The {quality} of {thing} is {value} {unit}.",
        f"{value} {unit}",
        f"measured {quality} {thing}",
    )


def _keeps(words: Words) -> Fact:
    who, thing, where = (
        words.name(),
        words.thing(),
        words.rng.choice(("kitchen", "garage", "attic", "cellar", "garden", "office")),
    )
    colour = words.colour()
    sentence = f"{who} keeps a {colour} {thing} in the {where}."
    question, answer, key = words.rng.choice(
        (
            (f"Where does {who} keep the {thing}?", f"{who} keeps it in the {where}.", where),
            (f"What colour is the {thing} of {who}?", f"The {thing} is {colour}.", colour),
        )
    )
    return Fact(sentence, question, answer, key, f"keeps {who}")


_FACTS = (_works, _costs, _owns, _founded, _measured, _keeps)
