"""Checking proposals with a model, and taking back what was not accepted."""
