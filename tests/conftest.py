"""What tests of several rooms need."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from transformers import AutoTokenizer

from specrouter_llm.pool.demo import demo_folder
from specrouter_llm.text.tokenizer import Tokenizer


def make_schema(rng: random.Random, depth: int = 2) -> dict:
    """A schema from the keywords that matter for closing: nesting, required keys, bounds, enums, patterns."""
    kinds = ["string", "bounded", "pattern", "integer", "range", "number", "boolean", "null", "enum", "const"]
    kind = rng.choice(kinds + (["object", "object", "array", "array", "any"] if depth else []))
    if kind == "object":
        names = rng.sample(["a", "name", "long_key_name", "x y", "ключ"], rng.randint(0, 4))
        properties = {name: make_schema(rng, depth - 1) for name in names}
        required = [name for name in names if rng.random() < 0.7]
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": rng.random() < 0.3,
        }
    if kind == "array":
        least = rng.randint(0, 2)
        bounds = {"minItems": least} | ({"maxItems": least + rng.randint(0, 3)} if rng.random() < 0.5 else {})
        return {"type": "array", "items": make_schema(rng, depth - 1), **bounds}
    if kind == "any":
        return {"anyOf": [make_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
    least = rng.randint(-50, 50)
    simple = {
        "bounded": {"type": "string", "minLength": least % 7, "maxLength": least % 7 + rng.randint(0, 9)},
        "pattern": {"type": "string", "pattern": rng.choice(["^[a-z]{2,4}-[0-9]+$", "^(ab|cd)*e$", "^[A-Z][a-z]*$"])},
        "range": {"type": "integer", "minimum": least, "maximum": least + rng.randint(0, 300)},
        "enum": {"enum": rng.sample(["red", "green", 3, None, True, "a longer one"], rng.randint(1, 4))},
        "const": {"const": rng.choice(["fixed", 7, {"k": [1]}])},
    }
    return simple.get(kind, {"type": kind})


@pytest.fixture(scope="session")
def random_schema() -> Callable[..., dict]:
    """`random_schema(rng)` makes a JSON schema."""
    return make_schema


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """The demo's byte-level tokenizer."""
    return Tokenizer(AutoTokenizer.from_pretrained(demo_folder("target")))
