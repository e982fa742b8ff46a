"""Incremental detokenization adds up to plain decoding, whatever the ids are."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Backend
from tokenizers import decoders, models
from transformers import PreTrainedTokenizerFast

from specrouter_llm.text.detokenizer import Detokenizer
from specrouter_llm.text.tokenizer import Tokenizer

PROPERTY = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def ids_of(tokenizer, max_size=60):
    """Sequences in which bytes are frequent (they make all the trouble), with special and unknown ids among them."""
    vocab = tokenizer.get_vocab()
    byte_like = [i for token, i in vocab.items() if len(token) == 1 or i in tokenizer.byte_ids]
    size = len(tokenizer)
    any_id = st.integers(-2, size + 10)
    text = st.text(alphabet="a é中😀\ufffd\n", max_size=6).map(tokenizer.encode_document)
    pieces = st.one_of(st.lists(st.sampled_from(byte_like), max_size=8), st.lists(any_id, max_size=4), text)
    return st.lists(pieces, max_size=12).map(lambda parts: [i for part in parts for i in part][:max_size])


def beyond(tokenizer, tail, output):
    """What `decode(tail + output)` has beyond its common beginning with `decode(tail)`."""
    before, whole = tokenizer.decode(tail), tokenizer.decode([*tail, *output])
    common = 0
    while common < min(len(before), len(whole)) and before[common] == whole[common]:
        common += 1
    return whole[common:]


def pieces_of(tokenizer, tail, output):
    detokenizer = Detokenizer(tokenizer, tail)
    return [*map(detokenizer.push, output), detokenizer.flush()]


@PROPERTY
@given(data=st.data())
def test_pieces_add_up_to_decode(any_tokenizer, data):
    """Without a prompt, the pieces joined are `decode` of all ids, at every point where one might flush."""
    output = data.draw(ids_of(any_tokenizer))
    assert "".join(pieces_of(any_tokenizer, [], output)) == any_tokenizer.decode(output)
    half = output[: len(output) // 2]
    assert "".join(pieces_of(any_tokenizer, [], half)) == any_tokenizer.decode(half)


@PROPERTY
@given(data=st.data())
def test_pieces_add_up_behind_a_prompt(any_tokenizer, data):
    """With a prompt, the pieces are what the output adds to the prompt's text."""
    tail, output = data.draw(ids_of(any_tokenizer, 10)), data.draw(ids_of(any_tokenizer))
    assert "".join(pieces_of(any_tokenizer, tail, output)) == beyond(any_tokenizer, tail, output)


@PROPERTY
@given(data=st.data())
def test_several_ids_at_once_are_several_ids(any_tokenizer, data):
    """Whatever the cuts, after each part as much text is out as one by one."""
    tail, output = data.draw(ids_of(any_tokenizer, 10)), data.draw(ids_of(any_tokenizer))
    together, single = Detokenizer(any_tokenizer, tail), Detokenizer(any_tokenizer, tail)
    while output:
        number = data.draw(st.integers(1, 6))
        part, output = output[:number], output[number:]
        assert together.push_all(part) == "".join(map(single.push, part))
    assert together.flush() == single.flush()


@PROPERTY
@given(data=st.data())
def test_released_text_is_final(any_tokenizer, data):
    """What was returned is a beginning of the decoded text under every continuation."""
    output, more = data.draw(ids_of(any_tokenizer, 30)), data.draw(ids_of(any_tokenizer, 6))
    detokenizer = Detokenizer(any_tokenizer)
    released = "".join(map(detokenizer.push, output))
    assert any_tokenizer.decode(output + more).startswith(released)
    assert released + detokenizer.peek() == any_tokenizer.decode(output)


def test_text_arrives_with_its_token(tokenizers):
    """Ordinary text is not held back: every token of it returns its own text at once."""
    tokenizer = tokenizers["demo"]
    ids = tokenizer.encode("Once upon a time there was a little girl.")
    detokenizer = Detokenizer(tokenizer)
    for n in range(1, len(ids) + 1):
        assert detokenizer.push(ids[n - 1]) == tokenizer.decode(ids[:n])[len(tokenizer.decode(ids[: n - 1])) :] != ""


def test_a_character_is_never_split(tokenizers):
    """The bytes of a character give nothing before the last one."""
    detokenizer = Detokenizer(tokenizers["byte_level"])
    ids = [tokenizers["byte_level"].get_vocab()[byte] for byte in "ðŁĺĢ"]
    assert [detokenizer.push(i) for i in ids] == ["", "", "", "😀"]


def test_the_models_own_replacement_character_is_kept(any_tokenizer):
    """U+FFFD as text of the model, not as a sign of broken bytes, comes out, also at the very end."""
    ids = any_tokenizer.encode_document("a\ufffd\ufffdb\ufffd")
    assert "".join(pieces_of(any_tokenizer, [], ids)) == "a\ufffd\ufffdb\ufffd"


