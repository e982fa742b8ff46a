"""One tool after another out of one toolbox: a definition is read once and several calls are learnt from it."""

from __future__ import annotations

from examples.train_family.dialogue import Dialogue, Message, assistant, calls_equal, result, user
from examples.train_family.skills.tools import Tool, toolbox
from examples.train_family.words import Words


def sample(words: Words) -> Dialogue:
    """A dialogue in which two tools or more are called in any order, and that ends with a call."""
    tools = toolbox(words, words.rng.choice((2, 3, 3, 4)))
    *earlier, last = words.rng.sample(tools, words.rng.randint(2, len(tools)))
    before = [message for tool in earlier for message in _answered(tool)]
    definitions = [tool.definition for tool in tools]
    return Dialogue([*before, user(last.request), last.call], definitions, calls_equal(last.call))


def _answered(tool: Tool) -> list[Message]:
    return [user(tool.request), tool.call, result(tool.result), assistant(tool.said)]
