"""Grammars over the demo's tokenizer, random JSON schemas, and engines whose models say random things."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer

import specrouter_llm
from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.structured.constraint import RowConstraint
from specrouter_llm.structured.grammar import GrammarCompiler
from specrouter_llm.testing import fake_engine
from specrouter_llm.text.tokenizer import Tokenizer

WIDTH = 4104
"""Wider than the tokenizer's 4,096, as padded logits are."""
EOS = 1


def random_schema(rng: random.Random, depth: int = 2) -> dict:
    """A schema from the keywords that matter for closing: nesting, required keys, bounds, enums, patterns."""
    kinds = ["string", "bounded", "pattern", "integer", "range", "number", "boolean", "null", "enum", "const"]
    kind = rng.choice(kinds + (["object", "object", "array", "array", "any"] if depth else []))
    if kind == "object":
        names = rng.sample(["a", "name", "long_key_name", "x y", "ключ"], rng.randint(0, 4))
        properties = {name: random_schema(rng, depth - 1) for name in names}
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
        return {"type": "array", "items": random_schema(rng, depth - 1), **bounds}
    if kind == "any":
        return {"anyOf": [random_schema(rng, depth - 1) for _ in range(rng.randint(1, 3))]}
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
def tokenizer() -> Tokenizer:
    """The demo's byte-level tokenizer."""
    return Tokenizer(AutoTokenizer.from_pretrained(Path(specrouter_llm.__file__).parent / "data/demo/target"))


@pytest.fixture(scope="session")
def compiler(tokenizer) -> GrammarCompiler:
    """Compiles for padded logits."""
    return GrammarCompiler(tokenizer.to_json, WIDTH, {EOS})


@pytest.fixture(scope="session")
def tools(tokenizer, compiler) -> SimpleNamespace:
    """Helpers for the test modules, which cannot import a conftest."""

    def constraint(max_output: int = 60, end_ids=(EOS,), **spec) -> RowConstraint:
        return RowConstraint(compiler.compile(StructuredOutput(**spec)), end_ids, max_output)

    def ids_of(constraint: RowConstraint, context) -> list[int]:
        mask = constraint.allowed(context)
        return [] if mask is None else mask.nonzero()[:, 0].tolist()

    def engine(seed: int = 0, **options):
        options = {"vocab_size": WIDTH, "eos_token_ids": [EOS], "max_batch": 4} | options
        return fake_engine(seed=seed, tokenizer=tokenizer, **options)

    return SimpleNamespace(
        EOS=EOS,
        WIDTH=WIDTH,
        constraint=constraint,
        engine=engine,
        ids_of=ids_of,
        random_schema=random_schema,
        tokenizer=tokenizer,
    )