def test_the_prompt_decides_about_the_first_space(tokenizers):
    """A first word keeps its space behind a prompt and loses it without one, as in `decode`."""
    tokenizer = tokenizers["sentencepiece"]
    word = tokenizer.get_vocab()["▁hi"]
    assert pieces_of(tokenizer, [], [word]) == ["hi", ""]
    assert pieces_of(tokenizer, tokenizer.encode("a"), [word]) == [" hi", ""]
    assert pieces_of(tokenizer, [tokenizer.get_vocab()["<s>"]], [word]) == ["hi", ""]


def test_a_character_that_the_prompt_began_is_completed(any_tokenizer):
    """A prompt that ends inside of a character leaves the whole character to the output."""
    vocab = any_tokenizer.get_vocab()
    names = ("<0xE4>", "<0xB8>", "<0xAD>") if any_tokenizer.byte_ids else ("ä", "¸", "Ń")
    first, second, third = (vocab[name] for name in names)
    assert "".join(pieces_of(any_tokenizer, [vocab["a"], first], [second, third, vocab["a"]])) == "中a"


def test_an_invalid_byte_spoils_its_run(tokenizers):
    """Byte-fallback tokens are returned when their run has ended: one bad byte changes the text of those before it."""
    tokenizer = tokenizers["sentencepiece"]
    vocab = tokenizer.get_vocab()
    run = [vocab[f"<0x{byte:02X}>"] for byte in (0xE4, 0xB8, 0xAD)]
    assert pieces_of(tokenizer, [], [*run, vocab["a"]]) == ["", "", "", "中a", ""]
    assert pieces_of(tokenizer, [], [*run, vocab["<0xFF>"], vocab["a"]]) == ["", "", "", "", "\ufffd" * 4 + "a", ""]


def test_only_a_valid_open_run_is_tentative(tokenizers):
    """`tentative` shows a valid run that may go on, and neither broken bytes nor text that is final anyway."""
    tokenizer = tokenizers["sentencepiece"]
    vocab = tokenizer.get_vocab()
    detokenizer = Detokenizer(tokenizer)
    seen = []
    for token in ("a", "<0x0A>", "<0xC3>", "<0xA9>", "b"):
        detokenizer.push(vocab[token])
        seen.append(detokenizer.tentative())
    assert seen == ["", "\n", "", "\né", ""]


def test_every_run_is_tentative_anew(tokenizers):
    """How many byte tokens earlier runs had does not matter."""
    tokenizer = tokenizers["sentencepiece"]
    vocab = tokenizer.get_vocab()
    detokenizer = Detokenizer(tokenizer)
    for token in ["<0x0A>", "a"] * 50:
        detokenizer.push(vocab[token])
    detokenizer.push(vocab["<0x0A>"])
    assert detokenizer.tentative() == "\n"


@pytest.mark.parametrize(
    "decoder",
    [
        decoders.WordPiece("##", cleanup=True),
        decoders.WordPiece("##", cleanup=False),
        decoders.BPEDecoder("</w>"),
        decoders.Metaspace(),
        decoders.Sequence([decoders.Metaspace(), decoders.ByteFallback(), decoders.Fuse()]),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)]),
        decoders.Fuse(),
        None,
    ],
    ids=str,
)
def test_pieces_add_up_for_other_decoders(decoder):
    """Decoders that join words with spaces, or change the first or the last token, need no more than the window."""
    tokens = ["a", "##b", "##", ".", "n't", "c</w>", "▁", "▁d", "▁▁", " ", "<0x0A>", "<0xE4>", "\ufffd", "[UNK]"]
    backend = Backend(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="[UNK]"))
    if decoder is not None:
        backend.decoder = decoder
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=backend))
    draw = random.Random(0)
    for _ in range(300):
        tail = draw.choices(range(len(tokens)), k=draw.randrange(4))
        output = draw.choices(range(len(tokens)), k=draw.randrange(30))
        assert "".join(pieces_of(tokenizer, [], output)) == tokenizer.decode(output)
        assert "".join(pieces_of(tokenizer, tail, output)) == beyond(tokenizer, tail, output)


@pytest.mark.parametrize("name", ["byte_level", "sentencepiece"])
@pytest.mark.parametrize("kind", ["garbage", "alternating", "text"])
def test_the_window_stays_short(tokenizers, name, kind):
    """No sequence makes the detokenizer decode more, in total, than a constant number of ids per token."""
    tokenizer = tokenizers[name]
    vocab = tokenizer.get_vocab()
    bad = vocab["<0xFF>"] if tokenizer.byte_ids else vocab["ÿ"]
    ids = {"garbage": [bad], "alternating": [bad, vocab["a"]], "text": [vocab["h"], vocab["i"]]}[kind] * 1500
    decoded = 0

    class Counting:
        text_ids, byte_ids = tokenizer.text_ids, tokenizer.byte_ids

        def decode_text_ids(self, ids):
            nonlocal decoded
            decoded += len(ids)
            return tokenizer.decode_text_ids(ids)

    assert "".join(pieces_of(Counting(), [], ids)) == tokenizer.decode(ids)
    assert decoded <= 20 * len(ids)
