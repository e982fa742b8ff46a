"""Plans: which chain, which windows. Numbers and names only: nothing here knows tensors, tokens or models."""
