"""`specrouter chat`: a conversation, streamed, with the chain and its acceptance shown while it runs."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from specrouter_llm.cli.generate import summary
from specrouter_llm.cli.options import PoolOptions, said
from specrouter_llm.engine.spec_router import SpecRouter
from specrouter_llm.errors import ContextOverflowError, InvalidParameterError
from specrouter_llm.types import ChatMessage, Completion, StepInfo

COMMANDS = "/reset forgets the conversation, /quit leaves it"


@dataclass(slots=True)
class Status:
    """What an answer's steps have shown so far; written to by the engine's thread, read by the screen's."""

    chain: tuple[str, ...] = ()
    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    drafted: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)

    def add(self, step: StepInfo) -> None:
        """One step: for `on_step`."""
        self.chain = step.chain
        self.steps += 1
        self.tokens += len(step.committed)
        self.seconds += step.seconds
        for level in step.levels:
            self.drafted[level.model] += level.drafted
            self.accepted[level.model] += level.accepted

    def __str__(self) -> str:
        if not self.steps:
            return "reading ..."
        levels = [f"{name} {self.accepted[name]}/{count}" for name, count in list(self.drafted.items()) if count]
        return (
            f"{' > '.join(self.chain)}   {self.tokens} tokens, {self.tokens / max(self.seconds, 1e-9):.0f} tokens/s, "
            f"{self.tokens / self.steps:.2f} per target step   accepted/drafted: {', '.join(levels) or 'nothing drafted'}"
        )


class Conversation:
    """Messages so far, and the engine that answers them."""

    def __init__(self, engine: SpecRouter, system: str | None, options: Mapping[str, Any]) -> None:
        """Raises:
        InvalidParameterError: the target has no chat template.
        """
        if engine.tokenizer is None or engine.tokenizer.chat_template is None:
            raise InvalidParameterError(
                f"{engine.target} has no chat template: a conversation needs one; use `specrouter generate --raw`"
            )
        self._engine = engine
        self._options = options
        self._system: list[ChatMessage] = [{"role": "system", "content": system}] if system else []
        self.messages: list[ChatMessage] = list(self._system)

    def reset(self) -> None:
        """Back to the start."""
        self.messages = list(self._system)

    def answer(self, text: str, status: Status, show: Callable[[str], None]) -> Completion:
        """Answers one message, piece by piece; a conversation that has grown too long loses its oldest turns."""
        asked: ChatMessage = {"role": "user", "content": text}
        while True:
            try:
                handle = self._engine.stream([*self.messages, asked], on_step=status.add, **self._options)
                break
            except ContextOverflowError:
                if len(self.messages) <= len(self._system):
                    raise
                del self.messages[len(self._system) : len(self._system) + 2]
        for delta in handle:
            show(delta.text)
        completion = handle.result()[0].raise_for_error()
        self.messages += [asked, {"role": "assistant", "content": completion.text}]
        return completion


def run(
    pool: PoolOptions,
    *,
    system: str | None,
    policy: str,
    chain: Sequence[str] | None,
    windows: Sequence[int] | None,
    sampling: Mapping[str, Any],
) -> None:
    """Reads messages from the terminal, or one a line from standard input, until they end."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    options = {"chain": chain, "windows": windows, **said(sampling)}
    chosen = policy if chain is None else "off"  # a given chain leaves nothing to measure models for
    with pool.engine(progress=sys.stderr.isatty(), max_batch=1, policy=chosen) as engine:
        conversation = Conversation(engine, system, options)
        if interactive:
            print(f"{engine.labels[engine.target]}; {COMMANDS}")
        for text in _messages(interactive):
            if text == "/quit":
                return
            if text == "/reset":
                conversation.reset()
                print("The conversation starts anew.", file=sys.stderr)
            elif text.startswith("/"):
                print(f"There is no command {text.split()[0]}: {COMMANDS}.", file=sys.stderr)
            else:
                try:
                    _turn(conversation, text, interactive)
                except ContextOverflowError as error:
                    print(f"error: {error}", file=sys.stderr)


def _messages(interactive: bool) -> Iterator[str]:
    """Lines without the empty ones, until the end of the input or Ctrl-C at the prompt."""
    while True:
        try:
            line = input("> ") if interactive else next(sys.stdin)
        except (EOFError, StopIteration, KeyboardInterrupt):
            return
        if line.strip():
            yield line.strip()


def _turn(conversation: Conversation, text: str, interactive: bool) -> None:
    """One answer: with a live status line on a terminal, plain text else. Statistics go to stderr."""
    status = Status()
    if not interactive:
        completion = conversation.answer(text, status, lambda piece: print(piece, end="", flush=True))
        print()
        print(summary(completion), file=sys.stderr)
        return
    shown = Text()

    def show(piece: str) -> None:
        shown.append(piece)

    with Live(_Screen(shown, status), console=Console(), refresh_per_second=12, vertical_overflow="visible"):
        try:
            conversation.answer(text, status, show)
        except KeyboardInterrupt:  # the handle is dropped, which cancels the answer
            shown.append(" [stopped]", style="dim")


@dataclass(frozen=True, slots=True)
class _Screen:
    """The answer so far over its status, drawn anew by each refresh."""

    answer: Text
    status: Status

    def __rich__(self) -> Text:
        return Text.assemble(self.answer, "\n", (str(self.status), "dim"))
