"""Pairs of vocabularies."""

import pytest

from specrouter_llm.errors import VocabularyMismatchError
from specrouter_llm.pool import ModelPool
from specrouter_llm.pool.checks import Vocabulary, check_vocabulary


def test_a_mismatch_names_models_ids_and_tokens(save_model, make_tokenizer):
    """The message holds both models, the first differing id and both tokens, and what to do."""
    target = save_model("big")
    draft = save_model("small", tokenizer=make_tokenizer(changes={7: "seven", 9: "nine"}))
    with pytest.raises(VocabularyMismatchError) as caught:
        ModelPool.load(target, [draft], progress=False)
    text = str(caught.value)
    assert "'big' and 'small'" in text
    assert "2 token ids differ, the first is id 7: 'w7' in 'big', 'seven' in 'small'" in text
    assert "not supported yet" in text


def test_a_draft_with_a_longer_tail_and_wider_logits(save_model, make_tokenizer):
    """The same prefix with padding or additional tokens is accepted, in both directions, and widths are reported."""
    target = save_model("big", vocab_size=48)
    draft = save_model("small", vocab_size=64, tokenizer=make_tokenizer(size=56))
    pool = ModelPool.load(target, [draft], progress=False)
    assert (pool.target.vocab_size, pool.drafts[0].vocab_size) == (48, 64)
    pool = ModelPool.load(draft, [target], progress=False)
    assert (pool.target.vocab_size, pool.drafts[0].vocab_size) == (64, 48)


def test_added_tokens_are_compared(make_tokenizer):
    """A token that was added after training takes part in the comparison."""
    one, other = make_tokenizer(), make_tokenizer()
    one.add_tokens(["<tool>"])
    other.add_tokens(["<think>"])
    with pytest.raises(VocabularyMismatchError, match="id 40: '<tool>' in 'a', '<think>' in 'b'"):
        check_vocabulary(Vocabulary.of("a", 41, one), Vocabulary.of("b", 41, other))


def test_without_a_tokenizer_there_is_nothing_to_compare(save_model):
    """One side, or both, may have no tokenizer; a smaller draft vocabulary counts as a prefix."""
    target = save_model("big")
    bare = save_model("bare", tokenizer=None, vocab_size=32)
    assert ModelPool.load(target, [bare], progress=False).drafts[0].tokenizer is None
    assert ModelPool.load(bare, [target], progress=False).tokenizer is None
