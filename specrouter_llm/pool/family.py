"""A whole family in a larger shape, with the cost ratios of a real one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specrouter_llm.config import ModelSpec
from specrouter_llm.pool.demo import DEMO, DEMO_MEMBERS, full_demo_name
from specrouter_llm.pool.loading import load_config
from specrouter_llm.pool.shapes import family_shapes
from specrouter_llm.pool.source import find_checkpoint


def widened_family(target: str, drafts: Sequence[str] | None, num_parameters: int | str) -> list[ModelSpec]:
    """Specs of a target and its drafters (largest first), the target widened to `num_parameters`, the drafters in the
    proportions of 7B : 1.1B : 68M. Every report about them says "widened".

    Raises:
        UnsupportedModelError: a member is not of the Llama architecture.
    """
    if drafts is None:
        drafts = [f"{DEMO}/{name}" for name in DEMO_MEMBERS[1:]] if target == DEMO else []
    specs = [ModelSpec(full_demo_name(source)) for source in (target, *drafts)]
    shapes = family_shapes([load_config(find_checkpoint(spec)) for spec in specs], num_parameters)
    return [replace(spec, widen=shape) for spec, shape in zip(specs, shapes, strict=True)]
