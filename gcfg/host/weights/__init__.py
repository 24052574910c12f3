"""Over one copy of the weights: which clones of a MODEL can run on rows of its batches."""
