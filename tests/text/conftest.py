"""Three tokenizers that decode differently: the demo's, a byte-level one, and one in SentencePiece's manner."""

from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers import Tokenizer as Backend
from transformers import AutoTokenizer, PreTrainedTokenizerFast

import specrouter_llm
from specrouter_llm.text.tokenizer import Tokenizer

# Builds `<|role|>` from the role and writes `<tool_call>`, an added token that is not special.
TEMPLATE = (
    "{{ bos_token }}{% if tools %}<|system|>{{ tools | tojson }}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}"
    "{% for t in m.tool_calls or [] %}<tool_call>{{ t | tojson }}{% endfor %}<|end|>\n{% endfor %}"
    "{{ note or '' }}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|end|>>"]


def wrap(backend: Backend) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL], special_tokens=True)
    tokenizer.add_tokens([AddedToken("<tool_call>", special=False, normalized=False)])
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def byte_level() -> PreTrainedTokenizerFast:
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    # Merges that end in the middle of a character: "中" is E4 B8 AD, which the alphabet writes as "ä", "¸", "Ń".
    merges = [("h", "i"), ("Ġ", "hi"), ("ä", "¸"), ("Ń", "ä"), ("Ġ", "ä"), (">", ">")]
    vocab = {token: i for i, token in enumerate([*tokens, *("".join(pair) for pair in merges)])}
    backend = Backend(models.BPE(vocab=vocab, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return wrap(backend)


def sentencepiece() -> PreTrainedTokenizerFast:
    letters = ["▁", *'abcdefghijklmnopqrstuvwxyz<|>/_"{}:.', "\ufffd"]
    merges = [("h", "i"), ("▁", "hi"), ("▁", "a"), ("▁", "▁")]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *letters, *map("".join, merges)]
    vocab = {token: i for i, token in enumerate(tokens)}
    backend = Backend(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return wrap(backend)


def demo() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(Path(specrouter_llm.__file__).parent / "data/demo/target")


@pytest.fixture(scope="session")
def hf_tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    return {"demo": demo(), "byte_level": byte_level(), "sentencepiece": sentencepiece()}


@pytest.fixture(scope="session", params=["demo", "byte_level", "sentencepiece"])
def any_tokenizer(request, hf_tokenizers) -> Tokenizer:
    return Tokenizer(hf_tokenizers[request.param])


@pytest.fixture(scope="session")
def tokenizers(hf_tokenizers) -> dict[str, Tokenizer]:
    return {name: Tokenizer(tokenizer) for name, tokenizer in hf_tokenizers.items()}
