"""Models: loading, placement, checks at load, the memory budget, widening and the embedded family."""
