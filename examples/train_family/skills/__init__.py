"""The family's skills: each module makes dialogues, and says of another answer whether it is right."""

from __future__ import annotations

from collections.abc import Callable

from examples.train_family.dialogue import Dialogue
from examples.train_family.skills import (
    arithmetic,
    code,
    context,
    editing,
    errands,
    lists,
    schema,
    smalltalk,
    stories,
    sums,
    tools,
)
from examples.train_family.words import Words

SKILLS: dict[str, Callable[[Words], Dialogue]] = {
    "arithmetic": arithmetic.sample,
    "sums": sums.sample,
    "context": context.sample,
    "tools": tools.sample,
    "errands": errands.sample,
    "lists": lists.sample,
    "schema": schema.sample,
    "editing": editing.sample,
    "chat": smalltalk.sample,
    "stories": stories.sample,
    "code": code.sample,
}
