"""What a grammar backend has to offer: a position in a grammar that can be advanced and taken back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class MatcherError(Exception):
    """The backend gave up, for example because a limit of its parser was reached."""


class Matcher(Protocol):
    """A position in a grammar. All methods but `copy` raise MatcherError."""

    def allowed(self) -> bytes:
        """A bit for every token id (bit i % 8 of byte i // 8): whether it may follow."""
        ...

    @property
    def accepts(self) -> bool:
        """Whether what was consumed satisfies the grammar."""
        ...

    @property
    def complete(self) -> bool:
        """Whether it accepts, and nothing may follow."""
        ...

    def advance(self, token_id: int) -> bool:
        """Consumes a token; False, and nothing has changed, if it may not follow."""
        ...

    def rollback(self, num_tokens: int) -> None:
        """Takes the last tokens back."""
        ...

    def closes(self, token_ids: Sequence[int]) -> bool:
        """Whether these tokens may follow and would satisfy the grammar. Changes nothing."""
        ...

    def forced(self) -> list[int]:
        """Tokens that have to follow; empty where there is a choice."""
        ...

    def copy(self) -> Matcher:
        """An independent matcher at the same position."""
        ...


class Vocabulary(Protocol):
    """The tokens of the target."""

    @property
    def texts(self) -> Sequence[bytes]:
        """The bytes of every token; none for special tokens."""
        ...

    @property
    def eos_ids(self) -> Sequence[int]:
        """Tokens that end a sequence."""
        ...

    def encode_bytes(self, text: bytes) -> list[int] | None:
        """Tokens that write exactly this text; None if there are none."""
        ...
