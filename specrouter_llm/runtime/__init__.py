"""One forward pass of one model over a packed ragged batch."""
