"""Models: loading, placement, checks at load, the memory budget, widening and the embedded family."""

from specrouter_llm.pool.budget import MemoryReport
from specrouter_llm.pool.demo import DEMO_MEMBERS, demo_folder
from specrouter_llm.pool.pool import ModelPool, PoolMember
from specrouter_llm.pool.shapes import FAMILY_RATIO, family_shapes, shape_for
from specrouter_llm.pool.widen import widen

__all__ = [
    "DEMO_MEMBERS",
    "FAMILY_RATIO",
    "MemoryReport",
    "ModelPool",
    "PoolMember",
    "demo_folder",
    "family_shapes",
    "shape_for",
    "widen",
]
