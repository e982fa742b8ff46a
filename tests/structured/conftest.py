"""Grammars over the demo's tokenizer, and engines whose models say random things."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from specrouter_llm.sampling.structured import StructuredOutput
from specrouter_llm.structured.constraint import RowConstraint
from specrouter_llm.structured.grammar import GrammarCompiler
from specrouter_llm.testing import fake_engine

WIDTH = 4104
"""Wider than the tokenizer's 4,096, as padded logits are."""
EOS = 1


@pytest.fixture(scope="session")
def compiler(tokenizer) -> GrammarCompiler:
    """Compiles for padded logits."""
    return GrammarCompiler(tokenizer.to_json, WIDTH, {EOS})


@pytest.fixture(scope="session")
def tools(tokenizer, compiler, random_schema) -> SimpleNamespace:
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
