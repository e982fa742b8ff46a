"""What constrained output has to look like: a plain description, without the machinery that enforces it."""

from __future__ import annotations

import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from specrouter_llm.errors import InvalidParameterError

_KINDS = ("json_schema", "regex", "lark", "choice")


class StructuredOutput(BaseModel):
    """A grammar for the output: exactly one of `json_schema`, `regex`, `lark` and `choice`.

    The text always satisfies it and is closed within `max_tokens`, unless it is `optional`. Raises InvalidParameterError
    when the object is made if it contradicts itself; whether the grammar can be compiled is known at submission.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    json_schema: dict[str, Any] | None = None
    """The text is one JSON value valid under this schema; properties come in the order of the schema."""
    regex: Annotated[str, Field(min_length=1)] | None = None
    """The text matches this regular expression as a whole (Rust syntax, no look-around, no back-references)."""
    lark: Annotated[str, Field(min_length=1)] | None = None
    """A context-free grammar in llguidance's Lark dialect; its rule `start` is the text."""
    choice: tuple[Annotated[str, Field(min_length=1)], ...] | None = Field(default=None, min_length=1)
    """The text is one of these."""
    after: Annotated[str, Field(min_length=1)] | None = None
    """The text is free up to and including the first occurrence of this string, and stop strings count in it; the
    grammar holds for what follows."""
    optional: bool = False
    """The free text need not come to `after`: it may end like text without a grammar, which it is until then."""
    whitespace: bool = False
    """JSON only: any whitespace between elements. Without it there is none, which is shorter and has one spelling."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise InvalidParameterError(_explain(error)) from None

    @model_validator(mode="after")
    def _check_together(self) -> StructuredOutput:
        given = [kind for kind in _KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(_KINDS)}; got {', '.join(given) or 'none'}")
        if self.whitespace and self.json_schema is None:
            raise ValueError("whitespace belongs to json_schema; in other grammars it is what the grammar says")
        if self.optional and self.after is None:
            raise ValueError("optional belongs to after: it says that the text may end without it")
        if self.json_schema is not None:
            try:
                json.dumps(self.json_schema, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"json_schema is not plain JSON: {error}") from None
        return self

    @property
    def key(self) -> str:
        """Equal for descriptions of one grammar. The order of a schema's properties counts."""
        return self.model_dump_json(exclude_defaults=True)

    def __hash__(self) -> int:
        return hash(self.key)


def _explain(error: ValidationError) -> str:
    """One line: which field, what is wrong."""
    lines = []
    for problem in error.errors():
        name = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = ", ".join(StructuredOutput.model_fields)
            lines.append(f"unknown field {name!r} of a structured output; known: {known}")
        else:
            lines.append(f"{name}: {problem['msg']}" if name else problem["msg"].removeprefix("Value error, "))
    return "; ".join(dict.fromkeys(lines))
