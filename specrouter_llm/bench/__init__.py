"""Measurements of the engine, each a module of its own: run by `specrouter bench`, written down in docs/benchmarks."""
