"""The text of one completion as it grows: detokenized, and ended before the first stop string."""

from __future__ import annotations

from collections.abc import Sequence

from specrouter_llm.text.detokenizer import Detokenizer
from specrouter_llm.text.stops import StopStrings
from specrouter_llm.text.tokenizer import Tokenizer

_TAIL = 16
"""Prompt tokens that the detokenizer gets to see; several, because special tokens have no text."""


class TextStream:
    """The text of one completion. Without a tokenizer it is always "", and no stop string is found.

    Text produced by tokens that were pushed with `check_stops=False` cannot be part of a stop string: stop strings
    are looked for only in the text after it. A character that such a token began counts as its text.
    """

    def __init__(self, tokenizer: Tokenizer | None, prompt_ids: Sequence[int], stops: Sequence[str]) -> None:
        self._detokenizer = None if tokenizer is None else Detokenizer(tokenizer, prompt_ids[-_TAIL:])
        self._stops = StopStrings(stops)
        self._has_stops = bool(stops)
        self._hit: str | None = None
        self._checked = True
        """Whether stop strings were looked for at the last token."""
        self._held: list[int] = []
        """Ids that nothing depends on before `release`: decoding costs about the same for one of them as for a few."""
        self._exempt = 0
        """Characters at the beginning of the text to come in which no stop string is looked for."""

    @property
    def hit(self) -> str | None:
        """The stop string that ended the text."""
        return self._hit

    def push(self, token_id: int, *, check_stops: bool = True) -> tuple[str, str | None]:
        """Take in the next id; return the text that is final now, and the stop string that ended it, if any.

        After a hit the answer is ("", the hit) for good. Without stop strings the text waits for `release`.
        """
        if self._detokenizer is None or self._hit is not None:
            return "", self._hit
        if not self._has_stops:
            self._held.append(token_id)
            return "", None
        if not check_stops:
            self._checked = False
            return self._stops.flush() + self._detokenizer.push(token_id), None
        if not self._checked:
            self._checked = True
            self._exempt = len(self._detokenizer.peek())
        released = self._release(self._detokenizer.push(token_id))
        if self._hit is None and (tentative := self._detokenizer.tentative()):
            released += self._end_early(tentative)
        return released, self._hit

    def release(self) -> str:
        """The text that is final and that no `push` has returned."""
        held, self._held = self._held, []
        return self._detokenizer.push_all(held) if self._detokenizer is not None and held else ""

    def finish(self) -> str:
        """The rest of the text, when there are no more ids. It may still hold a stop string: see `hit`."""
        if self._detokenizer is None or self._hit is not None:
            return ""
        text = self.release() + self._detokenizer.flush()
        if not self._checked:
            return self._stops.flush() + text
        released = self._release(text)
        return released if self._hit is not None else released + self._stops.flush()

    def _release(self, text: str) -> str:
        exempt, text = text[: self._exempt], text[self._exempt :]
        self._exempt -= len(exempt)
        released, self._hit = self._stops.push(text)
        return exempt + released

    def _end_early(self, tentative: str) -> str:
        """Text that only later ids could change is final if it ends the completion: look for a stop string in it.

        Otherwise a newline that is a byte-fallback token would be found one token late.
        """
        probe = self._stops.copy()
        released, hit = probe.push(tentative[self._exempt :])
        if hit is None:
            return ""
        self._stops, self._hit = probe, hit
        return tentative[: self._exempt] + released
