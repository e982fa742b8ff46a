"""What cannot be enforced is refused in words for who wrote the schema, with a way out."""

from __future__ import annotations

import pytest

from specrouter_llm.errors import UnsupportedSchemaError
from specrouter_llm.sampling.structured import StructuredOutput


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "array", "uniqueItems": True}, r"uniqueItems; use a list in place of a set"),
        ({"contains": {"type": "string"}}, r"contains; leave it out, and check the answer"),
        ({"oneOf": [{"type": "integer", "minimum": 0}, {"type": "integer", "maximum": 9}]}, r"oneOf, .* use anyOf"),
        ({"type": "string", "pattern": "^(?!a)b+$"}, r"the pattern \^\(\?!a\)b\+\$, which looks ahead"),
        ({"type": "string", "pattern": r"(a)\1"}, r"the pattern \(a\)\\1, which looks ahead"),
    ],
)
def test_a_refusal_says_what_to_do(compiler, schema, words):
    """And nothing of the backend's own options."""
    with pytest.raises(
        UnsupportedSchemaError, match=f"structured.json_schema: this cannot be enforced: {words}"
    ) as caught:
        compiler.compile(StructuredOutput(json_schema={"properties": {"a": schema}}))
    assert "coerce" not in str(caught.value)
    assert "\n" not in str(caught.value)
