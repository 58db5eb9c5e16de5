"""Terms that compare the logits of the two networks."""
