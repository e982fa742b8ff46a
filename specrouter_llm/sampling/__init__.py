"""From logits to a token: parameters, score processing, keyed noise and the choice rule."""
