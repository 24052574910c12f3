"""Attention across the rows of a batch and over the words of a prompt, in plain torch."""
