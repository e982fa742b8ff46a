"""The one place that talks to a Hugging Face tokenizer."""

from __future__ import annotations

import copy
import inspect
import re
from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jinja2

from specrouter_llm.errors import InvalidParameterError, InvalidPromptError
from specrouter_llm.text.chat import plain_json, plain_messages
from specrouter_llm.text.control_tokens import ControlTokens, encode_continuation

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Arguments of apply_chat_template, which a template's own variables share a name space with.
_RESERVED = frozenset(
    {
        "add_generation_prompt",
        "chat_template",
        "continue_final_message",
        "conversation",
        "documents",
        "max_length",
        "messages",
        "padding",
        "return_assistant_tokens_mask",
        "return_dict",
        "return_tensors",
        "sanitize_control_tokens",
        "tokenize",
        "tokenizer_kwargs",
        "tools",
        "truncation",
    }
)
# What Python code inside a template raises, besides Jinja's own errors.
_TEMPLATE_ERRORS = (jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


class Tokenizer:
    """Text to ids and back, around a Hugging Face tokenizer, which it never changes.

    May be used by several threads at once.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, *, kept: frozenset[str] = frozenset()) -> None:
        """`kept` names special tokens that have text; all others have none."""
        self._tokenizer = tokenizer
        self._kept = kept
        self._keeping: dict[frozenset[str], Tokenizer] = {}
        self._control_tokens: dict[str, ControlTokens] = {}

    def __len__(self) -> int:
        """Number of tokens, added ones included."""
        return len(self._tokenizer)

    def get_vocab(self) -> dict[str, int]:
        """Id of every token, added ones included."""
        return dict(self._tokenizer.get_vocab())

    def keeping(self, names: Collection[str]) -> Tokenizer:
        """This tokenizer, but that the special tokens of these names have text. Other names change nothing."""
        kept = frozenset(names).intersection(self.added_tokens)
        if kept == self._kept:
            return self
        return self._keeping.setdefault(kept, Tokenizer(self._tokenizer, kept=kept))

    @cached_property
    def added_tokens(self) -> dict[str, int]:
        """Id of every token that is found in text as a whole, special ones included."""
        return {token.content: token_id for token_id, token in self._tokenizer.added_tokens_decoder.items()}

    @property
    def chat_template(self) -> str | None:
        """The Jinja source of the default chat template."""
        if not self._tokenizer.chat_template:
            return None
        try:
            return str(self._tokenizer.get_chat_template())
        except ValueError:  # several named templates, and none is called "default"
            return None

    @property
    def eos_token_ids(self) -> frozenset[int]:
        """The tokenizer's own end-of-sequence token; a generation config may name more."""
        eos = self._tokenizer.eos_token_id
        return frozenset() if eos is None else frozenset({int(eos)})

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that have no text: `decode` skips them."""
        added = self._tokenizer.added_tokens_decoder
        marked = {token_id for token_id, token in added.items() if token.special}
        kept = {self.added_tokens[name] for name in self._kept}
        return frozenset(marked | set(self._tokenizer.all_special_ids)) - kept

    @cached_property
    def text_ids(self) -> frozenset[int]:
        """Ids that have text: those in the vocabulary that are not special."""
        return frozenset(self._tokenizer.get_vocab().values()) - self.special_ids

    @cached_property
    def byte_ids(self) -> frozenset[int]:
        """Ids of the tokens that stand for one byte where the vocabulary has no better token: `<0x0A>` and so on."""
        vocab = self._tokenizer.get_vocab()
        return frozenset(i for token, i in vocab.items() if re.fullmatch("<0x[0-9A-Fa-f]{2}>", token)) & self.text_ids

    def to_json(self) -> str | None:
        """The tokenizer in the format of the `tokenizers` library; None for one that is written in Python."""
        backend = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            return None
        plain = copy.copy(backend)
        plain.no_padding()
        plain.no_truncation()
        return str(plain.to_str())

    def encode(self, text: str) -> list[int]:
        """Ids of a text prompt, with the special tokens that the tokenizer adds by itself (a BOS, for example).

        Special tokens that are spelled out in `text` become special tokens. Raises InvalidPromptError for anything
        but valid text.
        """
        return list(self._tokenizer.encode(_checked(text), verbose=False))

    def encode_document(self, text: str) -> list[int]:
        """Ids of a text as it would stand inside a prompt: nothing is added, and control tokens in it are mere text.

        Raises InvalidPromptError for anything but valid text, and where the tokenizer cannot write a control token of
        the text as ordinary text.
        """
        return self._control(self.chat_template or "").encode_text(_checked(text))

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Ids of a chat, ready for the assistant's answer: the chat template decides about every special token.

        Control tokens inside of what the caller supplies are mere text. `tools` are JSON schemas (or functions, which
        transformers turns into schemas); `template_kwargs` are further variables of the template. Raises
        InvalidPromptError when there is no template, when the template raises, and for malformed messages, among them
        those with content that is not text.
        """
        if not self._tokenizer.chat_template:
            raise InvalidPromptError(
                "this tokenizer has no chat template: give the prompt as text, or set the tokenizer's chat_template"
            )
        try:
            template = str(self._tokenizer.get_chat_template(None, tools))
        except ValueError as error:
            raise InvalidPromptError(f"no chat template fits: {error}") from error
        control = self._control(template)
        variables = plain_json(template_kwargs or {}, "template_kwargs", control.occurs_in)
        if clash := _RESERVED & variables.keys():
            raise InvalidPromptError(f"template_kwargs must not hold {', '.join(sorted(clash))}")
        plain = plain_messages(messages, control.names)
        return self._apply_template(
            control,
            plain_json(plain, "messages", control.occurs_in),
            tools=None if tools is None else [_plain_tool(tool, i, control) for i, tool in enumerate(tools)],
            **variables,
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Text of `ids`: special tokens and ids outside the vocabulary are skipped, spaces are left as they are."""
        return self.decode_text_ids([token_id for token_id in ids if token_id in self.text_ids])

    def decode_text_ids(self, ids: list[int]) -> str:
        """`decode` for a caller that has already kept to `text_ids`."""
        skip = not self._kept  # ids without text are not among `ids`, but kept ones may be
        return str(self._tokenizer.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False))

    def words_to_ids(self, words: Sequence[str | tuple[int, ...]]) -> tuple[tuple[int, ...], ...]:
        """The id sequences that stand for `words` within a text, each once.

        A word as text gives its encodings with and without a space before it; a sequence of ids stands for itself.
        Other spellings of the word (pieces, capitals) are not found. Raises InvalidParameterError for a word that
        encodes to nothing.
        """
        sequences: dict[tuple[int, ...], None] = {}
        for word in words:
            if not isinstance(word, str):
                sequences[tuple(word)] = None
                continue
            _checked(word)
            found = [tuple(encode_continuation(self._tokenizer, text)) for text in (word, " " + word)]
            if not all(found):
                raise InvalidParameterError(f"the word {word!r} has no tokens")
            sequences.update(dict.fromkeys(found))
        return tuple(sequences)

    def _apply_template(self, control: ControlTokens, messages: list[dict[str, Any]], **inputs: Any) -> list[int]:
        apply = self._tokenizer.apply_chat_template
        try:
            # The rendered text holds its own special tokens: neither way adds the tokenizer's on top.
            if sanitizes_control_tokens(self._tokenizer):
                ids = apply(
                    messages, add_generation_prompt=True, return_dict=False, sanitize_control_tokens=True, **inputs
                )
                return list(ids)
            inputs = {name: control.mark(value) for name, value in inputs.items()}
            text = apply(control.mark(messages), add_generation_prompt=True, tokenize=False, **inputs)
            return control.encode_marked(text)
        except InvalidPromptError:
            raise
        except _TEMPLATE_ERRORS as error:
            raise InvalidPromptError(f"the chat template cannot render these messages: {error}") from error

    def _control(self, template: str) -> ControlTokens:
        if template not in self._control_tokens:
            self._control_tokens[template] = ControlTokens(self._tokenizer, template)
        return self._control_tokens[template]


def sanitizes_control_tokens(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether transformers itself keeps control tokens in user input from becoming tokens (5.20 and later)."""
    return "sanitize_control_tokens" in inspect.signature(tokenizer.apply_chat_template).parameters


def _plain_tool(tool: Any, index: int, control: ControlTokens) -> Any:
    return tool if callable(tool) else plain_json(tool, f"tools[{index}]", control.occurs_in)


def _checked(text: object) -> str:
    if not isinstance(text, str):
        raise InvalidPromptError(f"expected text, got {type(text).__name__}")
    return str(plain_json(text, "the text"))
