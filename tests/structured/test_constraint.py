"""A row's grammar as a pure function of its context, and outputs that are always closed in time."""

from __future__ import annotations

import json
import random
import re

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specrouter_llm.sampling.constraint import ENDED, LIVE, Progress

NESTED = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "parts": {
            "type": "array",
            "minItems": 2,
            "items": {"type": "object", "properties": {"id": {"type": "integer"}}, "required": ["id"]},
        },
        "kind": {"enum": ["first", "second"]},
        "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
    },
    "required": ["name", "parts", "kind", "next"],
    "additionalProperties": False,
}
SPECS = {
    "nested": {"json_schema": NESTED},
    "any": {"json_schema": {}},
    "spaced": {"json_schema": NESTED, "whitespace": True},
    "items": {"json_schema": {"type": "array", "items": {"type": "string"}, "minItems": 20}},
    "long string": {"json_schema": {"type": "string", "minLength": 120}},
    "regex": {"regex": "[A-Z]{2,}[0-9]+(x|y)*z"},
    "loop": {"regex": "[^q]*q"},
    "optional": {"regex": "(ab)*"},
    "choice": {"choice": ["yes", "yes, of course", "no"]},
    "lark": {"lark": 'start: "(" inner ")"\ninner: start | %json {"type": "boolean"} | /[a-z]+/\n'},
    "free": {"json_schema": {"type": "integer"}, "after": "</think>"},
    "free, special": {"lark": 'start: "a" "b"*', "after": "<|user|>"},
    "free, choice": {"choice": ["a/b", 'say "x"'], "after": "A/B:\n"},
    "free, its own end": {"regex": "a+", "after": "aab"},
    "free, regex": {"regex": r"\d\d/\d\d", "after": "the date. "},
}


def matches(name, text):
    """Whether a text satisfies one of SPECS, decided without the backend."""
    spec = SPECS[name]
    if spec.get("after") == "<|user|>":
        text = text[re.match(".*(?=ab*$)", text, re.DOTALL).end() :]
    elif "after" in spec:
        text = text[text.index(spec["after"]) + len(spec["after"]) :]
    if "json_schema" in spec:
        jsonschema.validate(json.loads(text), spec["json_schema"])
        return True
    if "choice" in spec:
        return text in spec["choice"]
    if name == "lark":
        return re.fullmatch(r"\(*(true|false|[a-z]+)\)*", text) and text.count("(") == text.count(")") > 0
    return re.fullmatch(spec.get("regex", "ab*"), text)


def walk(tools, constraint, rng, budget, *, stay=0.0):
    """Random legal choices until the output ends, as the engine would make them; returns the tokens."""
    output = []
    while True:
        allowed = tools.ids_of(constraint, ())
        if stay and len(allowed) > 1 and rng.random() < stay:
            allowed = [i for i in allowed if i != tools.EOS]
        token_id = constraint.fitting((), rng.choice(allowed))
        progress = constraint.progress([token_id])
        assert progress is not Progress.DEAD
        constraint.commit([token_id])
        output.append(token_id)
        if progress in ENDED:
            return output
        if len(output) == budget:
            assert progress is Progress.VALID
            return output


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("slack", [0, 1, 7, 40])
def test_every_output_is_closed_within_its_budget(tools, name, slack):
    """Whatever the choices, the text is valid and no longer than allowed; the smallest budget is enough."""
    shortest = len(tools.constraint(**SPECS[name])._grammar.shortest)
    for seed in range(4):
        budget = max(1, shortest + slack)
        output = walk(tools, tools.constraint(budget, **SPECS[name]), random.Random(seed), budget, stay=0.9)
        assert len(output) <= budget
        assert matches(name, tools.tokenizer.decode(output)), tools.tokenizer.decode(output)


@pytest.mark.parametrize(
    ("schema", "text"),
    [
        # Which value of an enumeration is the shortest is up to the vocabulary.
        (NESTED, '{"name":"","parts":[{"id":1},{"id":1}],"kind":"KIND","next":null}'),
        (SPECS["items"]["json_schema"], json.dumps([""] * 20, separators=(",", ":"))),
        ({"type": "string", "format": "date"}, '"1111-11-11"'),
        ({"type": "object", "properties": {"a": {"$ref": "#"}}}, "{}"),
    ],
    ids=["nested", "items", "format", "recursive"],
)
def test_closings_are_short(tools, schema, text):
    """Values of required keys are the shortest, what is optional is left out."""
    closing = tools.constraint(json_schema=schema)._grammar.shortest
    assert re.sub('"kind":"(first|second)"', '"kind":"KIND"', tools.tokenizer.decode(closing)) == text


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "string", "format": "uri", "minLength": 1, "maxLength": 2083},  # pydantic's HttpUrl
        {"type": "string", "format": "email", "maxLength": 1000},
        {"type": "string", "pattern": "^[a-z]+:[a-z]+$", "maxLength": 2083},
    ],
    ids=["uri", "email", "pattern"],
)
def test_a_bound_far_away_is_not_written_up_to(tools, schema):
    """The way that is preferred leads on and on, to the bound: another one is tried."""
    whole = {"type": "object", "properties": {"v": schema}, "required": ["v"]}
    closing = tools.constraint(json_schema=whole)._grammar.shortest
    assert len(closing) <= 12, tools.tokenizer.decode(closing)


