"""A chat request on its way into an engine, and what can be asked about an engine before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from specrouter_llm.chat.dialect import Dialect, Thinking
from specrouter_llm.chat.grammar import (
    Rules,
    answer_form,
    call_rules,
    check_tool,
    enforceable,
    final_answer,
    grammar,
)
from specrouter_llm.chat.handle import ChatHandle
from specrouter_llm.chat.messages import explain_tools, rendered, template_messages
from specrouter_llm.chat.parser import END_THINK, ReplyParser
from specrouter_llm.chat.request import ChatRequest
from specrouter_llm.chat.tools import Tool, checked_tools
from specrouter_llm.chat.tracing import chat_span, describe
from specrouter_llm.chat.values import ChatResult, ModelInfo
from specrouter_llm.errors import InvalidParameterError, MissingDependencyError
from specrouter_llm.sampling.params import SamplingParams
from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.types import Completion

if TYPE_CHECKING:
    from specrouter_llm.engine.handle import Handle
    from specrouter_llm.engine.spec_router import SpecRouter


_OPTIONS = frozenset({"chain", "windows", "speculation", "draft_sources", "prediction", "timeout", "on_step"})


def submit(engine: SpecRouter, request: ChatRequest) -> ChatHandle:
    """Queues one chat and returns at once.

    Raises:
        InvalidParameterError, InvalidPromptError, ContextOverflowError: nothing was queued.
        MissingDependencyError: a call or a form is required, and llguidance is not installed.
        QueueFullError, EngineClosedError: nothing was queued.
    """
    params = (request.params or SamplingParams()).over(engine.default_params)  # a span shows what acts
    span = chat_span(engine.target, params)
    try:
        chat = _Chat(engine, request)
        handle = chat.queued()
    except BaseException as error:
        span.end(error)
        raise
    model, num_prompt_tokens = engine.target, len(chat.prompt_ids)

    def on_end(results: list[ChatResult], others: list[tuple[str, int]], error: BaseException | None) -> None:
        unread = params.n - len(results) - len(others)
        describe(span, model, results, num_prompt_tokens, [*others, *[("cancelled", 0)] * unread])
        span.end(error)

    return ChatHandle(handle, chat.parser, chat.reasoning_tokens, on_end)


def count_tokens(engine: SpecRouter, request: ChatRequest) -> int:
    """Length of the prompt that the request becomes, tools and template included. Raises InvalidPromptError."""
    return len(_Chat(engine, request).prompt_ids)


def model_info(engine: SpecRouter) -> ModelInfo:
    """What the engine's target is and can do."""
    dialect = Dialect.of(engine.tokenizer)
    return ModelInfo(
        name=engine.target,
        context_length=engine.max_context,
        supports_tools=dialect.shows_tools,
        supports_reasoning=dialect.thinks,
        chain=" -> ".join(engine.levels),
    )


