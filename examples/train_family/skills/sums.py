"""A sheet of sums to work out one by one: what every step of a word problem rests on, many to a document."""

from __future__ import annotations

from examples.train_family.dialogue import Dialogue, assistant, user
from examples.train_family.words import Words


def sample(words: Words) -> Dialogue:
    rng = words.rng
    asked, solved = zip(*(_sum(words) for _ in range(rng.randint(4, 12))), strict=True)
    opening = rng.choice(("Compute:", "Work these out:", "What are these?"))
    return Dialogue([user("\n".join([opening, *asked])), assistant("\n".join(solved))])


def _sum(words: Words) -> tuple[str, str]:
    """A sum and the same with its result, in the ranges that word problems use."""
    rng = words.rng
    sign = rng.choice("+-x/")
    if sign in "x/":
        one, two = rng.randint(2, 20), rng.randint(2, 12)
        if sign == "/":
            one *= two
    else:
        one, two = rng.randint(2, 99), rng.randint(2, 60)
        if sign == "-" and two > one:
            one, two = two, one
    value = {"+": one + two, "-": one - two, "x": one * two, "/": one // two}[sign]
    spelt = f"{one} {sign} {two}"
    return spelt, f"{spelt} = {value}"
