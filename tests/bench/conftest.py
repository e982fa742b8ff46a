"""A few prompts with numbers, as the embedded family was trained on."""

import pytest

from specrouter_llm.bench.models import Models


@pytest.fixture(scope="session")
def models():
    """The embedded family."""
    return Models.of("demo")


@pytest.fixture(scope="session")
def texts():
    """Three prompts."""
    return [
        "Tom has 3 boxes with 12 pencils each. He gives away 7 pencils. How many pencils are left?",
        "List five animals that live in the sea, one per line.",
        "A train leaves at 9:40 and arrives at 11:05. How many minutes does the journey take?",
    ]
