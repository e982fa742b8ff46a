"""Log-probabilities of an answer's tokens in OpenAI's form: with what each token spells, in text and in bytes."""

from __future__ import annotations

from functools import cache, cached_property
from typing import Any

from specrouter_llm.text.tokenizer import Tokenizer
from specrouter_llm.types import Completion

_REPLACEMENT = "\ufffd"
_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = (byte for byte in range(0x100) if byte not in _PRINTABLE)
_BYTES = {chr(byte): byte for byte in _PRINTABLE} | {chr(0x100 + n): byte for n, byte in enumerate(_OTHERS)}
"""What the letters of byte-level vocabularies (GPT-2's alphabet) stand for."""


def logprobs(completion: Completion, tokenizer: Tokenizer | None) -> dict[str, Any] | None:
    """{"content": [{"token", "bytes", "logprob", "top_logprobs": [{"token", "bytes", "logprob"}, ...]}, ...]}.

    An entry for each token of the completion, in plain JSON types; None if the request did not ask for them. `token` is
    what it spells within a text, and the name of a special one. Of a piece of a character `token` has U+FFFD and `bytes`
    (of UTF-8) say which. Without a tokenizer, and for ids outside of its vocabulary, both are empty.
    """
    if completion.logprobs is None:
        return None
    spelled = cache(_Speller(tokenizer).spelled if tokenizer is not None else _unspelled)

    def entry(token_id: int, logprob: float) -> dict[str, Any]:
        token, raw = spelled(token_id)
        return {"token": token, "bytes": list(raw), "logprob": logprob}

    return {
        "content": [
            {**entry(chosen.token_id, chosen.logprob), "top_logprobs": [entry(*likely) for likely in chosen.top]}
            for chosen in completion.logprobs
        ]
    }


class _Speller:
    """What single tokens of a vocabulary spell."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._special = {i: name for name, i in tokenizer.added_tokens.items() if i in tokenizer.special_ids}

    def spelled(self, token_id: int) -> tuple[str, bytes]:
        """(text, its bytes)."""
        if (name := self._special.get(token_id)) is not None:
            return name, name.encode()
        # Behind itself: decoders may drop the space before the first token of a text.
        text = self._tokenizer.decode([token_id, token_id])[len(self._tokenizer.decode([token_id])) :]
        return text, self._raw(token_id) if _REPLACEMENT in text else text.encode()

    def _raw(self, token_id: int) -> bytes:
        """Bytes of a token that is no whole text by itself, or that stands for U+FFFD."""
        name = self._names[token_id]
        if token_id in self._tokenizer.byte_ids:
            return bytes.fromhex(name[3:5])
        return bytes(_BYTES[letter] for letter in name) if _BYTES.keys() >= set(name) else name.encode()

    @cached_property
    def _names(self) -> dict[int, str]:
        return {token_id: name for name, token_id in self._tokenizer.get_vocab().items()}


def _unspelled(token_id: int) -> tuple[str, bytes]:
    return "", b""
