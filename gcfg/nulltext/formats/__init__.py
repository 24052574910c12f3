"""Concept files: full checkpoints, adapters and stock LoRA files, told apart, checked against a base, written whole."""
