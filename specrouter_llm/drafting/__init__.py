"""Level 0: proposals that need no model."""