@given(st.sampled_from(sorted(SPECS)), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_a_matcher_after_hypotheses_equals_a_fresh_one(tools, name, seed):
    """Asking about hypotheses, legal or not, in any order changes no later answer: masks and closings are pure."""
    rng = random.Random(seed)
    worn, output = tools.constraint(300, **SPECS[name]), []
    for _ in range(12):
        hypotheses = []
        for _ in range(3):
            hypothesis = []
            while len(hypothesis) < rng.randint(0, 5) and (allowed := tools.ids_of(worn, hypothesis)):
                legal = rng.random() < 0.9
                hypothesis.append(rng.choice(allowed) if legal else rng.randrange(tools.WIDTH))
            hypotheses.append(hypothesis)
        fresh = tools.constraint(300, **SPECS[name])
        fresh.commit(output)
        for hypothesis in hypotheses:
            for size in range(len(hypothesis), -1, -1):
                context = hypothesis[:size]
                assert worn.progress(context) is fresh.progress(context)
                assert worn._state(tuple(context)) == fresh._state(tuple(context))
                assert tools.ids_of(worn, context) == tools.ids_of(fresh, context)
        taken = next((h for h in hypotheses if h and worn.progress(h) in LIVE), None)
        if taken is None:
            break
        worn.commit(taken)
        output += taken


def test_the_end_is_allowed_exactly_where_the_grammar_accepts(tools):
    """And is a choice only there; where nothing else may follow the output is complete without it."""
    constraint = tools.constraint(regex="ab(cd)?")
    ids = {text: tools.tokenizer.encode(text) for text in ("a", "b", "c", "d")}
    a, b, c, d = (ids[text][-1] for text in "abcd")
    assert tools.EOS not in tools.ids_of(constraint, [])
    assert constraint.progress([a]) is Progress.OPEN
    assert constraint.progress([a, b]) is Progress.VALID
    assert tools.EOS in tools.ids_of(constraint, [a, b])
    assert constraint.progress([a, b, tools.EOS]) is Progress.CLOSED
    assert constraint.progress([a, tools.EOS]) is Progress.DEAD
    assert constraint.progress([a, b, c, d]) is Progress.COMPLETE
    assert constraint.allowed([a, b, c, d]) is None
    assert constraint.progress([a, b, c, d, tools.EOS]) is Progress.DEAD


def test_an_end_inside_a_hypothesis_is_taken_back(tools):
    """An end-of-sequence token in the middle of a draft leaves no trace."""
    constraint, fresh = tools.constraint(regex="a*"), tools.constraint(regex="a*")
    a = tools.tokenizer.encode("a")[-1]
    assert constraint.progress([a, a, tools.EOS, a, a]) is Progress.DEAD
    constraint.commit([a])
    fresh.commit([a])
    assert tools.ids_of(constraint, [a]) == tools.ids_of(fresh, [a])


def test_a_token_that_straddles_the_end_of_the_free_text_counts_for_both(tools):
    """`after` may end in the middle of a token; the rest of the token is the grammar's."""
    constraint = tools.constraint(regex="[a-z]+!", after="t")
    straddling = tools.tokenizer.encode("the")[-1:]
    assert len(tools.tokenizer.encode("the")) == 1
    assert constraint.progress(straddling) is Progress.OPEN
    assert constraint.progress([*straddling, *tools.tokenizer.encode("n!")[-2:]]) is Progress.COMPLETE
    other = tools.constraint(regex="[A-Z]+!", after="t")
    assert other.progress(straddling) is Progress.DEAD
    assert straddling[0] not in tools.ids_of(other, [])


@pytest.mark.parametrize("after", [["x"], ["<|user|>"], ["z", "x"], ["the", "<|user|>", "x"]], ids="".join)
@pytest.mark.parametrize("budget", [3, 7, 9, 30])
def test_an_optional_grammar_begins_only_with_room_for_it(tools, after, budget):
    """Any token may come in free text, the end too; but none that begins what could not be closed."""
    a, *marker = (tools.tokenizer.encode(text)[-1] for text in ["a", *after])
    for num_before in range(budget + 1 - len(marker)):
        spec = {"choice": ["[yes, of course, it is]"], "after": "".join(after), "optional": True}
        constraint = tools.constraint(budget, **spec)
        shortest = len(constraint._grammar.entry(b"").closing)
        constraint.commit([*[a] * num_before, *marker[:-1]])
        assert constraint.progress(()) is Progress.FREE
        assert constraint.progress([tools.EOS]) is Progress.CLOSED
        room = budget - num_before - len(marker) >= shortest
        allowed = constraint.allowed(())
        assert (allowed is None or bool(allowed[marker[-1]])) == room
        assert room or constraint.fitting((), marker[-1]) == tools.EOS
        assert constraint.progress(marker[-1:]) is (Progress.OPEN if room else Progress.DEAD)


def test_forced_tokens_are_drafted(tools):
    """Where there is no choice there is a proposal, and a proposal is cut where it leaves the grammar."""
    schema = {"type": "object", "properties": {"name": {"type": "boolean"}}, "required": ["name"]}
    constraint = tools.constraint(json_schema=schema | {"additionalProperties": False})
    forced = constraint.draft((), (), 16)
    assert tools.tokenizer.decode(forced) == '{"name":'
    assert constraint.draft((), forced[:2], 2) == forced[:2]
    assert constraint.draft((), [*forced[:1], tools.EOS], 16) == forced
    assert constraint.draft(forced, (), 16) == []


@pytest.mark.parametrize("seed", range(40))
def test_random_schemas_close(tools, seed):
    """Random schemas, random choices, tight budgets: always valid."""
    rng = random.Random(seed)
    schema = tools.random_schema(rng)
    shortest = len(tools.constraint(json_schema=schema)._grammar.shortest)
    for slack in (0, 3, 20):
        budget = max(1, shortest + slack)
        output = walk(tools, tools.constraint(budget, json_schema=schema), rng, budget, stay=0.8)
        jsonschema.validate(json.loads(tools.tokenizer.decode(output)), schema)
