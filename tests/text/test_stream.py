"""The text of a completion: detokenized, and cut before the first stop string."""

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from specrouter_llm.text.stops import StopStrings
from specrouter_llm.text.stream import TextStream


def run(stream, ids, min_tokens=0):
    """All text, the stop string, and after how many tokens it was reported."""
    text = ""
    for count, token_id in enumerate(ids, start=1):
        piece, hit = stream.push(token_id, check_stops=count > min_tokens)
        text += piece
        if hit is not None:
            return text, hit, count
    text += stream.finish()
    return text, stream.hit, None


def letters(tokenizer, text):
    vocab = tokenizer.get_vocab()
    return [vocab[character] for character in text]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(alphabet="ab é😀\n", max_size=12),
    stops=st.lists(st.text(alphabet="ab é😀\n", min_size=1, max_size=3), max_size=3),
)
def test_the_text_ends_before_the_first_stop(any_tokenizer, text, stops):
    """The stream of a text is the text before its first stop string."""
    ids = any_tokenizer.encode_document(text)
    plain = StopStrings(stops)
    released, hit = plain.push(any_tokenizer.decode(ids))
    assert run(TextStream(any_tokenizer, [], stops), ids)[:2] == (released + plain.flush(), hit)


def test_a_stop_is_reported_by_the_token_that_completes_it(any_tokenizer):
    """No token is produced in vain behind a stop string."""
    ids = letters(any_tokenizer, "xaby")
    assert run(TextStream(any_tokenizer, [], ["ab"]), ids) == ("x", "ab", 3)


def test_a_newline_in_byte_fallback_stops_at_once(tokenizers):
    """A stop string in a run of byte tokens is found before the run has ended."""
    tokenizer = tokenizers["sentencepiece"]
    vocab = tokenizer.get_vocab()
    ids = [vocab["a"], vocab["<0x0A>"], vocab["b"]]
    assert run(TextStream(tokenizer, [], ["\n"]), ids) == ("a", "\n", 2)
    assert run(TextStream(tokenizer, [], ["\n\n"]), ids) == ("a\nb", None, None)
    assert run(TextStream(tokenizer, [], ["a\n"]), ids) == ("", "a\n", 2)


def test_a_stop_in_the_last_held_text_is_found_by_finish(tokenizers):
    """Text that only `finish` makes final is searched too; `hit` tells."""
    tokenizer = tokenizers["byte_level"]
    stream = TextStream(tokenizer, [], ["\ufffd"])
    assert run(stream, letters(tokenizer, "aä")) == ("a", "\ufffd", None)


def test_no_stop_before_min_tokens(any_tokenizer):
    """Text of unchecked tokens passes, and no stop string is found in it or across its end."""
    ids = letters(any_tokenizer, "ababab")
    assert run(TextStream(any_tokenizer, [], ["ab"]), ids, min_tokens=2) == ("ab", "ab", 4)
    assert run(TextStream(any_tokenizer, [], ["ab"]), ids, min_tokens=3) == ("abab", "ab", 6)
    assert run(TextStream(any_tokenizer, [], ["ab"]), ids, min_tokens=6) == ("ababab", None, None)


def test_held_text_of_unchecked_tokens_is_exempt(tokenizers):
    """Text that an unchecked token produced cannot stop the text, even if a later token makes it final."""
    tokenizer = tokenizers["sentencepiece"]
    vocab = tokenizer.get_vocab()
    newline, a = vocab["<0x0A>"], vocab["a"]
    assert run(TextStream(tokenizer, [], ["\n"]), [newline, a, newline], min_tokens=1) == ("\na", "\n", 3)
    assert run(TextStream(tokenizer, [], ["\n"]), [newline, newline], min_tokens=1) == ("\n", "\n", 2)
    assert run(TextStream(tokenizer, [], ["\n\n"]), [newline, newline], min_tokens=1) == ("\n\n", None, None)
    assert run(TextStream(tokenizer, [], ["\n"]), [a, newline], min_tokens=2) == ("a\n", None, None)


def test_unchecked_tokens_release_what_was_held(any_tokenizer):
    """A beginning of a stop string is released when the token after it is unchecked."""
    stream = TextStream(any_tokenizer, [], ["abc"])
    first, second, third = letters(any_tokenizer, "abc")
    assert stream.push(first) == ("", None)
    assert stream.push(second, check_stops=False) == ("ab", None)
    assert stream.push(third) == ("c", None)


def test_nothing_follows_a_stop(any_tokenizer):
    """After a hit the stream stays ended."""
    stream = TextStream(any_tokenizer, [], ["a"])
    (token,) = letters(any_tokenizer, "a")
    assert [stream.push(token), stream.push(token), stream.finish()] == [("", "a"), ("", "a"), ""]


def test_the_prompt_decides_about_the_first_space(tokenizers):
    """Behind special tokens and behind text, the first word is what decoding it there gives."""
    tokenizer = tokenizers["sentencepiece"]
    word = tokenizer.get_vocab()["▁hi"]
    for prompt, text in ((tokenizer.encode("a</s>"), " hi"), ([], "hi")):
        stream = TextStream(tokenizer, prompt, [])
        assert stream.push(word) == ("", None)
        assert stream.release() == text
        assert stream.release() == ""


def test_special_tokens_have_no_text(any_tokenizer):
    """Special tokens and ids beyond the vocabulary give no text, also inside of a word."""
    first, second = letters(any_tokenizer, "ab")
    ids = [first, min(any_tokenizer.special_ids), len(any_tokenizer) + 3, second]
    assert run(TextStream(any_tokenizer, [], []), ids)[0] == "ab"


def test_without_a_tokenizer_there_is_no_text():
    """An engine that works on ids alone gets empty text and no hits."""
    stream = TextStream(None, [1, 2], ["a"])
    assert [stream.push(3), stream.push(4, check_stops=False), stream.finish()] == [("", None), ("", None), ""]
