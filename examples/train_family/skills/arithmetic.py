"""Word problems of one to three steps, each solved aloud; and bare sums."""

from __future__ import annotations

from examples.train_family.dialogue import Dialogue, assistant, number_is, user
from examples.train_family.words import Words


def sample(words: Words) -> Dialogue:
    rng = words.rng
    kinds = (_chain, _chain, _boxes, _boxes_and_loose, _share, _buy, _change, _compare, _rate, _total_of_two, _bare)
    question, steps, answer = rng.choice(kinds)(words)
    text = "\n".join(steps) + f"\nThe answer is {answer}"
    return Dialogue([user(question), assistant(text)], is_right=number_is(answer))


Problem = tuple[str, list[str], int]


def _chain(words: Words) -> Problem:
    """A heap that grows and shrinks one to three times."""
    rng = words.rng
    who, other = words.distinct(words.name, 2)
    things = words.things()
    have = rng.randint(5, 60)
    told, steps = (
        [rng.choice(("{} has {} {}.", "{} starts with {} {}.", "{} had {} {}.")).format(who, have, things)],
        [],
    )
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        step = rng.randint(2, 40)
        if rng.random() < 0.5 and step < have:
            event = rng.choice(("gives {n} to {o}", "loses {n}", "sells {n}", "uses {n} of them", "gives away {n}"))
            left = have - step
            steps.append(f"{who} {event.format(n=step, o=other)}, so {have} - {step} = {left}.")
        else:
            event = rng.choice(("finds {n} more", "buys {n} more", "gets {n} more from {o}", "makes {n} more"))
            left = have + step
            steps.append(f"{who} {event.format(n=step, o=other)}, so {have} + {step} = {left}.")
        told.append(rng.choice(("", "Then ", "Later ")) + f"{who} {event.format(n=step, o=other)}.")
        have = left
    asked = rng.choice((f"How many {things} does {who} have now?", f"How many {things} are left with {who}?"))
    return " ".join([*told, asked]), steps, have


def _boxes(words: Words) -> Problem:
    rng = words.rng
    who, things = words.name(), words.things()
    box = rng.choice(("box", "bag", "crate", "pack", "basket"))
    count, each = rng.randint(2, 9), rng.randint(2, 20)
    plural = "boxes" if box == "box" else f"{box}s"
    question = rng.choice(
        (
            f"{who} buys {count} {plural} of {things}. Each {box} holds {each}. How many {things} does {who} have in all?",
            f"{who} has {count} {plural} with {each} {things} in each. How many {things} is that?",
            f"There are {each} {things} in a {box}. {who} fills {count} {plural}. How many {things} does {who} need?",
        )
    )
    return (
        question,
        [f"There are {count} {plural} with {each} {things} each, so {count} x {each} = {count * each}."],
        count * each,
    )


def _boxes_and_loose(words: Words) -> Problem:
    rng = words.rng
    who, things = words.name(), words.things()
    count, each, loose = rng.randint(2, 9), rng.randint(2, 12), rng.randint(2, 40)
    filled = count * each
    steps = [f"The bags hold {count} x {each} = {filled} {things}."]
    if rng.random() < 0.5:
        question = (
            f"{who} has {count} bags with {each} {things} each and {loose} loose {things}. How many {things} is that?"
        )
        return question, [*steps, f"With the loose ones, {filled} + {loose} = {filled + loose}."], filled + loose
    gone = rng.randint(1, filled - 1)
    question = f"{who} has {count} bags with {each} {things} each and gives away {gone}. How many {things} are left?"
    return question, [*steps, f"After giving away {gone}, {filled} - {gone} = {filled - gone}."], filled - gone


def _share(words: Words) -> Problem:
    rng = words.rng
    who, things = words.name(), words.things()
    friends, each = rng.randint(2, 9), rng.randint(2, 12)
    total = friends * each
    question = rng.choice(
        (
            f"{who} shares {total} {things} equally among {friends} friends. How many {things} does each friend get?",
            f"{total} {things} are packed into {friends} boxes, the same number in each. How many are in one box?",
        )
    )
    return question, [f"{total} split into {friends} equal parts is {total} / {friends} = {each}."], each


