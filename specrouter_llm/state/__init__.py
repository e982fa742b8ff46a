"""Who owns which cache slot, how much of it is valid in every model, and what has been committed."""
