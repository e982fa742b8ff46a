"""The shortest way to satisfy a grammar, against searches through everything."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.structured.closing import Closer
from specrouter_llm.structured.spelling import Spelling


class Words:
    """A matcher for a finite set of texts, over a vocabulary given by the bytes of its tokens."""

    def __init__(self, words, texts):
        self.words, self.texts, self.path = words, texts, []

    @property
    def written(self):
        return b"".join(self.texts[i] for i in self.path)

    @property
    def accepts(self):
        return self.written in self.words

    @property
    def complete(self):
        return self.accepts and not any(w.startswith(self.written) and w != self.written for w in self.words)

    def allowed(self):
        mask = bytearray((len(self.texts) + 7) // 8)
        for i, text in enumerate(self.texts):
            if any(word.startswith(self.written + text) for word in self.words):
                mask[i >> 3] |= 1 << (i & 7)
        return bytes(mask)

    def advance(self, token_id):
        self.path.append(token_id)
        if any(word.startswith(self.written) for word in self.words):
            return True
        self.path.pop()
        return False

    def rollback(self, num_tokens):
        del self.path[len(self.path) - num_tokens :]

    def closes(self, token_ids):
        return self.written + b"".join(self.texts[i] for i in token_ids) in self.words

    def forced(self):
        mask = self.allowed()
        legal = [i for i in range(len(self.texts)) if mask[i >> 3] >> (i & 7) & 1]
        return legal if len(legal) == 1 else []


ALPHABET = b'ab1"}'


def fewest(words, texts):
    """Length of the shortest sequence of tokens that writes one of the words, by trying all."""
    sizes = itertools.count()
    return next(size for size in sizes if any(b"".join(p) in words for p in itertools.product(texts, repeat=size)))


@given(
    words=st.sets(st.lists(st.sampled_from(ALPHABET), max_size=5).map(bytes), min_size=1, max_size=6),
    more=st.sets(st.lists(st.sampled_from(ALPHABET), min_size=2, max_size=4).map(bytes), max_size=3),
)
@settings(max_examples=300, deadline=None)
def test_tiny_grammars(words, more):
    """Random sets of words and random vocabularies: the number of tokens is the smallest, and known to be."""
    texts = [bytes([byte]) for byte in ALPHABET] + sorted(more)
    path, proven = Closer(texts).shortest(Words(words, texts), 20)
    assert proven
    assert b"".join(texts[i] for i in path) in words
    assert len(path) == fewest(words, texts)


@given(
    text=st.lists(st.sampled_from(b"abc"), max_size=7).map(bytes),
    more=st.sets(st.lists(st.sampled_from(b"abc"), min_size=2, max_size=4).map(bytes), max_size=6),
)
@settings(max_examples=200, deadline=None)
def test_spellings(text, more):
    """The fewest tokens for a text, and a bound that no continuation undercuts."""
    texts = [b"", b"a", b"b", b"c", *sorted(more)]
    spelling = Spelling(texts)
    path = spelling.shortest(text.decode("latin-1"))
    assert b"".join(texts[i] for i in path) == text
    assert len(path) == fewest({text}, texts[1:])
    costs = (0,)
    for size in range(1, len(text) + 1):
        costs = spelling.costs(text[:size].decode("latin-1"), costs)
        assert spelling.at_least(text[:size].decode("latin-1"), costs) <= len(path)
    assert costs[-1] == len(path)


def some_schema(rng):
    """(schema, all its JSON texts that could be shortest) of a usual small object."""
    properties, required, values = {}, [], {}
    for name in rng.sample(["city", "days", "ok", "a_longer_name", "x y"], rng.randint(0, 3)):
        kind = rng.choice(["enum", "boolean", "integer", "range", "string", "const"])
        low = rng.randint(-30, 120)
        high = low + rng.randint(0, 40)
        options = rng.sample(["Paris", "Oslo", "a longer one", "q", 12345678, None, True, [1, 2]], rng.randint(1, 4))
        properties[name], values[name] = {
            "enum": ({"enum": options}, options),
            "boolean": ({"type": "boolean"}, [True, False]),
            "integer": ({"type": "integer"}, range(-9, 100)),
            "range": ({"type": "integer", "minimum": low, "maximum": high}, range(low, high + 1)),
            "string": ({"type": "string"}, ["", "a", "the", "and"]),
            "const": ({"const": options[0]}, options[:1]),
        }[kind]
        if rng.random() < 0.8:
            required.append(name)
    schema = {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
    optional = [name for name in properties if name not in required]
    texts = []
    for size in range(len(optional) + 1):
        for left_out in itertools.combinations(optional, size):
            names = [name for name in properties if name not in left_out]
            for chosen in itertools.product(*(values[name] for name in names)):
                texts.append(json.dumps(dict(zip(names, chosen, strict=True)), separators=(",", ":")))
                if len(texts) > 2000:
                    return some_schema(rng)
    return schema, texts


@pytest.mark.parametrize("seed", range(12))
def test_usual_small_schemas(compiler, seed):
    """Objects of enums, numbers, strings and booleans: nothing is shorter among all short texts."""
    spelling = Spelling(compiler.compile(StructuredOutput(regex="x")).texts)
    rng = random.Random(seed)
    for _ in range(5):
        schema, texts = some_schema(rng)
        grammar = compiler.compile(StructuredOutput(json_schema=schema))
        assert len(grammar.shortest) == min(len(spelling.shortest(text)) for text in texts), schema


def test_what_is_known_to_be_shortest(compiler):
    """A search that left something out does not say that there is nothing shorter."""
    certain = {
        "type": "object",
        "properties": {"a": {"enum": ["x", "yy"]}},
        "required": ["a"],
        "additionalProperties": False,
    }
    assert compiler.compile(StructuredOutput(json_schema=certain)).is_shortest
    assert compiler.compile(StructuredOutput(choice=("one", "another"))).is_shortest
    for open_ended in (
        {"json_schema": {"type": "string", "minLength": 9}},
        {"regex": "[a-z]{4,}!"},
        {"lark": 'start: "a"'},
    ):
        assert not compiler.compile(StructuredOutput(**open_ended)).is_shortest