def _buy(words: Words) -> Problem:
    rng = words.rng
    who = words.name()
    first, second = words.distinct(words.things, 2)
    many, price, other_many, other_price = (rng.randint(2, 9) for _ in range(4))
    one, two = many * price, other_many * other_price
    question = (
        f"{who} buys {many} {first} for {price} dollars each and {other_many} {second} for {other_price} dollars each. "
        "How much does it cost in all?"
    )
    steps = [
        f"The {first} cost {many} x {price} = {one} dollars.",
        f"The {second} cost {other_many} x {other_price} = {two} dollars.",
        f"Together that is {one} + {two} = {one + two}.",
    ]
    return question, steps, one + two


def _change(words: Words) -> Problem:
    rng = words.rng
    who, things = words.name(), words.things()
    many, price = rng.randint(2, 9), rng.randint(2, 9)
    cost = many * price
    paid = cost + rng.randint(1, 40)
    question = f"{who} has {paid} dollars and buys {many} {things} for {price} dollars each. How many dollars are left?"
    steps = [
        f"The {things} cost {many} x {price} = {cost} dollars.",
        f"What is left is {paid} - {cost} = {paid - cost}.",
    ]
    return question, steps, paid - cost


def _compare(words: Words) -> Problem:
    rng = words.rng
    who, other = words.distinct(words.name, 2)
    things = words.things()
    have, more = rng.randint(5, 60), rng.randint(2, 30)
    if rng.random() < 0.5:
        question = (
            f"{who} has {have} {things}. {other} has {more} more than {who}. How many {things} does {other} have?"
        )
        return question, [f"{other} has {have} + {more} = {have + more} {things}."], have + more
    question = f"{who} has {have + more} {things} and {other} has {have}. How many more {things} does {who} have?"
    return question, [f"The difference is {have + more} - {have} = {more}."], more


def _rate(words: Words) -> Problem:
    rng = words.rng
    who, things = words.name(), words.things()
    unit = rng.choice(("hour", "day", "week", "minute"))
    each, count = rng.randint(2, 15), rng.randint(2, 9)
    question = rng.choice(
        (
            f"{who} makes {each} {things} every {unit}. How many {things} does {who} make in {count} {unit}s?",
            f"{who} sells {each} {things} a {unit}. How many {things} are sold after {count} {unit}s?",
        )
    )
    return question, [f"In {count} {unit}s that is {count} x {each} = {count * each}."], count * each


def _total_of_two(words: Words) -> Problem:
    rng = words.rng
    who, other = words.distinct(words.name, 2)
    things = words.things()
    one, two = rng.randint(5, 80), rng.randint(5, 80)
    if rng.random() < 0.5:
        question = f"{who} has {one} {things} and {other} has {two}. How many {things} do they have together?"
        return question, [f"Together they have {one} + {two} = {one + two}."], one + two
    question = f"{who} has {one} {things}. {other} has twice as many. How many {things} does {other} have?"
    return question, [f"Twice as many is 2 x {one} = {2 * one}."], 2 * one


def _bare(words: Words) -> Problem:
    rng = words.rng
    sign = rng.choice("+-x")
    one, two = (rng.randint(2, 12), rng.randint(2, 12)) if sign == "x" else (rng.randint(1, 99), rng.randint(1, 99))
    if sign == "-" and two > one:
        one, two = two, one
    value = {"+": one + two, "-": one - two, "x": one * two}[sign]
    spoken = {"+": "plus", "-": "minus", "x": "times"}[sign]
    question = rng.choice(
        (f"What is {one} {spoken} {two}?", f"What is {one} {sign} {two}?", f"Compute {one} {sign} {two}.")
    )
    return question, [f"{one} {sign} {two} = {value}."], value
