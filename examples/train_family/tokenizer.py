"""The family's tokenizer: byte-level BPE with digits apart, control tokens, and a chat template with tools."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

BOS, END, USER, ASSISTANT, SYSTEM, TOOL, PAD = SPECIAL = (
    "<|bos|>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
    "<|tool|>",
    "<|pad|>",
)
SPACE = "\u0120"
"""How byte-level tokenizers write a space."""
MARKERS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>")
"""Tokens of their own, but ordinary text when decoded."""

CHAT_TEMPLATE = """{{- bos_token }}
{%- set has_system = messages[0]['role'] == 'system' %}
{%- if has_system or tools %}<|system|>
{% if has_system %}{{ messages[0]['content'] }}
{%- if tools %}{{ '\\n' }}{% endif %}{% endif %}
{%- if tools %}<tools>
{% for t in tools %}{{ (t.function if t.function is defined else t) | tojson }}
{% endfor %}</tools>{% endif %}<|end|>
{% endif %}
{%- for m in (messages[1:] if has_system else messages) %}<|{{ m['role'] }}|>
{% if m['content'] %}{{ m['content'] }}{% endif %}
{%- for t in m['tool_calls'] or [] %}{% if not loop.first or m['content'] %}{{ '\\n' }}{% endif %}<tool_call>
{{ (t.function if t.function is defined else t) | tojson }}
</tool_call>{% endfor %}<|end|>
{% endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}"""


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A tokenizer of `vocab_size` ids, merges learnt from `texts` (which may hold rendered chats)."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(MARKERS),
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(texts, trainer)
    inner.add_tokens([AddedToken(marker, normalized=False, special=False) for marker in MARKERS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        additional_special_tokens=[USER, ASSISTANT, SYSTEM, TOOL],
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def load_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`, as `train_tokenizer` made it."""
    loaded: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(folder)
    return loaded


def word_pieces(tokenizer: PreTrainedTokenizerFast) -> list[str]:
    """All strings of two letters and more that tokens stand for, in lower case, with a space before them or without."""
    tokens = (token.removeprefix(SPACE) for token in tokenizer.get_vocab())
    return sorted({token.lower() for token in tokens if len(token) > 1 and token.isascii() and token.isalpha()})
