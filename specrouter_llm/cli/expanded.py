"""Options in groups: typer reads one parameter per option, commands share whole sets of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from specrouter_llm.cli.arguments import Device, Drafts, Dtype, Target, Widen

if TYPE_CHECKING:
    from specrouter_llm.bench.models import Models


@dataclass(frozen=True, slots=True)
class Family:
    """The models of an experiment."""

    target: Target = "demo"
    drafts: Drafts = None
    dtype: Dtype = None
    device: Device = None
    widen: Widen = None
    """`none` is None, for experiments that are widened by default."""

    def models(self, *, target_only: bool = False) -> Models:
        """Not yet loaded; `target_only` widens no drafter."""
        from specrouter_llm.bench.models import Models

        widen = None if self.widen == "none" else self.widen
        return Models.of(self.target, self.drafts, self.dtype, self.device, widen, target_only=target_only)


DEMO = Family()


def expanded(command: Callable[..., None]) -> Callable[..., None]:
    """The command with the fields of a parameter whose default is a dataclass instance as options of their own."""
    signature = inspect.signature(command, eval_str=True)
    (group,) = (each for each in signature.parameters.values() if is_dataclass(each.default))
    kind = type(group.default)
    hints = get_type_hints(kind, include_extras=True)
    names = [field.name for field in fields(kind)]
    options: list[inspect.Parameter] = []
    for each in signature.parameters.values():
        alone = each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        if each is group:
            options += [
                alone.replace(name=name, default=getattr(group.default, name), annotation=hints[name]) for name in names
            ]
        else:
            options.append(alone)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        command(**{group.name: kind(**{name: given.pop(name) for name in names})}, **given)

    run.__signature__ = signature.replace(parameters=options)  # type: ignore[attr-defined]  # inspect and typer read it
    return run
