"""A recipe sampled by the host: the chain, its run, each step, and what a run tells afterwards."""