class _Chat:
    """One request against one engine, checked."""

    def __init__(self, engine: SpecRouter, request: ChatRequest) -> None:
        self._engine = engine
        self._request = request
        self._params = request.params if request.params is not None else SamplingParams()
        if unknown := sorted(request.options.keys() - _OPTIONS):
            raise InvalidParameterError(
                f"unknown option {unknown[0]!r} of a chat; known: {', '.join(sorted(_OPTIONS))}"
            )
        self._dialect = Dialect.of(engine.tokenizer)
        self._tools = checked_tools(request.tools)
        self._choice = _checked_choice(request.tool_choice, self._tools)
        self._form = answer_form(request.response_format, self._params)
        self.prompt_ids = self._encode()
        self._thinking = Thinking.after(self.prompt_ids, engine.tokenizer, self._dialect)

    def queued(self) -> Handle:
        """Submits it. Raises what `submit` raises."""
        if self._may_call_freely():
            try:
                return self._queue(self._calls_once_begun())
            except (InvalidParameterError, MissingDependencyError):
                pass  # No grammar can be had here: the model is free, and the parser says what is wrong with its calls.
        return self._queue(self._constraint())

    def _queue(self, structured: StructuredOutput | None) -> Handle:
        params = self._params if structured is None else self._params.replace(structured=structured)
        return self._engine.submit(
            self.prompt_ids, params, keep_special_tokens=self._dialect.markers, **self._request.options
        )

    # ---------------------------------------------------------------- the prompt

    def _encode(self) -> list[int]:
        messages = template_messages(self._request.messages, short_ids=self._dialect.tool_format.short_ids)
        tools = [dict(tool) for tool in self._request.tools]
        if not self._dialect.shows_tools:
            messages, tools = explain_tools(messages, tools, self._dialect.tool_format), []
        return rendered(
            messages,
            lambda messages: self._engine.encode(
                messages, tools=tools or None, template_kwargs=self._request.template_kwargs
            ),
        )

    # ---------------------------------------------------------------- what the answer has to look like

    def _constraint(self) -> StructuredOutput | None:
        """The grammar of the answer, if it has to have one."""
        thinks, rules = self._thinking.expected, self._calls()
        form = self._form if self._choice in ("none", "auto") else None
        if not rules and (form is None or form.after is not None or not thinks):
            return form
        if form is not None and form.lark is not None and not rules:
            return form.model_copy(update={"after": END_THINK})
        if form is not None:
            rules = {**rules, **final_answer(form)}
        start = " | ".join(rule for rule in ("calls", "final") if rule in rules)
        space = r'"\n\n"? ' if thinks else ""
        after = END_THINK if thinks else None
        return StructuredOutput(lark=grammar({"start": f"{space}({start})", **rules}), after=after)

    def _calls(self) -> Rules:
        """The rules for calls, if there have to be any, or may be instead of a form. Raises UnsupportedSchemaError."""
        if self._choice == "none" or (self._choice == "auto" and self._form is None):
            return {}
        named = [tool for tool in self._tools if tool.name == self._choice]
        for tool in named or self._tools:
            check_tool(tool)
        return self._rules(named or self._tools, many=self._request.parallel_tool_calls and not named)

    def _may_call_freely(self) -> bool:
        """Whether the model decides about calls, and shows by a marker that it has."""
        free = self._choice == "auto" and self._form is None
        # In a think block a marker is nothing but a thought.
        return free and bool(self._dialect.tool_format.begin) and not self._thinking.expected

    def _calls_once_begun(self) -> StructuredOutput:
        """Free text; but a call that has begun is one of the tools', and so are those behind it."""
        rules = self._rules([enforceable(tool) for tool in self._tools], many=self._request.parallel_tool_calls)
        return StructuredOutput(
            lark=grammar({"start": "begun", **rules}), after=self._dialect.tool_format.begin, optional=True
        )

    def _rules(self, tools: Sequence[Tool], *, many: bool) -> Rules:
        return call_rules(self._dialect.tool_format, tools, self._dialect.token_ids, many=many)

    # ---------------------------------------------------------------- reading the answer

    def parser(self) -> ReplyParser:
        """For one sample."""
        return ReplyParser(
            self._dialect.tool_format if self._choice != "none" else None,
            [tool.name for tool in self._tools],
            may_think=self._thinking.expected,
            thinking=self._thinking.opened,
        )

    def reasoning_tokens(self, completion: Completion, reasoning: str) -> int:
        """Tokens up to the end of the think block, its marks included; counted anew where the mark is no token."""
        ids, end = completion.token_ids, self._dialect.token_ids.get(END_THINK)
        if end is not None:
            return ids.index(end) + 1 if end in ids else len(ids)
        tokenizer = self._engine.tokenizer
        return len(tokenizer.encode_document(reasoning)) if tokenizer is not None else 0


def _checked_choice(choice: str | None, tools: Sequence[Tool]) -> str:
    """ "auto", "none", "required" or a tool's name. Raises InvalidParameterError."""
    names = [tool.name for tool in tools]
    if choice is None:
        return "auto" if names else "none"
    if choice == "none" or (choice == "auto" and not names):
        return "none"
    if choice in ("auto", "required", *names) and names:
        return choice
    known = ", ".join(names) or "there are none"
    raise InvalidParameterError(
        f'tool_choice must be "auto", "none", "required" or the name of a tool ({known}), got {choice!r}'
    )
