"""Attention patches on a MODEL of the host: pictures that look at others, and regions that words take."""
