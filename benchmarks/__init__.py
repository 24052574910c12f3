"""Measurements and what they need; run from the repository's root, `python -m benchmarks....`."""
