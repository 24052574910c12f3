"""One copy of the weights: adapters that act on some rows of a batch and leave the others alone. Plain torch."""
