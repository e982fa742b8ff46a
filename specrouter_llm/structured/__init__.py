"""Structured output: grammars that a row's tokens must follow, and how they are closed within a budget."""
