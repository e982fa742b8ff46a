"""Stop strings end text at the same place however it is cut into pieces."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specrouter_llm.text.stops import StopStrings

TEXT = st.text(alphabet="ab", max_size=20)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=0, max_size=4)


def oracle(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Look at ever longer beginnings of the text; the first that ends with a stop string decides, the longest one."""
    for end in range(1, len(text) + 1):
        hits = [stop for stop in stops if text[:end].endswith(stop)]
        if hits:
            longest = max(hits, key=len)
            return text[: end - len(longest)], longest
    return text, None


@given(text=TEXT, stops=STOPS, cuts=st.lists(st.integers(0, 20)))
def test_every_chunking_gives_the_text_before_the_first_stop(text, stops, cuts):
    """Pieces of any size release the same text and report the same stop string, at the piece that completes it."""
    borders = sorted({0, len(text), *(cut for cut in cuts if cut <= len(text))})
    watcher, released, hit = StopStrings(stops), "", None
    for start, end in pairwise(borders):
        piece, hit = watcher.push(text[start:end])
        released += piece
        assert hit == oracle(text[:end], stops)[1]
    assert (released + watcher.flush(), hit) == oracle(text, stops)


@given(text=TEXT, stops=STOPS)
def test_exactly_what_could_become_a_stop_is_held(text, stops):
    """Between pieces, the text held back is the longest end of the text that begins some stop string."""
    watcher = StopStrings(stops)
    released, hit = watcher.push(text)
    if hit is None:
        beginnings = [stop[:n] for stop in stops for n in range(len(stop)) if text.endswith(stop[:n])]
        assert released == text[: len(text) - max(map(len, beginnings), default=0)]


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("abcd", ["abcd", "bc"], ("a", "bc")),  # complete first, although "abcd" begins earlier
        ("xabc", ["bc", "abc"], ("x", "abc")),  # complete at once: the longest
        ("aaab", ["aab"], ("a", "aab")),  # overlaps itself
        ("no", ["yes"], ("no", None)),
    ],
)
def test_which_stop_counts(text, stops, expected):
    """The stop string that is complete first ends the text; of several at once, the longest."""
    assert StopStrings(stops).push(text) == expected


def test_nothing_follows_a_hit():
    """After a hit all text is dropped and the hit is repeated."""
    watcher = StopStrings(["b"])
    assert watcher.push("abc") == ("a", "b")
    assert (watcher.push("more"), watcher.flush()) == (("", "b"), "")


def test_flush_forgets_what_was_matched():
    """A stop string does not reach across a flush."""
    watcher = StopStrings(["ab"])
    assert (watcher.push("xa"), watcher.flush(), watcher.push("b")) == (("x", None), "a", ("b", None))


def test_a_copy_is_independent():
    """Text pushed to a copy leaves the original as it was."""
    watcher = StopStrings(["ab"])
    watcher.push("a")
    assert watcher.copy().push("b") == ("", "ab")
    assert (watcher.push("c"), watcher.flush()) == (("ac", None), "")


def test_an_empty_stop_string_is_refused():
    """An empty string would be found everywhere."""
    with pytest.raises(ValueError, match="must not be empty"):
        StopStrings(["a", ""])
