"""Prompts of the built-in workloads: short texts of our own, of the kinds that people ask local models for."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

from specrouter_llm.types import ChatMessage

TextPrompt: TypeAlias = "str | list[ChatMessage]"

_PASSAGES = (
    "The mill by the river was built by two brothers who ground corn for nine villages. When the river froze, they went "
    "out with axes at dawn and broke the ice around the wheel, and by noon the stones were turning again. In the wet years "
    "the river came up to the door, so the brothers kept their flour in the room under the roof.",
    "Every spring the ferry was painted green, because the first captain had found a barrel of green paint on the shore. "
    "Nobody remembered his name, but the children still called the boat his leaf. When the barrel was empty at last, the "
    "people mixed yellow and blue until they had the same green again.",
    "The clock in the market square lost four minutes a week. The baker, who lived opposite, put his bread in the oven by "
    "the smell of the street instead, and he was never late. One winter a student from the city mended the clock, and for "
    "four days the whole village came to work too early.",
    "A teacher in the hills kept a list of every bird that landed on the school roof. After thirty years the list filled "
    "eleven books, and a university sent two students to copy them by hand. They stayed for the summer, ate at the long "
    "table of the teacher, and went home with a list of their own.",
    "The bridge had been closed for a year when the goats began to use it. They crossed in the morning, ate the grass on "
    "the far side, and came home in the evening, always in the same order. The engineer who came to test the bridge "
    "counted the goats for a week and then wrote that it would hold.",
    "In the harbour town the letters came on Tuesday. If the sea was rough they came on Wednesday, and then the post "
    "office stayed open until midnight with a lamp in each of its three windows. Some people said that they liked the "
    "rough weeks more, because on a plain Tuesday there was nobody to talk to.",
    "The carpenter made a chair for each of his grandchildren, and under the seat he cut the date and one good wish. The "
    "last chair has two wishes, since he could not decide. It stands by the stove in the old kitchen, and whoever has a "
    "hard day in front of them may sit on it for as long as the tea is hot.",
    "When the well ran dry the village bought water from the next valley. A girl counted the buckets with pebbles, one "
    "pebble for ten buckets, and in the autumn there was a wall of them beside her door. The wall is still there, and the "
    "people say that the girl never once counted wrong.",
)
"""Of 60 to 70 words: more tokens than an answer has by default, so that all of it is quotation."""

_CHANGES = (
    ("river", "lake"),
    ("green", "white"),
    ("four", "seven"),
    ("list", "map"),
    ("goats", "sheep"),
    ("Tuesday", "Friday"),
    ("chair", "table"),
    ("girl", "boy"),
)
"""A word of each passage, and what an edit puts in its place."""

_SUMS = (
    "Tom has 14 pencils. Anna gives Tom 9 more. How many pencils does Tom have now?",
    "Rosa buys 6 boxes of shells. Each box holds 12 shells. How many shells does Rosa have in all?",
    "Leo had 43 coins and gave 17 of them to Ivy. How many coins are left?",
    "Kate has 4 bags with 8 marbles each and 5 loose marbles. How many marbles is that?",
    "A shop sells 36 books on Monday and half as many on Tuesday. How many books does it sell in both days?",
    "Ben walks 3 kilometers to school and back again, five days a week. How many kilometers is that?",
    "Mia saves 7 dollars a week. How many weeks does she need for a bicycle that costs 91 dollars?",
    "There are 28 children in a class, and a quarter of them wear glasses. How many do not?",
    "Sam bakes 60 cookies and packs them in bags of 5. He sells each bag for 3 dollars. How much does he earn?",
    "A train leaves at 9:40 and arrives at 11:05. How many minutes does the journey take?",
    "Ella reads 12 pages a day. Her book has 200 pages, and she has read 80. How many days until she is done?",
    "Jack buys 3 cards for 4 dollars each and pays with a 20 dollar note. How much change does he get?",
)

_FUNCTIONS = (
    ("mean", "values: list[float]", "float", "the arithmetic mean of a list that is not empty"),
    ("count_words", "text: str", "dict[str, int]", "how often each word occurs, ignoring case"),
    ("is_palindrome", "text: str", "bool", "whether the text reads the same backwards"),
    ("flatten", "lists: list[list[int]]", "list[int]", "all the elements of the inner lists, in order"),
    ("fibonacci", "n: int", "list[int]", "the first n numbers of the Fibonacci sequence"),
    ("merge", "left: list[int], right: list[int]", "list[int]", "one sorted list out of two sorted lists"),
    ("second_largest", "values: list[int]", "int", "the second largest of the distinct values"),
    ("caesar", "text: str, shift: int", "str", "the text with every letter moved by shift places"),
)

_QUESTIONS = (
    "Why is the sky blue?",
    "What does a compass point to, and why?",
    "Which animals sleep through the winter?",
    "How does a lock in a canal work?",
    "What is the difference between weather and climate?",
    "Why do we see lightning before we hear thunder?",
    "How is paper made?",
    "What makes bread rise?",
    "Why does the moon change its shape?",
    "What did people use before there were clocks?",
    "How do bees find their way home?",
    "Why does salt melt ice?",
)

_HEROES = ("fox", "lantern", "baker", "snowman", "little train", "lost key", "dragon", "girl with a red kite")


def _rag() -> list[TextPrompt]:
    """Three numbered passages out of eight, and a request to quote one of them."""
    prompts: list[TextPrompt] = []
    for i, wanted in enumerate(itertools.islice(itertools.cycle(("first", "second", "third")), len(_PASSAGES))):
        passages = (_PASSAGES[i], _PASSAGES[i - 3], _PASSAGES[i - 6])
        context = "\n".join(f"[{n}] {passage}" for n, passage in enumerate(passages, 1))
        prompts.append(
            [
                {"role": "system", "content": "Answer the question using only the context."},
                {"role": "user", "content": f"Context:\n{context}\n\nQuestion: Quote the {wanted} passage."},
            ]
        )
    return prompts


def _editing() -> list[TextPrompt]:
    return [
        [{"role": "user", "content": f"Rewrite the text with {old} replaced by {new}:\n{passage}"}]
        for passage, (old, new) in zip(_PASSAGES, _CHANGES, strict=True)
    ]


def _code() -> list[str]:
    return [
        f'Complete this Python function.\n\ndef {name}({arguments}) -> {returns}:\n    """Return {what}."""\n'
        for name, arguments, returns, what in _FUNCTIONS
    ]


PROMPTS: dict[str, Sequence[TextPrompt]] = {
    "cot": _SUMS,
    "code": _code(),
    "rag": _rag(),
    "editing": _editing(),
    "qa": _QUESTIONS,
    "stories": [f"Tell me a short story about a {hero}." for hero in _HEROES],
}
"""By workload: text, or the messages of a chat."""
