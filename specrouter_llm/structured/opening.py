"""Free text before a grammar, and the string that ends it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence


class Opening:
    """Follows free text token by token. All that matters of it is how much of the string it ends with: `matched` bytes."""

    def __init__(
        self,
        after: str,
        texts: Sequence[bytes],
        names: Mapping[int, bytes],
        encode: Callable[[bytes], list[int] | None],
    ) -> None:
        """`texts[i]` are the bytes of token i; `names` those of special tokens in `after`, which have no text otherwise."""
        self._after = after.encode()
        self._texts = texts
        self._names = names
        last = self._after[-1:]
        self._candidates = sorted({*(i for i, text in enumerate(texts) if last in text), *names})
        self._enders: dict[int, list[int]] = {}
        self.endings = [encode(self._after[matched:]) for matched in range(len(self._after))]
        """By `matched`: tokens that write the rest of the string, and no more; None if there are none."""

    def advance(self, matched: int, token_id: int) -> tuple[int, bytes | None]:
        """`matched` after one more token, and what the token holds behind the string if the string is complete."""
        text = self._after[:matched] + (self._names.get(token_id) or self._texts[token_id])
        _, found, rest = text.partition(self._after)
        if found:
            return 0, rest
        longest = min(len(text), len(self._after) - 1)
        return next(size for size in range(longest, -1, -1) if text.endswith(self._after[:size])), None

    def enders(self, matched: int) -> Sequence[int]:
        """The tokens that complete the string."""
        if matched not in self._enders:
            self._enders[matched] = [i for i in self._candidates if self.advance(matched, i)[1] is not None]
        return self._enders[matched]
