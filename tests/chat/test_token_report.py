"""Log-probabilities in OpenAI's form: what each token spells, in text and in bytes, whatever the vocabulary."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from specrouter_llm.chat import logprobs
from specrouter_llm.text.tokenizer import Tokenizer
from specrouter_llm.types import Completion, FinishReason, SpeculationStats, Timings, TokenLogprob, Usage


def completion_of(token_ids, logprobs) -> Completion:
    return Completion(
        prompt_index=0,
        index=0,
        text="",
        token_ids=tuple(token_ids),
        finish_reason=FinishReason.STOP,
        stop_reason=None,
        seed=0,
        guarantee="bitwise",
        usage=Usage(1, len(token_ids), 0),
        stats=SpeculationStats(0, 0, 0, 0, (), 1, len(token_ids), ()),
        timings=Timings(0.0, 0.0, 0.0, 0.0, 0.0),
        logprobs=logprobs,
    )


def byte_level() -> Tokenizer:
    """A token for each byte, and pieces that end within a character: "中" is E4 B8 AD, "ä", "¸", "Ń" in its alphabet."""
    merges = [("h", "i"), ("Ġ", "hi"), ("ä", "¸"), ("Ń", "ä")]
    names = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *map("".join, merges)]
    backend = Backend(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


def sentencepiece() -> Tokenizer:
    """Words with their space before them, and `<0xE4>` for bytes of what it does not know."""
    merges = [("h", "i"), ("▁", "hi"), ("▁", "▁")]
    names = [*(f"<0x{i:02X}>" for i in range(256)), *"▁hi\ufffd", *map("".join, merges)]
    vocab = {name: i for i, name in enumerate(names)}
    backend = Backend(models.BPE(vocab=vocab, merges=merges, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>"))


def told(tokenizer, token_ids):
    """(token, bytes) of each id."""
    likely = tuple(TokenLogprob(token_id, -0.5) for token_id in token_ids)
    entries = logprobs(completion_of(token_ids, logprobs=likely), tokenizer)["content"]
    assert {entry["logprob"] for entry in entries} <= {-0.5}
    return [(entry["token"], bytes(entry["bytes"])) for entry in entries]


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
@pytest.mark.parametrize("text", [" hi hi", "  hi", " 中中 hi\n", " 😀", " é\ufffdh"])
def test_the_bytes_of_all_tokens_are_those_of_the_text(make, text):
    tokenizer = make()
    ids = tokenizer.encode(text if make is byte_level else text[1:])  # the other one adds a space
    spelled = told(tokenizer, ids)
    assert b"".join(raw for _, raw in spelled).decode() == text
    assert all(token.encode() == raw for token, raw in spelled if "\ufffd" not in token)


@pytest.mark.parametrize("make", [byte_level, sentencepiece])
def test_special_and_unknown_tokens(make):
    """A special token shows its name; an id beyond the vocabulary (logits are often padded) nothing."""
    tokenizer = make()
    (end,) = tokenizer.eos_token_ids
    assert told(tokenizer, (end, 10_000)) == [("</s>", b"</s>"), ("", b"")]


def test_top_logprobs():
    tokenizer = byte_level()
    h, i = (tokenizer.get_vocab()[letter] for letter in "hi")
    completion = completion_of((h,), logprobs=(TokenLogprob(h, -1.5, ((i, -0.25), (h, -1.5))),))
    assert logprobs(completion, tokenizer) == {
        "content": [
            {
                "token": "h",
                "bytes": [104],
                "logprob": -1.5,
                "top_logprobs": [
                    {"token": "i", "bytes": [105], "logprob": -0.25},
                    {"token": "h", "bytes": [104], "logprob": -1.5},
                ],
            }
        ]
    }


def test_nothing_unless_asked_for():
    assert logprobs(completion_of((1,), logprobs=None), byte_level()) is None
