"""Stop strings, found in text that arrives in pieces of any size."""

from __future__ import annotations

from collections.abc import Sequence


class StopStrings:
    """Holds text back while it could still become a stop string, and ends it before the first stop string.

    The first stop string is the one that is complete first: generation can stop there without waiting for a longer one
    that began earlier. Of several that are complete at the same character the longest counts. The result does not
    depend on how the text is cut into pieces, and the cost per character does not depend on the text.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        if not all(stops):
            raise ValueError("a stop string must not be empty")
        # The longest first, so that it wins where several end at once.
        self._stops = tuple(_Matcher(stop) for stop in sorted(dict.fromkeys(stops), key=len, reverse=True))
        self._matched = [0] * len(self._stops)
        """For every stop, the length of its longest beginning that the text so far ends with (Knuth, Morris, Pratt)."""
        self._held = ""
        self._hit: str | None = None

    def push(self, text: str) -> tuple[str, str | None]:
        """Take in the next piece; return the text that is safe to release, and the stop string that was hit, if any.

        Everything from the stop string on is dropped. After a hit the answer is ("", the hit) for good.
        """
        if self._hit is not None or not self._stops:
            return ("", self._hit) if self._hit is not None else (text, None)
        pending = self._held + text
        for position, character in enumerate(text, start=len(self._held) + 1):
            for i, stop in enumerate(self._stops):
                self._matched[i] = stop.advance(self._matched[i], character)
            complete = next((s.text for s, n in zip(self._stops, self._matched, strict=True) if n == len(s.text)), None)
            if complete is not None:
                self._held, self._hit = "", complete
                return pending[: position - len(complete)], complete
        safe = len(pending) - max(self._matched)
        self._held = pending[safe:]
        return pending[:safe], None

    def flush(self) -> str:
        """Release what is held back. Text that comes after this cannot make a stop string with text before it."""
        held, self._held = self._held, ""
        self._matched = [0] * len(self._stops)
        return held

    def copy(self) -> StopStrings:
        """An independent StopStrings in the same state."""
        twin = StopStrings(())
        twin._stops, twin._matched = self._stops, list(self._matched)
        twin._held, twin._hit = self._held, self._hit
        return twin


class _Matcher:
    """One stop string and where to go on after a mismatch."""

    def __init__(self, text: str) -> None:
        self.text = text
        # _border[n]: length of the longest proper beginning of text[:n] that is also its end.
        self._border = [0, 0]
        for character in text[1:]:
            self._border.append(self.advance(self._border[-1], character))

    def advance(self, matched: int, character: str) -> int:
        """`matched` (fewer than all) characters were matched before `character`; how many are matched after it."""
        while matched and self.text[matched] != character:
            matched = self._border[matched]
        return matched + 1 if self.text[matched] == character else 0
