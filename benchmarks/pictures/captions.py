"""What may be said about a picture."""

from __future__ import annotations

from .labels import Row


def with_style(row: Row) -> str:
    return f"{row.label} {row.style}"


def tagged(row: Row) -> list[str]:
    """One or two tags of emojibase, with and without the style."""
    tags = list(dict.fromkeys(row.tags))
    pairs = [f"{first} {second}" for first, second in zip(tags, tags[1:] + tags[:1], strict=True) if first != second]
    plain = tags + pairs
    return plain + [f"{text} {row.style}" for text in plain]


def every(rows: list[Row]) -> list[str]:
    """All captions of these rows, each once, the empty one first."""
    return list(dict.fromkeys(["", *(text for row in rows for text in (with_style(row), row.label, *tagged(row)))]))
