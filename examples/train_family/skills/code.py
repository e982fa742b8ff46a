"""Small Python functions, written from their signature and docstring."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable

from examples.train_family.dialogue import Dialogue, assistant, user
from examples.train_family.words import Words

# (verb and object of the name, docstring, body); {x} and {y} are parameter names, {n} is a number.
_TEMPLATES = (
    ("add_{n}", "{x}", "Return {x} plus {n}.", "return {x} + {n}"),
    ("times_{n}", "{x}", "Return {x} multiplied by {n}.", "return {x} * {n}"),
    ("total", "{x}", "Return the sum of the numbers in {x}.", "return sum({x})"),
    ("largest", "{x}", "Return the largest element of {x}.", "return max({x})"),
    ("smallest", "{x}", "Return the smallest element of {x}.", "return min({x})"),
    ("count_items", "{x}", "Return how many elements {x} has.", "return len({x})"),
    ("backwards", "{x}", "Return {x} reversed.", "return {x}[::-1]"),
    ("first_{n}", "{x}", "Return the first {n} elements of {x}.", "return {x}[:{n}]"),
    ("last_{n}", "{x}", "Return the last {n} elements of {x}.", "return {x}[-{n}:]"),
    ("in_order", "{x}", "Return the elements of {x} sorted.", "return sorted({x})"),
    ("unique", "{x}", "Return the set of the elements of {x}.", "return set({x})"),
    ("squares", "{x}", "Return the squares of the numbers in {x}.", "return [item * item for item in {x}]"),
    ("plus_{n}_each", "{x}", "Return the numbers in {x}, each plus {n}.", "return [item + {n} for item in {x}]"),
    ("evens", "{x}", "Return the even numbers in {x}.", "return [item for item in {x} if item % 2 == 0]"),
    ("odds", "{x}", "Return the odd numbers in {x}.", "return [item for item in {x} if item % 2 == 1]"),
    (
        "above_{n}",
        "{x}",
        "Return the numbers in {x} that are greater than {n}.",
        "return [item for item in {x} if item > {n}]",
    ),
    (
        "below_{n}",
        "{x}",
        "Return the numbers in {x} that are less than {n}.",
        "return [item for item in {x} if item < {n}]",
    ),
    ("is_empty", "{x}", "Return whether {x} is empty.", "return len({x}) == 0"),
    ("is_even", "{x}", "Return whether {x} is even.", "return {x} % 2 == 0"),
    ("add", "{x}, {y}", "Return the sum of {x} and {y}.", "return {x} + {y}"),
    ("difference", "{x}, {y}", "Return {x} minus {y}.", "return {x} - {y}"),
    ("product", "{x}, {y}", "Return the product of {x} and {y}.", "return {x} * {y}"),
    ("larger", "{x}, {y}", "Return the larger of {x} and {y}.", "if {x} > {y}:\n        return {x}\n    return {y}"),
    ("smaller", "{x}, {y}", "Return the smaller of {x} and {y}.", "if {x} < {y}:\n        return {x}\n    return {y}"),
    ("contains", "{x}, {y}", "Return whether {y} is in {x}.", "return {y} in {x}"),
    ("count_of", "{x}, {y}", "Return how often {y} occurs in {x}.", "return {x}.count({y})"),
    ("upper", "{x}", "Return the text {x} in upper case.", "return {x}.upper()"),
    ("words", "{x}", "Return the words of the text {x} as a list.", "return {x}.split()"),
    ("joined", "{x}", "Return the words in {x} joined by spaces.", 'return " ".join({x})'),
    ("starts_with", "{x}, {y}", "Return whether the text {x} begins with {y}.", "return {x}.startswith({y})"),
    ("mean", "{x}", "Return the average of the numbers in {x}.", "return sum({x}) / len({x})"),
    ("power", "{x}, {y}", "Return {x} to the power of {y}.", "return {x} ** {y}"),
    ("up_to", "{x}", "Return the numbers from 1 to {x} as a list.", "return list(range(1, {x} + 1))"),
    (
        "factorial",
        "{x}",
        "Return the factorial of {x}.",
        "result = 1\n    for i in range(1, {x} + 1):\n        result *= i\n    return result",
    ),
    ("keys_of", "{x}", "Return the keys of the dict {x} as a list.", "return list({x})"),
)
_NAMES = "x y n a b items numbers values data text words s lst seq left right first second".split()


def sample(words: Words) -> Dialogue:
    rng = words.rng
    name, parameters, about, body = rng.choice(_TEMPLATES)
    one, two = rng.sample(_NAMES, 2)
    filled = {"x": one, "y": two, "n": str(rng.randint(2, 30))}
    name = (
        name.format(**filled)
        if rng.random() < 0.5
        else rng.choice((words.invented(), f"{words.verb()}_{words.object()}"))
    )
    head = f'def {name}({parameters.format(**filled)}):\n    """{about.format(**filled)}"""\n'
    code = f"{head}    {body.format(**filled)}"
    asked = rng.choice(("Complete this Python function:\n", "Write this Python function:\n", "Finish the function.\n"))
    return Dialogue([user(f"{asked}{head}"), assistant(code)], is_right=_same_code(code))


def _same_code(code: str) -> Callable[[str], bool]:
    """A judge: the same syntax tree, however it is laid out; a fence of backticks around it is allowed."""
    wanted = ast.dump(ast.parse(code))

    def judge(text: str) -> bool:
        try:
            return ast.dump(ast.parse(re.sub(r"^```(?:python)?\n|```$", "", text.strip()))) == wanted
        except (SyntaxError, ValueError):
            return False

    return judge
