"""Pieces of an answer as responses, whatever the pieces are."""

from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from llama_index.llms.specrouter.messages import to_openai
from llama_index.llms.specrouter.responses import Answer, tool_selections
from specrouter_llm.chat import ChatDelta, ToolCallDelta

JSON = st.dictionaries(
    st.text(max_size=5), st.one_of(st.integers(), st.text(max_size=8), st.lists(st.booleans(), max_size=3)), max_size=4
)


def cut(text: str, at: list[int]) -> list[str]:
    """`text` in pieces; some may be empty."""
    places = [0, *sorted(place % (len(text) + 1) for place in at), len(text)]
    return [text[a:b] for a, b in itertools.pairwise(places)]


def delta(content="", reasoning="", calls=()):
    return ChatDelta(0, content, reasoning, tuple(calls), None, ())


PLACES = st.lists(st.integers(0, 10_000), max_size=6)


@given(content=st.text(), reasoning=st.text(min_size=1), at=PLACES)
def test_text_accumulates(content, reasoning, at):
    """Every response holds all there is so far, and its own piece; thoughts and text do not mix."""
    answer = Answer()
    thought = [answer.add(delta(reasoning=piece)) for piece in cut(reasoning, at)]
    said = [answer.add(delta(content=piece)) for piece in cut(content, at)]
    assert "".join(r.additional_kwargs.get("thinking_delta", "") for r in thought) == reasoning
    assert "".join(r.delta for r in said) == content
    assert [r.message.content for r in said] == ["".join(s.delta for s in said[: i + 1]) for i in range(len(said))]
    assert said[-1].message.blocks[0].content == reasoning


@given(arguments=st.lists(JSON, min_size=1, max_size=3), at=PLACES)
def test_calls_accumulate(arguments, at):
    """However the text of the calls is cut: they can be read at any moment, end up whole, and go back as they came."""
    answer = Answer()
    for index, values in enumerate(arguments):
        for number, piece in enumerate(cut(json.dumps(values), at)):
            first = number == 0
            call = ToolCallDelta(index, f"call_{index}" if first else None, "f" if first else None, piece)
            last = answer.add(delta(calls=[call]))
            assert len(tool_selections(last.message)) == index + 1
    selections = tool_selections(last.message)
    assert [selection.tool_kwargs for selection in selections] == arguments
    assert [selection.tool_id for selection in selections] == [f"call_{i}" for i in range(len(arguments))]
    (back,) = to_openai([last.message])
    assert [json.loads(call["function"]["arguments"]) for call in back["tool_calls"]] == arguments
    assert [call["id"] for call in back["tool_calls"]] == [
        call["id"] for call in last.message.additional_kwargs["tool_calls"]
    ]
