"""Runs about one's own things: a subject, its words, and the files that stock nodes read."""
