"""What LlamaIndex asks for, as requests of the engine: keyword arguments sorted out, tool choices named as OpenAI does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from specrouter_llm.chat import counterparts
from specrouter_llm.errors import InvalidParameterError
from specrouter_llm.sampling.params import SamplingParams

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

OPTIONS = frozenset({"chain", "windows", "speculation", "draft_sources", "prediction", "timeout", "on_step"})
"""How a request is decoded: the keyword options of `SpecRouter.submit`. Everything else changes what is said."""
CHAT_FIELDS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "response_format", "template_kwargs"})
"""Fields of a ChatRequest that a call may give."""


@dataclass(frozen=True, slots=True)
class Arguments:
    """The keyword arguments of one call, laid over the defaults of the model."""

    params: SamplingParams
    options: dict[str, Any]
    chat: dict[str, Any]

    @classmethod
    def sort(cls, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> Arguments:
        """None stands for "not given". Raises InvalidParameterError for what nobody knows."""
        merged = {key: value for source in (defaults, given) for key, value in source.items() if value is not None}
        options = {key: merged.pop(key) for key in OPTIONS & merged.keys()}
        chat = {key: merged.pop(key) for key in CHAT_FIELDS & merged.keys()}
        if not isinstance(chat.get("template_kwargs", {}), Mapping):
            raise InvalidParameterError(f"template_kwargs must be a dict, got {chat['template_kwargs']!r}")
        try:
            params = SamplingParams(**merged)
        except InvalidParameterError as error:
            raise InvalidParameterError(f"{error}{counterparts(merged)}") from None
        if params.n > 1:
            raise InvalidParameterError(
                "a LlamaIndex response holds one answer: n must be 1; call several times instead"
            )
        return cls(params, options, chat)


def tool_specs(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """The tools in OpenAI's form. Names of several tools must differ."""
    specs = [tool.metadata.to_openai_tool(skip_length_check=True) for tool in tools]
    names = [spec["function"]["name"] for spec in specs]
    if len(set(names)) < len(names):
        raise InvalidParameterError(f"two tools have the same name: {', '.join(names)}")
    return specs


def named_choice(choice: str | Mapping[str, Any] | None, names: Sequence[str], *, required: bool) -> str | None:
    """ "auto", "none", "required" or the name of a tool, from what LlamaIndex and its users write.

    Raises InvalidParameterError for a tool that is not there.
    """
    if isinstance(choice, Mapping):
        function = choice.get("function")
        choice = str(function.get("name", choice) if isinstance(function, Mapping) else choice)
    if choice is None:
        choice = "required" if required else None
    elif choice == "any":
        choice = "required"
    if choice not in (None, "auto", "none", "required", *names):
        raise InvalidParameterError(
            f"tool_choice {choice!r} is neither 'auto', 'none', 'required' nor one of the tools: {', '.join(names) or 'none'}"
        )
    if choice not in (None, "auto", "none") and not names:
        raise InvalidParameterError("a tool call is required, but there are no tools")
    return choice
